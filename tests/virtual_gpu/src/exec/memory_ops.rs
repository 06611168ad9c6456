//! Loads, stores, atomics and asynchronous copies: from guest addresses to checked host pointers.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::Env;
use super::block::{BlockState, Tally};
use super::float::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use super::shadow::{Actor, MANY_LANES, Touch, lanes};
use super::warp::{Checked, Fault, Warp, mask_of};
use crate::checks::CheckKind;
use crate::memory::{POISON, find};
use crate::ptx::decode::*;

pub type Addresses = [u64; 32];
pub type Pointers = [*mut u8; 32];

/// An asynchronous copy of one instruction that no wait has covered yet.
pub struct AsyncCopy {
    /// The copy group of the issuing lanes.
    pub group: u32,
    pub lanes: u32,
    pub bytes: u32,
    pub to: [u32; 32],
    pub from: Pointers,
    /// Bytes that are read; the rest is zero.
    pub from_bytes: [u8; 32],
    pub arrived: bool,
    pub pc: u32,
}

pub fn space_of(address: u64) -> Space {
    if address >= LOCAL_WINDOW {
        Space::Local
    } else if address >= SHARED_WINDOW {
        Space::Shared
    } else {
        Space::Global
    }
}

fn fault<T>(kind: CheckKind, lane: usize, address: u64, message: impl Into<String>) -> Checked<T> {
    Err(Box::new(Fault::new(kind, Some(lane as u32), Some(address), message.into())))
}

/// The passes that shared memory needs for the words that lanes of one group touch: 32 banks of 4
/// bytes.
fn passes(words: &mut [u32]) -> (u64, u64) {
    words.sort_unstable();
    let mut per_bank = [0u8; 32];
    let mut distinct = 0;
    for (k, word) in words.iter().enumerate() {
        if k == 0 || words[k - 1] != *word {
            per_bank[(word % 32) as usize] += 1;
            distinct += 1u64;
        }
    }
    (*per_bank.iter().max().expect("32 banks") as u64, distinct.div_ceil(32))
}

/// Counts the passes of a shared access: 32 lanes of 4 bytes, 16 of 8 or 8 of 16 go together.
pub fn count_shared(tally: &mut Tally, pc: u32, addresses: &Addresses, m: u32, bytes: u32) {
    let together = (128 / bytes.max(4)) as usize;
    for start in (0..32).step_by(together) {
        let mut words = [0u32; 32];
        let mut count = 0;
        for lane in start..start + together {
            if m >> lane & 1 == 1 {
                for k in 0..bytes.div_ceil(4) {
                    words[count] = addresses[lane] as u32 / 4 + k;
                    count += 1;
                }
            }
        }
        if count > 0 {
            let (actual, minimal) = passes(&mut words[..count]);
            let waves = &mut tally.shared_by_pc[pc as usize];
            waves.actual += actual;
            waves.minimal += minimal;
        }
    }
}

fn count_global(tally: &mut Tally, addresses: &Addresses, m: u32, bytes: u32) {
    let mut starts = [0u64; 32];
    let mut count = 0;
    for lane in lanes(m) {
        starts[count] = addresses[lane];
        count += 1;
    }
    let starts = &mut starts[..count];
    if !starts.is_sorted() {
        starts.sort_unstable();
    }
    let (mut sectors, mut distinct) = (0, 0);
    let (mut last_sector, mut last_start) = (u64::MAX, u64::MAX);
    for &start in starts.iter() {
        if start != last_start {
            distinct += 1;
            last_start = start;
        }
        for sector in start / 32..=(start + bytes as u64 - 1) / 32 {
            if last_sector == u64::MAX || sector > last_sector {
                sectors += 1;
                last_sector = sector;
            }
        }
    }
    let counters = &mut tally.counters;
    counters.global_requests += 1;
    counters.global_sectors += sectors;
    counters.global_sectors_minimal += (distinct * bytes as u64).div_ceil(32);
    tally.widths[bytes.trailing_zeros() as usize & 7] += count as u64;
}

impl Warp {
    #[inline(always)]
    pub(super) fn addresses(&self, row: u32, wide: bool, offset: i32) -> Addresses {
        let mut out = [0u64; 32];
        if wide {
            let base = self.load::<u64>(row);
            for lane in 0..32 {
                out[lane] = base[lane].wrapping_add_signed(offset as i64);
            }
        } else {
            let base = self.load::<u32>(row);
            for lane in 0..32 {
                out[lane] = base[lane].wrapping_add_signed(offset) as u64;
            }
        }
        out
    }

    /// Host pointers of the lanes of `m`, all of `bytes` bytes, after every check.
    #[inline(always)]
    pub fn resolve(
        &mut self,
        state: &mut BlockState,
        pc: u32,
        space: Space,
        addresses: &Addresses,
        m: u32,
        bytes: u32,
        touch: Touch,
    ) -> Checked<Pointers> {
        let mut low = u64::MAX;
        let mut high = 0;
        let mut bits = 0;
        for lane in 0..32 {
            let active = m >> lane & 1 == 1;
            let address = addresses[lane];
            low = low.min(if active { address } else { u64::MAX });
            high = high.max(if active { address } else { 0 });
            bits |= if active { address } else { 0 };
        }
        if bits & (bytes as u64 - 1) != 0 {
            return self.misaligned(addresses, m, bytes);
        }
        match space {
            Space::Global => {
                self.resolve_global(state, pc, addresses, m, bytes, touch, (low, high))
            }
            Space::Shared => self.resolve_shared(state, pc, addresses, m, bytes, touch, high),
            Space::Local => self.resolve_local(state, addresses, m, bytes, touch),
            Space::Generic => self.resolve_generic(state, pc, addresses, m, bytes, touch),
        }
    }

    #[cold]
    fn misaligned<T>(&self, addresses: &Addresses, m: u32, bytes: u32) -> Checked<T> {
        let lane = lanes(m)
            .find(|&l| addresses[l] & (bytes as u64 - 1) != 0)
            .expect("a lane is misaligned");
        let message = format!("an access of {bytes} bytes must be aligned to {bytes} bytes");
        fault(CheckKind::Alignment, lane, addresses[lane], message)
    }

    #[inline(always)]
    fn resolve_global(
        &mut self,
        state: &mut BlockState,
        pc: u32,
        addresses: &Addresses,
        m: u32,
        bytes: u32,
        touch: Touch,
        (low, high): (u64, u64),
    ) -> Checked<Pointers> {
        let env = state.env;
        if env.config.counters {
            count_global(&mut state.tally, addresses, m, bytes);
            let moved = m.count_ones() as u64 * bytes as u64;
            let traffic = &mut state.tally.counters.global;
            traffic.read_bytes += if touch != Touch::Write { moved } else { 0 };
            traffic.written_bytes += if touch != Touch::Read { moved } else { 0 };
        }
        let mut out = [std::ptr::null_mut(); 32];
        let span = high - low + bytes as u64;
        let site = state.site[pc as usize] as usize;
        let hit = env.table.get(site).is_some_and(|a| a.contains(low, span));
        let whole = if hit { Some(site) } else { find(&env.table, low, span) };
        let Some(index) = whole else {
            return self.resolve_scattered(env, addresses, m, bytes, touch);
        };
        state.site[pc as usize] = index as u32;
        let allocation = &env.table[index];
        let base = allocation.host(allocation.address);
        for lane in 0..32 {
            out[lane] =
                base.wrapping_add(addresses[lane].wrapping_sub(allocation.address) as usize);
        }
        if touch != Touch::Write && env.config.checks.initcheck {
            for lane in lanes(m) {
                if let Some(byte) = allocation.first_unwritten(addresses[lane], bytes as u64) {
                    return unwritten(env, lane, byte);
                }
            }
        }
        if touch != Touch::Read {
            for lane in lanes(m) {
                allocation.mark_written(addresses[lane], bytes as u64);
            }
        }
        Ok(out)
    }

    /// Lanes that touch different allocations, or none.
    #[cold]
    fn resolve_scattered(
        &self,
        env: &Env,
        addresses: &Addresses,
        m: u32,
        bytes: u32,
        touch: Touch,
    ) -> Checked<Pointers> {
        let mut out = [std::ptr::null_mut(); 32];
        for lane in lanes(m) {
            let address = addresses[lane];
            let Some(index) = find(&env.table, address, bytes as u64) else {
                let what = if touch == Touch::Read { "read" } else { "write" };
                let message =
                    format!("invalid {what} of {bytes} bytes: {}", env.memory.describe(address));
                return fault(CheckKind::Memcheck, lane, address, message);
            };
            let allocation = &env.table[index];
            out[lane] = allocation.host(address);
            if touch != Touch::Write
                && env.config.checks.initcheck
                && let Some(byte) = allocation.first_unwritten(address, bytes as u64)
            {
                return unwritten(env, lane, byte);
            }
            if touch != Touch::Read {
                allocation.mark_written(address, bytes as u64);
            }
        }
        Ok(out)
    }

    #[inline(always)]
    fn resolve_shared(
        &mut self,
        state: &mut BlockState,
        pc: u32,
        addresses: &Addresses,
        m: u32,
        bytes: u32,
        touch: Touch,
        high: u64,
    ) -> Checked<Pointers> {
        let limit = state.shared.bytes as u64;
        if high + bytes as u64 > limit {
            let lane =
                lanes(m).find(|&l| addresses[l] + bytes as u64 > limit).expect("a lane is outside");
            let what = if touch == Touch::Read { "read" } else { "write" };
            let message = format!(
                "invalid {what} of {bytes} bytes of shared memory; the block has {limit} bytes"
            );
            return fault(CheckKind::Memcheck, lane, addresses[lane], message);
        }
        if state.env.config.counters {
            count_shared(&mut state.tally, pc, addresses, m, bytes);
            let moved = m.count_ones() as u64 * bytes as u64;
            let traffic = &mut state.tally.counters.shared;
            traffic.read_bytes += if touch != Touch::Write { moved } else { 0 };
            traffic.written_bytes += if touch != Touch::Read { moved } else { 0 };
        }
        let checks = state.env.config.checks;
        if checks.racecheck || checks.initcheck || checks.synccheck {
            for lane in lanes(m) {
                self.check_shared(
                    state,
                    pc,
                    lane,
                    Some(lane),
                    addresses[lane] as u32,
                    bytes,
                    touch,
                )?;
            }
        }
        let base = state.shared.host();
        let mut out = [std::ptr::null_mut(); 32];
        for lane in 0..32 {
            out[lane] = base.wrapping_add(addresses[lane] as usize);
        }
        Ok(out)
    }

    /// Initcheck, synccheck and racecheck of one access to shared memory. `actor` is None for a
    /// collective access.
    pub fn check_shared(
        &mut self,
        state: &mut BlockState,
        pc: u32,
        lane: usize,
        actor: Option<usize>,
        offset: u32,
        bytes: u32,
        touch: Touch,
    ) -> Checked<()> {
        let range = offset as usize..(offset + bytes) as usize;
        let checks = state.env.config.checks;
        if checks.synccheck
            && let Some(k) = state.shared.in_flight[range.clone()].iter().position(|&x| x != 0)
        {
            let what = if touch == Touch::Read { "read" } else { "write" };
            return fault(
                CheckKind::Synccheck,
                lane,
                offset as u64 + k as u64,
                format!(
                    "{what} of bytes to which an asynchronous copy is in flight; a wait is missing"
                ),
            );
        }
        if checks.initcheck {
            if touch != Touch::Write
                && let Some(k) = state.shared.written[range.clone()].iter().position(|&x| x == 0)
            {
                let message = "read of shared memory that nobody wrote";
                return fault(CheckKind::Initcheck, lane, offset as u64 + k as u64, message);
            }
            if touch != Touch::Read {
                state.shared.written[range].fill(1);
            }
        }
        self.check_race(state, pc, lane, actor, offset, bytes, touch)
    }

    fn check_race(
        &mut self,
        state: &mut BlockState,
        pc: u32,
        lane: usize,
        actor: Option<usize>,
        offset: u32,
        bytes: u32,
        touch: Touch,
    ) -> Checked<()> {
        let Some(shadow) = &mut state.shared.shadow else { return Ok(()) };
        let actor = Actor {
            warp: self.id as u8,
            lane: actor.map_or(MANY_LANES, |l| l as u8),
            warp_sync: self.sync_count,
            pc,
        };
        let Some(race) = shadow.touch(offset, bytes, touch, &actor) else { return Ok(()) };
        let earlier = &state.env.kernel.infos[race.pc as usize];
        let who = if race.lane == MANY_LANES {
            format!("warp {}", race.warp)
        } else {
            format!("thread {}", race.warp as u32 * 32 + race.lane as u32)
        };
        let message = format!(
            "{} of shared memory after a {} by {who} (line {}) without a barrier between them",
            if touch == Touch::Read { "read" } else { "write" },
            if race.was_write { "write" } else { "read" },
            earlier.line
        );
        fault(CheckKind::Racecheck, lane, offset as u64, message)
    }

    fn resolve_local(
        &mut self,
        state: &mut BlockState,
        addresses: &Addresses,
        m: u32,
        bytes: u32,
        touch: Touch,
    ) -> Checked<Pointers> {
        let size = state.env.kernel.local_bytes as u64;
        let mut out = [std::ptr::null_mut(); 32];
        for lane in lanes(m) {
            let address = addresses[lane];
            if address + bytes as u64 > size {
                let message = format!("{bytes} bytes of local memory; the thread has {size} bytes");
                return fault(CheckKind::Memcheck, lane, address, message);
            }
            // Each lane has its own piece.
            let at = lane * size as usize + address as usize;
            out[lane] = self.local.as_mut_ptr().wrapping_add(at);
        }
        let moved = m.count_ones() as u64 * bytes as u64;
        let traffic = &mut state.tally.counters.local;
        traffic.read_bytes += if touch != Touch::Write { moved } else { 0 };
        traffic.written_bytes += if touch != Touch::Read { moved } else { 0 };
        Ok(out)
    }

    fn resolve_generic(
        &mut self,
        state: &mut BlockState,
        pc: u32,
        addresses: &Addresses,
        m: u32,
        bytes: u32,
        touch: Touch,
    ) -> Checked<Pointers> {
        let mut out = [std::ptr::null_mut(); 32];
        for (space, window) in
            [(Space::Global, 0), (Space::Shared, SHARED_WINDOW), (Space::Local, LOCAL_WINDOW)]
        {
            let mut part = 0;
            for lane in lanes(m) {
                part |= ((space_of(addresses[lane]) == space) as u32) << lane;
            }
            if part == 0 {
                continue;
            }
            let inner = addresses.map(|a| a.wrapping_sub(window));
            let pointers = self.resolve(state, pc, space, &inner, part, bytes, touch)?;
            for lane in lanes(part) {
                out[lane] = pointers[lane];
            }
        }
        Ok(out)
    }

    #[inline(always)]
    pub fn memory_load(
        &mut self,
        state: &mut BlockState,
        i: &Inst,
        m: u32,
        pc: u32,
        mem: MemOp,
    ) -> Checked<()> {
        let addresses = self.addresses(i.a, mem.wide_address, mem.offset);
        let bytes = mem.width as u32 * mem.count as u32;
        let pointers = self.resolve(state, pc, mem.space, &addresses, m, bytes, Touch::Read)?;
        let lists = &state.env.kernel.lists[i.d as usize..];
        for part in 0..mem.count as usize {
            let row = lists[part];
            let at = part * mem.width as usize;
            // SAFETY: `resolve` checked `bytes` bytes behind the pointer of every lane of `m`, and
            // their alignment.
            unsafe {
                match (mem.width, mem.wide_data) {
                    (4, false) => self.gather::<u32, u32>(row, &pointers, at, m, |x| x),
                    (8, _) => self.gather::<u64, u64>(row, &pointers, at, m, |x| x),
                    (2, false) if !mem.signed || mem.half_data => {
                        self.gather::<u16, u32>(row, &pointers, at, m, |x| x as u32);
                    }
                    (2, false) => {
                        self.gather::<u16, u32>(row, &pointers, at, m, |x| x as i16 as u32);
                    }
                    (1, false) if !mem.signed => {
                        self.gather::<u8, u32>(row, &pointers, at, m, |x| x as u32);
                    }
                    (1, false) => {
                        let keep = if mem.half_data { 0xFFFF } else { u32::MAX };
                        self.gather::<u8, u32>(row, &pointers, at, m, |x| x as i8 as u32 & keep);
                    }
                    (4, true) if mem.signed => {
                        self.gather::<u32, u64>(row, &pointers, at, m, |x| x as i32 as u64);
                    }
                    (4, true) => self.gather::<u32, u64>(row, &pointers, at, m, |x| x as u64),
                    (2, true) if mem.signed => {
                        self.gather::<u16, u64>(row, &pointers, at, m, |x| x as i16 as u64);
                    }
                    (2, true) => self.gather::<u16, u64>(row, &pointers, at, m, |x| x as u64),
                    (_, true) if mem.signed => {
                        self.gather::<u8, u64>(row, &pointers, at, m, |x| x as i8 as u64);
                    }
                    (_, _) => self.gather::<u8, u64>(row, &pointers, at, m, |x| x as u64),
                }
            }
        }
        Ok(())
    }

    /// Reads a `T` at `at` behind each lane's pointer into the row.
    ///
    /// SAFETY: the pointers of the lanes of `m` must be valid and aligned for it.
    #[inline(always)]
    unsafe fn gather<T: Copy, S: Copy>(
        &mut self,
        row: u32,
        pointers: &Pointers,
        at: usize,
        m: u32,
        f: impl Fn(T) -> S,
    ) {
        let to = self.row_mut(row).cast::<S>();
        if m == u32::MAX {
            for (lane, pointer) in pointers.iter().enumerate() {
                // SAFETY: the caller's promise; rows have 32 lanes.
                unsafe { *to.add(lane) = f(pointer.add(at).cast::<T>().read()) };
            }
        } else {
            for lane in lanes(m) {
                // SAFETY: as above.
                unsafe { *to.add(lane) = f(pointers[lane].add(at).cast::<T>().read()) };
            }
        }
    }

    #[inline(always)]
    pub fn memory_store(
        &mut self,
        state: &mut BlockState,
        i: &Inst,
        m: u32,
        pc: u32,
        mem: MemOp,
    ) -> Checked<()> {
        let addresses = self.addresses(i.a, mem.wide_address, mem.offset);
        let bytes = mem.width as u32 * mem.count as u32;
        let pointers = self.resolve(state, pc, mem.space, &addresses, m, bytes, Touch::Write)?;
        let lists = &state.env.kernel.lists[i.d as usize..];
        for part in 0..mem.count as usize {
            let at = part * mem.width as usize;
            let row = self.row(lists[part]);
            for lane in lanes(m) {
                let pointer = pointers[lane].wrapping_add(at);
                // SAFETY: `resolve` checked the pointers of the lanes of `m`; the low bytes of a
                // wider register are the value, since the machine is little endian.
                unsafe {
                    let wide = if mem.wide_data {
                        *row.cast::<u64>().add(lane)
                    } else {
                        *row.add(lane) as u64
                    };
                    match mem.width {
                        1 => pointer.write(wide as u8),
                        2 => pointer.cast::<u16>().write(wide as u16),
                        4 => pointer.cast::<u32>().write(wide as u32),
                        _ => pointer.cast::<u64>().write(wide),
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn load_param(
        &mut self,
        env: &Env,
        i: &Inst,
        m: u32,
        (offset, width, count): (u32, u8, u8),
        signed: bool,
        wide_data: bool,
        half_data: bool,
    ) {
        for part in 0..count as usize {
            let row = env.kernel.lists[i.d as usize + part];
            let at = offset as usize + part * width as usize;
            let mut bytes = [0u8; 8];
            bytes[..width as usize].copy_from_slice(&env.params[at..at + width as usize]);
            let mut value = u64::from_le_bytes(bytes);
            if signed {
                let shift = 64 - 8 * width as u32;
                value = ((value << shift) as i64 >> shift) as u64;
            }
            if wide_data {
                self.store(row, [value; 32], m);
            } else {
                let keep = if half_data { 0xFFFF } else { u32::MAX };
                self.store(row, [value as u32 & keep; 32], m);
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn atomic(
        &mut self,
        state: &mut BlockState,
        i: &Inst,
        m: u32,
        pc: u32,
        op: AtomOp,
        ty: Ty,
        space: Space,
        wide_address: bool,
        offset: i32,
    ) -> Checked<()> {
        let addresses = self.addresses(i.a, wide_address, offset);
        let bytes = ty.bits() / 8;
        let pointers = self.resolve(state, pc, space, &addresses, m, bytes, Touch::Atomic)?;
        let wide = ty.bits() == 64;
        let read = |w: &Warp, row: u32, lane: usize| {
            if wide { w.load::<u64>(row)[lane] } else { w.load::<u32>(row)[lane] as u64 }
        };
        let mut old = [0u64; 32];
        for lane in lanes(m) {
            let b = read(self, i.b, lane);
            let c = if op == AtomOp::Cas { read(self, i.c, lane) } else { 0 };
            let next = |value: u64| atomic_next(op, ty, value, b, c);
            let pointer = pointers[lane];
            // SAFETY: `resolve` checked bounds and alignment; other host threads access the bytes
            // atomically too.
            old[lane] = unsafe {
                match bytes {
                    8 => AtomicU64::from_ptr(pointer.cast())
                        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |x| Some(next(x)))
                        .unwrap_or_else(|x| x),
                    4 => AtomicU32::from_ptr(pointer.cast())
                        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |x| {
                            Some(next(x as u64) as u32)
                        })
                        .unwrap_or_else(|x| x) as u64,
                    _ => AtomicU16::from_ptr(pointer.cast())
                        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |x| {
                            Some(next(x as u64) as u16)
                        })
                        .unwrap_or_else(|x| x) as u64,
                }
            };
        }
        if i.d != NONE {
            if wide {
                self.store(i.d, old, m);
            } else {
                let mut low = [0; 32];
                for lane in 0..32 {
                    low[lane] = old[lane] as u32;
                }
                self.store(i.d, low, m);
            }
        }
        Ok(())
    }

    /// `places`: destination and source as row, width and offset.
    pub fn cp_async(
        &mut self,
        state: &mut BlockState,
        m: u32,
        pc: u32,
        bytes: u32,
        places: [(u32, bool, i32); 2],
        size_row: u32,
        ignored: u32,
    ) -> Checked<()> {
        let [to, from] = places.map(|(row, wide, offset)| self.addresses(row, wide, offset));
        let sizes = if size_row == NONE { [bytes; 32] } else { self.load::<u32>(size_row) };
        let mut from_bytes = [0u8; 32];
        let too_large = mask_of(|lane| sizes[lane] > bytes) & m & !ignored;
        if too_large != 0 {
            let lane = too_large.trailing_zeros() as usize;
            let message = format!("source size {} of a copy of {bytes} bytes", sizes[lane]);
            return fault(CheckKind::Memcheck, lane, from[lane], message);
        }
        for lane in 0..32 {
            from_bytes[lane] = if ignored >> lane & 1 == 0 { sizes[lane] as u8 } else { 0 };
        }
        let reading = mask_of(|lane| from_bytes[lane] > 0) & m;
        let sources = self.async_sources(state, pc, &from, &from_bytes, reading, bytes)?;
        let pointers = self.resolve(state, pc, Space::Shared, &to, m, bytes, Touch::Write)?;
        let poison = state.env.config.checks.memcheck;
        for lane in lanes(if poison || !state.shared.in_flight.is_empty() { m } else { 0 }) {
            if poison {
                // SAFETY: `resolve` checked the destination.
                unsafe { pointers[lane].write_bytes(POISON, bytes as usize) };
            }
            if !state.shared.in_flight.is_empty() {
                let start = to[lane] as usize;
                state.shared.in_flight[start..start + bytes as usize].fill(1);
            }
        }
        let mut left = m;
        while left != 0 {
            let group = self.committed[left.trailing_zeros() as usize];
            let together = mask_of(|lane| self.committed[lane] == group) & left;
            left &= !together;
            let mut low = [0; 32];
            for lane in 0..32 {
                low[lane] = to[lane] as u32;
            }
            let to = low;
            self.copies.push_back(AsyncCopy {
                group,
                lanes: together,
                bytes,
                to,
                from: sources,
                from_bytes,
                arrived: false,
                pc,
            });
        }
        // One time in four the data is there at once.
        if state.env.config.seed != 0 && state.rng.below(4) == 0 {
            let copy = self.copies.back_mut().expect("just pushed");
            deliver(state.shared.host(), copy, copy.lanes);
            copy.arrived = true;
        }
        Ok(())
    }

    fn async_sources(
        &mut self,
        state: &mut BlockState,
        pc: u32,
        from: &Addresses,
        from_bytes: &[u8; 32],
        reading: u32,
        bytes: u32,
    ) -> Checked<Pointers> {
        let mut sources = [std::ptr::null_mut(); 32];
        if reading == 0 {
            return Ok(sources);
        }
        let whole = mask_of(|lane| from_bytes[lane] as u32 == bytes) & reading;
        if whole != 0 {
            sources = self.resolve(state, pc, Space::Global, from, whole, bytes, Touch::Read)?;
        }
        // A short source: alignment is that of the whole copy, the bytes read are fewer.
        for lane in lanes(reading & !whole) {
            if from[lane] & (bytes as u64 - 1) != 0 {
                return self.misaligned(from, 1 << lane, bytes);
            }
            for k in (0..from_bytes[lane] as u64).rev() {
                let mut one = [0; 32];
                one[lane] = from[lane] + k;
                let p = self.resolve(state, pc, Space::Global, &one, 1 << lane, 1, Touch::Read)?;
                sources[lane] = p[lane];
            }
        }
        Ok(sources)
    }

    pub(super) fn cp_wait(&mut self, state: &mut BlockState, m: u32, all: bool, groups: u32) {
        if self.copies.is_empty() {
            return;
        }
        let mut limit = [u32::MAX; 32];
        if !all {
            for lane in 0..32 {
                limit[lane] = self.committed[lane].saturating_sub(groups);
            }
        }
        let mut copies = std::mem::take(&mut self.copies);
        for copy in &mut copies {
            let done = mask_of(|lane| copy.group < limit[lane]) & copy.lanes & m;
            if done == 0 {
                continue;
            }
            if !copy.arrived {
                deliver(state.shared.host(), copy, done);
            }
            self.complete(state, copy, done);
            copy.lanes &= !done;
        }
        while copies.front().is_some_and(|c| c.lanes == 0) {
            copies.pop_front();
        }
        self.copies = copies;
    }

    /// The copy is visible to the threads that issued it: for the race check they write now.
    fn complete(&mut self, state: &mut BlockState, copy: &AsyncCopy, done: u32) {
        if state.shared.in_flight.is_empty() && state.shared.shadow.is_none() {
            return;
        }
        for lane in lanes(done) {
            let start = copy.to[lane] as usize;
            if !state.shared.in_flight.is_empty() {
                state.shared.in_flight[start..start + copy.bytes as usize].fill(0);
            }
            if let Some(shadow) = &mut state.shared.shadow {
                let actor = Actor {
                    warp: self.id as u8,
                    lane: lane as u8,
                    warp_sync: self.sync_count,
                    pc: copy.pc,
                };
                // Whoever touched the bytes in between was already found by the in-flight check.
                shadow.touch(copy.to[lane], copy.bytes, Touch::Write, &actor);
            }
        }
    }

    /// Some copies in flight arrive early, by the seed.
    pub fn arrive_some(&mut self, state: &mut BlockState) {
        for k in 0..self.copies.len() {
            if !self.copies[k].arrived && state.rng.below(8) == 0 {
                let copy = &mut self.copies[k];
                deliver(state.shared.host(), copy, copy.lanes);
                copy.arrived = true;
            }
        }
    }

    /// Copies of threads that exit still arrive.
    pub fn copies_of_exited(&mut self, state: &mut BlockState, m: u32) {
        if !self.copies.is_empty() {
            self.cp_wait(state, m, true, 0);
        }
    }
}

fn unwritten<T>(env: &Env, lane: usize, byte: u64) -> Checked<T> {
    let message = format!("read of global memory that nobody wrote: {}", env.memory.describe(byte));
    fault(CheckKind::Initcheck, lane, byte, message)
}

/// Copies the bytes of some lanes; zeroes fill what the source does not give.
fn deliver(shared: *mut u8, copy: &AsyncCopy, which: u32) {
    for lane in lanes(which) {
        let given = copy.from_bytes[lane] as usize;
        if given == 16 {
            // SAFETY: as below; the most frequent size without a call.
            unsafe {
                let to = shared.add(copy.to[lane] as usize).cast::<[u64; 2]>();
                *to = copy.from[lane].cast::<[u64; 2]>().read();
            }
            continue;
        }
        // SAFETY: both places were checked at issue; allocations live as long as the launch's
        // table.
        unsafe {
            let to = shared.add(copy.to[lane] as usize);
            if given > 0 {
                std::ptr::copy_nonoverlapping(copy.from[lane], to, given);
            }
            to.add(given).write_bytes(0, copy.bytes as usize - given);
        }
    }
}

fn atomic_next(op: AtomOp, ty: Ty, value: u64, b: u64, c: u64) -> u64 {
    let halves = |f: &dyn Fn(u16, u16) -> u16| {
        let low = f(value as u16, b as u16) as u64;
        low | (f((value >> 16) as u16, (b >> 16) as u16) as u64) << 16
    };
    let add_f16 = |x: u16, y: u16| f32_to_f16(f16_to_f32(x) + f16_to_f32(y));
    let add_bf16 = |x: u16, y: u16| f32_to_bf16(bf16_to_f32(x) + bf16_to_f32(y));
    match (op, ty) {
        (AtomOp::Add, Ty::F32) => {
            (f32::from_bits(value as u32) + f32::from_bits(b as u32)).to_bits() as u64
        }
        (AtomOp::Add, Ty::F64) => (f64::from_bits(value) + f64::from_bits(b)).to_bits(),
        (AtomOp::Add, Ty::F16 | Ty::F16x2) => halves(&add_f16),
        (AtomOp::Add, Ty::Bf16 | Ty::Bf16x2) => halves(&add_bf16),
        (AtomOp::Add, _) => value.wrapping_add(b),
        (AtomOp::Min, Ty::S32) => (value as i32).min(b as i32) as u32 as u64,
        (AtomOp::Max, Ty::S32) => (value as i32).max(b as i32) as u32 as u64,
        (AtomOp::Min, Ty::S64) => (value as i64).min(b as i64) as u64,
        (AtomOp::Max, Ty::S64) => (value as i64).max(b as i64) as u64,
        (AtomOp::Min, _) => value.min(b),
        (AtomOp::Max, _) => value.max(b),
        (AtomOp::Exch, _) => b,
        (AtomOp::Cas, _) => {
            if value == b {
                c
            } else {
                value
            }
        }
        (AtomOp::And, _) => value & b,
        (AtomOp::Or, _) => value | b,
        (AtomOp::Xor, _) => value ^ b,
        (AtomOp::Inc, _) => {
            if value >= b {
                0
            } else {
                value + 1
            }
        }
        (AtomOp::Dec, _) => {
            if value == 0 || value > b {
                b
            } else {
                value - 1
            }
        }
    }
}
