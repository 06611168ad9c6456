use super::Weight;
use crate::Tensor;
use crate::ops::dequantize;

pub fn linear(out: &mut Tensor, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) {
    let bytes = weight.raw();
    let (n, k) = (weight.out_features, weight.in_features);
    let row_bytes = bytes.len() / n;
    let mut w = vec![0f32; k];
    for i in 0..n {
        let bytes = &bytes[i * row_bytes..(i + 1) * row_bytes];
        dequantize::reference::dequantize(weight.dtype, bytes, &mut w);
        let bias = bias.map_or(0.0, |b| f64::from(b.f32()[i]));
        for t in 0..x.rows() {
            let x = x.f32_row(t);
            let sum: f64 = x.iter().zip(&w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            out.f32_mut()[t * n + i] = (sum + bias) as f32;
        }
    }
}
