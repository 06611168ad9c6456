//! The compiled kernels that this binary carries.

use crate::KernelError;

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Whether the binary holds any kernels: not so when it was built without nvcc.
pub fn has_kernels() -> bool {
    !IMAGES.is_empty()
}

/// Names of all modules, each a `.cu` file.
pub fn modules() -> impl Iterator<Item = &'static str> {
    IMAGES.iter().map(|(name, _)| *name)
}

/// All modules as they are packed: two builds with the same bytes run the same kernels.
pub fn packed() -> impl Iterator<Item = &'static [u8]> {
    IMAGES.iter().map(|(_, bytes)| *bytes)
}

/// The fatbin of a module: machine code for several architectures, and PTX.
///
/// Errors: `Device` when the binary does not hold it.
pub fn image(module: &str) -> Result<Vec<u8>, KernelError> {
    /// Far above the largest module.
    const IMAGE_BYTES_MAX: usize = 256 << 20;
    let found = IMAGES.iter().find(|(name, _)| *name == module);
    let (_, packed) = found.ok_or_else(|| {
        KernelError::Device(format!("this binary holds no CUDA kernels for {module}"))
    })?;
    let size = zstd::zstd_safe::get_frame_content_size(packed).ok().flatten();
    let size = usize::try_from(size.unwrap_or(0)).unwrap_or(usize::MAX);
    assert!(size <= IMAGE_BYTES_MAX, "{module} unpacks to {size} bytes");
    Ok(zstd::bulk::decompress(packed, size).expect("packed by the build script"))
}
