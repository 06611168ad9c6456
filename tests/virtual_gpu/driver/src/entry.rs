//! How a call enters the driver.

use crate::abi::{Code, Result};
use crate::state::{Driver, in_callback};

/// Defines functions of the driver's C interface. The body yields `Result<()>` and may dereference
/// what the API's contract says it may.
macro_rules! driver_api {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block
    )*) => {$(
        $(#[$meta])*
        ///
        /// # Safety
        /// Pointers must be what the CUDA Driver API reference says of this function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> $crate::abi::Code {
            #[allow(unused_unsafe)]
            // SAFETY: the caller keeps the contract of the CUDA Driver API: pointers are valid or
            // null, and null is checked where it is an error rather than a meaning.
            $crate::entry::call(stringify!($name), || unsafe { $body })
        }
    )*};
}
pub(crate) use driver_api;

/// Runs a call: refuses it inside a host function, traces it, turns its result into a code.
pub fn call(name: &str, body: impl FnOnce() -> Result<()>) -> Code {
    let code = if in_callback() {
        eprintln!("virtual GPU: {name} refused: host functions must not call the driver");
        Code::NOT_PERMITTED
    } else {
        body().err().unwrap_or(Code::SUCCESS)
    };
    if let Ok(driver) = Driver::get()
        && driver.config.trace
    {
        let thread = std::thread::current().id();
        eprintln!("virtual GPU: {thread:?} {name} -> {}", code.0);
    }
    code
}

/// Refuses a call that breaks a rule, and says so once per call on stderr.
pub fn refuse<T>(call: &str, code: Code, why: &str) -> Result<T> {
    eprintln!("virtual GPU: {call} refused: {why}");
    if let Ok(driver) = Driver::get() {
        *driver.report().api_refusals.entry(call.to_owned()).or_default() += 1;
    }
    Err(code)
}

/// Stores a result behind a pointer of the program.
///
/// Errors: `INVALID_VALUE` for a null pointer.
///
/// # Safety
/// `out` is null or points at room for a `T`.
pub unsafe fn put<T>(out: *mut T, value: T) -> Result<()> {
    if out.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: not null, so room for a `T`, perhaps not aligned as Rust wants it.
    unsafe { out.write_unaligned(value) };
    Ok(())
}

/// As `put`, for results that a program may leave out.
///
/// # Safety
/// As `put`.
pub unsafe fn put_if_asked<T>(out: *mut T, value: T) {
    // SAFETY: as the caller promised.
    let _ = unsafe { put(out, value) };
}
