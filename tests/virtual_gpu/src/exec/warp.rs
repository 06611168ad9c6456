//! One warp: registers, divergence, and the instructions that touch nothing but registers.
//!
//! Lanes that diverged form groups with an own program counter. The group with the lowest one runs; groups that meet
//! merge. An instruction of the whole warp (shuffle, mma, barrier) lets its group wait until the lanes that it names
//! have come, so code that is correct under independent thread scheduling never blocks.

use super::Env;
use super::block::{Barrier, BlockState, is_block_wide, special};
use super::float::{self, PLAIN};
use super::memory_ops::AsyncCopy;
use super::{ConstValue, mma};
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
    pub copies: Vec<AsyncCopy>,
    /// Counts synchronisations of the warp, for the race check.
    pub sync_count: u32,
    pub instructions: u64,
    /// Run this many instructions without switching to a group further up: fairness for spin locks.
    pub hold: u32,
    pub divergent_steps: u32,
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
            copies: Vec::new(),
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
        // SAFETY: a 32-bit register has one row, a 64-bit register two; rows are aligned to 128 bytes.
        unsafe { *self.row(row).cast::<[S; 32]>() }
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
    fn map1<D: Lane, A: Lane>(&mut self, i: &Inst, m: u32, f: impl Fn(A) -> D) {
        let a = self.load::<A::Store>(i.a);
        let mut out = [D::Store::default(); 32];
        for lane in 0..32 {
            out[lane] = f(A::get(a[lane])).put();
        }
        self.store(i.d, out, m);
    }

    #[inline(always)]
    fn map2<D: Lane, A: Lane, B: Lane>(&mut self, i: &Inst, m: u32, f: impl Fn(A, B) -> D) {
        let a = self.load::<A::Store>(i.a);
        let b = self.load::<B::Store>(i.b);
        let mut out = [D::Store::default(); 32];
        for lane in 0..32 {
            out[lane] = f(A::get(a[lane]), B::get(b[lane])).put();
        }
        self.store(i.d, out, m);
    }

    #[inline(always)]
    fn map3<D: Lane, A: Lane, B: Lane, C: Lane>(
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
    fn mask2<A: Lane>(&self, i: &Inst, f: impl Fn(A, A) -> bool) -> u32 {
        let a = self.load::<A::Store>(i.a);
        let b = self.load::<A::Store>(i.b);
        let mut out = 0;
        for lane in 0..32 {
            out |= (f(A::get(a[lane]), A::get(b[lane])) as u32) << lane;
        }
        out
    }

    #[inline(always)]
    pub fn set_pred(&mut self, pred: u32, value: u32, m: u32) {
        let slot = &mut self.preds[pred as usize];
        *slot = (*slot & !m) | (value & m);
    }

    /// Runs at most `budget` instructions.
    pub fn run(&mut self, state: &mut BlockState, budget: u64) -> Checked<Stop> {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("bmi2")
            {
                // SAFETY: the features were just detected.
                return unsafe { self.run_avx512(state, budget) };
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("bmi2")
            {
                // SAFETY: the features were just detected.
                return unsafe { self.run_avx2(state, budget) };
            }
        }
        self.run_any(state, budget)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,popcnt,lzcnt")]
    unsafe fn run_avx512(&mut self, state: &mut BlockState, budget: u64) -> Checked<Stop> {
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

    #[inline(always)]
    fn execute(&mut self, state: &mut BlockState, i: &Inst, m: u32, pc: u32) -> Checked<()> {
        match i.op {
            Op::Mov32 => self.map1(i, m, |a: u32| a),
            Op::Mov64 => self.map1(i, m, |a: u64| a),
            Op::MovPred => {
                let value = self.preds[i.a as usize];
                self.set_pred(i.d, value, m);
            }
            Op::MovPredConst(value) => self.set_pred(i.d, if value { u32::MAX } else { 0 }, m),
            Op::PredNot => {
                let value = !self.preds[i.a as usize];
                self.set_pred(i.d, value, m);
            }
            Op::PredLogic(logic) => {
                let (a, b) = (self.preds[i.a as usize], self.preds[i.b as usize]);
                self.set_pred(i.d, combine(logic, a, b), m);
            }
            Op::Pack { count, part_bits, wide } => {
                self.pack(state.env.kernel, i, m, count, part_bits, wide);
            }
            Op::Unpack { count, part_bits, wide } => {
                self.unpack(state.env.kernel, i, m, count, part_bits, wide);
            }
            Op::ReadClock { wide } => {
                state.clock += 1;
                let now = state.clock * 16;
                if wide {
                    self.store(i.d, [now; 32], m)
                } else {
                    self.store(i.d, [now as u32; 32], m)
                }
            }
            Op::ActiveMask => self.store(i.d, [self.mask; 32], m),
            Op::Int { op, ty } => self.integer(i, m, op, ty),
            Op::IntSat { subtract: false } => self.map2(i, m, i32::saturating_add),
            Op::IntSat { subtract: true } => self.map2(i, m, i32::saturating_sub),
            Op::IntUn { op, ty } => self.integer_unary(i, m, op, ty),
            Op::MulWide(ty) => match ty {
                Ty::U16 => self.map2(i, m, |a: u16, b: u16| a as u32 * b as u32),
                Ty::S16 => self.map2(i, m, |a: i16, b: i16| a as i32 * b as i32),
                Ty::U32 => self.map2(i, m, |a: u32, b: u32| a as u64 * b as u64),
                _ => self.map2(i, m, |a: i32, b: i32| a as i64 * b as i64),
            },
            Op::MadLo(ty) => match ty.bits() {
                16 => self.map3(i, m, |a: u16, b: u16, c: u16| a.wrapping_mul(b).wrapping_add(c)),
                32 => self.map3(i, m, |a: u32, b: u32, c: u32| a.wrapping_mul(b).wrapping_add(c)),
                _ => self.map3(i, m, |a: u64, b: u64, c: u64| a.wrapping_mul(b).wrapping_add(c)),
            },
            Op::MadHi(ty) => match ty {
                Ty::U32 => self.map3(i, m, |a: u32, b: u32, c: u32| {
                    ((a as u64 * b as u64 >> 32) as u32).wrapping_add(c)
                }),
                Ty::S32 => self.map3(i, m, |a: i32, b: i32, c: i32| {
                    ((a as i64 * b as i64 >> 32) as i32).wrapping_add(c)
                }),
                Ty::U64 => {
                    self.map3(i, m, |a: u64, b: u64, c: u64| mulhi_u64(a, b).wrapping_add(c))
                }
                Ty::S64 => {
                    self.map3(i, m, |a: i64, b: i64, c: i64| mulhi_s64(a, b).wrapping_add(c))
                }
                _ => return self.unsupported("mad.hi of this type"),
            },
            Op::MadWide(ty) => {
                match ty {
                    Ty::U16 => self
                        .map3(i, m, |a: u16, b: u16, c: u32| (a as u32 * b as u32).wrapping_add(c)),
                    Ty::S16 => self
                        .map3(i, m, |a: i16, b: i16, c: i32| (a as i32 * b as i32).wrapping_add(c)),
                    Ty::U32 => self
                        .map3(i, m, |a: u32, b: u32, c: u64| (a as u64 * b as u64).wrapping_add(c)),
                    _ => self
                        .map3(i, m, |a: i32, b: i32, c: i64| (a as i64 * b as i64).wrapping_add(c)),
                }
            }
            Op::Mul24 { signed, high } => self.map2(i, m, |a: u32, b: u32| {
                let widen = |x: u32| {
                    if signed { ((x << 8) as i32 >> 8) as i64 } else { (x & 0xFF_FFFF) as i64 }
                };
                let product = widen(a) * widen(b);
                (if high { product >> 16 } else { product }) as u32
            }),
            Op::Lop3(table) => self.map3(i, m, |a: u32, b: u32, c: u32| lop3(table, a, b, c)),
            Op::Shf { left, wrap } => self.map3(i, m, |a: u32, b: u32, c: u32| {
                let count = if wrap { c & 31 } else { c.min(32) };
                let both = (b as u64) << 32 | a as u64;
                if left { ((both << count) >> 32) as u32 } else { (both >> count) as u32 }
            }),
            Op::Bfe(ty) => match ty.bits() {
                32 => self.map3(i, m, |a: u32, b: u32, c: u32| {
                    bfe(if ty.is_signed() { a as i32 as i64 as u64 } else { a as u64 }, ty, b, c)
                        as u32
                }),
                _ => self.map3(i, m, |a: u64, b: u32, c: u32| bfe(a, ty, b, c)),
            },
            Op::Bfi { wide } => self.bfi(state.env.kernel, i, m, wide),
            Op::Prmt(mode) => self.map3(i, m, |a: u32, b: u32, c: u32| prmt(mode, a, b, c)),
            Op::Sad(ty) => match ty {
                Ty::U32 => self.map3(i, m, |a: u32, b: u32, c: u32| a.abs_diff(b).wrapping_add(c)),
                Ty::S32 => self.map3(i, m, |a: i32, b: i32, c: u32| a.abs_diff(b).wrapping_add(c)),
                _ => return self.unsupported("sad of this type"),
            },
            Op::Dp4a { a_signed, b_signed } => self.map3(i, m, |a: u32, b: u32, c: u32| {
                let mut sum = c as i32;
                for k in 0..4 {
                    let x = byte(a >> (8 * k), a_signed);
                    sum = sum.wrapping_add(x * byte(b >> (8 * k), b_signed));
                }
                sum as u32
            }),
            Op::Dp2a { a_signed, b_signed, high } => self.map3(i, m, |a: u32, b: u32, c: u32| {
                let mut sum = c as i32;
                for k in 0..2 {
                    let part = (a >> (16 * k)) as u16;
                    let x = if a_signed { part as i16 as i32 } else { part as i32 };
                    let shift = 8 * k + 16 * high as u32;
                    sum = sum.wrapping_add(x.wrapping_mul(byte(b >> shift, b_signed)));
                }
                sum as u32
            }),
            Op::Carry { subtract, take, set, wide } => self.carry(i, m, subtract, take, set, wide),
            Op::MadCarry { high, signed, take, set } => {
                self.mad_carry(i, m, high, signed, take, set)
            }
            Op::Selp { wide } => {
                let p = self.preds[i.c as usize];
                if wide {
                    self.select::<u64>(i, m, p);
                } else {
                    self.select::<u32>(i, m, p);
                }
            }
            Op::Slct { wide, float } => {
                let c = self.load::<u32>(i.c);
                let mut p = 0;
                for (lane, &c) in c.iter().enumerate() {
                    let first = if float { f32::from_bits(c) >= 0.0 } else { c as i32 >= 0 };
                    p |= (first as u32) << lane;
                }
                if wide {
                    self.select::<u64>(i, m, p);
                } else {
                    self.select::<u32>(i, m, p);
                }
            }
            Op::Setp { ty, cmp, ftz, logic, p, p_negated, q } => {
                let mut value = self.compare(i, ty, cmp, ftz);
                let mut other = !value;
                if let Some(logic) = logic {
                    let p = self.preds[p as usize] ^ if p_negated { u32::MAX } else { 0 };
                    value = combine(logic, value, p);
                    other = combine(logic, other, p);
                }
                self.set_pred(i.d, value, m);
                if q != NONE {
                    self.set_pred(q, other, m);
                }
            }
            Op::Set { ty, cmp, ftz, float_result } => {
                let value = self.compare(i, ty, cmp, ftz);
                let hit = if float_result { 1f32.to_bits() } else { u32::MAX };
                let mut out = [0; 32];
                for (lane, out) in out.iter_mut().enumerate() {
                    *out = if value >> lane & 1 == 1 { hit } else { 0 };
                }
                self.store(i.d, out, m);
            }
            Op::F32 { op, mode } if mode.is_plain() => match op {
                FloatOp::Add => self.map2(i, m, |a: f32, b: f32| a + b),
                FloatOp::Sub => self.map2(i, m, |a: f32, b: f32| a - b),
                FloatOp::Mul => self.map2(i, m, |a: f32, b: f32| a * b),
                FloatOp::Div => self.map2(i, m, |a: f32, b: f32| a / b),
                FloatOp::Min => self.map2(i, m, float::min_f32),
                FloatOp::Max => self.map2(i, m, float::max_f32),
                _ => self.map2(i, m, |a: f32, b: f32| float::binary_f32(op, PLAIN, a, b)),
            },
            Op::F32 { op, mode } => {
                self.map2(i, m, |a: f32, b: f32| float::binary_f32(op, mode, a, b));
            }
            Op::F32Un { op, mode } if mode.is_plain() => match op {
                FloatUnary::Neg => self.map1(i, m, |a: f32| -a),
                FloatUnary::Abs => self.map1(i, m, f32::abs),
                FloatUnary::Ex2 => self.map1(i, m, float::exp2_f32),
                FloatUnary::Rcp => self.map1(i, m, |a: f32| 1.0 / a),
                FloatUnary::Sqrt => self.map1(i, m, f32::sqrt),
                _ => self.map1(i, m, |a: f32| float::unary_f32(op, PLAIN, a)),
            },
            Op::F32Un { op: FloatUnary::Ex2, mode } if mode.ftz && !mode.sat && !mode.relu => {
                self.map1(i, m, |a: f32| float::flush(float::exp2_f32(float::flush(a))));
            }
            Op::F32Un { op, mode } => {
                self.map1(i, m, |a: f32| float::unary_f32(op, mode, a));
            }
            Op::F32Fma(mode) if mode.is_plain() => {
                self.map3(i, m, |a: f32, b: f32, c: f32| a.mul_add(b, c));
            }
            Op::F32Fma(mode) => {
                self.map3(i, m, |a: f32, b: f32, c: f32| float::fma_f32(mode, a, b, c));
            }
            Op::F64 { op, mode } if mode.is_plain() => {
                self.map2(i, m, |a: f64, b: f64| float::binary_f64(op, a, b));
            }
            Op::F64Un { op, mode } if mode.is_plain() || mode.ftz => {
                self.map1(i, m, |a: f64| float::unary_f64(op, a));
            }
            Op::F64Fma(mode) if mode.is_plain() => {
                self.map3(i, m, |a: f64, b: f64, c: f64| a.mul_add(b, c));
            }
            Op::F64 { .. } | Op::F64Un { .. } | Op::F64Fma(_) => {
                return self.unsupported("f64 with directed rounding");
            }
            Op::Testp { wide, kind } => {
                let value = self.testp(i, wide, kind);
                self.set_pred(i.d, value, m);
            }
            Op::Half { op, ty, mode } => {
                let bf16 = matches!(ty, Ty::Bf16 | Ty::Bf16x2);
                let f = |a, b| float::binary_half(op, bf16, mode, a, b);
                if ty.bits() == 32 {
                    self.map2(i, m, |a: u32, b: u32| {
                        f(a as u16, b as u16) as u32
                            | (f((a >> 16) as u16, (b >> 16) as u16) as u32) << 16
                    });
                } else {
                    self.map2(i, m, f);
                }
            }
            Op::HalfUn { op, ty, .. } => {
                let bf16 = matches!(ty, Ty::Bf16 | Ty::Bf16x2);
                let f = |a| float::unary_half(op, bf16, a);
                if ty.bits() == 32 {
                    self.map1(i, m, |a: u32| {
                        f(a as u16) as u32 | (f((a >> 16) as u16) as u32) << 16
                    });
                } else {
                    self.map1(i, m, f);
                }
            }
            Op::HalfFma { ty, mode } => {
                let bf16 = matches!(ty, Ty::Bf16 | Ty::Bf16x2);
                let f = |a, b, c| float::fma_half(bf16, mode, a, b, c);
                if ty.bits() == 32 {
                    self.map3(i, m, |a: u32, b: u32, c: u32| {
                        f(a as u16, b as u16, c as u16) as u32
                            | (f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16) as u32) << 16
                    });
                } else {
                    self.map3(i, m, f);
                }
            }
            Op::Cvt { to, from, wide_to, half_to, wide_from, mode } => {
                self.cvt(i, m, to, from, (wide_to, half_to, wide_from), mode);
            }
            Op::CvtPack { to, mode } => {
                let bf16 = to == Ty::Bf16x2;
                if mode.is_plain() && bf16 {
                    self.map2(i, m, |a: f32, b: f32| {
                        (float::f32_to_bf16(a) as u32) << 16 | float::f32_to_bf16(b) as u32
                    });
                } else if mode.is_plain() {
                    self.map2(i, m, |a: f32, b: f32| {
                        (float::f32_to_f16(a) as u32) << 16 | float::f32_to_f16(b) as u32
                    });
                } else {
                    let to = if bf16 { Ty::Bf16 } else { Ty::F16 };
                    let f = |x: f32| float::convert(x.to_bits() as u64, Ty::F32, to, mode) as u32;
                    self.map2(i, m, |a: f32, b: f32| f(a) << 16 | f(b));
                }
            }
            Op::CvtTf32 => self.map1(i, m, float::to_tf32),
            Op::CvtPackInt { to, shift_in } => self.cvt_pack_int(i, m, to, shift_in),
            Op::LdParam { offset, width, count, signed, wide_data, half_data } => {
                self.load_param(
                    state.env,
                    i,
                    m,
                    (offset, width, count),
                    signed,
                    wide_data,
                    half_data,
                );
            }
            Op::Ld(mem) => self.memory_load(state, i, m, pc, mem)?,
            Op::St(mem) => self.memory_store(state, i, m, pc, mem)?,
            Op::Atom { op, ty, space, wide_address, offset } => {
                self.atomic(state, i, m, pc, op, ty, space, wide_address, offset)?;
            }
            Op::Cvta { add: true, window } => self.map1(i, m, |a: u64| a + window),
            Op::Cvta { add: false, window } => self.map1(i, m, |a: u64| a.wrapping_sub(window)),
            Op::Isspacep(space) => {
                let a = self.load::<u64>(i.a);
                let mut value = 0;
                for (lane, &a) in a.iter().enumerate() {
                    value |= ((super::memory_ops::space_of(a) == space) as u32) << lane;
                }
                self.set_pred(i.d, value, m);
            }
            Op::Fence => state.tally.counters.fences += 1,
            Op::CpAsync { bytes, wide_d, wide_a, d_offset, a_offset, ignore, ignore_negated } => {
                let ignored = if ignore == NONE {
                    0
                } else {
                    self.preds[ignore as usize] ^ if ignore_negated { u32::MAX } else { 0 }
                };
                let places = [(i.d, wide_d, d_offset), (i.a, wide_a, a_offset)];
                self.cp_async(state, m, pc, bytes as u32, places, i.b, ignored)?;
            }
            Op::CpCommit => {
                for lane in 0..32 {
                    self.committed[lane] += m >> lane & 1;
                }
            }
            Op::CpWait { all, groups } => self.cp_wait(state, m, all, groups),
            Op::Brx => self.brx(state.env.kernel, i, m)?,
            Op::Trap => {
                let lane = Some(m.trailing_zeros());
                let message = "the kernel stopped itself".to_string();
                return Err(Box::new(Fault::new(CheckKind::Trap, lane, None, message)));
            }
            Op::Nop => {}
            Op::Shfl { .. }
            | Op::Vote { .. }
            | Op::Match { .. }
            | Op::Redux { .. }
            | Op::Elect { .. }
            | Op::BarWarp => self.collective(state, i, m, pc)?,
            Op::Ldmatrix { count, trans, wide_address, offset } => {
                self.ldmatrix(state, i, m, pc, count, trans, (i.a, wide_address, offset))?;
            }
            Op::Stmatrix { count, trans, wide_address, offset } => {
                self.stmatrix(state, i, m, pc, count, trans, (i.a, wide_address, offset))?;
            }
            Op::MovMatrix => {
                if self.all_lanes(m, pc)? {
                    let rows = mma::lanes_to_matrix(&self.load(i.a), false);
                    self.store(i.d, mma::matrix_to_lanes(&rows, true), m);
                }
            }
            Op::Mma(shape) => {
                if self.all_lanes(m, pc)? {
                    self.mma(state.env.kernel, i, m, shape);
                }
            }
            Op::Bra | Op::Exit | Op::Barrier { .. } => unreachable!("handled by the loop"),
        }
        Ok(())
    }

    #[inline(always)]
    fn integer(&mut self, i: &Inst, m: u32, op: IntOp, ty: Ty) {
        match ty {
            Ty::U32 | Ty::S32 => match op {
                IntOp::Add => self.map2(i, m, u32::wrapping_add),
                IntOp::Sub => self.map2(i, m, u32::wrapping_sub),
                IntOp::Mul => self.map2(i, m, u32::wrapping_mul),
                IntOp::And => self.map2(i, m, |a: u32, b: u32| a & b),
                IntOp::Or => self.map2(i, m, |a: u32, b: u32| a | b),
                IntOp::Xor => self.map2(i, m, |a: u32, b: u32| a ^ b),
                IntOp::Shl => {
                    self.map2(i, m, |a: u32, b: u32| if b > 31 { 0 } else { a << (b & 31) });
                }
                IntOp::Shr if ty == Ty::S32 => self.map2(i, m, |a: i32, b: u32| a >> b.min(31)),
                IntOp::Shr => {
                    self.map2(i, m, |a: u32, b: u32| if b > 31 { 0 } else { a >> (b & 31) });
                }
                IntOp::Min if ty == Ty::S32 => self.map2(i, m, |a: i32, b: i32| a.min(b)),
                IntOp::Min => self.map2(i, m, |a: u32, b: u32| a.min(b)),
                IntOp::Max if ty == Ty::S32 => self.map2(i, m, |a: i32, b: i32| a.max(b)),
                IntOp::Max => self.map2(i, m, |a: u32, b: u32| a.max(b)),
                IntOp::MulHi if ty == Ty::S32 => {
                    self.map2(i, m, |a: i32, b: i32| (a as i64 * b as i64 >> 32) as i32);
                }
                IntOp::MulHi => {
                    self.map2(i, m, |a: u32, b: u32| (a as u64 * b as u64 >> 32) as u32)
                }
                IntOp::Div if ty == Ty::S32 => {
                    self.map2(i, m, |a: i32, b: i32| if b == 0 { -1 } else { a.wrapping_div(b) });
                }
                IntOp::Div => {
                    self.map2(i, m, |a: u32, b: u32| a.checked_div(b).unwrap_or(u32::MAX))
                }
                IntOp::Rem if ty == Ty::S32 => {
                    self.map2(i, m, |a: i32, b: i32| if b == 0 { a } else { a.wrapping_rem(b) });
                }
                IntOp::Rem => self.map2(i, m, |a: u32, b: u32| a.checked_rem(b).unwrap_or(a)),
            },
            Ty::U64 | Ty::S64 => match op {
                IntOp::Add => self.map2(i, m, u64::wrapping_add),
                IntOp::Sub => self.map2(i, m, u64::wrapping_sub),
                IntOp::Mul => self.map2(i, m, u64::wrapping_mul),
                IntOp::And => self.map2(i, m, |a: u64, b: u64| a & b),
                IntOp::Or => self.map2(i, m, |a: u64, b: u64| a | b),
                IntOp::Xor => self.map2(i, m, |a: u64, b: u64| a ^ b),
                IntOp::Shl => {
                    self.map2(i, m, |a: u64, b: u32| if b > 63 { 0 } else { a << (b & 63) });
                }
                IntOp::Shr if ty == Ty::S64 => self.map2(i, m, |a: i64, b: u32| a >> b.min(63)),
                IntOp::Shr => {
                    self.map2(i, m, |a: u64, b: u32| if b > 63 { 0 } else { a >> (b & 63) });
                }
                IntOp::Min if ty == Ty::S64 => self.map2(i, m, |a: i64, b: i64| a.min(b)),
                IntOp::Min => self.map2(i, m, |a: u64, b: u64| a.min(b)),
                IntOp::Max if ty == Ty::S64 => self.map2(i, m, |a: i64, b: i64| a.max(b)),
                IntOp::Max => self.map2(i, m, |a: u64, b: u64| a.max(b)),
                IntOp::MulHi if ty == Ty::S64 => self.map2(i, m, mulhi_s64),
                IntOp::MulHi => self.map2(i, m, mulhi_u64),
                IntOp::Div if ty == Ty::S64 => {
                    self.map2(i, m, |a: i64, b: i64| if b == 0 { -1 } else { a.wrapping_div(b) });
                }
                IntOp::Div => {
                    self.map2(i, m, |a: u64, b: u64| a.checked_div(b).unwrap_or(u64::MAX))
                }
                IntOp::Rem if ty == Ty::S64 => {
                    self.map2(i, m, |a: i64, b: i64| if b == 0 { a } else { a.wrapping_rem(b) });
                }
                IntOp::Rem => self.map2(i, m, |a: u64, b: u64| a.checked_rem(b).unwrap_or(a)),
            },
            _ => self.integer16(i, m, op, ty == Ty::S16),
        }
    }

    #[inline(always)]
    fn integer16(&mut self, i: &Inst, m: u32, op: IntOp, signed: bool) {
        match op {
            IntOp::Shl => self.map2(i, m, |a: u16, b: u32| if b > 15 { 0 } else { a << b }),
            IntOp::Shr if signed => self.map2(i, m, |a: i16, b: u32| a >> b.min(15)),
            IntOp::Shr => self.map2(i, m, |a: u16, b: u32| if b > 15 { 0 } else { a >> b }),
            _ if signed => self.map2(i, m, |a: i16, b: i16| match op {
                IntOp::Add => a.wrapping_add(b),
                IntOp::Sub => a.wrapping_sub(b),
                IntOp::Mul => a.wrapping_mul(b),
                IntOp::MulHi => (a as i32 * b as i32 >> 16) as i16,
                IntOp::Div if b == 0 => -1,
                IntOp::Div => a.wrapping_div(b),
                IntOp::Rem if b == 0 => a,
                IntOp::Rem => a.wrapping_rem(b),
                IntOp::Min => a.min(b),
                IntOp::Max => a.max(b),
                IntOp::And => a & b,
                IntOp::Or => a | b,
                _ => a ^ b,
            }),
            _ => self.map2(i, m, |a: u16, b: u16| match op {
                IntOp::Add => a.wrapping_add(b),
                IntOp::Sub => a.wrapping_sub(b),
                IntOp::Mul => a.wrapping_mul(b),
                IntOp::MulHi => (a as u32 * b as u32 >> 16) as u16,
                IntOp::Div => a.checked_div(b).unwrap_or(u16::MAX),
                IntOp::Rem => a.checked_rem(b).unwrap_or(a),
                IntOp::Min => a.min(b),
                IntOp::Max => a.max(b),
                IntOp::And => a & b,
                IntOp::Or => a | b,
                _ => a ^ b,
            }),
        }
    }

    #[inline(always)]
    fn integer_unary(&mut self, i: &Inst, m: u32, op: IntUnary, ty: Ty) {
        let signed = ty.is_signed();
        match ty.bits() {
            32 => self.map1(i, m, |a: u32| match op {
                IntUnary::Not => !a,
                IntUnary::Cnot => (a == 0) as u32,
                IntUnary::Neg => a.wrapping_neg(),
                IntUnary::Abs => (a as i32).wrapping_abs() as u32,
                IntUnary::Popc => a.count_ones(),
                IntUnary::Clz => a.leading_zeros(),
                IntUnary::Brev => a.reverse_bits(),
                IntUnary::Bfind => bfind(a as i32 as i64, a as u64, signed, 32, false),
                IntUnary::BfindShift => bfind(a as i32 as i64, a as u64, signed, 32, true),
            }),
            64 => match op {
                IntUnary::Popc => self.map1(i, m, |a: u64| a.count_ones()),
                IntUnary::Clz => self.map1(i, m, |a: u64| a.leading_zeros()),
                IntUnary::Bfind => self.map1(i, m, |a: u64| bfind(a as i64, a, signed, 64, false)),
                IntUnary::BfindShift => {
                    self.map1(i, m, |a: u64| bfind(a as i64, a, signed, 64, true));
                }
                _ => self.map1(i, m, |a: u64| match op {
                    IntUnary::Not => !a,
                    IntUnary::Cnot => (a == 0) as u64,
                    IntUnary::Neg => a.wrapping_neg(),
                    IntUnary::Abs => (a as i64).wrapping_abs() as u64,
                    _ => a.reverse_bits(),
                }),
            },
            _ => self.map1(i, m, |a: u16| match op {
                IntUnary::Not => !a,
                IntUnary::Cnot => (a == 0) as u16,
                IntUnary::Neg => a.wrapping_neg(),
                IntUnary::Abs => (a as i16).wrapping_abs() as u16,
                _ => a.reverse_bits(),
            }),
        }
    }

    #[inline(always)]
    fn compare(&self, i: &Inst, ty: Ty, cmp: Compare, ftz: bool) -> u32 {
        macro_rules! ordered {
            ($t:ty) => {
                match cmp {
                    Compare::Eq => self.mask2(i, |a: $t, b: $t| a == b),
                    Compare::Ne => self.mask2(i, |a: $t, b: $t| a != b),
                    Compare::Lt => self.mask2(i, |a: $t, b: $t| a < b),
                    Compare::Le => self.mask2(i, |a: $t, b: $t| a <= b),
                    Compare::Gt => self.mask2(i, |a: $t, b: $t| a > b),
                    _ => self.mask2(i, |a: $t, b: $t| a >= b),
                }
            };
        }
        match ty {
            Ty::U16 => ordered!(u16),
            Ty::S16 => ordered!(i16),
            Ty::U32 => ordered!(u32),
            Ty::S32 => ordered!(i32),
            Ty::U64 => ordered!(u64),
            Ty::S64 => ordered!(i64),
            Ty::F64 => self.mask2(i, |a: f64, b: f64| float::compare_floats(cmp, a, b)),
            Ty::F16 => self.mask2(i, |a: u16, b: u16| {
                let (a, b) = (float::f16_to_f32(a), float::f16_to_f32(b));
                float::compare_floats(cmp, a as f64, b as f64)
            }),
            Ty::Bf16 => self.mask2(i, |a: u16, b: u16| {
                let (a, b) = (float::bf16_to_f32(a), float::bf16_to_f32(b));
                float::compare_floats(cmp, a as f64, b as f64)
            }),
            _ if ftz => self.mask2(i, |a: f32, b: f32| {
                float::compare_floats(cmp, float::flush(a) as f64, float::flush(b) as f64)
            }),
            _ => self.mask2(i, |a: f32, b: f32| float::compare_floats(cmp, a as f64, b as f64)),
        }
    }

    #[inline(always)]
    fn select<S: Copy + Default>(&mut self, i: &Inst, m: u32, p: u32) {
        let a = self.load::<S>(i.a);
        let b = self.load::<S>(i.b);
        let mut out = [S::default(); 32];
        for lane in 0..32 {
            out[lane] = if p >> lane & 1 == 1 { a[lane] } else { b[lane] };
        }
        self.store(i.d, out, m);
    }

    fn pack(&mut self, kernel: &Kernel, i: &Inst, m: u32, count: u8, part_bits: u8, wide: bool) {
        let mut out = [0u64; 32];
        for part in 0..count as u32 {
            let row = kernel.lists[(i.a + part) as usize];
            let values = self.load::<u32>(row);
            for lane in 0..32 {
                out[lane] |= (values[lane] as u64) << (part * part_bits as u32);
            }
        }
        if wide {
            self.store(i.d, out, m);
        } else {
            self.store(i.d, out.map(|x| x as u32), m);
        }
    }

    fn unpack(&mut self, kernel: &Kernel, i: &Inst, m: u32, count: u8, part_bits: u8, wide: bool) {
        let values =
            if wide { self.load::<u64>(i.a) } else { self.load::<u32>(i.a).map(|x| x as u64) };
        let keep = (1u64 << part_bits) - 1;
        for part in 0..count as u32 {
            let row = kernel.lists[(i.d + part) as usize];
            let shift = part * part_bits as u32;
            self.store(row, values.map(|x| (x >> shift & keep) as u32), m);
        }
    }

    fn bfi(&mut self, kernel: &Kernel, i: &Inst, m: u32, wide: bool) {
        let position = self.load::<u32>(kernel.lists[i.c as usize]);
        let length = self.load::<u32>(kernel.lists[i.c as usize + 1]);
        let bits = if wide { 64 } else { 32 };
        let insert = |a: u64, b: u64, lane: usize| {
            let (at, length) = (position[lane] & 0xFF, length[lane] & 0xFF);
            if length == 0 || at >= bits {
                return b;
            }
            let field = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
            (b & !(field << at)) | (a & field) << at
        };
        if wide {
            let (a, b) = (self.load::<u64>(i.a), self.load::<u64>(i.b));
            let mut out = [0; 32];
            for lane in 0..32 {
                out[lane] = insert(a[lane], b[lane], lane);
            }
            self.store(i.d, out, m);
        } else {
            let (a, b) = (self.load::<u32>(i.a), self.load::<u32>(i.b));
            let mut out = [0; 32];
            for lane in 0..32 {
                out[lane] = insert(a[lane] as u64, b[lane] as u64, lane) as u32;
            }
            self.store(i.d, out, m);
        }
    }

    fn carry(&mut self, i: &Inst, m: u32, subtract: bool, take: bool, set: bool, wide: bool) {
        let mut flags = 0;
        let read = |w: &Warp, row| {
            if wide { w.load::<u64>(row) } else { w.load::<u32>(row).map(|x| x as u64) }
        };
        let (a, b) = (read(self, i.a), read(self, i.b));
        let mut out = [0u64; 32];
        for lane in 0..32 {
            let c = if take { (self.carry >> lane & 1) as u128 } else { 0 };
            let (x, y) = (a[lane] as u128, b[lane] as u128);
            let value = if subtract { x.wrapping_sub(y).wrapping_sub(c) } else { x + y + c };
            out[lane] = value as u64;
            let bit = if wide { 64 } else { 32 };
            flags |= ((value >> bit & 1) as u32) << lane;
        }
        if set {
            self.carry = (self.carry & !m) | (flags & m);
        }
        if wide {
            self.store(i.d, out, m);
        } else {
            self.store(i.d, out.map(|x| x as u32), m);
        }
    }

    fn mad_carry(&mut self, i: &Inst, m: u32, high: bool, signed: bool, take: bool, set: bool) {
        let (a, b) = (self.load::<u32>(i.a), self.load::<u32>(i.b));
        let c = self.load::<u32>(i.c);
        let mut flags = 0;
        let mut out = [0; 32];
        for lane in 0..32 {
            let product = if signed {
                (a[lane] as i32 as i64 * b[lane] as i32 as i64) as u64
            } else {
                a[lane] as u64 * b[lane] as u64
            };
            let part = if high { product >> 32 } else { product & 0xFFFF_FFFF };
            let carry = if take { (self.carry >> lane & 1) as u64 } else { 0 };
            let sum = part + c[lane] as u64 + carry;
            out[lane] = sum as u32;
            flags |= ((sum >> 32) as u32 & 1) << lane;
        }
        if set {
            self.carry = (self.carry & !m) | (flags & m);
        }
        self.store(i.d, out, m);
    }

    fn testp(&self, i: &Inst, wide: bool, kind: u8) -> u32 {
        let test = |category: std::num::FpCategory| {
            use std::num::FpCategory as C;
            match kind {
                0 => !matches!(category, C::Nan | C::Infinite),
                1 => category == C::Infinite,
                2 => category != C::Nan,
                3 => category == C::Nan,
                4 => category == C::Normal,
                _ => category == C::Subnormal,
            }
        };
        let mut value = 0;
        if wide {
            for (lane, x) in self.load::<u64>(i.a).into_iter().enumerate() {
                value |= (test(f64::from_bits(x).classify()) as u32) << lane;
            }
        } else {
            for (lane, x) in self.load::<u32>(i.a).into_iter().enumerate() {
                value |= (test(f32::from_bits(x).classify()) as u32) << lane;
            }
        }
        value
    }

    #[inline(always)]
    fn cvt(
        &mut self,
        i: &Inst,
        m: u32,
        to: Ty,
        from: Ty,
        (wide_to, half_to, wide_from): (bool, bool, bool),
        mode: FloatMode,
    ) {
        if mode.is_plain() {
            match (to, from) {
                (Ty::U64 | Ty::S64, Ty::U32) if wide_to && !wide_from => {
                    return self.map1(i, m, |a: u32| a as u64);
                }
                (Ty::U64 | Ty::S64, Ty::S32) if wide_to && !wide_from => {
                    return self.map1(i, m, |a: i32| a as i64);
                }
                (Ty::U32 | Ty::S32, Ty::U64 | Ty::S64) if !wide_to && !half_to => {
                    return self.map1(i, m, |a: u64| a as u32);
                }
                (Ty::U32 | Ty::S32, Ty::U16) if !wide_to && !half_to && !wide_from => {
                    return self.map1(i, m, |a: u16| a as u32);
                }
                (Ty::U16 | Ty::S16, Ty::U32 | Ty::S32) if half_to && !wide_from => {
                    return self.map1(i, m, |a: u32| a as u16);
                }
                (Ty::F32, Ty::F16) => return self.map1(i, m, |a: u16| float::f16_to_f32(a)),
                (Ty::F32, Ty::Bf16) => return self.map1(i, m, |a: u16| float::bf16_to_f32(a)),
                (Ty::F16, Ty::F32) => return self.map1(i, m, float::f32_to_f16),
                (Ty::Bf16, Ty::F32) => return self.map1(i, m, float::f32_to_bf16),
                (Ty::F32, Ty::S32) => return self.map1(i, m, |a: i32| a as f32),
                (Ty::F32, Ty::U32) => return self.map1(i, m, |a: u32| a as f32),
                _ => {}
            }
        }
        let raw =
            if wide_from { self.load::<u64>(i.a) } else { self.load::<u32>(i.a).map(|x| x as u64) };
        let mut out = [0u64; 32];
        for lane in 0..32 {
            let bits = float::convert(raw[lane], from, to, mode);
            // A wider register gets the value extended by the sign of the type.
            out[lane] = if to.is_float() {
                bits
            } else {
                let shift = 64 - to.bits();
                if to.is_signed() {
                    ((bits << shift) as i64 >> shift) as u64
                } else {
                    bits << shift >> shift
                }
            };
        }
        if wide_to {
            self.store(i.d, out, m);
        } else {
            let keep = if half_to { 0xFFFF } else { u32::MAX };
            self.store(i.d, out.map(|x| x as u32 & keep), m);
        }
    }

    fn cvt_pack_int(&mut self, i: &Inst, m: u32, to: Ty, shift_in: bool) {
        let (low, high) = match to {
            Ty::U16 => (0, 0xFFFF),
            Ty::S16 => (-0x8000, 0x7FFF),
            Ty::U8 => (0, 0xFF),
            _ => (-0x80, 0x7F),
        };
        let bits = to.bits();
        let keep = (1u32 << bits) - 1;
        let clamp = |x: u32| (x as i32).clamp(low, high) as u32 & keep;
        if shift_in {
            self.map3(i, m, |a: u32, b: u32, c: u32| c << 16 | clamp(a) << 8 | clamp(b));
        } else {
            self.map2(i, m, |a: u32, b: u32| clamp(a) << bits | clamp(b));
        }
    }

    fn brx(&mut self, kernel: &Kernel, i: &Inst, m: u32) -> Checked<()> {
        let index = self.load::<u32>(i.a);
        let count = kernel.lists[i.d as usize];
        let rest = self.mask & !m;
        if rest != 0 {
            self.groups.push(Group { pc: self.pc, mask: rest, waiting: false });
        }
        let mut left = m;
        let mut first = true;
        while left != 0 {
            let lane = left.trailing_zeros();
            let choice = index[lane as usize];
            if choice >= count {
                let message = format!("index {choice} of {count} targets");
                return Err(Box::new(Fault::new(CheckKind::Memcheck, Some(lane), None, message)));
            }
            let mut together = 0;
            for (lane, &other) in index.iter().enumerate() {
                together |= ((other == choice) as u32) << lane;
            }
            together &= left;
            left &= !together;
            let pc = kernel.lists[(i.d + 1 + choice) as usize];
            if first {
                self.pc = pc;
                self.mask = together;
                first = false;
            } else {
                self.groups.push(Group { pc, mask: together, waiting: false });
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn mma(&mut self, kernel: &Kernel, i: &Inst, m: u32, shape: MmaShape) {
        let rows = |start: u32, at: usize| kernel.lists[start as usize + at];
        let c2 = |w: &Warp| [0, 1].map(|k| w.load::<u32>(rows(i.c, k)));
        let a4 = |w: &Warp| [0, 1, 2, 3].map(|k| w.load::<u32>(rows(i.a, k)));
        let a2 = |w: &Warp| [0, 1].map(|k| w.load::<u32>(rows(i.a, k)));
        let b2 = |w: &Warp| [0, 1].map(|k| w.load::<u32>(rows(i.b, k)));
        let b1 = |w: &Warp| [w.load::<u32>(rows(i.b, 0))];
        let c4 = |w: &Warp| [0, 1, 2, 3].map(|k| w.load::<u32>(rows(i.c, k)));
        let d = match shape {
            MmaShape::K16 { bf16: true } => {
                mma::mma_f32::<16>(true, &a4(self), &b2(self), &c4(self))
            }
            MmaShape::K16 { bf16: false } => {
                mma::mma_f32::<16>(false, &a4(self), &b2(self), &c4(self))
            }
            MmaShape::K8 { bf16 } => mma::mma_f32::<8>(bf16, &a2(self), &b1(self), &c4(self)),
            MmaShape::K16HalfAcc => {
                let d = mma::mma_f16(&a4(self), &b2(self), &c2(self));
                for (k, value) in d.into_iter().enumerate() {
                    self.store(rows(i.d, k), value, m);
                }
                return;
            }
            MmaShape::K32Int { a_signed, b_signed, sat } => {
                mma::mma_int((a_signed, b_signed), sat, &a4(self), &b2(self), &c4(self))
            }
            MmaShape::K16Int { a_signed, b_signed, sat } => {
                mma::mma_int((a_signed, b_signed), sat, &a2(self), &b1(self), &c4(self))
            }
        };
        for (k, value) in d.into_iter().enumerate() {
            self.store(rows(i.d, k), value, m);
        }
    }
}

fn combine(logic: Logic, a: u32, b: u32) -> u32 {
    match logic {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}

#[inline(always)]
fn mulhi_u64(a: u64, b: u64) -> u64 {
    (a as u128 * b as u128 >> 64) as u64
}

#[inline(always)]
fn mulhi_s64(a: i64, b: i64) -> i64 {
    (a as i128 * b as i128 >> 64) as i64
}

#[inline(always)]
fn lop3(table: u8, a: u32, b: u32, c: u32) -> u32 {
    let mut out = 0;
    for k in 0..8 {
        if table >> k & 1 == 1 {
            let x = if k & 4 != 0 { a } else { !a };
            let y = if k & 2 != 0 { b } else { !b };
            let z = if k & 1 != 0 { c } else { !c };
            out |= x & y & z;
        }
    }
    out
}

#[inline(always)]
fn byte(x: u32, signed: bool) -> i32 {
    if signed { x as u8 as i8 as i32 } else { x as u8 as i32 }
}

/// `bfe`: the field at `position` of `length`, extended by its top bit if signed.
fn bfe(a: u64, ty: Ty, position: u32, length: u32) -> u64 {
    let bits = ty.bits();
    let (position, length) = (position & 0xFF, length & 0xFF);
    let top = bits - 1;
    if length == 0 {
        return 0;
    }
    let sign_bit = if ty.is_signed() { a >> (position + length - 1).min(top) & 1 } else { 0 };
    let mut out = 0;
    for k in 0..bits {
        let from = position + k;
        let bit = if k < length && from <= top { a >> from & 1 } else { sign_bit };
        out |= bit << k;
    }
    out
}

fn bfind(signed_value: i64, value: u64, signed: bool, bits: u32, shift: bool) -> u32 {
    let value = if signed && signed_value < 0 { !value } else { value };
    let value = if bits == 32 { value & 0xFFFF_FFFF } else { value };
    if value == 0 {
        return u32::MAX;
    }
    let position = 63 - value.leading_zeros();
    if shift { bits - 1 - position } else { position }
}

fn prmt(mode: u8, a: u32, b: u32, c: u32) -> u32 {
    let bytes = (b as u64) << 32 | a as u64;
    let pick = |selector: u32| {
        let byte = (bytes >> (8 * (selector & 7))) as u8;
        // The top bit of a selector replicates the sign of the byte.
        if selector & 8 != 0 { if byte & 0x80 != 0 { 0xFF } else { 0 } } else { byte as u32 }
    };
    let k = c & 3;
    let selectors: [u32; 4] = match mode {
        0 => [c & 15, c >> 4 & 15, c >> 8 & 15, c >> 12 & 15],
        1 => [k, k + 1, k + 2, k + 3],
        2 => [k, (k + 7) & 7, (k + 6) & 7, (k + 5) & 7],
        3 => [k; 4],
        4 => [k, k.max(1), k.max(2), 3],
        5 => [0, k.min(1), k.min(2), k],
        _ => [2 * (k & 1), 2 * (k & 1) + 1, 2 * (k & 1), 2 * (k & 1) + 1],
    };
    pick(selectors[0])
        | pick(selectors[1]) << 8
        | pick(selectors[2]) << 16
        | pick(selectors[3]) << 24
}
