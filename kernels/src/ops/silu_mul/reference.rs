pub fn silu_mul(out: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        let gate = f64::from(gate);
        *out = (gate / (1.0 + (-gate).exp()) * f64::from(up)) as f32;
    }
}
