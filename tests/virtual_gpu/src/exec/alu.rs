//! What single instructions compute from registers; the rest is handed on to `memory_ops` and
//! `sync`.

use super::block::BlockState;
use super::float::{self, PLAIN};
use super::mma;
use super::warp::{Checked, Fault, Group, Warp, narrow, widen};
use crate::checks::CheckKind;
use crate::ptx::decode::*;

impl Warp {
    #[inline(always)]
    pub(super) fn execute(
        &mut self,
        state: &mut BlockState,
        i: &Inst,
        m: u32,
        pc: u32,
    ) -> Checked<()> {
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
            _ => return self.arithmetic(state, i, m, pc),
        }
        Ok(())
    }

    /// Adding, multiplying and their like on integers.
    #[inline(always)]
    fn arithmetic(&mut self, state: &mut BlockState, i: &Inst, m: u32, pc: u32) -> Checked<()> {
        match i.op {
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
                    (((a as u64 * b as u64) >> 32) as u32).wrapping_add(c)
                }),
                Ty::S32 => self.map3(i, m, |a: i32, b: i32, c: i32| {
                    (((a as i64 * b as i64) >> 32) as i32).wrapping_add(c)
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
            _ => return self.bit_fields(state, i, m, pc),
        }
        Ok(())
    }

    /// Bits, bytes and carries.
    #[inline(always)]
    fn bit_fields(&mut self, state: &mut BlockState, i: &Inst, m: u32, pc: u32) -> Checked<()> {
        match i.op {
            Op::Lop3(table) => {
                let masks: [u32; 8] =
                    std::array::from_fn(|k| 0u32.wrapping_sub(table as u32 >> k & 1));
                self.map3(i, m, |a: u32, b: u32, c: u32| lop3(&masks, a, b, c));
            }
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
            _ => return self.choices(state, i, m, pc),
        }
        Ok(())
    }

    /// Selections and comparisons.
    #[inline(always)]
    fn choices(&mut self, state: &mut BlockState, i: &Inst, m: u32, pc: u32) -> Checked<()> {
        match i.op {
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
            _ => return self.floats(state, i, m, pc),
        }
        Ok(())
    }

    /// f32 and f64.
    #[inline(always)]
    fn floats(&mut self, state: &mut BlockState, i: &Inst, m: u32, pc: u32) -> Checked<()> {
        match i.op {
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
            _ => return self.halves(state, i, m, pc),
        }
        Ok(())
    }

    /// f16 and bf16, alone and in pairs.
    #[inline(always)]
    fn halves(&mut self, state: &mut BlockState, i: &Inst, m: u32, pc: u32) -> Checked<()> {
        match i.op {
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
            _ => return self.conversions(state, i, m, pc),
        }
        Ok(())
    }

    #[inline(always)]
    fn conversions(&mut self, state: &mut BlockState, i: &Inst, m: u32, pc: u32) -> Checked<()> {
        match i.op {
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
            _ => return self.memory(state, i, m, pc),
        }
        Ok(())
    }

    /// Everything that has an address.
    #[inline(always)]
    fn memory(&mut self, state: &mut BlockState, i: &Inst, m: u32, pc: u32) -> Checked<()> {
        match i.op {
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
            _ => return self.collectives(state, i, m, pc),
        }
        Ok(())
    }

    /// Jumps by table, and instructions of the whole warp.
    #[inline(always)]
    fn collectives(&mut self, state: &mut BlockState, i: &Inst, m: u32, pc: u32) -> Checked<()> {
        match i.op {
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
            | Op::BarWarp => self.collective(i, m, pc)?,
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
            // Jumps, exits and barriers are the loop's; the groups above name all others.
            _ => unreachable!("every instruction has a group"),
        }
        Ok(())
    }
    #[inline(always)]
    fn integer(&mut self, i: &Inst, m: u32, op: IntOp, ty: Ty) {
        match ty {
            Ty::U32 | Ty::S32 => self.integer32(i, m, op, ty == Ty::S32),
            Ty::U64 | Ty::S64 => self.integer64(i, m, op, ty == Ty::S64),
            _ => self.integer16(i, m, op, ty == Ty::S16),
        }
    }

    #[inline(always)]
    fn integer32(&mut self, i: &Inst, m: u32, op: IntOp, signed: bool) {
        match op {
            IntOp::Add => self.map2(i, m, u32::wrapping_add),
            IntOp::Sub => self.map2(i, m, u32::wrapping_sub),
            IntOp::Mul => self.map2(i, m, u32::wrapping_mul),
            IntOp::And => self.map2(i, m, |a: u32, b: u32| a & b),
            IntOp::Or => self.map2(i, m, |a: u32, b: u32| a | b),
            IntOp::Xor => self.map2(i, m, |a: u32, b: u32| a ^ b),
            IntOp::Shl => {
                self.map2(i, m, |a: u32, b: u32| if b > 31 { 0 } else { a << (b & 31) });
            }
            IntOp::Shr if signed => self.map2(i, m, |a: i32, b: u32| a >> b.min(31)),
            IntOp::Shr => {
                self.map2(i, m, |a: u32, b: u32| if b > 31 { 0 } else { a >> (b & 31) });
            }
            IntOp::Min if signed => self.map2(i, m, |a: i32, b: i32| a.min(b)),
            IntOp::Min => self.map2(i, m, |a: u32, b: u32| a.min(b)),
            IntOp::Max if signed => self.map2(i, m, |a: i32, b: i32| a.max(b)),
            IntOp::Max => self.map2(i, m, |a: u32, b: u32| a.max(b)),
            IntOp::MulHi if signed => {
                self.map2(i, m, |a: i32, b: i32| ((a as i64 * b as i64) >> 32) as i32);
            }
            IntOp::MulHi => self.map2(i, m, |a: u32, b: u32| ((a as u64 * b as u64) >> 32) as u32),
            IntOp::Div if signed => {
                self.map2(i, m, |a: i32, b: i32| if b == 0 { -1 } else { a.wrapping_div(b) });
            }
            IntOp::Div => self.map2(i, m, |a: u32, b: u32| a.checked_div(b).unwrap_or(u32::MAX)),
            IntOp::Rem if signed => {
                self.map2(i, m, |a: i32, b: i32| if b == 0 { a } else { a.wrapping_rem(b) });
            }
            IntOp::Rem => self.map2(i, m, |a: u32, b: u32| a.checked_rem(b).unwrap_or(a)),
        }
    }

    #[inline(always)]
    fn integer64(&mut self, i: &Inst, m: u32, op: IntOp, signed: bool) {
        match op {
            IntOp::Add => self.map2(i, m, u64::wrapping_add),
            IntOp::Sub => self.map2(i, m, u64::wrapping_sub),
            IntOp::Mul => self.map2(i, m, u64::wrapping_mul),
            IntOp::And => self.map2(i, m, |a: u64, b: u64| a & b),
            IntOp::Or => self.map2(i, m, |a: u64, b: u64| a | b),
            IntOp::Xor => self.map2(i, m, |a: u64, b: u64| a ^ b),
            IntOp::Shl => {
                self.map2(i, m, |a: u64, b: u32| if b > 63 { 0 } else { a << (b & 63) });
            }
            IntOp::Shr if signed => self.map2(i, m, |a: i64, b: u32| a >> b.min(63)),
            IntOp::Shr => {
                self.map2(i, m, |a: u64, b: u32| if b > 63 { 0 } else { a >> (b & 63) });
            }
            IntOp::Min if signed => self.map2(i, m, |a: i64, b: i64| a.min(b)),
            IntOp::Min => self.map2(i, m, |a: u64, b: u64| a.min(b)),
            IntOp::Max if signed => self.map2(i, m, |a: i64, b: i64| a.max(b)),
            IntOp::Max => self.map2(i, m, |a: u64, b: u64| a.max(b)),
            IntOp::MulHi if signed => self.map2(i, m, mulhi_s64),
            IntOp::MulHi => self.map2(i, m, mulhi_u64),
            IntOp::Div if signed => {
                self.map2(i, m, |a: i64, b: i64| if b == 0 { -1 } else { a.wrapping_div(b) });
            }
            IntOp::Div => self.map2(i, m, |a: u64, b: u64| a.checked_div(b).unwrap_or(u64::MAX)),
            IntOp::Rem if signed => {
                self.map2(i, m, |a: i64, b: i64| if b == 0 { a } else { a.wrapping_rem(b) });
            }
            IntOp::Rem => self.map2(i, m, |a: u64, b: u64| a.checked_rem(b).unwrap_or(a)),
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
                IntOp::MulHi => ((a as i32 * b as i32) >> 16) as i16,
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
                IntOp::MulHi => ((a as u32 * b as u32) >> 16) as u16,
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

    #[inline(always)]
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
            self.store(i.d, narrow(&out), m);
        }
    }

    #[inline(always)]
    fn unpack(&mut self, kernel: &Kernel, i: &Inst, m: u32, count: u8, part_bits: u8, wide: bool) {
        let values = if wide { self.load::<u64>(i.a) } else { widen(self.lanes(i.a)) };
        let keep = (1u64 << part_bits) - 1;
        for part in 0..count as u32 {
            let row = kernel.lists[(i.d + part) as usize];
            let shift = part * part_bits as u32;
            let mut out = [0; 32];
            for lane in 0..32 {
                out[lane] = (values[lane] >> shift & keep) as u32;
            }
            self.store(row, out, m);
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
            if wide { w.load::<u64>(row) } else { widen(w.lanes(row)) }
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
            self.store(i.d, narrow(&out), m);
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
        let raw = if wide_from { self.load::<u64>(i.a) } else { widen(self.lanes(i.a)) };
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
            let keep = if half_to { 0xFFFF } else { u32::MAX as u64 };
            for value in &mut out {
                *value &= keep;
            }
            self.store(i.d, narrow(&out), m);
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
        let a = |k: usize| self.lanes(rows(i.a, k));
        let b = |k: usize| self.lanes(rows(i.b, k));
        let c = |k: usize| self.lanes(rows(i.c, k));
        let d = match shape {
            MmaShape::K16 { bf16: true } => mma::mma_f32::<16>(
                true,
                &[a(0), a(1), a(2), a(3)],
                &[b(0), b(1)],
                &[c(0), c(1), c(2), c(3)],
            ),
            MmaShape::K16 { bf16: false } => mma::mma_f32::<16>(
                false,
                &[a(0), a(1), a(2), a(3)],
                &[b(0), b(1)],
                &[c(0), c(1), c(2), c(3)],
            ),
            MmaShape::K8 { bf16 } => {
                mma::mma_f32::<8>(bf16, &[a(0), a(1)], &[b(0)], &[c(0), c(1), c(2), c(3)])
            }
            MmaShape::K16HalfAcc => {
                let d = mma::mma_f16(&[a(0), a(1), a(2), a(3)], &[b(0), b(1)], &[c(0), c(1)]);
                for (k, value) in d.into_iter().enumerate() {
                    self.store(rows(i.d, k), value, m);
                }
                return;
            }
            MmaShape::K32Int { a_signed, b_signed, sat } => mma::mma_int(
                (a_signed, b_signed),
                sat,
                &[a(0), a(1), a(2), a(3)],
                &[b(0), b(1)],
                &[c(0), c(1), c(2), c(3)],
            ),
            MmaShape::K16Int { a_signed, b_signed, sat } => mma::mma_int(
                (a_signed, b_signed),
                sat,
                &[a(0), a(1)],
                &[b(0)],
                &[c(0), c(1), c(2), c(3)],
            ),
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
    ((a as u128 * b as u128) >> 64) as u64
}

#[inline(always)]
fn mulhi_s64(a: i64, b: i64) -> i64 {
    ((a as i128 * b as i128) >> 64) as i64
}

#[inline(always)]
fn lop3(masks: &[u32; 8], a: u32, b: u32, c: u32) -> u32 {
    let pick = |k: usize| masks[k];
    let low = (pick(0) & !c | pick(1) & c) & !b | (pick(2) & !c | pick(3) & c) & b;
    let high = (pick(4) & !c | pick(5) & c) & !b | (pick(6) & !c | pick(7) & c) & b;
    low & !a | high & a
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
