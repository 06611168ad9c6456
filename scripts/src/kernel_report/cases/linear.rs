//! Products with weights: a slice is what one thread block computes, 128 outputs or 32 over all of
//! k, and where there are more rows than it takes, one block of rows.

use super::{ACT_BYTES, Case, Class, F32_BYTES, Limits, Model, Value, case};
use kernels::DType;
use kernels::ops::linear::cuda::launch_of;
use kernels::ops::linear::cuda::layout::{Format, Layout, TILE_N};

struct Projection {
    name: &'static str,
    out_features: usize,
    in_features: usize,
    /// Of the result: activations, or f32.
    out_bytes: usize,
}

pub fn cases(model: &Model, class: &Class) -> Vec<Case> {
    let attention = model.heads * model.head_dim;
    let projection = |name, out_features, in_features, out_bytes| Projection {
        name,
        out_features,
        in_features,
        out_bytes,
    };
    let mut projections = vec![
        projection("q projection", attention, model.hidden, ACT_BYTES),
        projection("k, v projection", model.kv_heads * model.head_dim, model.hidden, ACT_BYTES),
        projection("o projection", model.hidden, attention, F32_BYTES),
        projection("gate, up projection", model.intermediate, model.hidden, ACT_BYTES),
        projection("down projection", model.hidden, model.intermediate, F32_BYTES),
    ];
    // A prefill step computes the logits of one row only.
    if !class.is_prefill {
        projections.push(projection("logits", model.vocab, model.hidden, F32_BYTES));
    }
    let mut cases: Vec<Case> =
        projections.iter().map(|p| product(model, class, p, Format::Plain)).collect();
    // The other formats share all of the code but the reading of codes: one shape tells.
    if model.name == "Qwen3-8B" {
        let quantised = [Format::W8, Format::W4, Format::W4K, Format::W8K, Format::W4Z];
        cases.extend(quantised.map(|format| product(model, class, &projections[3], format)));
    }
    cases
}

fn product(model: &Model, class: &Class, projection: &Projection, format: Format) -> Case {
    let Projection { name, out_features: n, in_features: k, out_bytes } = *projection;
    let layout = Layout { format, out_features: n, in_features: k };
    let launch = launch_of(&layout, DType::BF16, class.rows);
    let tile = Layout { out_features: TILE_N.min(n), ..layout };
    let (rows, columns) = (launch.block_rows.min(class.rows), launch.block_columns);
    let mut case = case(name, model, class);
    let num_columns = n.div_ceil(columns);
    let num_row_blocks = class.rows.div_ceil(rows);
    case.slice = format!("{rows} of {} rows, {columns} of {n} outputs", class.rows);
    case.num_slices = (num_columns * num_row_blocks) as f64;

    let out = case.result(rows * columns * out_bytes);
    let x = case.zeros(rows * k * ACT_BYTES);
    let codes = case.zeros(tile.codes_bytes());
    let headers = match tile.headers_bytes() {
        0 => Value::Null,
        bytes => case.zeros(bytes),
    };
    let epilogue = if out_bytes == ACT_BYTES { 0 } else { 1 };
    let numbers = [rows, columns, k, layout.steps_per_split(), epilogue, launch.splits as usize];
    let mut args = vec![out, x, codes, headers, Value::Null];
    args.extend(numbers.map(|n| Value::U32(n as u32)));
    case.launch(launch.kernel.name, [1, 1, 1], launch.geometry.shared_bytes, args);

    let weight_bytes = (layout.codes_bytes() + layout.headers_bytes()) as f64;
    let (x_bytes, y_bytes) = (class.rows * k * ACT_BYTES, class.rows * n * out_bytes);
    case.minimal_bytes = weight_bytes + (x_bytes + y_bytes) as f64;
    // x for every block of columns, W for every block of rows.
    case.reread_bytes =
        ((num_columns - 1) * x_bytes) as f64 + (num_row_blocks - 1) as f64 * weight_bytes;
    case.block_bytes = (rows * k * ACT_BYTES + columns * layout.row_bytes()) as f64;
    case.wide_bytes = weight_bytes * num_row_blocks as f64;
    case.flops = 2.0 * class.rows as f64 * n as f64 * k as f64;
    case.limits = if class.is_prefill { Limits::WAYS } else { Limits::BOTH };
    case
}
