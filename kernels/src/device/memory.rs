//! Host memory aligned for the widest vector loads.
#![allow(unsafe_code)]

use half::{bf16, f16};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// One cache line, and one AVX-512 register.
pub const ALIGNMENT: usize = 64;
/// A huge page; memory of several of them begins on such a border.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// From here on memory is asked for in huge pages: reading a KV cache in small ones misses the
/// address cache on every page.
const HUGE_BYTES_MIN: usize = 4 * HUGE_PAGE_BYTES;
/// Up to here the allocator zeroes large memory by mapping it, which takes no time: pages come as
/// they are first written. With a larger alignment it would write zeros to all of it, and a server
/// with a large KV cache starts seconds later.
const MAPPED_ALIGNMENT_MAX: usize = 16;

/// Number types that may live in an `AlignedVec`: any bit pattern is a value, and all zeros is
/// zero.
pub trait Element: sealed::Sealed + Copy + Send + Sync + Default + 'static {}
mod sealed {
    pub trait Sealed {}
}
macro_rules! elements {
    ($($t:ty),*) => { $(impl sealed::Sealed for $t {} impl Element for $t {})* };
}
elements!(u8, i8, u16, i16, i32, u32, f32, f64, f16, bf16);

/// A fixed-length array on a 64-byte boundary, zeroed when made; its address never changes.
pub struct AlignedVec<T: Element> {
    ptr: NonNull<T>,
    len: usize,
    /// What the allocator gave; dangling if there is nothing to give back.
    base: NonNull<u8>,
}

impl<T: Element> AlignedVec<T> {
    /// Errors: `None` when the size overflows or the allocator has no such memory.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        let layout = Self::layout(len)?;
        if layout.size() == 0 {
            return Some(Self { ptr: NonNull::dangling(), len, base: NonNull::dangling() });
        }
        // SAFETY: the layout has a non-zero size, checked above.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let ptr = match layout.size() >= HUGE_BYTES_MIN {
            true => huge_pages(base, layout),
            false => base,
        };
        Some(Self { ptr: ptr.cast::<T>(), len, base })
    }

    pub fn zeroed(len: usize) -> Self {
        Self::try_zeroed(len).expect("out of memory")
    }

    pub fn from_slice(values: &[T]) -> Self {
        let mut out = Self::zeroed(values.len());
        out.copy_from_slice(values);
        out
    }

    /// Writes to every page of a range of values, which changes none of them: the system then has
    /// to find the memory now, not when the values are first used.
    pub fn touch(&mut self, values: std::ops::Range<usize>) {
        const SMALL_PAGE_BYTES: usize = 4096;
        for value in self[values].iter_mut().step_by(SMALL_PAGE_BYTES / size_of::<T>()) {
            *value = std::hint::black_box(*value);
        }
    }

    fn layout(len: usize) -> Option<Layout> {
        let bytes = len.checked_mul(size_of::<T>())?;
        match bytes >= HUGE_BYTES_MIN {
            // With room to begin on a page border.
            true => {
                let bytes = bytes.checked_add(HUGE_PAGE_BYTES)?;
                Layout::from_size_align(bytes, MAPPED_ALIGNMENT_MAX).ok()
            }
            false => Layout::from_size_align(bytes, ALIGNMENT).ok(),
        }
    }
}

/// The first page border in memory that begins at `base`. `layout` has a page more than is needed.
fn huge_pages(base: NonNull<u8>, layout: Layout) -> NonNull<u8> {
    assert!(layout.size() >= HUGE_BYTES_MIN, "not worth huge pages");
    let skipped = base.as_ptr().align_offset(HUGE_PAGE_BYTES);
    assert!(skipped < HUGE_PAGE_BYTES, "a border is less than a page away");
    // SAFETY: `skipped` is less than a page, and the memory is longer than that.
    let first = unsafe { base.add(skipped) };
    #[cfg(target_os = "linux")]
    // SAFETY: the range is the rest of the allocation and begins on a page border; advice changes
    // no contents. Where the system refuses, pages stay small.
    unsafe {
        libc::madvise(first.as_ptr().cast(), layout.size() - skipped, libc::MADV_HUGEPAGE);
    }
    first
}

impl<T: Element> Drop for AlignedVec<T> {
    fn drop(&mut self) {
        let layout = Self::layout(self.len).expect("was valid when made");
        if layout.size() != 0 {
            // SAFETY: `base` came from the allocator with this very layout, in `try_zeroed`.
            unsafe { dealloc(self.base.as_ptr(), layout) }
        }
    }
}

impl<T: Element> std::ops::Deref for AlignedVec<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `ptr` is valid for `len` initialised (zeroed) values for as long as self lives;
        // dangling only if len is 0.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: Element> std::ops::DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

// SAFETY: the memory is owned and `T` is plain data (trait Element), so it may move to and be read
// from any thread.
unsafe impl<T: Element> Send for AlignedVec<T> {}
// SAFETY: as above; shared access is read-only.
unsafe impl<T: Element> Sync for AlignedVec<T> {}

impl<T: Element> std::fmt::Debug for AlignedVec<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedVec(len {})", self.len)
    }
}

/// Lets the tasks of one parallel region write to disjoint parts of one slice.
pub struct SharedMut<T> {
    ptr: *mut T,
    len: usize,
}

// SAFETY: access goes through `slice`, whose caller promises that no two tasks touch the same part.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub fn new(values: &mut [T]) -> Self {
        Self { ptr: values.as_mut_ptr(), len: values.len() }
    }

    /// # Safety
    /// No other live reference, in any task, may overlap `start..start + len`, and the slice given
    /// to `new` must outlive it.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part outside the slice");
        // SAFETY: in bounds by the assert; exclusive by this function's own contract.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_zeroed_and_keeps_values() {
        for len in [0, 1, 63, 1000, HUGE_BYTES_MIN / 4 + 5] {
            let mut v = AlignedVec::<f32>::zeroed(len);
            assert!(len == 0 || v.as_ptr().addr().is_multiple_of(ALIGNMENT));
            assert!(v.iter().all(|&x| x == 0.0));
            v.fill(2.5);
            v.touch(0..len);
            v.touch(len / 2..len);
            assert!(v.iter().all(|&x| x == 2.5) && v.len() == len);
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(AlignedVec::<f32>::try_zeroed(usize::MAX / 2).is_none());
    }
}
