//! Prints the kernels of PTX files and the opcodes they use: `cargo run -p virtual_gpu --example
//! ptx_info FILE...`
fn main() {
    for path in std::env::args().skip(1) {
        let text = std::fs::read_to_string(&path).expect("readable file");
        match virtual_gpu::Module::parse(&text) {
            Ok(module) => {
                for kernel in module.kernels() {
                    println!(
                        "{path}: {} {} instructions, {} bytes of parameters, {} of shared memory",
                        kernel.name(),
                        kernel.num_instructions(),
                        kernel.param_bytes(),
                        kernel.static_shared_bytes()
                    );
                }
            }
            Err(error) => println!("{path}: {error}"),
        }
    }
}
