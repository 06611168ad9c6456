//! What the environment asks of the virtual GPU. Read once, by the first call.

use crate::abi::DEVICES_MAX;
use crate::device_model::DeviceModel;
use std::env;
use std::path::PathBuf;
use virtual_gpu::Checks;

pub struct Config {
    /// `VIRTUAL_GPU_DEVICES`: how many devices it shows; 1 unless told, 0 for none.
    pub num_devices: usize,
    /// `VIRTUAL_GPU_MEMORY`: bytes per device, also as `512M` or `8G`; 2 GiB unless told.
    pub memory_bytes: u64,
    /// `VIRTUAL_GPU_SEED`: order of streams, graph branches, warps.
    pub seed: u64,
    /// `VIRTUAL_GPU_CHECKS`: `all`, `off`, or a comma list.
    pub checks: Checks,
    /// `VIRTUAL_GPU_FAULT`: a comma list of faults to inject.
    pub faults: Vec<Fault>,
    /// Kernels that `VIRTUAL_GPU_FAULT` names with `bug:KERNEL`: each of their additions of f32
    /// numbers is a subtraction.
    pub bugs: Vec<String>,
    /// `VIRTUAL_GPU_COMPUTE_CAPABILITY`: `8.0` unless told.
    pub model: DeviceModel,
    /// `VIRTUAL_GPU_REPORT`: file that gets the counters at exit.
    pub report: Option<PathBuf>,
    /// `VIRTUAL_GPU_THREADS`: host threads per kernel; all cores unless told.
    pub threads: usize,
    /// `VIRTUAL_GPU_TRACE=1`: each call and its result on stderr.
    pub trace: bool,
}

/// One thing that shall go wrong. Counting starts at 1 and is per device where a device is named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    pub kind: FaultKind,
    pub nth: u64,
    pub device: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// The n-th allocation of device memory finds none.
    Alloc,
    /// The n-th kernel to start fails.
    Launch,
    /// The device is lost when the n-th kernel starts.
    Lost,
}

const MEMORY_BYTES_DEFAULT: u64 = 2 << 30;

impl Config {
    /// Errors: the variable, what it holds, and what it may hold.
    pub fn from_env() -> Result<Config, String> {
        Config::from_variables(|name| env::var(name).ok())
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Config, String> {
        let parse =
            |name: &str, default: u64, may: &str, parse: fn(&str) -> Option<u64>| match get(name) {
                None => Ok(default),
                Some(text) => {
                    parse(&text).ok_or_else(|| format!("{name} is `{text}`; it may be {may}"))
                }
            };
        let devices_max = |text: &str| text.parse().ok().filter(|n| *n <= DEVICES_MAX as u64);
        let num_devices = parse("VIRTUAL_GPU_DEVICES", 1, "0 to 8", devices_max)?;
        let memory_bytes = parse(
            "VIRTUAL_GPU_MEMORY",
            MEMORY_BYTES_DEFAULT,
            "a number of bytes, or of M or G",
            parse_bytes,
        )?;
        let seed = parse("VIRTUAL_GPU_SEED", 0, "a whole number", |text| text.parse().ok())?;
        let trace = parse("VIRTUAL_GPU_TRACE", 0, "0 or 1", |text| text.parse().ok())? != 0;
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
        let threads = parse("VIRTUAL_GPU_THREADS", cores, "1 to 1024", |text| {
            text.parse().ok().filter(|n| (1..=1024).contains(n))
        })?;
        let checks = get("VIRTUAL_GPU_CHECKS").unwrap_or_else(|| "all".to_owned());
        let faults = get("VIRTUAL_GPU_FAULT").unwrap_or_default();
        let bugs = items(&faults).filter_map(|item| item.strip_prefix("bug:"));
        let capability = get("VIRTUAL_GPU_COMPUTE_CAPABILITY").unwrap_or_else(|| "8.0".to_owned());
        Ok(Config {
            num_devices: num_devices as usize,
            memory_bytes,
            seed,
            checks: parse_checks(&checks)
                .map_err(|reason| format!("VIRTUAL_GPU_CHECKS is `{checks}`: {reason}"))?,
            faults: parse_faults(&faults)?,
            bugs: bugs.map(str::to_owned).collect(),
            model: DeviceModel::find(&capability).ok_or_else(|| {
                format!(
                    "VIRTUAL_GPU_COMPUTE_CAPABILITY is `{capability}`; it may be {}",
                    DeviceModel::known()
                )
            })?,
            report: get("VIRTUAL_GPU_REPORT").filter(|path| !path.is_empty()).map(PathBuf::from),
            threads: threads as usize,
            trace,
        })
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim().trim_end_matches(['B', 'b', 'i']);
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'K' | 'k') => (&text[..at], 10),
        (at, 'M' | 'm') => (&text[..at], 20),
        (at, 'G' | 'g') => (&text[..at], 30),
        _ => (text, 0),
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn parse_checks(text: &str) -> Result<Checks, String> {
    let mut checks = Checks::NONE;
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match name {
            "all" => checks = Checks::ALL,
            "off" => checks = Checks::NONE,
            "memcheck" => checks.memcheck = true,
            "initcheck" => checks.initcheck = true,
            "racecheck" => checks.racecheck = true,
            "synccheck" => checks.synccheck = true,
            _ => {
                return Err(
                    "it may hold all, off, memcheck, initcheck, racecheck, synccheck".to_owned()
                );
            }
        }
    }
    Ok(checks)
}

fn items(faults: &str) -> impl Iterator<Item = &str> {
    faults.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// Faults that are not counted here: those of modules, of the NCCL and of the cuBLASLt library.
const FAULTS_ELSEWHERE: [&str; 3] = ["bug:", "skip-collective:", "cublaslt-"];

/// `KIND:N` or `KIND:N@DEVICE`, separated by commas.
fn parse_faults(text: &str) -> Result<Vec<Fault>, String> {
    let parse = |item: &str| {
        let (kind, rest) = item.split_once(':')?;
        let (nth, device) = match rest.split_once('@') {
            Some((nth, device)) => (nth, Some(device.parse().ok()?)),
            None => (rest, None),
        };
        let kind = match kind {
            "alloc" => FaultKind::Alloc,
            "launch" => FaultKind::Launch,
            "lost" => FaultKind::Lost,
            _ => return None,
        };
        Some(Fault { kind, nth: nth.parse().ok().filter(|nth| *nth > 0)?, device })
    };
    items(text)
        .filter(|item| !FAULTS_ELSEWHERE.iter().any(|prefix| item.starts_with(prefix)))
        .map(|item| {
            parse(item).ok_or_else(|| {
                format!(
                    "VIRTUAL_GPU_FAULT holds `{item}`; it may hold alloc:N, launch:N, lost:N (each \
                     also with @DEVICE), bug:KERNEL, skip-collective:RANK:N, cublaslt-wrong, \
                     cublaslt-batch"
                )
            })
        })
        .collect()
}
