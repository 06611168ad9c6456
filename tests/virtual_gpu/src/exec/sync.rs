//! Instructions of a whole warp or block: barriers, shuffles, votes, ldmatrix.

use super::block::BlockState;
use super::memory_ops::count_shared;
use super::mma::{lanes_to_matrix, matrix_to_lanes};
use super::shadow::{Touch, lanes};
use super::warp::{Checked, Fault, Group, Status, Warp, mask_of};
use crate::checks::CheckKind;
use crate::ptx::decode::*;

impl Warp {
    fn sync_fault<T>(&self, lane: u32, message: String) -> Checked<T> {
        Err(Box::new(Fault::new(CheckKind::Synccheck, Some(lane), None, message)))
    }

    /// Lanes whose guard is false pass by.
    fn split_guarded(&mut self, m: u32) {
        let rest = self.mask & !m;
        if rest != 0 {
            self.groups.push(Group { pc: self.pc, mask: rest, waiting: false });
            self.mask = m;
        }
    }

    /// True when all of `required` are here. Otherwise this group waits for them and another runs.
    fn gather_lanes(&mut self, m: u32, pc: u32, required: u32) -> Checked<bool> {
        self.split_guarded(m);
        let missing = required & !m;
        if missing == 0 {
            return Ok(true);
        }
        let exited = missing & !self.alive;
        if exited != 0 {
            let message = format!("lane {} is named but has exited", exited.trailing_zeros());
            return self.sync_fault(m.trailing_zeros(), message);
        }
        if self.switch_away(pc) {
            return Ok(false);
        }
        let lane = missing.trailing_zeros();
        let place = self.groups.iter().find(|g| g.mask >> lane & 1 == 1).map_or(0, |g| g.pc);
        let message = format!(
            "lane {lane} is named but waits at instruction {place} (divergent code, or a wrong mask)"
        );
        self.sync_fault(m.trailing_zeros(), message)
    }

    /// For `.aligned` instructions: every thread of the warp must execute it together.
    pub fn all_lanes(&mut self, m: u32, pc: u32) -> Checked<bool> {
        let required = self.full;
        let ready = self.gather_lanes(m, pc, required)?;
        self.sync_count += ready as u32;
        Ok(ready)
    }

    /// True if the warp now waits. Counts threads in whole warps, as hardware does.
    pub(super) fn barrier(
        &mut self,
        state: &mut BlockState,
        i: &Inst,
        m: u32,
        pc: u32,
        kind: BarrierKind,
        p_negated: bool,
    ) -> Checked<bool> {
        let alive = self.alive;
        if !self.gather_lanes(m, pc, alive)? {
            return Ok(false);
        }
        let first = m.trailing_zeros() as usize;
        let id = self.load::<u32>(i.a)[first];
        if id >= 16 {
            return self.sync_fault(first as u32, format!("barrier {id}; there are 16"));
        }
        let mut expected = state.env.warps_per_block;
        if i.b != NONE {
            let threads = self.load::<u32>(i.b)[first];
            if threads == 0 || !threads.is_multiple_of(32) {
                let message = format!("barrier for {threads} threads, not a multiple of 32");
                return self.sync_fault(first as u32, message);
            }
            expected = threads / 32;
        }
        let barrier = &mut state.barriers[id as usize];
        if barrier.arrived == 0 {
            barrier.expected_warps = expected;
            barrier.all = true;
        } else if barrier.expected_warps != expected {
            let message = format!(
                "barrier {id} for {expected} warps, but others arrived at it for {}",
                barrier.expected_warps
            );
            return self.sync_fault(first as u32, message);
        }
        if barrier.arrived >> self.id & 1 == 1 {
            let message = format!("warp arrives twice at barrier {id}");
            return self.sync_fault(first as u32, message);
        }
        barrier.arrived |= 1 << self.id;
        if i.c != NONE && !matches!(kind, BarrierKind::Sync | BarrierKind::Arrive) {
            let p = self.preds[i.c as usize] ^ if p_negated { u32::MAX } else { 0 };
            barrier.popc += (p & m).count_ones();
            barrier.all &= p & m == m;
            barrier.any |= p & m != 0;
        }
        self.arriving = Some(id);
        if kind == BarrierKind::Arrive {
            // The scheduler must see the arrival; the warp itself goes on.
            return Ok(true);
        }
        barrier.waiting |= 1 << self.id;
        self.barrier_inst = pc;
        self.status = Status::AtBarrier(id);
        Ok(true)
    }

    /// Shuffles, votes and their like: wait for the named lanes, then exchange.
    pub fn collective(&mut self, i: &Inst, m: u32, pc: u32) -> Checked<()> {
        let mask_row = match i.op {
            Op::Shfl { mask, .. } => mask,
            _ => i.b,
        };
        let named = self.load::<u32>(mask_row);
        let first = m.trailing_zeros() as usize;
        let required = named[first];
        // Lanes with other masks take part in another exchange.
        let together = mask_of(|lane| named[lane] == required) & m;
        if required >> first & 1 == 0 {
            let message = format!("lane {first} is not in its own mask {required:#010x}");
            return self.sync_fault(first as u32, message);
        }
        if together != m {
            let rest = m & !together;
            self.groups.push(Group { pc, mask: rest, waiting: false });
            self.mask &= !rest;
        }
        if together & !required != 0 {
            let lane = (together & !required).trailing_zeros();
            let message = format!("lane {lane} is not in its own mask {required:#010x}");
            return self.sync_fault(lane, message);
        }
        // Lanes that the block does not have (a last, partial warp) cannot come and are not waited
        // for.
        if !self.gather_lanes(together, pc, required & self.full)? {
            return Ok(());
        }
        self.sync_count += 1;
        let m = together;
        match i.op {
            Op::Shfl { mode, p, .. } => self.shuffle(i, m, mode, p),
            Op::Vote { kind, p_negated } => {
                let p = self.preds[i.a as usize] ^ if p_negated { u32::MAX } else { 0 };
                let votes = p & m;
                match kind {
                    Vote::Ballot => self.store(i.d, [votes; 32], m),
                    Vote::All => self.set_pred(i.d, whole(votes == m), m),
                    Vote::Any => self.set_pred(i.d, whole(votes != 0), m),
                    Vote::Uni => self.set_pred(i.d, whole(votes == 0 || votes == m), m),
                }
            }
            Op::Match { all, wide, p } => self.match_lanes(i, m, all, wide, p),
            Op::Redux { op, signed } => self.redux(i, m, op, signed),
            Op::Elect { p } => {
                let leader = m.trailing_zeros();
                self.store(i.d, [leader; 32], m);
                self.set_pred(p, 1 << leader, m);
            }
            _ => {}
        }
        Ok(())
    }

    fn shuffle(&mut self, i: &Inst, m: u32, mode: ShuffleMode, p: u32) {
        let (a, b, c) = (self.load::<u32>(i.a), self.load::<u32>(i.b), self.load::<u32>(i.c));
        let mut out = a;
        let mut valid = 0;
        for lane in lanes(m) {
            let (step, clamp) = (b[lane] & 31, c[lane] & 31);
            let segment = c[lane] >> 8 & 31;
            let max_lane = (lane as u32 & segment) | (clamp & !segment);
            let min_lane = lane as u32 & segment;
            let lane32 = lane as u32;
            let (from, inside) = match mode {
                ShuffleMode::Up => {
                    let from = lane32.wrapping_sub(step);
                    (from, from as i32 >= max_lane as i32)
                }
                ShuffleMode::Down => (lane32 + step, lane32 + step <= max_lane),
                ShuffleMode::Bfly => (lane32 ^ step, lane32 ^ step <= max_lane),
                ShuffleMode::Idx => {
                    let from = min_lane | (step & !segment);
                    (from, from <= max_lane)
                }
            };
            let from = if inside { from } else { lane32 };
            // A source lane outside the exchange gives an undefined value: poison shows it.
            out[lane] = if m >> from & 1 == 1 { a[from as usize] } else { u32::MAX };
            valid |= (inside as u32) << lane;
        }
        self.store(i.d, out, m);
        if p != NONE {
            self.set_pred(p, valid, m);
        }
    }

    fn match_lanes(&mut self, i: &Inst, m: u32, all: bool, wide: bool, p: u32) {
        let values = if wide {
            self.load::<u64>(i.a)
        } else {
            {
                let narrow = self.load::<u32>(i.a);
                std::array::from_fn(|lane| narrow[lane] as u64)
            }
        };
        let mut out = [0; 32];
        for lane in lanes(m) {
            for other in lanes(m) {
                out[lane] |= ((values[lane] == values[other]) as u32) << other;
            }
        }
        if all {
            let same = out[m.trailing_zeros() as usize] == m;
            self.store(i.d, [if same { m } else { 0 }; 32], m);
            if p != NONE {
                self.set_pred(p, whole(same), m);
            }
            return;
        }
        self.store(i.d, out, m);
    }

    fn redux(&mut self, i: &Inst, m: u32, op: AtomOp, signed: bool) {
        let a = self.load::<u32>(i.a);
        let result = lanes(m)
            .map(|lane| a[lane])
            .reduce(|x, y| match op {
                AtomOp::Add => x.wrapping_add(y),
                AtomOp::Min if signed => (x as i32).min(y as i32) as u32,
                AtomOp::Max if signed => (x as i32).max(y as i32) as u32,
                AtomOp::Min => x.min(y),
                AtomOp::Max => x.max(y),
                AtomOp::And => x & y,
                AtomOp::Or => x | y,
                _ => x ^ y,
            })
            .expect("an active lane");
        self.store(i.d, [result; 32], m);
    }

    /// The rows of all matrices: lane 8 * k + r holds the address of row r of matrix k.
    #[allow(clippy::too_many_arguments)]
    fn matrix_rows(
        &mut self,
        state: &mut BlockState,
        pc: u32,
        count: u8,
        (row, wide, offset): (u32, bool, i32),
        touch: Touch,
    ) -> Checked<[u32; 32]> {
        let addresses = self.addresses(row, wide, offset);
        let used = u32::MAX >> (32 - 8 * count as u32);
        let mut out = [0; 32];
        let checks = state.env.config.checks;
        for lane in lanes(used) {
            let mut address = addresses[lane];
            if address >= SHARED_WINDOW {
                address -= SHARED_WINDOW;
            }
            if !address.is_multiple_of(16) {
                let message = "a matrix row must be aligned to 16 bytes".to_string();
                let lane = Some(lane as u32);
                return Err(Box::new(Fault::new(
                    CheckKind::Alignment,
                    lane,
                    Some(address),
                    message,
                )));
            }
            if address + 16 > state.shared.bytes as u64 {
                let message = format!(
                    "matrix row outside shared memory; the block has {} bytes",
                    state.shared.bytes
                );
                let lane = Some(lane as u32);
                return Err(Box::new(Fault::new(
                    CheckKind::Memcheck,
                    lane,
                    Some(address),
                    message,
                )));
            }
            out[lane] = address as u32;
            if checks.racecheck || checks.initcheck || checks.synccheck {
                self.check_shared(state, pc, lane, None, address as u32, 16, touch)?;
            }
        }
        if state.env.config.counters {
            count_shared(&mut state.tally, pc, &out.map(u64::from), used, 16);
            let moved = 128 * count as u64;
            let traffic = &mut state.tally.counters.shared;
            match touch {
                Touch::Read => traffic.read_bytes += moved,
                _ => traffic.written_bytes += moved,
            }
        }
        Ok(out)
    }

    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    pub(super) fn ldmatrix(
        &mut self,
        state: &mut BlockState,
        i: &Inst,
        m: u32,
        pc: u32,
        count: u8,
        trans: bool,
        address: (u32, bool, i32),
    ) -> Checked<()> {
        let required = self.full;
        if !self.gather_lanes(m, pc, required)? {
            return Ok(());
        }
        let rows = self.matrix_rows(state, pc, count, address, Touch::Read)?;
        // The read is collective: what follows it in any lane comes after it.
        self.sync_count += 1;
        let host = state.shared.host();
        for k in 0..count as usize {
            let mut matrix = [[0u16; 8]; 8];
            for (r, line) in matrix.iter_mut().enumerate() {
                // SAFETY: `matrix_rows` checked 16 bytes at this offset.
                *line = unsafe { host.add(rows[8 * k + r] as usize).cast::<[u16; 8]>().read() };
            }
            let row = state.env.kernel.lists[i.d as usize + k];
            self.store(row, matrix_to_lanes(&matrix, trans), m);
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn stmatrix(
        &mut self,
        state: &mut BlockState,
        i: &Inst,
        m: u32,
        pc: u32,
        count: u8,
        trans: bool,
        address: (u32, bool, i32),
    ) -> Checked<()> {
        let required = self.full;
        if !self.gather_lanes(m, pc, required)? {
            return Ok(());
        }
        let rows = self.matrix_rows(state, pc, count, address, Touch::Write)?;
        let host = state.shared.host();
        for k in 0..count as usize {
            let row = state.env.kernel.lists[i.d as usize + k];
            let matrix = lanes_to_matrix(&self.load(row), trans);
            for (r, line) in matrix.iter().enumerate() {
                // SAFETY: `matrix_rows` checked 16 bytes at this offset.
                unsafe { host.add(rows[8 * k + r] as usize).cast::<[u16; 8]>().write(*line) };
            }
        }
        Ok(())
    }
}

fn whole(value: bool) -> u32 {
    if value { u32::MAX } else { 0 }
}
