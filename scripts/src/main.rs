//! The project's chores, run as `cargo xtask CHORE`.

mod bench_peers;
mod beside;
mod clients;
mod cuda_toolchain;
mod debian;
mod docs;
mod fuzz;
mod grammars;
mod guard;
mod kernel_report;
mod load;
mod mpi;
mod neighbours;
mod overload;
mod process;
mod soak;
mod test;
mod virtual_gpu;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's chores")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Fetch the default model if it is absent, then run every test, real clients included
    Test,
    /// Install nvcc into a cache folder, where the build finds it; print the folder
    CudaToolchain,
    /// Write what is known of the GPU kernels without a GPU to kernels/REPORT.md, or check it
    KernelReport(kernel_report::Args),
    /// Talk to running servers with published clients, a browser and a fuzzer of APIs (part of
    /// `test`)
    Clients(clients::Args),
    /// Write the pages of server/docs/api from the tables that requests are read by
    Docs,
    /// Fuzz the parsers of outside data: checkpoint headers and request bodies
    Fuzz(fuzz::Args),
    /// Serve one model with two processes under mpirun, and lose one of them
    Mpi(mpi::Args),
    /// Load a server with clients that partly drop mid-stream; check blocks, memory and answers
    Soak(soak::Args),
    /// Send a server far more at once than its queue takes; every request is answered or refused
    Overload(overload::Args),
    /// Measure what a batch job costs those who wait: the same load without and with one
    Beside(beside::Args),
    /// Measure what a busy tenant costs a quiet one: the same load alone and beside it
    Neighbours(neighbours::Args),
    /// Measure what grammars that cannot be held cost those who stream: the same load without and
    /// with clients that send nothing else
    Grammars(grammars::Args),
    /// Count the instructions of fixed work, and fail where there are more than before
    Guard(guard::Args),
    /// Compare speed with llama.cpp's server on the same file, in turns, and both with what the
    /// machine can do
    BenchPeers(bench_peers::Args),
    /// Build the Virtual GPU, on which CUDA code runs without a GPU, and say how to use it
    VirtualGpu(virtual_gpu::Args),
}

fn main() -> anyhow::Result<()> {
    match Args::parse().chore {
        Chore::Test => test::run(),
        Chore::CudaToolchain => cuda_toolchain::run(),
        Chore::KernelReport(args) => kernel_report::run(&args),
        Chore::Clients(args) => clients::run(&args),
        Chore::Docs => docs::run(),
        Chore::Fuzz(args) => fuzz::run(&args),
        Chore::Mpi(args) => mpi::run(&args),
        Chore::Soak(args) => soak::run(&args),
        Chore::Overload(args) => overload::run(&args),
        Chore::Beside(args) => beside::run(&args),
        Chore::Neighbours(args) => neighbours::run(&args),
        Chore::Grammars(args) => grammars::run(&args),
        Chore::Guard(args) => guard::run(&args),
        Chore::BenchPeers(args) => bench_peers::run(&args),
        Chore::VirtualGpu(args) => virtual_gpu::run(&args),
    }
}
