//! Libraries that are looked for at run time, so that nothing is linked that a machine may lack.

#![allow(unsafe_code)]

use crate::KernelError;
use std::ffi::{CStr, c_void};

/// A library that was opened, for as long as the process lives.
#[derive(Debug, Clone, Copy)]
pub struct Library {
    /// As people call it, in messages.
    name: &'static str,
    handle: *mut c_void,
}

// SAFETY: the handle is never closed, and looking a name up in it is allowed on any thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// The first of `files` that the system's loader finds. `name` is for messages.
    pub fn open(name: &'static str, files: &[&CStr]) -> Option<Library> {
        let open = |file: &&CStr| {
            // SAFETY: the name ends with a zero byte; the library's own start-up code is trusted as
            // the driver is.
            let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            (!handle.is_null()).then_some(handle)
        };
        files.iter().find_map(open).map(|handle| Library { name, handle })
    }

    /// The address of a function, as the function it is.
    ///
    /// Errors: `Device` when the library has none of that name.
    ///
    /// # Safety
    /// `F` is a function pointer of the type that the library declares for `name`.
    pub unsafe fn function<F: Copy>(&self, name: &CStr) -> Result<F, KernelError> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>(), "a function pointer") };
        // SAFETY: the handle was opened and is never closed; the name ends with a zero byte.
        let address = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        if address.is_null() {
            let reason = format!("the {} found has no {}", self.name, name.to_string_lossy());
            return Err(KernelError::Device(reason));
        }
        // SAFETY: of the same size, not null, and of the type that the caller vouches for.
        Ok(unsafe { std::mem::transmute_copy(&address) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_not_found() {
        assert!(Library::open("nothing", &[c"libmonsoon-has-no-such-library.so"]).is_none());
        // The C library is in every process of this test.
        let Some(libc) = Library::open("libc", &[c"libc.so.6"]) else { return };
        type Abs = unsafe extern "C" fn(i32) -> i32;
        // SAFETY: the C standard declares it so.
        let abs = unsafe { libc.function::<Abs>(c"abs") }.expect("the C library has it");
        // SAFETY: it takes any number but the least.
        assert_eq!(unsafe { abs(-7) }, 7);
        // SAFETY: it does not exist, so nothing is called.
        let missing = unsafe { libc.function::<Abs>(c"monsoon_has_no_such_function") };
        let text = missing.expect_err("not there").to_string();
        assert!(text.contains("libc") && text.contains("monsoon_has_no_such_function"), "{text}");
    }
}
