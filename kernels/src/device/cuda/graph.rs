//! Work recorded once and replayed: CUDA graphs and events.

use super::{CudaDevice, check};
use crate::KernelError;
use cudarc::driver::{result, sys};

/// A recorded sequence of launches and copies. Addresses and numbers are those of the recording;
/// what changes between replays must be read from device memory.
pub struct Graph {
    device: CudaDevice,
    exec: sys::CUgraphExec,
}

// SAFETY: a handle of the driver, which may be used from any thread that binds the context.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` queues on the device's stream; nothing of it runs.
    ///
    /// Errors: those of `work`, and `Device` when it did something that cannot be recorded.
    pub fn record(
        device: &CudaDevice,
        work: impl FnOnce() -> Result<(), KernelError>,
    ) -> Result<Graph, KernelError> {
        device.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive as long as the device.
        check(unsafe { result::stream::begin_capture(device.stream(), mode) })?;
        let worked = work();
        // SAFETY: as above. Ended also after an error, or the stream would stay in capture.
        let graph = unsafe { result::stream::end_capture(device.stream()) };
        worked?;
        let graph = graph?;
        // SAFETY: the graph came from the capture and is destroyed below, once.
        let exec = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        // SAFETY: as above; an instance does not need its graph.
        let destroyed = unsafe { result::graph::destroy(graph) };
        let exec = exec?;
        check(destroyed)?;
        Ok(Graph { device: device.clone(), exec })
    }

    /// Queues one replay.
    pub fn launch(&self) -> Result<(), KernelError> {
        self.device.bind()?;
        // SAFETY: instance and stream are alive.
        check(unsafe { result::graph::launch(self.exec, self.device.stream()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: made in `record`, destroyed here alone.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}

/// A mark in the device's stream.
pub struct Event {
    device: CudaDevice,
    event: sys::CUevent,
}

// SAFETY: as for `Graph`.
unsafe impl Send for Event {}

impl Event {
    pub fn new(device: &CudaDevice) -> Result<Event, KernelError> {
        device.bind()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?;
        Ok(Event { device: device.clone(), event })
    }

    /// Sets the mark after all work queued so far.
    pub fn record(&self) -> Result<(), KernelError> {
        self.device.bind()?;
        // SAFETY: event and stream are alive.
        check(unsafe { result::event::record(self.event, self.device.stream()) })
    }

    /// Whether all work before the mark is done.
    pub fn is_done(&self) -> Result<bool, KernelError> {
        self.device.bind()?;
        // SAFETY: the event is alive.
        match unsafe { result::event::query(self.event) } {
            Ok(()) => Ok(true),
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits until all work before the mark is done.
    pub fn wait(&self) -> Result<(), KernelError> {
        self.device.bind()?;
        // SAFETY: the event is alive.
        check(unsafe { result::event::synchronize(self.event) })
    }

    /// Milliseconds between two marks that have passed.
    pub fn elapsed_ms(&self, later: &Event) -> Result<f32, KernelError> {
        self.device.bind()?;
        // SAFETY: both events are alive.
        Ok(unsafe { result::event::elapsed(self.event, later.event) }?)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: made in `new`, destroyed here alone.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}
