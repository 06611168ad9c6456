//! One instruction at a time over 32 lanes, compared with what the PTX ISA says it computes.

mod common;

use common::{Gpu, params};

/// Bits of a type in a register of its size.
fn class(ty: &str) -> &str {
    match ty {
        "u16" | "s16" | "f16" | "bf16" => "b16",
        "u64" | "s64" | "f64" => "b64",
        _ => "b32",
    }
}

/// Runs `body` with inputs %x0, %x1, %x2 and result %d in every lane.
///
/// The body may use predicates %p0.., 16-bit %h0.., 32-bit %t0.. and 64-bit %w0...
fn eval(body: &str, inputs: &[(&str, &[u64])], result: &str) -> Vec<u64> {
    let mut declarations = String::new();
    let mut loads = String::new();
    let mut parameters = String::new();
    for (k, (ty, _)) in inputs.iter().enumerate() {
        let class = class(ty);
        declarations += &format!(".reg .{class} %x{k};\n");
        parameters += &format!(", .param .u64 in{k}");
        loads += &format!(
            "ld.param.u64 %a1, [in{k}];\nadd.s64 %a1, %a1, %a0;\nld.global.{class} %x{k}, [%a1];\n"
        );
    }
    let result = class(result);
    let text = format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 out{parameters})\n{{\n\
         .reg .b64 %a<3>;\n.reg .b32 %i;\n.reg .pred %p<4>;\n.reg .b16 %h<4>;\n.reg .b32 %t<8>;\n\
         .reg .b64 %w<4>;\n.reg .{result} %d;\n{declarations}\
         mov.u32 %i, %tid.x;\nmul.wide.u32 %a0, %i, 8;\n{loads}{body}\n\
         ld.param.u64 %a2, [out];\nadd.s64 %a2, %a2, %a0;\nst.global.{result} [%a2], %d;\nret;\n}}\n"
    );
    let gpu = Gpu::new(&text);
    let out = gpu.upload(&[0; 256]);
    let addresses: Vec<u64> = inputs
        .iter()
        .map(|(_, values)| {
            // Lanes beyond the values repeat the last one.
            let lanes = (0..32).map(|i| values[i.min(values.len() - 1)]);
            gpu.upload(&lanes.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())
        })
        .collect();
    let mut args: Vec<&dyn common::Param> = vec![&out];
    args.extend(addresses.iter().map(|a| a as &dyn common::Param));
    gpu.launch("k", [1, 1, 1], 32, &params(&args)).unwrap_or_else(|v| panic!("{body}: {v}"));
    let mut bytes = vec![0; 256];
    gpu.memory.read(out, &mut bytes).unwrap();
    let count = inputs.iter().map(|i| i.1.len()).max().unwrap_or(32);
    bytes.chunks(8).take(count).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect()
}

fn bits(values: &[f32]) -> Vec<u64> {
    values.iter().map(|v| v.to_bits() as u64).collect()
}

fn signed(values: &[i32]) -> Vec<u64> {
    values.iter().map(|v| *v as u32 as u64).collect()
}

/// 32 f32 values over all magnitudes, from a fixed seed.
fn varied(seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..32)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            f32::from_bits((state >> 32) as u32)
        })
        .map(|x| if x.is_nan() { 1.5 } else { x })
        .collect()
}

#[test]
fn f32_to_half_formats_round_to_nearest_even() {
    let mut cases = vec![0.0, -0.0, 1.0, 65504.0, 65519.9, 65520.0, 1e-8, 6e-8, -3e-5, 1e30];
    cases.extend([f32::INFINITY, f32::NEG_INFINITY, 1.0009766, 1.0014648, 1.00390625]);
    for seed in 0..200 {
        let values = if seed == 0 { cases.clone() } else { varied(seed) };
        let near_one: Vec<f32> =
            values.iter().map(|x| (x.to_bits() & 0x8FFF_FFFF | 0x3800_0000) as f32).collect();
        for values in [values, near_one] {
            let f16 = eval("cvt.rn.f16.f32 %d, %x0;", &[("f32", &bits(&values))], "f16");
            let bf16 = eval("cvt.rn.bf16.f32 %d, %x0;", &[("f32", &bits(&values))], "bf16");
            for (i, x) in values.iter().enumerate() {
                assert_eq!(f16[i], half::f16::from_f32_const(*x).to_bits() as u64, "{x}");
                assert_eq!(bf16[i], half::bf16::from_f32(*x).to_bits() as u64, "{x}");
            }
        }
    }
    assert_eq!(eval("cvt.rn.f16.f32 %d, %x0;", &[("f32", &[0xFFC0_0000])], "f16"), [0x7FFF]);
    assert_eq!(eval("cvt.rn.bf16.f32 %d, %x0;", &[("f32", &[0xFFC0_0000])], "bf16"), [0x7FFF]);
}

#[test]
fn all_half_values_widen_exactly() {
    for start in (0..65536u64).step_by(32) {
        let values: Vec<u64> = (start..start + 32).collect();
        let f16 = eval("cvt.f32.f16 %d, %x0;", &[("f16", &values)], "f32");
        for (i, h) in values.iter().enumerate() {
            let want = half::f16::from_bits(*h as u16).to_f32_const();
            let got = f32::from_bits(f16[i] as u32);
            assert!(got == want || got.is_nan() && want.is_nan(), "{h:#x}: {got}, not {want}");
            assert_eq!(got.is_sign_negative(), want.is_sign_negative());
        }
        if start % 8192 != 0 && start < 64000 {
            continue;
        }
        let bf16 = eval("cvt.f32.bf16 %d, %x0;", &[("bf16", &values)], "f32");
        assert!(bf16.iter().zip(&values).all(|(got, h)| *got == h << 16));
    }
}

#[test]
fn pairs_put_the_first_operand_into_the_upper_half() {
    let a = bits(&[1.0]);
    let b = bits(&[-2.0]);
    let inputs: [(&str, &[u64]); 2] = [("f32", &a), ("f32", &b)];
    assert_eq!(eval("cvt.rn.bf16x2.f32 %d, %x0, %x1;", &inputs, "b32"), [0x3F80_C000]);
    assert_eq!(eval("cvt.rn.f16x2.f32 %d, %x0, %x1;", &inputs, "b32"), [0x3C00_C000]);
}

#[test]
fn float_to_integer_rounds_and_saturates() {
    let x = bits(&[0.5, 1.5, 2.5, -0.5, -1.7, 3e9, -3e9, f32::NAN]);
    let cases = [
        ("rni", [0, 2, 2, 0, -2, i32::MAX, i32::MIN, 0]),
        ("rzi", [0, 1, 2, 0, -1, i32::MAX, i32::MIN, 0]),
        ("rmi", [0, 1, 2, -1, -2, i32::MAX, i32::MIN, 0]),
        ("rpi", [1, 2, 3, 0, -1, i32::MAX, i32::MIN, 0]),
    ];
    for (round, want) in cases {
        let got = eval(&format!("cvt.{round}.s32.f32 %d, %x0;"), &[("f32", &x)], "s32");
        assert_eq!(got, signed(&want), "{round}");
    }
    let got = eval("cvt.rzi.u32.f32 %d, %x0;", &[("f32", &x)], "u32");
    assert_eq!(got, [0, 1, 2, 0, 0, 3_000_000_000, 0, 0]);
}

#[test]
fn integers_convert_by_sign_and_width() {
    let x = [0x1FFu64, 0x80, 0x7F, 0xFFFF_FF80];
    let got = eval("cvt.s32.s8 %d, %x0;", &[("b32", &x)], "s32");
    assert_eq!(got, [0xFFFF_FFFF, 0xFFFF_FF80, 0x7F, 0xFFFF_FF80]);
    assert_eq!(eval("cvt.u32.u8 %d, %x0;", &[("b32", &x)], "u32"), [0xFF, 0x80, 0x7F, 0x80]);
    let wide = eval("cvt.s64.s32 %d, %x0;", &[("b32", &x)], "s64");
    assert_eq!(wide[3], 0xFFFF_FFFF_FFFF_FF80);
    let clamped = eval("cvt.sat.u8.s32 %t0, %x0;\nmov.b32 %d, %t0;", &[("b32", &x)], "b32");
    assert_eq!(clamped, [0xFF, 0x80, 0x7F, 0]);
    let packed =
        eval("mov.b32 %t0, -300; cvt.pack.sat.s8.s32.b32 %d, %x0, %t0, 5;", &[("b32", &x)], "b32");
    assert_eq!(packed, [0x5_7F80, 0x5_7F80, 0x5_7F80, 0x5_8080]);
}

#[test]
fn minimum_and_maximum_order_zeros_and_skip_nan() {
    let a = bits(&[f32::NAN, 1.0, -0.0, 0.0, f32::NAN, -3.0]);
    let b = bits(&[2.0, f32::NAN, 0.0, -0.0, f32::NAN, -2.0]);
    let inputs: [(&str, &[u64]); 2] = [("f32", &a), ("f32", &b)];
    let nan = 0x7FFF_FFFF;
    let (one, two) = (1f32.to_bits() as u64, 2f32.to_bits() as u64);
    let minus = 0x8000_0000;
    let got = eval("min.f32 %d, %x0, %x1;", &inputs, "f32");
    assert_eq!(got, [two, one, minus, minus, nan, 0xC040_0000]);
    let got = eval("max.f32 %d, %x0, %x1;", &inputs, "f32");
    assert_eq!(got, [two, one, 0, 0, nan, 0xC000_0000]);
    let got = eval("max.NaN.f32 %d, %x0, %x1;", &inputs, "f32");
    assert_eq!(got, [nan, nan, 0, 0, nan, 0xC000_0000]);
}

#[test]
fn division_by_zero_does_not_stop_the_machine() {
    let (a, zero) = ([7u64], [0u64]);
    let inputs: [(&str, &[u64]); 2] = [("u32", &a), ("u32", &zero)];
    assert_eq!(eval("div.u32 %d, %x0, %x1;", &inputs, "u32"), [0xFFFF_FFFF]);
    assert_eq!(eval("rem.u32 %d, %x0, %x1;", &inputs, "u32"), [7]);
    let (least, minus) = ([0x8000_0000u64], [0xFFFF_FFFFu64]);
    let inputs: [(&str, &[u64]); 2] = [("s32", &least), ("s32", &minus)];
    assert_eq!(eval("div.s32 %d, %x0, %x1;", &inputs, "s32"), [0x8000_0000]);
    assert_eq!(eval("rem.s32 %d, %x0, %x1;", &inputs, "s32"), [0]);
}

#[test]
fn shifts_clamp_their_counts() {
    let (a, n) = ([0x8000_0001u64; 4], [1u64, 31, 32, 255]);
    let inputs: [(&str, &[u64]); 2] = [("b32", &a), ("b32", &n)];
    assert_eq!(eval("shl.b32 %d, %x0, %x1;", &inputs, "b32"), [2, 0x8000_0000, 0, 0]);
    assert_eq!(eval("shr.u32 %d, %x0, %x1;", &inputs, "b32"), [0x4000_0000, 1, 0, 0]);
    let got = eval("shr.s32 %d, %x0, %x1;", &inputs, "b32");
    assert_eq!(got, [0xC000_0000, 0xFFFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFF]);
    let got = eval("shf.l.wrap.b32 %d, %x0, 0x12345678, %x1;", &inputs, "b32");
    assert_eq!(got[0], 0x2468_ACF1);
    assert_eq!(got[2], 0x1234_5678);
    let got = eval("shf.r.clamp.b32 %d, %x0, 0x12345678, %x1;", &inputs, "b32");
    assert_eq!(got[..3], [0x4000_0000, 0x2468_ACF1, 0x1234_5678]);
}

#[test]
fn bit_instructions_follow_the_isa() {
    let a = [0xF0F0_1234u64];
    let one: [(&str, &[u64]); 1] = [("b32", &a)];
    let cases = [
        ("popc.b32 %d, %x0;", 13),
        ("clz.b32 %d, %x0;", 0),
        ("brev.b32 %d, %x0;", 0x2C48_0F0F),
        ("bfind.u32 %d, %x0;", 31),
        ("bfind.s32 %d, %x0;", 27),
        ("bfind.shiftamt.u32 %d, %x0;", 0),
        ("bfe.u32 %d, %x0, 4, 8;", 0x23),
        ("bfe.s32 %d, %x0, 24, 4;", 0),
        ("bfe.s32 %d, %x0, 28, 4;", 0xFFFF_FFFF),
        ("bfe.s32 %d, %x0, 28, 20;", 0xFFFF_FFFF),
        ("bfi.b32 %d, 0xAB, %x0, 8, 8;", 0xF0F0_AB34),
        ("prmt.b32 %d, %x0, 0x89ABCDEF, 0x7410;", 0x89EF_1234),
        ("prmt.b32 %d, %x0, 0, 0xBA98;", 0xFFFF_0000),
        ("lop3.b32 %d, %x0, 0x00FF00FF, 0x0F0F0F0F, 0x96;", 0xFF00_1DC4),
        ("lop3.b32 %d, %x0, 0x00FF00FF, 0x0F0F0F0F, 0xCA;", 0x0FFF_1EFB & 0xFFFF_FFFF),
        ("mul.hi.u32 %d, %x0, %x0;", (0xF0F0_1234u64 * 0xF0F0_1234) >> 32),
        ("mul24.lo.u32 %d, %x0, 3;", 0x2D0_369C),
        ("sad.u32 %d, %x0, 0xF0F01230, 10;", 14),
        ("dp4a.u32.u32 %d, %x0, 0x01010101, 5;", 0x34 + 0x12 + 0xF0 + 0xF0 + 5),
        ("dp4a.s32.u32 %d, %x0, 0x01010101, 5;", 0x34 + 0x12 - 16 - 16 + 5),
        ("cnot.b32 %d, %x0;", 0),
        ("abs.s32 %d, %x0;", 0x0F0F_EDCC),
    ];
    for (body, want) in cases {
        if body.contains("0xCA") {
            // a ? b : c, bit by bit.
            let want = (a[0] & 0x00FF_00FF | !a[0] & 0x0F0F_0F0F) & 0xFFFF_FFFF;
            assert_eq!(eval(body, &one, "b32"), [want], "{body}");
            continue;
        }
        assert_eq!(eval(body, &one, "b32"), [want as u64], "{body}");
    }
}

#[test]
fn carries_pass_from_word_to_word() {
    let (a, b) = ([u64::MAX, 0x1_FFFF_FFFF, 5], [1u64, 0x2_0000_0003, 7]);
    let inputs: [(&str, &[u64]); 2] = [("u64", &a), ("u64", &b)];
    let split = "mov.b64 {%t0, %t1}, %x0; mov.b64 {%t2, %t3}, %x1;";
    let sum = eval(
        &format!(
            "{split} add.cc.u32 %t4, %t0, %t2; addc.u32 %t5, %t1, %t3; mov.b64 %d, {{%t4, %t5}};"
        ),
        &inputs,
        "u64",
    );
    assert_eq!(sum, [0, 0x4_0000_0002, 12]);
    let difference = eval(
        &format!(
            "{split} sub.cc.u32 %t4, %t0, %t2; subc.u32 %t5, %t1, %t3; mov.b64 %d, {{%t4, %t5}};"
        ),
        &inputs,
        "u64",
    );
    assert_eq!(
        difference,
        [u64::MAX - 1, 0x1_FFFF_FFFFu64.wrapping_sub(0x2_0000_0003), 5u64.wrapping_sub(7)]
    );
}

#[test]
fn fused_and_directed_rounding() {
    let (a, b) = (1.0f32 + f32::EPSILON, 1.0f32 - f32::EPSILON / 2.0);
    let (va, vb, vc) = (bits(&[a]), bits(&[b]), bits(&[-1.0]));
    let inputs: [(&str, &[u64]); 3] = [("f32", &va), ("f32", &vb), ("f32", &vc)];
    let exact = a as f64 * b as f64 - 1.0;
    let got = eval("fma.rn.f32 %d, %x0, %x1, %x2;", &inputs, "f32");
    assert_eq!(got, bits(&[exact as f32]));
    // 1/3 and its neighbours.
    let down = eval("div.rm.f32 %d, 0f3F800000, 0f40400000;", &[], "f32")[0];
    let up = eval("div.rp.f32 %d, 0f3F800000, 0f40400000;", &[], "f32")[0];
    let zero = eval("div.rz.f32 %d, 0fBF800000, 0f40400000;", &[], "f32")[0];
    assert_eq!((up, down), (0x3EAA_AAAB, 0x3EAA_AAAA));
    assert_eq!(zero, 0xBEAA_AAAA);
    let tiny = eval("add.rp.f32 %d, 0f3F800000, 0f00000001;", &[], "f32")[0];
    assert_eq!(tiny, 0x3F80_0001);
    let tiny = eval("add.rz.f32 %d, 0f3F800000, 0f80000001;", &[], "f32")[0];
    assert_eq!(tiny, 0x3F7F_FFFF);
    let sat = eval("add.sat.f32 %d, 0f3F800000, 0f3F800000;", &[], "f32")[0];
    assert_eq!(sat, 0x3F80_0000);
    let flushed = eval("mul.ftz.f32 %d, 0f00800000, 0f3F000000;", &[], "f32")[0];
    assert_eq!(flushed, 0);
}

#[test]
fn exp2_is_within_two_ulp_and_reaches_the_denormals() {
    let ulps =
        |got: f32, want: f64| (got as f64 - want).abs() / (want.abs() * f32::EPSILON as f64 / 2.0);
    for k in 0..40 {
        let x: Vec<f32> = (0..32).map(|i| -126.0 + (k * 32 + i) as f32 * 0.197).collect();
        let got = eval("ex2.approx.f32 %d, %x0;", &[("f32", &bits(&x))], "f32");
        for (x, got) in x.iter().zip(got) {
            let want = (*x as f64).exp2();
            let got = f32::from_bits(got as u32);
            assert!(want > f32::MAX as f64 && got.is_infinite() || ulps(got, want) <= 2.0, "{x}");
        }
    }
    let x = bits(&[-149.0, -160.0, 200.0, f32::NEG_INFINITY, f32::INFINITY]);
    let got = eval("ex2.approx.f32 %d, %x0;", &[("f32", &x)], "f32");
    let infinite = 0x7F80_0000;
    assert_eq!(got, [1, 0, infinite, 0, infinite]);
    assert_eq!(eval("ex2.approx.ftz.f32 %d, %x0;", &[("f32", &x)], "f32")[0], 0);
}

#[test]
fn comparisons_know_nan() {
    let (a, b) = (bits(&[1.0, f32::NAN, 2.0]), bits(&[2.0, 1.0, f32::NAN]));
    let inputs: [(&str, &[u64]); 2] = [("f32", &a), ("f32", &b)];
    let cases = [
        ("lt", [1, 0, 0]),
        ("ltu", [1, 1, 1]),
        ("ne", [1, 0, 0]),
        ("neu", [1, 1, 1]),
        ("num", [1, 0, 0]),
        ("nan", [0, 1, 1]),
    ];
    for (cmp, want) in cases {
        let body = format!("setp.{cmp}.f32 %p0, %x0, %x1; selp.u32 %d, 1, 0, %p0;");
        assert_eq!(eval(&body, &inputs, "u32"), want, "{cmp}");
    }
    let body = "setp.lt.f32 %p2, %x0, %x1; setp.gt.and.f32 %p0|%p1, %x0, 0f3F800000, !%p2; \
                selp.u32 %t0, 1, 0, %p0; selp.u32 %t1, 2, 0, %p1; or.b32 %d, %t0, %t1;";
    assert_eq!(eval(body, &inputs, "u32"), [0, 2, 1]);
}

#[test]
fn shuffles_at_the_edges() {
    let lane: Vec<u64> = (0..32).map(|i| 100 + i).collect();
    let one: [(&str, &[u64]); 1] = [("b32", &lane)];
    let run = |body: &str| eval(&format!("{body} @!%p0 add.u32 %d, %d, 1000;"), &one, "b32");
    let up = run("shfl.sync.up.b32 %d|%p0, %x0, 3, 0, -1;");
    assert_eq!((up[0], up[2], up[3], up[31]), (1100, 1102, 100, 128));
    let down = run("shfl.sync.down.b32 %d|%p0, %x0, 3, 31, -1;");
    assert_eq!((down[0], down[28], down[29], down[31]), (103, 131, 1129, 1131));
    let bfly = run("shfl.sync.bfly.b32 %d|%p0, %x0, 16, 31, -1;");
    assert_eq!((bfly[0], bfly[31]), (116, 115));
    // Segments of 8 lanes: c holds 32 - 8 above bit 8.
    let idx = run("shfl.sync.idx.b32 %d|%p0, %x0, 5, 0x181F, -1;");
    assert_eq!((idx[0], idx[9], idx[31]), (105, 113, 129));
    let down = run("shfl.sync.down.b32 %d|%p0, %x0, 3, 0x181F, -1;");
    assert_eq!((down[4], down[5], down[13]), (107, 1105, 1113));
}

#[test]
fn votes_matches_and_reductions() {
    let lane: Vec<u64> = (0..32).collect();
    let one: [(&str, &[u64]); 1] = [("b32", &lane)];
    let odd = "and.b32 %t0, %x0, 1; setp.eq.u32 %p0, %t0, 1;";
    let run = |body: &str| eval(&format!("{odd} {body}"), &one, "b32");
    assert_eq!(run("vote.sync.ballot.b32 %d, %p0, -1;")[5], 0xAAAA_AAAA);
    assert_eq!(run("vote.sync.any.pred %p1, %p0, -1; selp.u32 %d, 1, 0, %p1;")[0], 1);
    assert_eq!(run("vote.sync.all.pred %p1, %p0, -1; selp.u32 %d, 1, 0, %p1;")[1], 0);
    assert_eq!(run("match.any.sync.b32 %d, %t0, -1;")[..2], [0x5555_5555, 0xAAAA_AAAA]);
    assert_eq!(run("redux.sync.add.u32 %d, %x0, -1;")[7], 496);
    assert_eq!(run("redux.sync.min.s32 %d, %x0, -1;")[7], 0);
    assert_eq!(run("bar.red.popc.u32 %d, 0, %p0;")[0], 16);
    // Each half of the warp votes for itself.
    let body = "setp.lt.u32 %p1, %x0, 16; @%p1 bra LOW; vote.sync.ballot.b32 %d, %p0, 0xFFFF0000; \
                bra END; LOW: vote.sync.ballot.b32 %d, %p0, 0x0000FFFF; END: bar.warp.sync -1;";
    let halves = run(body);
    assert_eq!((halves[0], halves[16]), (0xAAAA, 0xAAAA_0000));
}

#[test]
fn lanes_that_wait_for_each_other_in_a_spin_lock_make_progress() {
    let text = ".version 9.0\n.target sm_80\n.address_size 64\n\
        .global .align 4 .u32 lock;\n.global .align 4 .u32 total;\n\
        .visible .entry k()\n{\n.reg .b64 %a<2>;\n.reg .b32 %r<4>;\n.reg .pred %p;\n\
        mov.u64 %a0, lock;\nmov.u64 %a1, total;\n\
        TRY:\natom.global.cas.b32 %r0, [%a0], 0, 1;\nsetp.ne.u32 %p, %r0, 0;\n@%p bra TRY;\n\
        ld.global.u32 %r1, [%a1];\nadd.u32 %r1, %r1, 1;\nst.global.u32 [%a1], %r1;\n\
        atom.global.exch.b32 %r2, [%a0], 0;\nret;\n}\n";
    let gpu = Gpu::new(text);
    gpu.launch("k", [4, 1, 1], 64, &[]).unwrap();
    let (address, _) = gpu.memory.variable(&gpu.module, "total").unwrap();
    let mut bytes = [0; 4];
    gpu.memory.read(address, &mut bytes).unwrap();
    assert_eq!(u32::from_le_bytes(bytes), 256);
}

#[test]
fn jumps_by_table_and_half_arithmetic() {
    let lane: Vec<u64> = (0..32).map(|i| i % 3).collect();
    let body = "T: .branchtargets L0, L1, L2; brx.idx %x0, T; L0: mov.u32 %d, 10; bra END; \
                L1: mov.u32 %d, 11; bra END; L2: mov.u32 %d, 12; END: bar.warp.sync -1;";
    let want: Vec<u64> = (0..32).map(|i| 10 + i % 3).collect();
    assert_eq!(eval(body, &[("b32", &lane)], "u32"), want);
    // 1.5 * 2 + 0.25 and -3 * 4 + 1 in each format.
    let f16 = [0x3E00_C200u64, 0x4000_4400, 0x3400_3C00].map(|x| [x]);
    let bf16 = [0x3FC0_C040u64, 0x4000_4080, 0x3E80_3F80].map(|x| [x]);
    for (ty, x, want) in [("f16x2", f16, 0x4280_C980), ("bf16x2", bf16, 0x4050_C130)] {
        let inputs: [(&str, &[u64]); 3] = [("b32", &x[0]), ("b32", &x[1]), ("b32", &x[2])];
        let got = eval(&format!("fma.rn.{ty} %d, %x0, %x1, %x2;"), &inputs, "b32");
        assert_eq!(got, [want], "{ty}");
        let relu = eval(&format!("fma.rn.relu.{ty} %d, %x0, %x1, %x2;"), &inputs, "b32");
        assert_eq!(relu, [want & 0xFFFF_0000], "{ty}");
    }
}

/// The lane and register of element (row, k) of a, from the fragment tables of the ISA: for 16-bit elements.
fn place_a(row: usize, k: usize) -> (usize, usize, usize) {
    let register = (row >= 8) as usize + 2 * (k >= 8) as usize;
    ((row % 8) * 4 + (k % 8) / 2, register, k % 2)
}

#[test]
fn mma_on_halves_and_bytes_agrees_with_f64() {
    for (ty, bf16) in [("f16", false), ("bf16", true)] {
        for depth in [8, 16] {
            check_mma(ty, bf16, depth);
        }
    }
}

fn check_mma(ty: &str, bf16: bool, depth: usize) {
    let value = |i: usize, j: usize| ((i * 31 + j * 17) % 23) as f32 / 8.0 - 1.25;
    let half = |x: f32| {
        if bf16 {
            half::bf16::from_f32(x).to_bits()
        } else {
            half::f16::from_f32_const(x).to_bits()
        }
    };
    let registers = depth / 4;
    let mut a = vec![[0u64; 32]; registers];
    let mut b = vec![[0u64; 32]; depth / 8];
    for k in 0..depth {
        for row in 0..16 {
            let (lane, register, part) = place_a(row, k);
            a[register][lane] |= (half(value(row, k)) as u64) << (16 * part);
        }
        for column in 0..8 {
            let lane = column * 4 + (k % 8) / 2;
            b[k / 8][lane] |= (half(value(column + 40, k)) as u64) << (16 * (k % 2));
        }
    }
    let mut inputs: Vec<(&str, &[u64])> = Vec::new();
    inputs.extend(a.iter().map(|x| ("b32", &x[..])));
    inputs.extend(b.iter().map(|x| ("b32", &x[..])));
    let names = |from: usize, count: usize| {
        (from..from + count).map(|k| format!("%x{k}")).collect::<Vec<_>>().join(", ")
    };
    for register in 0..4 {
        let body = format!(
            "mov.b32 %t0, 0f3F000000; mma.sync.aligned.m16n8k{depth}.row.col.f32.{ty}.{ty}.f32 \
             {{%t1, %t2, %t3, %t4}}, {{{}}}, {{{}}}, {{%t0, %t0, %t0, %t0}}; mov.b32 %d, %t{};",
            names(0, registers),
            names(registers, depth / 8),
            register + 1
        );
        let got = eval(&body, &inputs, "f32");
        for (lane, bits) in got.iter().enumerate() {
            let row = lane / 4 + 8 * (register / 2);
            let column = 2 * (lane % 4) + register % 2;
            let want: f64 = 0.5
                + (0..depth).map(|k| (value(row, k) * value(column + 40, k)) as f64).sum::<f64>();
            let got = f32::from_bits(*bits as u32) as f64;
            assert!(
                (got - want).abs() <= 1e-5,
                "{ty} k{depth}, {row}, {column}: {got}, not {want}"
            );
        }
    }
}

#[test]
fn mma_on_bytes_is_exact() {
    let value = |i: usize, j: usize| ((i * 37 + j * 91) % 256) as u8 as i8;
    let mut a = [[0u64; 32]; 4];
    let mut b = [[0u64; 32]; 2];
    for k in 0..32 {
        for row in 0..16 {
            let register = (row >= 8) as usize + 2 * (k >= 16) as usize;
            let lane = (row % 8) * 4 + (k % 16) / 4;
            a[register][lane] |= (value(row, k) as u8 as u64) << (8 * (k % 4));
        }
        for column in 0..8 {
            let lane = column * 4 + (k % 16) / 4;
            b[k / 16][lane] |= (value(column + 40, k) as u8 as u64) << (8 * (k % 4));
        }
    }
    let inputs: Vec<(&str, &[u64])> = a.iter().chain(&b).map(|x| ("b32", &x[..])).collect();
    for register in 0..4 {
        let body = format!(
            "mov.b32 %t0, 7; mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {{%t1, %t2, %t3, %t4}}, \
             {{%x0, %x1, %x2, %x3}}, {{%x4, %x5}}, {{%t0, %t0, %t0, %t0}}; mov.b32 %d, %t{};",
            register + 1
        );
        for (lane, got) in eval(&body, &inputs, "s32").iter().enumerate() {
            let row = lane / 4 + 8 * (register / 2);
            let column = 2 * (lane % 4) + register % 2;
            let want: i32 = 7
                + (0..32).map(|k| value(row, k) as i32 * value(column + 40, k) as i32).sum::<i32>();
            assert_eq!(*got as u32 as i32, want, "{row}, {column}");
        }
    }
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let text = ".version 9.0\n.target sm_90\n.address_size 64\n.visible .entry k()\n{\n\
                .reg .b64 %a;\nwgmma.fence.sync.aligned;\nret;\n}\n";
    let error = virtual_gpu::Module::parse(text).unwrap_err();
    assert_eq!(error.line, 7);
    assert!(error.message.contains("wgmma.fence"), "{error}");
    let text = text.replace("wgmma.fence.sync.aligned", "ld.global.frobnicate.u64 %a, [%a]");
    assert!(virtual_gpu::Module::parse(&text).is_err());
}
