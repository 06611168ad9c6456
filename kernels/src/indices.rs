//! `Indices`: whole numbers that steer an op, such as token ids, positions and slots.

/// The host always has the numbers and checks them. For a GPU, whoever queues the step copies them
/// to the device and notes the address (`set_device`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indices {
    host: Vec<u32>,
    device: Option<u64>,
}

impl Indices {
    /// Empties the list; memory stays, and the device's copy no longer counts.
    pub fn clear(&mut self) {
        self.host.clear();
        self.device = None;
    }

    pub fn push(&mut self, index: u32) {
        self.host.push(index);
        self.device = None;
    }

    pub fn extend_from_slice(&mut self, indices: &[u32]) {
        self.host.extend_from_slice(indices);
        self.device = None;
    }

    /// Notes where the device's copy lies. It holds these numbers at the time the op runs, and may
    /// be longer: what follows is padding for a recorded step.
    pub fn set_device(&mut self, address: u64) {
        self.device = Some(address);
    }

    /// Panics when the numbers were not copied to the device.
    pub fn device_ptr(&self) -> u64 {
        self.device.expect("the step's indices were copied to the device")
    }
}

impl std::ops::Deref for Indices {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        &self.host
    }
}

impl From<Vec<u32>> for Indices {
    fn from(host: Vec<u32>) -> Indices {
        Indices { host, device: None }
    }
}

impl From<&[u32]> for Indices {
    fn from(indices: &[u32]) -> Indices {
        indices.to_vec().into()
    }
}
