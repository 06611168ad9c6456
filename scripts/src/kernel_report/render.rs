//! Facts -> Markdown.

use super::budgets::multiplies_matrices;
use super::cases;
use super::compile::ARCHITECTURES;
use super::facts::Kernel;
use super::occupancy::{DEVICES, Occupancy};

const INTRODUCTION: &str = "\
# What is known of the GPU kernels without a GPU

Written by `cargo xtask kernel-report`; `cargo xtask kernel-report --check` fails when it is out of
date or a kernel breaks a limit. **Nothing here was measured on a GPU, and nothing here is a claim of
speed.** Each table says of its columns whether they were

- *read*: from what NVIDIA's compiler and disassembler (13.0.88, 13.5.37) say of the machine code,
- *counted*: by the virtual GPU, which runs the PTX that ships,
- *computed*: by a formula, from the shape or from what was read,
- *assumed*: of a device, from its data sheet.
";

pub fn render(kernels: &[Kernel], occupancies: &[[Occupancy; 3]]) -> String {
    let mut text = INTRODUCTION.to_string();
    resources(&mut text, kernels, occupancies);
    instructions(&mut text, kernels);
    text
}

fn resources(text: &mut String, kernels: &[Kernel], occupancies: &[[Occupancy; 3]]) {
    let archs = ARCHITECTURES.map(|a| format!("sm_{a}")).join(", ");
    text.push_str(&format!(
        "\n## Registers, shared memory, occupancy\n\n\
         Read: registers of a thread on {archs} (one number where all agree); spilled bytes, of all \
         architectures; static shared memory; threads of a block (launch bounds). Computed: dynamic \
         shared memory, as the launch asks for it; blocks that a multiprocessor holds at once, and \
         the share of its threads that they fill, by NVIDIA's cuda_occupancy.h. Assumed: the sizes of \
         a multiprocessor.\n\n\
         | kernel | registers | spilled | shared, static + dynamic | threads | A100 | H100 | B200 |\n\
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
         HMMA (matrix products), LDSM (matrix loads from shared memory), LDGSTS (copies from global \
         to shared memory). No kernel has LDL or STL (local memory) on any architecture, unless the \
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
