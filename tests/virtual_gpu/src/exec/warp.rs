//! One warp: registers, divergence, and the loop over instructions.
//!
//! Lanes that diverged form groups with an own program counter. The group with the lowest one runs;
//! groups that meet merge. An instruction of the whole warp (shuffle, mma, barrier) lets its group
//! wait until the lanes that it names have come, so code that is correct under independent thread
//! scheduling never blocks.

use std::collections::VecDeque;

use super::ConstValue;
use super::Env;
use super::block::{Barrier, BlockState, is_block_wide, special};
use super::memory_ops::AsyncCopy;
use crate::checks::CheckKind;
use crate::ptx::decode::*;

/// What went wrong; becomes a `Violation` when block and line are known.
pub struct Fault {
    pub kind: CheckKind,
    pub lane: Option<u32>,
    pub address: Option<u64>,
    pub message: String,
    pub pc: Option<u32>,
}

impl Fault {
    pub fn new(kind: CheckKind, lane: Option<u32>, address: Option<u64>, message: String) -> Fault {
        Fault { kind, lane, address, message, pc: None }
    }
}

pub type Checked<T> = Result<T, Box<Fault>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ready,
    AtBarrier(u32),
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Budget,
    Blocked,
    Done,
}

/// Lanes that are elsewhere in the code.
#[derive(Clone, Copy)]
pub struct Group {
    pub pc: u32,
    pub mask: u32,
    /// Waits at a warp-wide instruction for other lanes.
    pub waiting: bool,
}

#[derive(Clone, Copy)]
#[repr(align(128))]
pub struct Row(pub [u32; 32]);

pub struct Warp {
    pub id: u32,
    pub regs: Vec<Row>,
    pub preds: Vec<u32>,
    pub pc: u32,
    pub mask: u32,
    pub alive: u32,
    pub full: u32,
    pub groups: Vec<Group>,
    pub status: Status,
    pub arriving: Option<u32>,
    pub barrier_inst: u32,
    pub carry: u32,
    pub local: Vec<u8>,
    /// Groups of asynchronous copies that each lane committed.
    pub committed: [u32; 32],
    pub copies: VecDeque<AsyncCopy>,
    /// Counts synchronisations of the warp, for the race check.
    pub sync_count: u32,
    pub instructions: u64,
    /// Run this many instructions without switching to a group further up: fairness for spin locks.
    pub hold: u32,
    pub divergent_steps: u32,
}

/// The mask of the lanes for which `f` holds, without branches so that it vectorises.
#[inline(always)]
pub fn mask_of(f: impl Fn(usize) -> bool) -> u32 {
    let mut bits = [0u32; 32];
    for (lane, bit) in bits.iter_mut().enumerate() {
        *bit = (f(lane) as u32) << lane;
    }
    let mut out = 0;
    for bit in bits {
        out |= bit;
    }
    out
}

/// The low words.
#[inline(always)]
pub fn narrow(values: &[u64; 32]) -> [u32; 32] {
    let mut out = [0; 32];
    for lane in 0..32 {
        out[lane] = values[lane] as u32;
    }
    out
}

#[inline(always)]
pub fn widen(values: &[u32; 32]) -> [u64; 32] {
    let mut out = [0; 32];
    for lane in 0..32 {
        out[lane] = values[lane] as u64;
    }
    out
}

/// A value of a lane and how a row stores it.
pub trait Lane: Copy {
    type Store: Copy + Default;
    fn get(store: Self::Store) -> Self;
    fn put(self) -> Self::Store;
}

macro_rules! lane {
    ($ty:ty, $store:ty, $get:expr, $put:expr) => {
        impl Lane for $ty {
            type Store = $store;
            #[inline(always)]
            fn get(store: $store) -> $ty {
                ($get)(store)
            }
            #[inline(always)]
            fn put(self) -> $store {
                ($put)(self)
            }
        }
    };
}

lane!(u16, u32, |x: u32| x as u16, |x: u16| x as u32);
lane!(i16, u32, |x: u32| x as i16, |x: i16| x as u16 as u32);
lane!(u32, u32, |x: u32| x, |x: u32| x);
lane!(i32, u32, |x: u32| x as i32, |x: i32| x as u32);
lane!(f32, u32, f32::from_bits, f32::to_bits);
lane!(u64, u64, |x: u64| x, |x: u64| x);
lane!(i64, u64, |x: u64| x as i64, |x: i64| x as u64);
lane!(f64, u64, f64::from_bits, f64::to_bits);

impl Warp {
    pub fn new(env: &Env, id: u32) -> Warp {
        let lanes = (env.threads_per_block - id * 32).min(32);
        let full = u32::MAX >> (32 - lanes);
        let mut warp = Warp {
            id,
            regs: vec![Row([0; 32]); env.kernel.rows as usize + 2],
            preds: vec![0; env.kernel.preds as usize + 1],
            pc: 0,
            mask: full,
            alive: full,
            full,
            groups: Vec::new(),
            status: Status::Ready,
            arriving: None,
            barrier_inst: 0,
            carry: 0,
            local: vec![0; env.kernel.local_bytes as usize * 32],
            committed: [0; 32],
            copies: VecDeque::new(),
            sync_count: 0,
            instructions: 0,
            hold: 0,
            divergent_steps: 0,
        };
        for &(row, value) in &env.consts {
            warp.constant(env, [0; 3], row, value);
        }
        warp
    }

    fn constant(&mut self, env: &Env, block: [u32; 3], row: u32, value: ConstValue) {
        match value {
            ConstValue::Bits32(bits) => self.regs[row as usize].0 = [bits; 32],
            ConstValue::Bits64(bits) => self.store(row, [bits; 32], u32::MAX),
            ConstValue::Special(which) => {
                for lane in 0..32 {
                    let value = special(env, block, self.id, lane, which);
                    self.regs[row as usize].0[lane as usize] = value;
                }
            }
        }
    }

    pub fn begin(&mut self, state: &BlockState) {
        let env = state.env;
        for &(row, value) in env.consts.iter().filter(|c| is_block_wide(&c.1)) {
            self.constant(env, state.index, row, value);
        }
        self.pc = 0;
        self.mask = self.full;
        self.alive = self.full;
        self.groups.clear();
        self.status = Status::Ready;
        self.arriving = None;
        self.local.fill(0xFF);
        self.committed = [0; 32];
        self.copies.clear();
        self.sync_count = 0;
        self.instructions = 0;
        self.hold = 0;
    }

    #[inline(always)]
    pub fn row(&self, row: u32) -> *const u32 {
        debug_assert!((row as usize) < self.regs.len());
        // SAFETY: the decoder hands out rows below `kernel.rows`; `regs` has two rows more.
        unsafe { self.regs.as_ptr().add(row as usize).cast() }
    }

    #[inline(always)]
    pub fn row_mut(&mut self, row: u32) -> *mut u32 {
        debug_assert!((row as usize) < self.regs.len());
        // SAFETY: as in `row`.
        unsafe { self.regs.as_mut_ptr().add(row as usize).cast() }
    }

    #[inline(always)]
    pub fn load<S: Copy>(&self, row: u32) -> [S; 32] {
        // SAFETY: a 32-bit register has one row, a 64-bit register two; rows are aligned to 128
        // bytes.
        unsafe { *self.row(row).cast::<[S; 32]>() }
    }

    /// A 32-bit register in place.
    #[inline(always)]
    pub fn lanes(&self, row: u32) -> &[u32; 32] {
        &self.regs[row as usize].0
    }

    #[inline(always)]
    pub fn store<S: Copy>(&mut self, row: u32, values: [S; 32], mask: u32) {
        let to = self.row_mut(row).cast::<S>();
        if mask == u32::MAX {
            // SAFETY: as in `load`.
            unsafe { *to.cast::<[S; 32]>() = values };
            return;
        }
        for (lane, value) in values.into_iter().enumerate() {
            if mask >> lane & 1 == 1 {
                // SAFETY: as in `load`.
                unsafe { *to.add(lane) = value };
            }
        }
    }

    #[inline(always)]
    pub(super) fn map1<D: Lane, A: Lane>(&mut self, i: &Inst, m: u32, f: impl Fn(A) -> D) {
        let a = self.load::<A::Store>(i.a);
        let mut out = [D::Store::default(); 32];
        for lane in 0..32 {
            out[lane] = f(A::get(a[lane])).put();
        }
        self.store(i.d, out, m);
    }

    #[inline(always)]
    pub(super) fn map2<D: Lane, A: Lane, B: Lane>(
        &mut self,
        i: &Inst,
        m: u32,
        f: impl Fn(A, B) -> D,
    ) {
        let a = self.load::<A::Store>(i.a);
        let b = self.load::<B::Store>(i.b);
        let mut out = [D::Store::default(); 32];
        for lane in 0..32 {
            out[lane] = f(A::get(a[lane]), B::get(b[lane])).put();
        }
        self.store(i.d, out, m);
    }

    #[inline(always)]
    pub(super) fn map3<D: Lane, A: Lane, B: Lane, C: Lane>(
        &mut self,
        i: &Inst,
        m: u32,
        f: impl Fn(A, B, C) -> D,
    ) {
        let a = self.load::<A::Store>(i.a);
        let b = self.load::<B::Store>(i.b);
        let c = self.load::<C::Store>(i.c);
        let mut out = [D::Store::default(); 32];
        for lane in 0..32 {
            out[lane] = f(A::get(a[lane]), B::get(b[lane]), C::get(c[lane])).put();
        }
        self.store(i.d, out, m);
    }

    /// A lane mask of a comparison.
    #[inline(always)]
    pub(super) fn mask2<A: Lane>(&self, i: &Inst, f: impl Fn(A, A) -> bool) -> u32 {
        let a = self.load::<A::Store>(i.a);
        let b = self.load::<A::Store>(i.b);
        mask_of(|lane| f(A::get(a[lane]), A::get(b[lane])))
    }

    #[inline(always)]
    pub fn set_pred(&mut self, pred: u32, value: u32, m: u32) {
        let slot = &mut self.preds[pred as usize];
        *slot = (*slot & !m) | (value & m);
    }

    /// Runs at most `budget` instructions.
    pub fn run(&mut self, state: &mut BlockState, budget: u64) -> Checked<Stop> {
        // One copy of the interpreter is compiled, since it takes minutes; every x86-64 server
        // since 2015 has these.
        #[cfg(target_arch = "x86_64")]
        {
            assert!(
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("bmi2"),
                "the virtual GPU needs a CPU with AVX2, FMA and BMI2"
            );
            // SAFETY: the features were just detected.
            unsafe { self.run_avx2(state, budget) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        self.run_any(state, budget)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt,lzcnt")]
    unsafe fn run_avx2(&mut self, state: &mut BlockState, budget: u64) -> Checked<Stop> {
        self.run_any(state, budget)
    }

    #[inline(always)]
    fn run_any(&mut self, state: &mut BlockState, budget: u64) -> Checked<Stop> {
        let kernel = state.env.kernel;
        for _ in 0..budget {
            if !self.groups.is_empty() {
                self.reconverge();
            }
            let pc = self.pc;
            let inst = &kernel.insts[pc as usize];
            let mut m = self.mask;
            if inst.guard != NONE {
                let p = self.preds[inst.guard as usize];
                m &= if inst.guard_negated { !p } else { p };
            }
            state.tally.executed[pc as usize] += 1;
            state.tally.threads += m.count_ones() as u64;
            self.instructions += 1;
            self.pc = pc + 1;
            if m == 0 {
                continue;
            }
            match inst.op {
                Op::Bra => self.branch(m, inst.d),
                Op::Exit => {
                    self.exit(state, m);
                    if self.status == Status::Done {
                        return Ok(Stop::Done);
                    }
                }
                Op::Barrier { kind, p_negated } => {
                    if self.barrier(state, inst, m, pc, kind, p_negated)? {
                        return Ok(Stop::Blocked);
                    }
                }
                _ => self.execute(state, inst, m, pc)?,
            }
        }
        Ok(Stop::Budget)
    }

    /// Merges groups that meet at this program counter and lets the lowest one run.
    #[inline(never)]
    fn reconverge(&mut self) {
        let pc = self.pc;
        let mut mask = self.mask;
        self.groups.retain(|g| {
            let here = g.pc == pc;
            if here {
                mask |= g.mask;
            }
            !here
        });
        self.mask = mask;
        self.divergent_steps += 1;
        if self.hold > 0 {
            self.hold -= 1;
            return;
        }
        let lowest = (0..self.groups.len())
            .filter(|&g| !self.groups[g].waiting)
            .min_by_key(|&g| self.groups[g].pc);
        let Some(lowest) = lowest else { return };
        // A loop that never lets the others on: they may hold the lock it waits for.
        let starving = self.divergent_steps > 20_000;
        if self.groups[lowest].pc < self.pc || starving {
            if starving {
                self.divergent_steps = 0;
                self.hold = 1000;
            }
            let other = self.groups[lowest];
            self.groups[lowest] = Group { pc: self.pc, mask: self.mask, waiting: false };
            self.pc = other.pc;
            self.mask = other.mask;
            self.reconverge_same();
        }
    }

    fn reconverge_same(&mut self) {
        let pc = self.pc;
        let mut mask = self.mask;
        self.groups.retain(|g| {
            let here = g.pc == pc;
            if here {
                mask |= g.mask;
            }
            !here
        });
        self.mask = mask;
    }

    #[inline(always)]
    fn branch(&mut self, taken: u32, target: u32) {
        if taken != self.mask {
            let rest = self.mask & !taken;
            self.groups.push(Group { pc: self.pc, mask: rest, waiting: false });
            self.mask = taken;
        }
        self.pc = target;
    }

    fn exit(&mut self, state: &mut BlockState, m: u32) {
        self.alive &= !m;
        self.mask &= !m;
        state.exited_threads += m.count_ones();
        self.copies_of_exited(state, m);
        if self.mask != 0 {
            return;
        }
        let next =
            (0..self.groups.len()).min_by_key(|&g| (self.groups[g].waiting, self.groups[g].pc));
        match next {
            Some(g) => {
                let group = self.groups.swap_remove(g);
                self.pc = group.pc;
                self.mask = group.mask;
            }
            None => self.status = Status::Done,
        }
    }

    /// Leaves the current group waiting at `pc` and runs another; false if there is none.
    pub fn switch_away(&mut self, pc: u32) -> bool {
        let next = (0..self.groups.len())
            .filter(|&g| !self.groups[g].waiting)
            .min_by_key(|&g| self.groups[g].pc);
        let Some(g) = next else { return false };
        let group = self.groups[g];
        self.groups[g] = Group { pc, mask: self.mask, waiting: true };
        self.pc = group.pc;
        self.mask = group.mask;
        self.hold = 0;
        true
    }

    pub fn leave_barrier(&mut self, state: &BlockState, barrier: &Barrier) {
        self.status = Status::Ready;
        self.sync_count += 1;
        let inst = state.env.kernel.insts[self.barrier_inst as usize];
        let Op::Barrier { kind, .. } = inst.op else { unreachable!("waits at a barrier") };
        match kind {
            BarrierKind::Popc => self.store(inst.d, [barrier.popc; 32], self.mask),
            BarrierKind::And => {
                self.set_pred(inst.d, if barrier.all { u32::MAX } else { 0 }, self.mask);
            }
            BarrierKind::Or => {
                self.set_pred(inst.d, if barrier.any { u32::MAX } else { 0 }, self.mask);
            }
            BarrierKind::Sync | BarrierKind::Arrive => {}
        }
    }

    pub fn unsupported<T>(&self, message: &str) -> Checked<T> {
        Err(Box::new(Fault::new(CheckKind::Unsupported, None, None, message.to_string())))
    }
}
