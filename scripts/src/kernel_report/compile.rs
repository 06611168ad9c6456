//! `.cu` files -> machine code for every architecture, PTX, and what ptxas says of both.

use crate::cuda_toolchain;
use crate::process::{root, target_dir};
use anyhow::{Context, Result, ensure};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// As in `kernels/build.rs`.
pub const ARCHITECTURES: [&str; 6] = ["80", "86", "89", "90", "100", "120"];
/// As in `kernels/build.rs`, for a test compares them.
const FLAGS: [&str; 6] =
    ["-std=c++17", "-O3", "--fmad=true", "-lineinfo", "-fatbin", "--no-compress"];
const OPS: &str = "kernels/src/ops";
const INCLUDE: &str = "kernels/src/device/cuda/include";
/// More would only wait for each other's memory.
const THREADS_MAX: usize = 8;

/// One compiled `.cu` file.
#[derive(Debug)]
pub struct Module {
    /// The file's name without its ending.
    pub name: String,
    /// What ptxas printed for all architectures.
    pub log: String,
    /// Of the oldest architecture.
    pub ptx: String,
    folder: PathBuf,
}

impl Module {
    pub fn cubin(&self, arch: &str) -> PathBuf {
        self.folder.join(format!("{}.sm_{arch}.cubin", self.name))
    }

    /// The output of a reader of machine code.
    pub fn read(&self, arch: &str, what: &str) -> Result<String> {
        let mut command = Command::new(cuda_toolchain::tool("cuobjdump")?);
        output(command.arg(what).arg(self.cubin(arch)))
    }
}

/// Compiles all sources that changed since the last report, several at once.
pub fn compile_all() -> Result<Vec<Module>> {
    let mut sources = Vec::new();
    find(&root().join(OPS), "cu", &mut sources)?;
    sources.sort();
    let next = Mutex::new(sources.iter());
    let modules = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some(source) = next.lock().expect("no panic holds it").next() else {
                        break;
                    };
                    let module = compile(source);
                    modules.lock().expect("no panic holds it").push(module);
                }
            });
        }
    });
    let modules = modules.into_inner().expect("all threads ended well");
    let mut modules = modules.into_iter().collect::<Result<Vec<_>>>()?;
    modules.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(modules)
}

fn find(folder: &Path, ending: &str, out: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, ending, out)?;
        } else if path.extension().is_some_and(|e| e == ending) {
            out.push(path);
        }
    }
    Ok(())
}

fn compile(source: &Path) -> Result<Module> {
    let name = source.file_stem().and_then(|s| s.to_str()).context("a plain name")?.to_string();
    let key = key(source)?;
    let folder = target_dir().join("kernel-report").join(format!("{name}-{key:016x}"));
    let log = folder.join("ptxas.txt");
    // Written last, so what has it is whole.
    if !log.is_file() {
        eprintln!("compiling {name} for {} architectures", ARCHITECTURES.len());
        std::fs::create_dir_all(&folder)?;
        let text = build(source, &name, &folder)?;
        std::fs::write(&log, text)?;
    }
    let ptx = std::fs::read_to_string(folder.join(format!("{name}.sm_80.ptx")))?;
    Ok(Module { name, log: std::fs::read_to_string(log)?, ptx, folder })
}

/// Compiles as the build script does, and takes the result apart.
fn build(source: &Path, name: &str, folder: &Path) -> Result<String> {
    let fatbin = folder.join(format!("{name}.fatbin"));
    let mut command = Command::new(cuda_toolchain::tool("nvcc")?);
    command.args(FLAGS).args(["-Xptxas", "-v", "-I"]).arg(root().join(INCLUDE));
    let codes: Vec<String> = ARCHITECTURES.iter().map(|arch| format!("sm_{arch}")).collect();
    let codes = codes.join(",");
    command.arg("-gencode").arg(format!("arch=compute_80,code=[compute_80,{codes}]"));
    let result = command.arg(source).arg("-o").arg(&fatbin).output();
    let result = result.with_context(|| format!("start {command:?}"))?;
    let log = String::from_utf8_lossy(&result.stderr).into_owned();
    ensure!(result.status.success(), "nvcc failed on {}:\n{log}", source.display());
    for what in ["-xelf", "-xptx"] {
        let mut command = Command::new(cuda_toolchain::tool("cuobjdump")?);
        output(command.args([what, "all"]).arg(&fatbin).current_dir(folder))?;
    }
    Ok(log)
}

/// Of all that the result depends on: flags, the source, the headers beside it and the shared ones.
fn key(source: &Path) -> Result<u64> {
    let mut headers = Vec::new();
    find(&root().join(INCLUDE), "cuh", &mut headers)?;
    find(source.parent().context("a source lies in a folder")?, "cuh", &mut headers)?;
    headers.sort();
    let mut hasher = DefaultHasher::new();
    (FLAGS, ARCHITECTURES, cuda_toolchain::folder()?).hash(&mut hasher);
    for path in headers.iter().map(PathBuf::as_path).chain([source]) {
        std::fs::read(path).with_context(|| path.display().to_string())?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

pub fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("start {shown}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{shown} ended with {}: {complaint}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_architectures_are_those_of_the_build_script() {
        let script = std::fs::read_to_string(root().join("kernels/build.rs")).expect("readable");
        let used = |text: &str| script.contains(&format!("\"{text}\""));
        for flag in FLAGS {
            assert!(used(flag), "the build script does not pass {flag}");
        }
        let archs = ARCHITECTURES.map(|a| format!("\"{a}\"")).join(", ");
        assert!(script.contains(&format!("[{archs}]")), "the build script has other architectures");
    }
}
