//! Attention: a slice is one sequence and one kv head with its query heads.

use super::case;
use super::{
    ACT_BYTES, CONTEXT, Case, Class, F32_BYTES, Fill, Limits, Model, PREFILL_TOKENS, Value,
};
use kernels::ops::attention::cuda;

/// As in ops/attention/cuda.rs.
const SPLIT_KEYS: usize = 256;
const PREFILL_ROWS: usize = 64;
const DECODE_ROWS: usize = 16;
const BLOCK_SIZE: usize = 16;

pub fn cases(model: &Model, class: &Class) -> Vec<Case> {
    vec![if class.is_prefill { prefill(model, class) } else { decode(model, class) }]
}

struct Slice {
    case: Case,
    group: usize,
    /// q, caches, query_start, context_len, block_tables, then the numbers up to the stride.
    common: Vec<Value>,
}

/// One sequence of `tokens` new tokens that sees `keys` keys, on one kv head.
fn slice(op: &str, model: &Model, class: &Class, tokens: usize, keys: usize) -> Slice {
    let mut case = case(op, model, class);
    let (dim, group) = (model.head_dim, model.heads / model.kv_heads);
    let q = case.zeros(tokens * group * dim * ACT_BYTES);
    let caches = [0, 1].map(|_| case.zeros(keys * dim * ACT_BYTES));
    let query_start = case.words(vec![0, tokens as u32]);
    let context_len = case.words(vec![keys as u32]);
    let num_blocks = keys.div_ceil(BLOCK_SIZE);
    let block_tables = case.words((0..num_blocks as u32).collect());
    let mut common = vec![q, caches[0], caches[1], query_start, context_len, block_tables];
    common.push(Value::F32(1.0 / (dim as f32).sqrt()));
    let numbers = [group, 1, BLOCK_SIZE.trailing_zeros() as usize, num_blocks, 1];
    common.extend(numbers.map(|n| Value::U32(n as u32)));
    Slice { case, group, common }
}

fn decode(model: &Model, class: &Class) -> Case {
    let Slice { mut case, group, common } = slice("attention", model, class, 1, CONTEXT);
    let dim = model.head_dim;
    let splits = CONTEXT.div_ceil(SPLIT_KEYS);
    let out = case.result(group * dim * ACT_BYTES);
    let sums = case.buffer(splits * group * dim * F32_BYTES, Fill::Scratch);
    let stats = case.buffer(splits * group * 2 * F32_BYTES, Fill::Scratch);
    let item_start = case.buffer(2 * size_of::<u32>(), Fill::Scratch);
    let [query_start, context_len] = [common[3], common[4]];
    let mut args = vec![out, sums, stats, item_start];
    args.extend(common);
    args.extend([1, splits].map(|n| Value::U32(n as u32)));
    let row_tiles = group.div_ceil(DECODE_ROWS);
    let shared = cuda::decode_shared_bytes(dim, 1);
    let kernel = format!("attention_decode_{dim}_bf16");
    case.launch(&kernel, [(splits * row_tiles) as u32, 1, 1], shared as u32, args);
    let mut args = vec![out, sums, stats, item_start, query_start, context_len];
    args.extend([group, 1, 1].map(|n| Value::U32(n as u32)));
    let kernel = format!("attention_combine_{dim}_bf16");
    case.launch(&kernel, [group.div_ceil(4) as u32, 1, 1], 0, args);

    case.slice = format!(
        "1 of {} sequences of {CONTEXT} keys, 1 of {} kv heads",
        class.rows, model.kv_heads
    );
    case.num_slices = (class.rows * model.kv_heads) as f64;
    let kv_bytes = (2 * CONTEXT * model.kv_heads * dim * ACT_BYTES) as f64;
    let qo_bytes = (2 * model.heads * dim * ACT_BYTES) as f64;
    case.minimal_bytes = class.rows as f64 * (kv_bytes + qo_bytes);
    // Every split reads the same queries.
    let q_bytes = model.heads * dim * ACT_BYTES;
    case.reread_bytes = (class.rows * (splits - 1) * q_bytes) as f64;
    case.wide_bytes = class.rows as f64 * kv_bytes;
    case.flops = (4 * class.rows * CONTEXT * model.heads * dim) as f64;
    case.limits = Limits::BOTH;
    case
}

fn prefill(model: &Model, class: &Class) -> Case {
    let Slice { mut case, group, common } =
        slice("attention", model, class, PREFILL_TOKENS, PREFILL_TOKENS);
    let dim = model.head_dim;
    let out = case.result(PREFILL_TOKENS * group * dim * ACT_BYTES);
    let mut args = vec![out];
    args.extend(common);
    // Sequences of so few tokens go to the other kernel.
    args.push(Value::U32((DECODE_ROWS / group).max(1) as u32));
    let tiles = PREFILL_TOKENS * group / PREFILL_ROWS;
    let kernel = format!("attention_prefill_{dim}_bf16");
    let shared = cuda::prefill_shared_bytes(dim) as u32;
    case.launch(&kernel, [tiles as u32 + 1, 1, 1], shared, args);

    case.slice = format!("1 of {} kv heads", model.kv_heads);
    case.num_slices = model.kv_heads as f64;
    let kv_bytes = 2 * PREFILL_TOKENS * model.kv_heads * dim * ACT_BYTES;
    let qo_bytes = 2 * PREFILL_TOKENS * model.heads * dim * ACT_BYTES;
    case.minimal_bytes = (kv_bytes + qo_bytes) as f64;
    // Each tile of rows reads the keys and values up to its own last position.
    let tokens_per_tile = PREFILL_ROWS / group;
    let keys_read: usize = (1..=tiles).map(|tile| tile * tokens_per_tile).sum();
    let all_reads = 2 * keys_read * model.kv_heads * dim * ACT_BYTES;
    case.reread_bytes = (all_reads - kv_bytes) as f64;
    case.wide_bytes = kv_bytes as f64;
    // Each token sees itself and those before it.
    let pairs = PREFILL_TOKENS * (PREFILL_TOKENS + 1) / 2;
    case.flops = (4 * pairs * model.heads * dim) as f64;
    case.limits = Limits::WAYS;
    case
}
