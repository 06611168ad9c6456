//! Memory for weights, on huge pages where the system has them.
//!
//! Every decoded token reads all weights once. With pages of 4 KiB that is one address translation
//! for a few hundred bytes of work, and prefetching stops at each page; 2 MiB pages made decoding
//! 1.3 times as fast. Most weights are smaller than such a page, so many share one mapping.
#![allow(unsafe_code)]

use super::memory::ALIGNMENT;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// A huge page.
const PAGE_BYTES: usize = 2 << 20;
/// Address space of a shared mapping; memory is taken only as it is written to.
const SHARED_BYTES: usize = 64 << 20;
/// What is larger gets a mapping of its own.
const SHARED_LEN_MAX: usize = SHARED_BYTES / 8;

/// Hands out zeroed bytes. A mapping is given back when the last of its parts is dropped.
#[derive(Debug, Default)]
pub struct Arena {
    /// The mapping at hand and how much of it is taken.
    current: Mutex<Option<(Arc<Mapping>, usize)>>,
}

/// A part of a mapping, on a 64-byte boundary. No two parts overlap.
#[derive(Debug)]
pub struct ArenaBytes {
    mapping: Arc<Mapping>,
    start: usize,
    len: usize,
}

impl Arena {
    /// Errors: `None` if the system has no such memory.
    pub fn try_zeroed(&self, len: usize) -> Option<ArenaBytes> {
        if len > SHARED_LEN_MAX {
            let mapping = Arc::new(Mapping::new(len)?);
            return Some(ArenaBytes { mapping, start: 0, len });
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |(_, used): &(Arc<Mapping>, usize)| SHARED_BYTES - used >= len;
        let (mapping, start) = match current.take().filter(fits) {
            Some(found) => found,
            None => (Arc::new(Mapping::new(SHARED_BYTES)?), 0),
        };
        // `len` is at most SHARED_LEN_MAX and SHARED_BYTES is a multiple of ALIGNMENT.
        *current = Some((mapping.clone(), start + len.next_multiple_of(ALIGNMENT)));
        Some(ArenaBytes { mapping, start, len })
    }
}

impl std::ops::Deref for ArenaBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the part lies within the mapping (`Arena::try_zeroed`), which lives as long as
        // self and was zeroed when made; no other part overlaps this one.
        unsafe { std::slice::from_raw_parts(self.mapping.ptr.as_ptr().add(self.start), self.len) }
    }
}

impl std::ops::DerefMut for ArenaBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        let ptr = self.mapping.ptr.as_ptr();
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(ptr.add(self.start), self.len) }
    }
}

/// Zeroed memory that starts on the boundary of a huge page.
#[derive(Debug)]
struct Mapping {
    ptr: NonNull<u8>,
    base: NonNull<u8>,
    base_len: usize,
}

// SAFETY: the mapping is plain memory; access to its parts follows the borrows of `ArenaBytes`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    #[cfg(unix)]
    fn new(len: usize) -> Option<Mapping> {
        let base_len = len.checked_add(PAGE_BYTES)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping touches no existing memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), base_len, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return None;
        }
        let base = NonNull::new(base.cast::<u8>())?;
        let skipped = base.addr().get().next_multiple_of(PAGE_BYTES) - base.addr().get();
        // SAFETY: `skipped` is below PAGE_BYTES, by which the mapping is longer than `len`.
        let ptr = unsafe { base.add(skipped) };
        #[cfg(target_os = "linux")]
        // SAFETY: the range lies within the mapping; the advice changes no contents. If the system
        // does not take it, the pages stay small, so its answer does not matter.
        unsafe {
            libc::madvise(ptr.as_ptr().cast(), len, libc::MADV_HUGEPAGE);
        }
        Some(Mapping { ptr, base, base_len })
    }

    #[cfg(not(unix))]
    fn new(len: usize) -> Option<Mapping> {
        let layout = std::alloc::Layout::from_size_align(len.max(1), ALIGNMENT).ok()?;
        // SAFETY: the layout has a non-zero size.
        let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        Some(Mapping { ptr: base, base, base_len: len.max(1) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        #[cfg(unix)]
        // SAFETY: base and length are those of the mapping made in `new`; no part is left.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.base_len);
        }
        #[cfg(not(unix))]
        // SAFETY: as above; the layout is that of `new`, where it was valid.
        unsafe {
            let layout = std::alloc::Layout::from_size_align(self.base_len, ALIGNMENT);
            std::alloc::dealloc(self.base.as_ptr(), layout.expect("was valid when made"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_zeroed_aligned_and_apart() {
        let arena = Arena::default();
        let lens = [1, 63, 64, 0, 100_000, SHARED_LEN_MAX, SHARED_LEN_MAX + 1, 5];
        // Twice round, so that the shared mapping is used up and another begins.
        let rounds = 2 * SHARED_BYTES / SHARED_LEN_MAX;
        let mut parts: Vec<ArenaBytes> = (0..rounds)
            .flat_map(|_| lens)
            .map(|len| arena.try_zeroed(len).expect("a small mapping"))
            .collect();
        for part in &parts {
            assert!(part.as_ptr().addr().is_multiple_of(ALIGNMENT));
            assert!(part.first().is_none_or(|&x| x == 0) && part.last().is_none_or(|&x| x == 0));
        }
        for (i, part) in parts.iter_mut().enumerate().filter(|(_, part)| !part.is_empty()) {
            part[0] = i as u8;
            *part.last_mut().expect("not empty") = i as u8;
        }
        for (i, part) in parts.iter().enumerate().filter(|(_, part)| !part.is_empty()) {
            assert!(part[0] == i as u8 && part[part.len() - 1] == i as u8, "part {i}");
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(Arena::default().try_zeroed(usize::MAX).is_none());
        assert!(Arena::default().try_zeroed(usize::MAX / 2).is_none());
    }
}
