//! Facts -> Markdown.

use super::budgets::multiplies_matrices;
use super::cases::{self, Case};
use super::compile::ARCHITECTURES;
use super::counts::Counts;
use super::facts::Kernel;
use super::occupancy::{DEVICES, Occupancy};

const INTRODUCTION: &str = "\
# What is known of the GPU kernels without a GPU

Written by `cargo xtask kernel-report`; `cargo xtask kernel-report --check` fails when it is out of
date or a kernel breaks a limit. **Nothing here was measured on a GPU, and nothing here is a claim
of speed.** Each table says of its columns whether they were

- *read*: from what NVIDIA's compiler and disassembler (13.0.88, 13.5.37) say of the machine code,
- *counted*: by the virtual GPU, which runs the PTX that ships,
- *computed*: by a formula, from the shape or from what was read,
- *assumed*: of a device, from its data sheet.
";

pub fn render(
    kernels: &[Kernel],
    occupancies: &[[Occupancy; 3]],
    shapes: &[(&Case, &Counts)],
) -> String {
    let mut text = INTRODUCTION.to_string();
    resources(&mut text, kernels, occupancies);
    instructions(&mut text, kernels);
    few_blocks(&mut text, shapes);
    work(&mut text, shapes);
    text
}

fn resources(text: &mut String, kernels: &[Kernel], occupancies: &[[Occupancy; 3]]) {
    let archs = ARCHITECTURES.map(|a| format!("sm_{a}")).join(", ");
    text.push_str(&format!(
        "\n## Registers, shared memory, occupancy\n\n\
         Read: registers of a thread on {archs} (one number where all agree); spilled bytes, of \
         all architectures; static shared memory; threads of a block (launch bounds). Computed: \
         dynamic shared memory, the most that a launch asks for; blocks that a multiprocessor \
         holds at once, and the share of its threads that they fill, by NVIDIA's \
         cuda_occupancy.h. Assumed: the sizes of a multiprocessor.\n\n\
         | kernel | registers | spilled | shared, static + dynamic | threads | A100 | H100 \
         | B200 |\n\
         |---|---|---|---|---|---|---|---|\n"
    ));
    for (kernel, occupancy) in kernels.iter().zip(occupancies) {
        let mut registers: Vec<String> =
            kernel.resources.iter().map(|r| r.registers.to_string()).collect();
        if registers.iter().all(|r| *r == registers[0]) {
            registers.truncate(1);
        }
        let spilled: u32 = kernel.resources.iter().map(|r| r.spill_bytes).sum();
        debug_assert_eq!(occupancy.len(), DEVICES.len());
        let [a100, h100, b200] =
            occupancy.map(|o| format!("{} ({:.0}%)", o.blocks, 100.0 * o.share));
        text.push_str(&format!(
            "| {} | {} | {spilled} | {} + {} | {} | {a100} | {h100} | {b200} |\n",
            kernel.name,
            registers.join(" "),
            kernel.static_shared_max(),
            cases::dynamic_shared(&kernel.name),
            kernel.threads_max,
        ));
    }
}

fn instructions(text: &mut String, kernels: &[Kernel]) {
    text.push_str(
        "\n## Instructions of kernels that multiply matrices\n\n\
         Read, from the machine code for sm_80 and for sm_90, as written there (not as executed): \
         HMMA (matrix products), LDSM (matrix loads from shared memory), LDGSTS (copies from \
         global \
         to shared memory). No kernel has LDL or STL (local memory) on any architecture, unless \
         the \
         last column says so.\n\n\
         | kernel | HMMA | LDSM | LDGSTS | LDL + STL |\n|---|---|---|---|---|\n",
    );
    let at = |arch: &str| ARCHITECTURES.iter().position(|a| *a == arch).expect("known");
    let (old, new) = (at("80"), at("90"));
    for kernel in kernels.iter().filter(|k| multiplies_matrices(&k.name)) {
        let (old, new) = (kernel.sass[old], kernel.sass[new]);
        let local: u32 = kernel.sass.iter().map(|s| s.local).sum();
        text.push_str(&format!(
            "| {} | {}, {} | {}, {} | {}, {} | {local} |\n",
            kernel.name, old.hmma, new.hmma, old.ldsm, new.ldsm, old.ldgsts, new.ldgsts,
        ));
    }
}

/// Of an H100 (SXM), by its data sheet.
const H100_MULTIPROCESSORS: f64 = 132.0;

/// What it costs that no sums of splits pass through global memory.
fn few_blocks(text: &mut String, shapes: &[(&Case, &Counts)]) {
    text.push_str(
        "\n## Products of few rows: thread blocks and re-reads\n\n\
         Decode attention, products of few rows and fused elementwise ops move at most 1.1 times \
         the bytes that they need (less re-reads of small operands that blocks share, see below); \
         `--check` fails above that. Products keep the limit because the sums of splits along k \
         meet in shared memory, never in global memory. The price: a block computes all of k for \
         32 outputs or more, so a weight with few outputs has fewer blocks than an H100 has \
         multiprocessors, and only those that have one read its weights; and each block reads x \
         again, from the second-level cache at best. Neither has been timed. Products of few rows \
         with fewer blocks than multiprocessors, or whose re-reads of x are more than the minimal \
         bytes:\n\n\
         Computed: blocks; re-read bytes over minimal bytes; bytes of x and W that one block \
         reads. Assumed: 132 multiprocessors.\n\n\
         | kernel | op | model | shape | blocks | multiprocessors with work | re-read | bytes of a \
         block |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for (case, _) in shapes {
        let kernel = &case.launches[0].kernel;
        let is_product = kernel.starts_with("linear_") && case.limits.bytes.is_some();
        let (blocks, reread) = (case.num_blocks(), case.reread_bytes / case.minimal_bytes);
        if !is_product || (blocks >= H100_MULTIPROCESSORS && reread <= 1.0) {
            continue;
        }
        text.push_str(&format!(
            "| {kernel} | {} | {} | {} | {blocks} | {:.0}% | {reread:.2} | {} |\n",
            case.op,
            case.model,
            case.class,
            100.0 * (blocks / H100_MULTIPROCESSORS).min(1.0),
            short(case.block_bytes),
        ));
    }
}

/// Of an H100, by its data sheet: bytes and bf16 operations in a second.
const H100_BYTES_PER_S: f64 = 3.35e12;
const H100_FLOPS: f64 = 989e12;
/// Operations of one m16n8k16.
const MMA_FLOPS: f64 = 2.0 * 16.0 * 8.0 * 16.0;

fn work(text: &mut String, shapes: &[(&Case, &Counts)]) {
    text.push_str(
        "\n## Work of each op, by shape\n\n\
         bf16 activations, one layer. Computed: minimal bytes (each byte of memory that the op \
         needs, once) and floating-point operations; the roofline, the larger of minimal bytes / \
         3.35 TB/s and operations / 989 TFLOP/s, which no kernel on an H100 can beat (assumed: \
         both rates, from the data sheet; it is not what the kernel takes); re-read: what several \
         thread blocks must each read of an operand they share beyond the first time: x, queries, \
         norm weights and tables, which a cache holds, and in prefill steps weights, keys and \
         values, which it need not. \
         Counted by the virtual GPU: bytes that threads ask for in global memory, m16n8k16 \
         instructions, and bank conflicts of the worst line of the main loop (a line with 5% of \
         the \
         kernel's shared-memory passes), 1.00 being none. Counts are those of the slice, which \
         runs, \
         times the slices of the op, which all do the same. Ratio: counted bytes less re-reads, \
         over \
         minimal bytes, and mma over operations / 4096. Attention decodes against 2048 keys.\n\n\
         | kernel | op | model | shape | slice | minimal bytes | operations | H100 roofline, us | \
         counted bytes | re-read | ratio | mma | ratio | bank conflicts |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for (case, counts) in shapes {
        let kernels: Vec<&str> = case.launches.iter().map(|l| l.kernel.as_str()).collect();
        let by_memory = case.minimal_bytes / H100_BYTES_PER_S;
        let by_arithmetic = case.flops / H100_FLOPS;
        let mma = match counts.mma {
            0.0 => "| - | - |".to_string(),
            mma => format!("| {} | {:.2} |", short(mma), mma * MMA_FLOPS / case.flops),
        };
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {} | {:.2} ({}) | {} | {} | {:.3} {mma} {:.2} |\n",
            kernels.join(", "),
            case.op,
            case.model,
            case.class,
            case.slice,
            short(case.minimal_bytes),
            short(case.flops),
            by_memory.max(by_arithmetic) * 1e6,
            if by_memory >= by_arithmetic { "memory" } else { "arithmetic" },
            short(counts.bytes),
            short(case.reread_bytes),
            counts.bytes_ratio(case),
            counts.ways,
        ));
    }
}

/// Three or four digits and a unit: 1234567 -> 1.235M.
fn short(x: f64) -> String {
    match x {
        x if x < 1e4 => format!("{x:.0}"),
        x if x < 1e6 => format!("{:.1}k", x / 1e3),
        x if x < 1e9 => format!("{:.3}M", x / 1e6),
        x => format!("{:.3}G", x / 1e9),
    }
}
