//! Loaded modules and their kernels.

use crate::abi::{Code, Result};
use crate::fatbin::{self, Image};

pub struct Module {
    pub ptx: virtual_gpu::Module,
    cubin: Option<Vec<u8>>,
    /// As `.version` says: 90 for PTX 9.0.
    pub ptx_version: u32,
}

/// A kernel of a module.
pub struct Function {
    pub module: std::sync::Arc<Module>,
    pub name: String,
    /// The name with its closing zero, for `cuFuncGetName`.
    pub c_name: std::ffi::CString,
    /// Offset and size of each parameter.
    pub params: Vec<(usize, usize)>,
    pub param_bytes: usize,
    pub static_shared_bytes: u32,
    pub local_bytes: u32,
    /// From `__launch_bounds__`, else the device's limit.
    pub block_threads_max: u32,
    /// Known if the image held a cubin for this architecture.
    pub registers: Option<u32>,
}

/// The newest PTX that a driver of version 13.0 reads.
const PTX_VERSION_MAX: u32 = 90;

impl Module {
    /// Parses the PTX of an image.
    ///
    /// Errors: `UNSUPPORTED_PTX_VERSION` for PTX newer than this driver; `INVALID_PTX` for PTX that
    /// the engine does not know; each with a line on stderr.
    pub fn load(image: Image, sm: u32) -> Result<Module> {
        let ptx_version = directive(&image.ptx, ".version").unwrap_or(0);
        if ptx_version > PTX_VERSION_MAX {
            eprintln!(
                "virtual GPU: the module's PTX is of version {ptx_version}, the driver knows \
                       up to {PTX_VERSION_MAX} (in tenths)"
            );
            return Err(Code::UNSUPPORTED_PTX_VERSION);
        }
        let target = directive(&image.ptx, ".target sm_").unwrap_or(0);
        if target > sm {
            eprintln!("virtual GPU: the module's PTX is for sm_{target}, the device is sm_{sm}");
            return Err(Code::NO_BINARY_FOR_GPU);
        }
        let ptx = virtual_gpu::Module::parse(&image.ptx).map_err(|error| {
            eprintln!("virtual GPU: the module's PTX was refused: {error}");
            Code::INVALID_PTX
        })?;
        Ok(Module { ptx, cubin: image.cubin, ptx_version })
    }

    /// Errors: `NOT_FOUND`.
    pub fn function(self: &std::sync::Arc<Module>, name: &str) -> Result<Function> {
        let kernel = self.ptx.kernel(name).ok_or(Code::NOT_FOUND)?;
        let bounds = kernel.max_threads().map(|sides| sides.iter().product());
        Ok(Function {
            module: self.clone(),
            name: name.to_owned(),
            c_name: std::ffi::CString::new(name).map_err(|_| Code::NOT_FOUND)?,
            params: kernel.params().iter().map(|param| (param.offset, param.size)).collect(),
            param_bytes: kernel.param_bytes(),
            static_shared_bytes: kernel.static_shared_bytes(),
            local_bytes: kernel.local_bytes(),
            block_threads_max: bounds.unwrap_or(crate::abi::BLOCK_THREADS_MAX),
            registers: self.cubin.as_ref().and_then(|cubin| fatbin::registers_of(cubin, name)),
        })
    }
}

/// The digits after a directive, without a dot between them: 90 for `.version 9.0`.
fn directive(ptx: &str, directive: &str) -> Option<u32> {
    let rest = ptx.split_once(directive)?.1.trim_start();
    let digits: String = rest
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .filter(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
}
