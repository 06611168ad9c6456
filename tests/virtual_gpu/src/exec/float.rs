//! Numbers: rounding, half formats, conversions, and the functions that the hardware approximates.
//!
//! Approximate instructions (`ex2.approx`, `rcp.approx`, ...) are computed to f32 accuracy here;
//! hardware errs by up to 2 ulp. So agreement to the last bit with hardware is not claimed for
//! them.

use crate::ptx::decode::{Compare, FloatMode, FloatOp, FloatUnary, Round, Ty};

pub const F32_NAN: f32 = f32::from_bits(0x7FFF_FFFF);

#[inline(always)]
pub fn flush(x: f32) -> f32 {
    if x.to_bits() & 0x7F80_0000 == 0 { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}

#[inline(always)]
pub fn f16_to_f32(h: u16) -> f32 {
    let magnitude = ((h & 0x7FFF) as u32) << 13;
    // Multiplying by 2^112 moves the exponent bias and makes denormals normal.
    let scaled = f32::from_bits(magnitude) * f32::from_bits((112 + 127) << 23);
    let special = magnitude >= 0x0F80_0000;
    let bits = if special { magnitude | 0x7F80_0000 } else { scaled.to_bits() };
    f32::from_bits(bits | ((h as u32 & 0x8000) << 16))
}

#[inline(always)]
pub fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits((h as u32) << 16)
}

/// To nearest, ties to even; NaN becomes 0x7FFF.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u16 {
    let sign = x.to_bits() & 0x8000_0000;
    let f = x.to_bits() ^ sign;
    let small = (f32::from_bits(f) + 0.5).to_bits().wrapping_sub(0x3F00_0000);
    let normal = f.wrapping_add(0xC800_0FFF).wrapping_add((f >> 13) & 1) >> 13;
    let large = if f > 0x7F80_0000 { 0x7FFF } else { 0x7C00 };
    let out = if f >= 0x4780_0000 {
        large
    } else if f < 0x3880_0000 {
        small
    } else {
        normal
    };
    let sign = if f > 0x7F80_0000 { 0 } else { sign };
    (out | (sign >> 16)) as u16
}

/// To nearest, ties to even; NaN becomes 0x7FFF.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
    if bits & 0x7FFF_FFFF > 0x7F80_0000 { 0x7FFF } else { rounded as u16 }
}

#[inline(always)]
pub(super) fn half_to_f32(bf16: bool, h: u16) -> f32 {
    if bf16 { bf16_to_f32(h) } else { f16_to_f32(h) }
}

#[inline(always)]
pub(super) fn f32_to_half(bf16: bool, x: f32) -> u16 {
    if bf16 { f32_to_bf16(x) } else { f32_to_f16(x) }
}

fn f64_to_half(bf16: bool, x: f64) -> u16 {
    if x.is_nan() {
        0x7FFF
    } else if bf16 {
        half::bf16::from_f64(x).to_bits()
    } else {
        half::f16::from_f64(x).to_bits()
    }
}

/// Rounds towards zero.
pub(super) fn f32_to_half_rz(bf16: bool, x: f32) -> u16 {
    if x.is_nan() {
        return 0x7FFF;
    }
    let nearest = f32_to_half(bf16, x);
    if half_to_f32(bf16, nearest).abs() > x.abs() { nearest - 1 } else { nearest }
}

/// Rounds the exact value `x + error` (error below half an ulp of x) to f32.
pub fn round_f32(x: f64, error: f64, round: Round) -> f32 {
    let nearest = x as f32;
    if x.is_nan() || (x.is_infinite() && error == 0.0) {
        return nearest;
    }
    let difference = nearest as f64 - x;
    let above = difference > 0.0 || (difference == 0.0 && error < 0.0);
    let below = difference < 0.0 || (difference == 0.0 && error > 0.0);
    match round {
        Round::Down if above => nearest.next_down(),
        Round::Up if below => nearest.next_up(),
        Round::Zero if above && x > 0.0 => nearest.next_down(),
        Round::Zero if below && x < 0.0 => nearest.next_up(),
        Round::None | Round::Nearest if difference != 0.0 && error != 0.0 => {
            // A tie in f64 that the error breaks.
            let other = if difference > 0.0 { nearest.next_down() } else { nearest.next_up() };
            let tie = (other as f64 - x).abs() == difference.abs();
            let towards_other = (difference > 0.0) == (error < 0.0);
            if tie && towards_other { other } else { nearest }
        }
        _ => nearest,
    }
}

/// The rounding error of `a + b` in f64.
fn two_sum_error(a: f64, b: f64) -> f64 {
    let sum = a + b;
    if !sum.is_finite() {
        return 0.0;
    }
    let b_part = sum - a;
    (a - (sum - b_part)) + (b - b_part)
}

fn finish_f32(x: f32, mode: FloatMode) -> f32 {
    let mut x = x;
    if mode.ftz {
        x = flush(x);
    }
    if mode.sat {
        x = if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) + 0.0 };
    }
    if mode.relu {
        x = if x.is_nan() {
            F32_NAN
        } else if x > 0.0 {
            x
        } else {
            0.0
        };
    }
    x
}

#[inline(always)]
pub fn min_f32(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        if b.is_nan() { F32_NAN } else { b }
    } else if b.is_nan() || a < b {
        a
    } else if a == b {
        f32::from_bits(a.to_bits() | b.to_bits())
    } else {
        b
    }
}

#[inline(always)]
pub fn max_f32(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        if b.is_nan() { F32_NAN } else { b }
    } else if b.is_nan() || a > b {
        a
    } else if a == b {
        f32::from_bits(a.to_bits() & b.to_bits())
    } else {
        b
    }
}

pub fn binary_f32(op: FloatOp, mode: FloatMode, a: f32, b: f32) -> f32 {
    let (a, b) = if mode.ftz { (flush(a), flush(b)) } else { (a, b) };
    let nearest = matches!(mode.round, Round::None | Round::Nearest);
    let (wide_a, wide_b) = (a as f64, b as f64);
    let value = match op {
        FloatOp::Add if nearest => a + b,
        FloatOp::Sub if nearest => a - b,
        FloatOp::Mul if nearest => a * b,
        FloatOp::Div if nearest => a / b,
        FloatOp::Add => round_f32(wide_a + wide_b, two_sum_error(wide_a, wide_b), mode.round),
        FloatOp::Sub => round_f32(wide_a - wide_b, two_sum_error(wide_a, -wide_b), mode.round),
        FloatOp::Mul => round_f32(wide_a * wide_b, 0.0, mode.round),
        FloatOp::Div => {
            let quotient = wide_a / wide_b;
            let rest = (-quotient).mul_add(wide_b, wide_a);
            let error = if quotient.is_finite() { rest * wide_b.signum() } else { 0.0 };
            round_f32(quotient, error, mode.round)
        }
        FloatOp::Min => min_f32(a, b),
        FloatOp::Max => max_f32(a, b),
        FloatOp::MinNan if a.is_nan() || b.is_nan() => F32_NAN,
        FloatOp::MaxNan if a.is_nan() || b.is_nan() => F32_NAN,
        FloatOp::MinNan => min_f32(a, b),
        FloatOp::MaxNan => max_f32(a, b),
        FloatOp::Copysign => a.copysign(b),
    };
    finish_f32(value, mode)
}

pub fn fma_f32(mode: FloatMode, a: f32, b: f32, c: f32) -> f32 {
    let (a, b, c) = if mode.ftz { (flush(a), flush(b), flush(c)) } else { (a, b, c) };
    let value = if matches!(mode.round, Round::None | Round::Nearest) {
        a.mul_add(b, c)
    } else {
        let product = a as f64 * b as f64;
        round_f32(product + c as f64, two_sum_error(product, c as f64), mode.round)
    };
    finish_f32(value, mode)
}

/// 2^x to f32 accuracy, without branches so that it vectorises.
///
/// Source: Taylor series of e^(r ln 2), |r| <= 1/2, degree 9: relative error below 1e-11.
#[inline(always)]
pub fn exp2_f32(x: f32) -> f32 {
    const LN2: f64 = std::f64::consts::LN_2;
    let clamped = (x as f64).clamp(-160.0, 160.0);
    // Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits.
    let magic = 6755399441055744.0;
    let shifted = clamped + magic;
    let t = (clamped - (shifted - magic)) * LN2;
    let mut p = 1.0 / 362880.0;
    for c in [1.0 / 40320.0, 1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        p = p * t + c;
    }
    p = (p * t + 1.0) * t + 1.0;
    let exponent = (shifted.to_bits() as i64) << 52;
    let scaled = f64::from_bits((p.to_bits() as i64).wrapping_add(exponent) as u64);
    if x.is_nan() { F32_NAN } else { scaled as f32 }
}

pub fn unary_f32(op: FloatUnary, mode: FloatMode, x: f32) -> f32 {
    let x = if mode.ftz { flush(x) } else { x };
    let nearest = matches!(mode.round, Round::None | Round::Nearest);
    let wide = x as f64;
    let value = match op {
        FloatUnary::Neg => -x,
        FloatUnary::Abs => x.abs(),
        FloatUnary::Sqrt if nearest => x.sqrt(),
        FloatUnary::Sqrt => {
            let root = wide.sqrt();
            round_f32(
                root,
                if root.is_finite() { (-root).mul_add(root, wide) } else { 0.0 },
                mode.round,
            )
        }
        FloatUnary::Rsqrt => (1.0 / wide.sqrt()) as f32,
        FloatUnary::Rcp if nearest => 1.0 / x,
        FloatUnary::Rcp => {
            return binary_f32(FloatOp::Div, mode, 1.0, x);
        }
        FloatUnary::Ex2 => exp2_f32(x),
        FloatUnary::Lg2 => wide.log2() as f32,
        FloatUnary::Sin => wide.sin() as f32,
        FloatUnary::Cos => wide.cos() as f32,
        FloatUnary::Tanh => wide.tanh() as f32,
    };
    finish_f32(value, mode)
}

/// Directed rounding of f64 arithmetic is refused when decoded operations ask for it.
pub fn binary_f64(op: FloatOp, a: f64, b: f64) -> f64 {
    match op {
        FloatOp::Add => a + b,
        FloatOp::Sub => a - b,
        FloatOp::Mul => a * b,
        FloatOp::Div => a / b,
        FloatOp::Min | FloatOp::MinNan if a.is_nan() || b.is_nan() => {
            if op == FloatOp::MinNan {
                f64::NAN
            } else if a.is_nan() {
                b
            } else {
                a
            }
        }
        FloatOp::Max | FloatOp::MaxNan if a.is_nan() || b.is_nan() => {
            if op == FloatOp::MaxNan {
                f64::NAN
            } else if a.is_nan() {
                b
            } else {
                a
            }
        }
        FloatOp::Min | FloatOp::MinNan => {
            if a < b {
                a
            } else if a == b {
                f64::from_bits(a.to_bits() | b.to_bits())
            } else {
                b
            }
        }
        FloatOp::Max | FloatOp::MaxNan => {
            if a > b {
                a
            } else if a == b {
                f64::from_bits(a.to_bits() & b.to_bits())
            } else {
                b
            }
        }
        FloatOp::Copysign => a.copysign(b),
    }
}

pub fn unary_f64(op: FloatUnary, x: f64) -> f64 {
    match op {
        FloatUnary::Neg => -x,
        FloatUnary::Abs => x.abs(),
        FloatUnary::Sqrt => x.sqrt(),
        FloatUnary::Rsqrt => 1.0 / x.sqrt(),
        FloatUnary::Rcp => 1.0 / x,
        FloatUnary::Ex2 => x.exp2(),
        FloatUnary::Lg2 => x.log2(),
        FloatUnary::Sin => x.sin(),
        FloatUnary::Cos => x.cos(),
        FloatUnary::Tanh => x.tanh(),
    }
}

/// One half-precision result of an f32 operation; rounding twice is harmless for + - * /, since f32
/// has more than twice the bits plus two (Figueroa, "When is double rounding innocuous?", 1995).
pub(super) fn binary_half(op: FloatOp, bf16: bool, mode: FloatMode, a: u16, b: u16) -> u16 {
    match op {
        FloatOp::Copysign => return (a & 0x7FFF) | (b & 0x8000),
        FloatOp::Min | FloatOp::Max | FloatOp::MinNan | FloatOp::MaxNan => {
            let (x, y) = (half_to_f32(bf16, a), half_to_f32(bf16, b));
            let plain = FloatMode { round: Round::None, ..mode };
            return f32_to_half(bf16, binary_f32(op, plain, x, y));
        }
        _ => {}
    }
    let (x, y) = (half_to_f32(bf16, a), half_to_f32(bf16, b));
    f32_to_half(bf16, finish_half(binary_f32(op, PLAIN, x, y), mode))
}

/// No modifiers.
pub const PLAIN: FloatMode =
    FloatMode { round: Round::Nearest, ftz: false, sat: false, relu: false };

fn finish_half(x: f32, mode: FloatMode) -> f32 {
    finish_f32(x, FloatMode { ftz: false, ..mode })
}

/// The product is exact in f64 and so is nearly every sum.
pub(super) fn fma_half(bf16: bool, mode: FloatMode, a: u16, b: u16, c: u16) -> u16 {
    let [x, y, z] = [a, b, c].map(|h| half_to_f32(bf16, h) as f64);
    let sum = f64_to_half(bf16, x * y + z);
    if mode.relu || mode.sat {
        return f32_to_half(bf16, finish_half(half_to_f32(bf16, sum), mode));
    }
    sum
}

pub(super) fn unary_half(op: FloatUnary, bf16: bool, a: u16) -> u16 {
    match op {
        FloatUnary::Neg => a ^ 0x8000,
        FloatUnary::Abs => a & 0x7FFF,
        _ => f32_to_half(bf16, unary_f32(op, PLAIN, half_to_f32(bf16, a))),
    }
}

#[inline(always)]
pub fn compare_floats(cmp: Compare, a: f64, b: f64) -> bool {
    let unordered = a.is_nan() || b.is_nan();
    match cmp {
        Compare::Eq => a == b,
        Compare::Ne => !unordered && a != b,
        Compare::Lt => a < b,
        Compare::Le => a <= b,
        Compare::Gt => a > b,
        Compare::Ge => a >= b,
        Compare::Equ => unordered || a == b,
        Compare::Neu => unordered || a != b,
        Compare::Ltu => unordered || a < b,
        Compare::Leu => unordered || a <= b,
        Compare::Gtu => unordered || a > b,
        Compare::Geu => unordered || a >= b,
        Compare::Num => !unordered,
        Compare::Nan => unordered,
    }
}

/// Rounds to the nearest of 10 mantissa bits, ties away from zero.
pub fn to_tf32(x: f32) -> f32 {
    if x.is_nan() || x.is_infinite() {
        return x;
    }
    f32::from_bits(x.to_bits().wrapping_add(0x1000) & 0xFFFF_E000)
}

fn sign_extend(raw: u64, bits: u32) -> i128 {
    let shift = 64 - bits;
    (((raw << shift) as i64) >> shift) as i128
}

fn integer_range(ty: Ty) -> (i128, i128) {
    let bits = ty.bits();
    if ty.is_signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

fn to_integral(x: f64, round: Round) -> f64 {
    match round {
        Round::NearestInt | Round::Nearest => x.round_ties_even(),
        Round::DownInt | Round::Down => x.floor(),
        Round::UpInt | Round::Up => x.ceil(),
        Round::ZeroInt | Round::Zero => x.trunc(),
        _ => x,
    }
}

/// `cvt`: the raw bits of a value of type `from` to those of type `to`.
pub fn convert(raw: u64, from: Ty, to: Ty, mode: FloatMode) -> u64 {
    if !from.is_float() {
        let bits = from.bits();
        let value = if from.is_signed() {
            sign_extend(raw, bits)
        } else {
            (raw & (u64::MAX >> (64 - bits))) as i128
        };
        return integer_to(value, to, mode);
    }
    let mut value = match from {
        Ty::F16 => f16_to_f32(raw as u16) as f64,
        Ty::Bf16 => bf16_to_f32(raw as u16) as f64,
        Ty::F32 => f32::from_bits(raw as u32) as f64,
        _ => f64::from_bits(raw),
    };
    if mode.ftz && from == Ty::F32 {
        value = flush(value as f32) as f64;
    }
    if !to.is_float() {
        // NaN becomes 0, what is out of range the nearest end.
        let (low, high) = integer_range(to);
        let integral = to_integral(value, mode.round);
        let clamped = if integral.is_nan() { 0 } else { (integral as i128).clamp(low, high) };
        return clamped as u64;
    }
    let integral =
        matches!(mode.round, Round::NearestInt | Round::ZeroInt | Round::DownInt | Round::UpInt);
    if integral {
        value = to_integral(value, mode.round);
    }
    let finish = FloatMode { ftz: mode.ftz && to == Ty::F32, ..mode };
    match to {
        Ty::F64 => {
            if mode.sat {
                value = if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) };
            }
            value.to_bits()
        }
        Ty::F32 => {
            let rounded = if value.is_nan() { F32_NAN } else { round_f32(value, 0.0, mode.round) };
            finish_f32(rounded, finish).to_bits() as u64
        }
        _ => {
            let bf16 = to == Ty::Bf16;
            let rounded = match mode.round {
                Round::Zero if from != Ty::F64 => f32_to_half_rz(bf16, value as f32),
                _ => f64_to_half(bf16, value),
            };
            if mode.sat || mode.relu {
                return f32_to_half(bf16, finish_half(half_to_f32(bf16, rounded), mode)) as u64;
            }
            rounded as u64
        }
    }
}

fn integer_to(value: i128, to: Ty, mode: FloatMode) -> u64 {
    match to {
        Ty::F64 => (value as f64).to_bits(),
        Ty::F32 => {
            let nearest = value as f32;
            let above = nearest as f64 as i128 > value;
            let below = (nearest as f64 as i128) < value;
            let rounded = match mode.round {
                Round::Down if above => nearest.next_down(),
                Round::Up if below => nearest.next_up(),
                Round::Zero if above && value > 0 => nearest.next_down(),
                Round::Zero if below && value < 0 => nearest.next_up(),
                _ => nearest,
            };
            finish_f32(rounded, mode).to_bits() as u64
        }
        Ty::F16 | Ty::Bf16 => f64_to_half(to == Ty::Bf16, value as f64) as u64,
        _ if mode.sat => {
            let (low, high) = integer_range(to);
            value.clamp(low, high) as u64
        }
        _ => value as u64,
    }
}
