//! Norms, gates, positions, embeddings: every row is computed alike, so a slice is a few rows.

use super::{ACT_BYTES, Case, Class, F32_BYTES, Fill, Limits, Model, Value, case};

/// Rows of a slice; a divisor of all classes' rows that have more.
const SLICE_ROWS: usize = 4;
const BLOCK_SIZE: usize = 16;
/// Values that a thread block of `silu_mul` and `add` takes.
const SILU_BLOCK_LEN: usize = 8 * 256;

pub fn cases(model: &Model, class: &Class) -> Vec<Case> {
    vec![
        add_rms_norm(model, class),
        rms_norm(model, class),
        silu_mul(model, class),
        qkv_rope_write(model, class),
        embedding(model, class),
    ]
}

fn in_rows(op: &str, model: &Model, class: &Class) -> (Case, usize) {
    let rows = class.rows.min(SLICE_ROWS);
    let mut case = case(op, model, class);
    case.slice = format!("{rows} of {} rows", class.rows);
    case.num_slices = class.rows as f64 / rows as f64;
    case.limits = Limits::BOTH;
    (case, rows)
}

fn add_rms_norm(model: &Model, class: &Class) -> Case {
    let (mut case, rows) = in_rows("add + RMSNorm", model, class);
    let n = model.hidden;
    let hidden = case.zeros(rows * n * F32_BYTES);
    let delta = case.zeros(rows * n * F32_BYTES);
    let out = case.result(rows * n * ACT_BYTES);
    let weight = case.zeros(n * F32_BYTES);
    let args = vec![hidden, delta, out, weight, Value::U32(n as u32), Value::F32(1e-6)];
    case.launch("add_rms_norm_bf16", [rows as u32, 1, 1], 0, args);
    let values = (class.rows * n) as f64;
    case.minimal_bytes = values * (3 * F32_BYTES + ACT_BYTES) as f64 + (n * F32_BYTES) as f64;
    case.reread_bytes = ((class.rows - 1) * n * F32_BYTES) as f64;
    // The sum, its square, the sum of squares, two products.
    case.flops = values * 5.0;
    case
}

fn rms_norm(model: &Model, class: &Class) -> Case {
    let (mut case, rows) = in_rows("RMSNorm", model, class);
    let n = model.hidden;
    let out = case.result(rows * n * ACT_BYTES);
    let x = case.zeros(rows * n * F32_BYTES);
    let weight = case.zeros(n * F32_BYTES);
    let args = vec![out, x, weight, Value::U32(n as u32), Value::F32(1e-6)];
    case.launch("rms_norm_bf16", [rows as u32, 1, 1], 0, args);
    let values = (class.rows * n) as f64;
    case.minimal_bytes = values * (F32_BYTES + ACT_BYTES) as f64 + (n * F32_BYTES) as f64;
    case.reread_bytes = ((class.rows - 1) * n * F32_BYTES) as f64;
    case.flops = values * 4.0;
    case
}

fn silu_mul(model: &Model, class: &Class) -> Case {
    let (mut case, rows) = in_rows("SiLU * up", model, class);
    let len = rows * model.intermediate;
    let out = case.result(len * ACT_BYTES);
    let gate = case.zeros(len * ACT_BYTES);
    let up = case.zeros(len * ACT_BYTES);
    let grid = [len.div_ceil(SILU_BLOCK_LEN) as u32, 1, 1];
    case.launch("silu_mul_bf16", grid, 0, vec![out, gate, up, Value::U64(len as u64)]);
    let values = (class.rows * model.intermediate) as f64;
    case.minimal_bytes = values * (3 * ACT_BYTES) as f64;
    // A product for the exponent, exp, a sum, a quotient, a product.
    case.flops = values * 5.0;
    case
}

fn qkv_rope_write(model: &Model, class: &Class) -> Case {
    let (mut case, rows) = in_rows("QK-norm + RoPE + KV write", model, class);
    let (heads, kv_heads, dim) = (model.heads, model.kv_heads, model.head_dim);
    let q = case.zeros(rows * heads * dim * ACT_BYTES);
    // One slot for each row, so that every byte of the caches is written.
    let cache_bytes = rows.next_multiple_of(BLOCK_SIZE) * kv_heads * dim * ACT_BYTES;
    let caches = [0, 1].map(|_| case.buffer(cache_bytes, Fill::Scratch));
    let [k, v] = [0, 1].map(|_| case.zeros(rows * kv_heads * dim * ACT_BYTES));
    let norms = [0, 1].map(|_| case.zeros(dim * F32_BYTES));
    let tables = [0, 1].map(|_| case.zeros(rows * dim / 2 * F32_BYTES));
    let [positions, slots] = [0, 1].map(|_| case.words((0..rows as u32).collect()));
    let mut args = vec![q, caches[0], caches[1], k, v, norms[0], norms[1], tables[0], tables[1]];
    args.extend([positions, slots]);
    // The last number: lanes that share a head, each with two runs of 8 values.
    let numbers = [heads, kv_heads, dim, dim, BLOCK_SIZE, dim / 16];
    args.extend(numbers.map(|n| Value::U32(n as u32)));
    args.push(Value::F32(1e-6));
    case.launch("qkv_rope_write_bf16", [rows as u32, 1, 1], 0, args);
    let values_of_row = (2 * heads + 4 * kv_heads) * dim;
    let tables_of_row = dim * F32_BYTES;
    let norm_bytes = 2 * dim * F32_BYTES;
    let of_row = values_of_row * ACT_BYTES + tables_of_row + 2 * size_of::<u32>();
    case.minimal_bytes = (class.rows * of_row + norm_bytes) as f64;
    // Both norms for each row; and all threads of a block ask for its position and its slot.
    let asked = 2 * size_of::<u32>() * (256 - 1);
    case.reread_bytes = ((class.rows - 1) * norm_bytes + class.rows * asked) as f64;
    case.wide_bytes = (class.rows * 2 * kv_heads * dim * ACT_BYTES) as f64;
    case.flops = (class.rows * (heads + kv_heads) * dim * 7) as f64;
    case
}

fn embedding(model: &Model, class: &Class) -> Case {
    let (mut case, rows) = in_rows("embedding", model, class);
    let n = model.hidden;
    let out = case.result(rows * n * F32_BYTES);
    let table = case.zeros(rows * n * ACT_BYTES);
    let ids = case.words((0..rows as u32).collect());
    // All rows of the table are here.
    let numbers = [n, 0, rows].map(|n| Value::U32(n as u32));
    let args = [&[out, table, ids][..], &numbers].concat();
    case.launch("embedding_bf16", [rows as u32, 1, 1], 0, args);
    let of_row = n * (F32_BYTES + ACT_BYTES) + size_of::<u32>();
    case.minimal_bytes = (class.rows * of_row) as f64;
    case.reread_bytes = (class.rows * (256 - 1) * size_of::<u32>()) as f64;
    case.wide_bytes = (class.rows * n * ACT_BYTES) as f64;
    case
}
