//! Initialisation, errors, devices, primary contexts.

use crate::abi::{Code, DRIVER_VERSION};
use crate::entry::{driver_api, put, put_if_asked, refuse};
use crate::state::Driver;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

pub const NAME: &str = "Virtual GPU (no hardware)";

driver_api! {
    /// Reads the environment and makes the devices.
    fn cuInit(flags: c_uint) {
        Driver::init()?;
        if flags == 0 { Ok(()) } else { Err(Code::INVALID_VALUE) }
    }

    fn cuDriverGetVersion(version: *mut c_int) {
        put(version, DRIVER_VERSION)
    }

    /// The name of a code, as in the header.
    fn cuGetErrorName(code: u32, name: *mut *const c_char) {
        let text = Code(code).name().ok_or(Code::INVALID_VALUE)?;
        put(name, text.as_ptr().cast())
    }

    /// The same as the name: the wording of the real driver is not reproduced.
    fn cuGetErrorString(code: u32, text: *mut *const c_char) {
        let name = Code(code).name().ok_or(Code::INVALID_VALUE)?;
        put(text, name.as_ptr().cast())
    }

    /// Finds a function of this library by its name without version.
    fn cuGetProcAddress_v2(
        symbol: *const c_char,
        function: *mut *mut c_void,
        _version: c_int,
        _flags: u64,
        status: *mut c_uint,
    ) {
        if symbol.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let found = find_symbol(CStr::from_ptr(symbol));
        put(function, found)?;
        put_if_asked(status, u32::from(found.is_null()));
        if found.is_null() { Err(Code::NOT_FOUND) } else { Ok(()) }
    }

    fn cuDeviceGetCount(count: *mut c_int) {
        put(count, Driver::get()?.config.num_devices as c_int)
    }

    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        Driver::get()?.device(ordinal)?;
        put(device, ordinal)
    }

    fn cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) {
        Driver::get()?.device(device)?;
        if name.is_null() || len <= 0 {
            return Err(Code::INVALID_VALUE);
        }
        let bytes = NAME.as_bytes();
        let shown = bytes.len().min(len as usize - 1);
        std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), name, shown);
        put(name.add(shown), 0)
    }

    fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) {
        let ordinal = Driver::get()?.device(device)?;
        let mut bytes = *b"virtual gpu no \0";
        bytes[15] = b'0' + ordinal as u8;
        put(uuid, bytes)
    }

    fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) {
        cuDeviceGetUuid(uuid, device).ok()
    }

    fn cuDeviceGetPCIBusId(id: *mut c_char, len: c_int, device: c_int) {
        let ordinal = Driver::get()?.device(device)?;
        let text = format!("0000:{ordinal:02x}:00.0\0");
        if id.is_null() || (len as usize) < text.len() {
            return Err(Code::INVALID_VALUE);
        }
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), id, text.len());
        Ok(())
    }

    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) {
        let driver = Driver::get()?;
        driver.device(device)?;
        put(bytes, driver.config.memory_bytes as usize)
    }

    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, device: c_int) {
        let driver = Driver::get()?;
        let ordinal = driver.device(device)?;
        let known = driver.config.model.attribute(attribute, ordinal);
        put(value, known.ok_or(Code::INVALID_VALUE)?)
    }

    fn cuDeviceComputeCapability(major: *mut c_int, minor: *mut c_int, device: c_int) {
        let driver = Driver::get()?;
        driver.device(device)?;
        put(major, driver.config.model.major as c_int)?;
        put(minor, driver.config.model.minor as c_int)
    }

    /// No: a kernel here reaches the memory of its own device only. Copies between devices work.
    fn cuDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) {
        let driver = Driver::get()?;
        driver.device(device)?;
        driver.device(peer)?;
        put(can, 0)
    }

    fn cuDeviceGetP2PAttribute(value: *mut c_int, _attribute: c_uint, from: c_int, to: c_int) {
        let driver = Driver::get()?;
        if driver.device(from)? == driver.device(to)? {
            return Err(Code::INVALID_DEVICE);
        }
        put(value, 0)
    }

    fn cuDevicePrimaryCtxRetain(context: *mut u64, device: c_int) {
        let driver = Driver::get()?;
        let ordinal = driver.device(device)?;
        let mut state = driver.lock();
        if let Some(code) = state.devices[ordinal].lost {
            return Err(code);
        }
        let primary = match state.devices[ordinal].primary {
            Some(primary) => primary,
            None => state.new_context(ordinal),
        };
        state.devices[ordinal].primary = Some(primary);
        state.devices[ordinal].primary_retains += 1;
        put(context, primary)
    }

    /// The last release waits for the context's work and destroys it.
    fn cuDevicePrimaryCtxRelease_v2(device: c_int) {
        let driver = Driver::get()?;
        let ordinal = driver.device(device)?;
        let mut state = driver.lock();
        let Some(primary) = state.devices[ordinal].primary else {
            return Err(Code::INVALID_CONTEXT);
        };
        state.devices[ordinal].primary_retains -= 1;
        if state.devices[ordinal].primary_retains > 0 {
            return Ok(());
        }
        if state.check_context(primary).is_ok() {
            state = driver.run_until(ordinal, state, |state| {
                state.queue.context_is_idle(primary) || state.check_context(primary).is_err()
            });
        }
        state.devices[ordinal].primary = None;
        state.destroy_context(primary, &driver.memories);
        Ok(())
    }

    /// Destroys the primary context with all that lives in it. This clears a sticky error.
    fn cuDevicePrimaryCtxReset_v2(device: c_int) {
        let driver = Driver::get()?;
        let ordinal = driver.device(device)?;
        let mut state = driver.lock();
        if let Some(code) = state.devices[ordinal].lost {
            return Err(code);
        }
        let Some(primary) = state.devices[ordinal].primary else { return Ok(()) };
        state.destroy_context(primary, &driver.memories);
        state.devices[ordinal].primary = None;
        state.devices[ordinal].primary_retains = 0;
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(device: c_int, flags: *mut c_uint, is_active: *mut c_int) {
        let driver = Driver::get()?;
        let ordinal = driver.device(device)?;
        put(flags, 0)?;
        put(is_active, c_int::from(driver.lock().devices[ordinal].primary.is_some()))
    }

    /// Only the default flags exist.
    fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, _flags: c_uint) {
        Driver::get()?.device(device)?;
        Ok(())
    }

    /// Managed memory is not built.
    fn cuMemAllocManaged(_address: *mut u64, _bytes: usize, _flags: c_uint) {
        refuse("cuMemAllocManaged", Code::NOT_SUPPORTED, "managed memory is not built")
    }
}

/// The newest version of a function, as the linker names it.
fn find_symbol(name: &CStr) -> *mut c_void {
    // SAFETY: `info` is filled by dladdr with strings that live as long as the library, which is
    // never unloaded; the handle is of a library that is already loaded.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        let own_address = find_symbol as fn(&CStr) -> *mut c_void as *const c_void;
        if libc::dladdr(own_address, &mut info) == 0 {
            return std::ptr::null_mut();
        }
        let library = libc::dlopen(info.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        if library.is_null() {
            return std::ptr::null_mut();
        }
        let name = name.to_string_lossy();
        let candidates = ["_v4", "_v3", "_v2", ""].map(|version| format!("{name}{version}\0"));
        candidates
            .iter()
            .map(|candidate| libc::dlsym(library, candidate.as_ptr().cast()))
            .find(|found| !found.is_null())
            .unwrap_or(std::ptr::null_mut())
    }
}
