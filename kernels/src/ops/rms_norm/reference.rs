pub fn rms_norm(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let n = weight.len();
    for (out, x) in out.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
        let sum_of_squares: f64 = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        let scale = 1.0 / (sum_of_squares / n as f64 + f64::from(eps)).sqrt();
        for i in 0..n {
            out[i] = (f64::from(weight[i]) * f64::from(x[i]) * scale) as f32;
        }
    }
}
