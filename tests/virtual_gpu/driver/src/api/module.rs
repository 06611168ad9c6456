//! Modules and functions.

use crate::abi::{BLOCK_THREADS_MAX, Code, DevicePtr, Result, function_attribute};
use crate::entry::{driver_api, put, put_if_asked, refuse};
use crate::fatbin;
use crate::launch::dynamic_shared_default;
use crate::module::Module;
use crate::state::{Allocation, AllocationOwner, LoadedFunction, LoadedModule, current};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

driver_api! {
    /// Takes the PTX out of a fat binary, or PTX text.
    fn cuModuleLoadData(module: *mut u64, image: *const c_void) {
        load("cuModuleLoadData", module, image.cast())
    }

    /// As `cuModuleLoadData`: no option of the compiler has an effect here.
    fn cuModuleLoadDataEx(
        module: *mut u64,
        image: *const c_void,
        _num_options: c_uint,
        _options: *const c_uint,
        _values: *const *const c_void,
    ) {
        load("cuModuleLoadDataEx", module, image.cast())
    }

    fn cuModuleLoadFatBinary(module: *mut u64, image: *const c_void) {
        load("cuModuleLoadFatBinary", module, image.cast())
    }

    fn cuModuleLoad(module: *mut u64, path: *const c_char) {
        if path.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let path = CStr::from_ptr(path).to_string_lossy();
        let mut image = std::fs::read(&*path).map_err(|_| Code::FILE_NOT_FOUND)?;
        // PTX text ends with a zero.
        image.push(0);
        load("cuModuleLoad", module, image.as_ptr())
    }

    /// Work that was enqueued keeps what it needs.
    fn cuModuleUnload(module: u64) {
        let (_driver, mut state, _context) = current()?;
        state.refuse_during_capture("cuModuleUnload")?;
        let module = state.modules.remove(&module).ok_or(Code::INVALID_HANDLE)?;
        for function in module.functions {
            state.functions.remove(&function);
        }
        Ok(())
    }

    fn cuModuleGetFunction(function: *mut u64, module: u64, name: *const c_char) {
        let (_driver, mut state, context) = current()?;
        if name.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let name = CStr::from_ptr(name).to_str().map_err(|_| Code::NOT_FOUND)?;
        let loaded = state.modules.get(&module).ok_or(Code::INVALID_HANDLE)?;
        let known = loaded.functions.iter().find(|f| state.functions[f].function.name == name);
        if let Some(known) = known {
            return put(function, *known);
        }
        let found = Arc::new(loaded.module.function(name)?);
        let dynamic_shared_bytes_max = dynamic_shared_default(&found);
        let handle = state.new_handle();
        let loaded = LoadedFunction { context, function: found, dynamic_shared_bytes_max };
        state.functions.insert(handle, loaded);
        state.modules.get_mut(&module).ok_or(Code::INVALID_HANDLE)?.functions.push(handle);
        put(function, handle)
    }

    fn cuModuleGetFunctionCount(count: *mut c_uint, module: u64) {
        let (_driver, state, _context) = current()?;
        let loaded = state.modules.get(&module).ok_or(Code::INVALID_HANDLE)?;
        put(count, loaded.module.ptx.kernels().len() as c_uint)
    }

    fn cuModuleGetGlobal_v2(
        address: *mut DevicePtr,
        bytes: *mut usize,
        module: u64,
        name: *const c_char,
    ) {
        let (driver, mut state, context) = current()?;
        if name.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let name = CStr::from_ptr(name).to_str().map_err(|_| Code::NOT_FOUND)?;
        let loaded = state.modules.get(&module).ok_or(Code::INVALID_HANDLE)?;
        let device = state.device_of(context);
        let memory = &driver.memories[device];
        let (start, size) = memory.variable(&loaded.module.ptx, name).ok_or(Code::NOT_FOUND)?;
        let owner = AllocationOwner::Module;
        let variable = Allocation { bytes: size, device, context, owner };
        // From the first time on the program may copy to and from it.
        let before = state.allocations.insert(start, variable);
        state.devices[device].used_bytes += if before.is_none() { size } else { 0 };
        put_if_asked(address, start);
        put_if_asked(bytes, size as usize);
        Ok(())
    }

    /// Everything is loaded at once.
    fn cuModuleGetLoadingMode(mode: *mut c_uint) {
        put(mode, 1)
    }

    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_uint, function: u64) {
        let (driver, state, _context) = current()?;
        let loaded = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        let function = &loaded.function;
        put(value, match attribute {
            function_attribute::MAX_THREADS_PER_BLOCK => {
                function.block_threads_max.min(BLOCK_THREADS_MAX)
            }
            function_attribute::SHARED_SIZE_BYTES => function.static_shared_bytes,
            function_attribute::CONST_SIZE_BYTES | function_attribute::CACHE_MODE_CA => 0,
            function_attribute::LOCAL_SIZE_BYTES => function.local_bytes,
            function_attribute::NUM_REGS => match function.registers {
                Some(registers) => registers,
                None => {
                    let why = "registers are known only if the image holds a cubin for this device";
                    return refuse("cuFuncGetAttribute", Code::NOT_SUPPORTED, why);
                }
            },
            function_attribute::PTX_VERSION => function.module.ptx_version,
            function_attribute::BINARY_VERSION => driver.config.model.sm(),
            function_attribute::MAX_DYNAMIC_SHARED_SIZE_BYTES => loaded.dynamic_shared_bytes_max,
            function_attribute::PREFERRED_SHARED_MEMORY_CARVEOUT => return put(value, -1),
            _ => return Err(Code::INVALID_VALUE),
        } as c_int)
    }

    /// Dynamic shared memory above 48 KiB is asked for here, up to what the device has.
    fn cuFuncSetAttribute(function: u64, attribute: c_uint, value: c_int) {
        let (driver, mut state, _context) = current()?;
        let loaded = state.functions.get_mut(&function).ok_or(Code::INVALID_HANDLE)?;
        match attribute {
            function_attribute::MAX_DYNAMIC_SHARED_SIZE_BYTES => {
                let optin = driver.config.model.shared_optin_bytes;
                let limit = optin.saturating_sub(loaded.function.static_shared_bytes);
                match u32::try_from(value) {
                    Ok(bytes) if bytes <= limit => loaded.dynamic_shared_bytes_max = bytes,
                    _ => {
                        let why = format!("{value} bytes of shared memory, at most {limit}");
                        return refuse("cuFuncSetAttribute", Code::INVALID_VALUE, &why);
                    }
                }
                Ok(())
            }
            function_attribute::PREFERRED_SHARED_MEMORY_CARVEOUT => {
                if (-1..=100).contains(&value) { Ok(()) } else { Err(Code::INVALID_VALUE) }
            }
            _ => Err(Code::INVALID_VALUE),
        }
    }

    /// A hint without effect on results.
    fn cuFuncSetCacheConfig(function: u64, _config: c_uint) {
        let (_driver, state, _context) = current()?;
        state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        Ok(())
    }

    /// The name lives as long as its module.
    fn cuFuncGetName(name: *mut *const c_char, function: u64) {
        let (_driver, state, _context) = current()?;
        let loaded = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        put(name, loaded.function.c_name.as_ptr())
    }

    fn cuFuncGetModule(module: *mut u64, function: u64) {
        let (_driver, state, _context) = current()?;
        let owner = state.modules.iter().find(|(_, module)| module.functions.contains(&function));
        put(module, *owner.ok_or(Code::INVALID_HANDLE)?.0)
    }

    /// Offset and size of a parameter; `INVALID_VALUE` behind the last one.
    fn cuFuncGetParamInfo(function: u64, index: usize, offset: *mut usize, bytes: *mut usize) {
        let (_driver, state, _context) = current()?;
        let loaded = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        let param = loaded.function.params.get(index).ok_or(Code::INVALID_VALUE)?;
        put(offset, param.0)?;
        put_if_asked(bytes, param.1);
        Ok(())
    }
}

/// # Safety
/// As `put`, and as `fatbin::find_ptx`.
unsafe fn load(call: &str, out: *mut u64, image: *const u8) -> Result<()> {
    let (driver, mut state, context) = current()?;
    if image.is_null() || out.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    state.refuse_during_capture(call)?;
    let sm = driver.config.model.sm();
    // SAFETY: as the caller promised.
    let mut image = unsafe { fatbin::find_ptx(image, sm) }?;
    for kernel in &driver.config.bugs {
        image.plant_bug(kernel);
    }
    // Parsing takes a while; other threads may work meanwhile.
    drop(state);
    let module = Arc::new(Module::load(image, sm)?);
    let mut state = driver.lock();
    let handle = state.new_handle();
    state.modules.insert(handle, LoadedModule { context, module, functions: Vec::new() });
    // SAFETY: as the caller promised.
    unsafe { put(out, handle) }
}
