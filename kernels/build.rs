//! Compiles every `.cu` file with nvcc, if there is one, and packs the results for `device/cuda`.
//!
//! nvcc is taken from CUDA_HOME, from the PATH, or from the cache that `cargo xtask cuda-toolchain`
//! fills. Without one the crate still builds and holds no kernels. Release builds carry machine
//! code for all `ARCHITECTURES` and PTX for newer ones; other builds carry the PTX alone, which is
//! compiled in a tenth of the time. MONSOON_CUDA_ARCHS ("80,90", "ptx" or "none") overrides both.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Compute capabilities with machine code of their own.
const ARCHITECTURES: [&str; 6] = ["80", "86", "89", "90", "100", "120"];
/// The oldest one, whose PTX every later one can compile.
const PTX_ARCHITECTURE: &str = "80";
/// Where `cargo xtask cuda-toolchain` puts nvcc, below the cache folder.
const CACHED_NVCC: &str = "monsoon/cuda-toolchain/13.0/nvidia/cu13/bin/nvcc";
const ZSTD_LEVEL: i32 = 19;

fn main() {
    for name in ["CUDA_HOME", "PATH", "HOME", "XDG_CACHE_HOME", "MONSOON_CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let include = Path::new("src/device/cuda/include");
    println!("cargo:rerun-if-changed={}", include.display());
    let mut sources = Vec::new();
    find_sources(Path::new("src/ops"), &mut sources);
    sources.sort();
    for source in &sources {
        println!("cargo:rerun-if-changed={}", source.display());
    }
    println!("cargo:rerun-if-changed=src/ops");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let archs = architectures();
    let nvcc = if archs.as_deref() == Some(&[]) { None } else { find_nvcc() };
    let images = match (&nvcc, &archs) {
        (Some(nvcc), archs) => {
            println!("cargo:rerun-if-changed={}", nvcc.display());
            let archs: Vec<&str> = archs.iter().flatten().map(String::as_str).collect();
            compile_all(nvcc, &sources, include, &archs, &out_dir)
        }
        (None, _) => Vec::new(),
    };
    fs::write(out_dir.join("images.rs"), table(&images)).expect("OUT_DIR is writable");
}

/// Compute capabilities to make machine code for; an empty list means no kernels at all, "ptx"
/// alone means PTX only.
fn architectures() -> Option<Vec<String>> {
    let named = env::var("MONSOON_CUDA_ARCHS").unwrap_or_default();
    match named.as_str() {
        "none" => Some(Vec::new()),
        "" if env::var("PROFILE").as_deref() == Ok("release") => {
            Some(ARCHITECTURES.iter().map(|a| a.to_string()).chain(["ptx".into()]).collect())
        }
        "" => Some(vec!["ptx".into()]),
        list => Some(list.split(',').map(|a| a.trim().to_string()).chain(["ptx".into()]).collect()),
    }
}

fn find_sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the ops are there") {
        let path = entry.expect("the ops are readable").path();
        if path.is_dir() {
            find_sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "cu") {
            out.push(path);
        }
    }
}

fn find_nvcc() -> Option<PathBuf> {
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("nvcc"));
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    let cached = cache.map(|cache| cache.join(CACHED_NVCC));
    if let Some(cached) = &cached {
        println!("cargo:rerun-if-changed={}", cached.display());
    }
    home.into_iter().chain(on_path).chain(cached).find(|nvcc| nvcc.is_file())
}

/// Name and packed file of every image.
fn compile_all(
    nvcc: &Path,
    sources: &[PathBuf],
    include: &Path,
    archs: &[&str],
    out_dir: &Path,
) -> Vec<(String, PathBuf)> {
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).max(1);
    let next = std::sync::Mutex::new(sources.iter());
    let images = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(sources.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let Some(source) = next.lock().expect("no panic holds it").next() else {
                        break;
                    };
                    let image = compile(nvcc, source, include, archs, out_dir);
                    images.lock().expect("no panic holds it").push(image);
                }
            });
        }
    });
    let mut images = images.into_inner().expect("all threads ended well");
    images.sort();
    images
}

fn compile(
    nvcc: &Path,
    source: &Path,
    include: &Path,
    archs: &[&str],
    out_dir: &Path,
) -> (String, PathBuf) {
    let name = source.file_stem().and_then(|s| s.to_str()).expect("a plain name").to_string();
    let packed = out_dir.join(format!("{name}.fatbin.zst"));
    let key_file = out_dir.join(format!("{name}.key"));
    let key = key(nvcc, source, include, archs);
    if packed.is_file() && fs::read_to_string(&key_file).is_ok_and(|old| old == key) {
        return (name, packed);
    }
    let fatbin = out_dir.join(format!("{name}.fatbin"));
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "--fmad=true", "-lineinfo", "-fatbin", "--no-compress"]);
    command.arg("-I").arg(include);
    command.arg("-gencode").arg(gencode(archs));
    command.arg(source).arg("-o").arg(&fatbin);
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {}: {e}", nvcc.display()));
    assert!(
        output.status.success(),
        "nvcc failed on {}:\n{}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let image = fs::read(&fatbin).expect("nvcc wrote it");
    let bytes = zstd::bulk::compress(&image, ZSTD_LEVEL).expect("memory for packing");
    fs::write(&packed, bytes).expect("OUT_DIR is writable");
    fs::write(&key_file, key).expect("OUT_DIR is writable");
    (name, packed)
}

/// One PTX for all, the one that ships and that tests run; machine code is made from it.
fn gencode(archs: &[&str]) -> String {
    let codes: Vec<String> = archs
        .iter()
        .map(|arch| match *arch {
            "ptx" => format!("compute_{PTX_ARCHITECTURE}"),
            arch => format!("sm_{arch}"),
        })
        .collect();
    format!("arch=compute_{PTX_ARCHITECTURE},code=[{}]", codes.join(","))
}

/// All that an image depends on, so that one changed kernel does not compile the others again.
fn key(nvcc: &Path, source: &Path, include: &Path, archs: &[&str]) -> String {
    let beside = source.parent().expect("sources lie in a folder");
    let entries = [include, beside].into_iter().filter_map(|folder| fs::read_dir(folder).ok());
    let paths = entries.flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut headers: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "cuh")).collect();
    headers.sort();
    let mut text = format!("{} {archs:?}\n", nvcc.display());
    for path in headers.iter().map(PathBuf::as_path).chain([source]) {
        text.push_str(&fs::read_to_string(path).expect("a readable source"));
    }
    text
}

/// The table that `device/cuda/images.rs` includes.
fn table(images: &[(String, PathBuf)]) -> String {
    let mut text = String::from("pub(super) const IMAGES: &[(&str, &[u8])] = &[\n");
    for (name, path) in images {
        text.push_str(&format!("    ({name:?}, include_bytes!({:?})),\n", path.display()));
    }
    text.push_str("];\n");
    text
}
