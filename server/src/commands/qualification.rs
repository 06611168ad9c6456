//! Whether a GPU's kernels agree with the reference on this very hardware, and what was found, kept
//! in the cache folder for each GPU, driver and set of kernels. A kernel that disagrees is switched
//! off and its alternative taken; where there is none, nothing is served on that GPU.

pub mod products;

use super::StartupError;
use kernels::KernelError;
use kernels::device::cuda::{CudaDevice, KernelSpec, images};
use kernels::ops::cuda_kernels;
use kernels::ops::linear::cuda::CUBLASLT;
use kernels::qualify::{Depth, Finding, Outcome, Verdict, qualify};
use products::Products;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Characters of a hash in a file's name and record.
const FINGERPRINT_LEN: usize = 16;

/// Which GPU, driver and kernels a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    pub device: String,
    pub compute_capability: String,
    /// The CUDA version that the driver offers.
    pub driver: String,
    /// Of the kernels in the binary.
    pub kernels: String,
}

/// What a server does on such a GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub subject: Subject,
    /// Names of kernels that disagree with the reference.
    pub switched_off: Vec<String>,
    /// Names of kernels, each with that of one that does the same faster here.
    pub preferred: Vec<[String; 2]>,
    /// Where cuBLASLt was tried: what came of it for each weight shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cublaslt: Option<Products>,
}

/// A device whose driver names it so is no hardware: nothing on it that has to do with time means
/// anything.
const VIRTUAL_MARK: &str = "no hardware";

pub fn is_virtual(device: &CudaDevice) -> bool {
    device.name().contains(VIRTUAL_MARK)
}

impl Subject {
    pub fn of(device: &CudaDevice) -> Result<Subject, KernelError> {
        let (major, minor) = device.compute_capability()?;
        let driver = device.driver_version()?;
        let mut hasher = blake3::Hasher::new();
        for packed in images::packed() {
            hasher.update(packed);
        }
        Ok(Subject {
            device: device.name().to_string(),
            compute_capability: format!("{major}.{minor}"),
            driver: format!("{}.{}", driver / 1000, driver % 1000 / 10),
            kernels: hasher.finalize().to_hex()[..FINGERPRINT_LEN].to_string(),
        })
    }

    fn path(&self, cache_dir: &Path) -> PathBuf {
        let name = format!("{}-{}-{}", self.device, self.compute_capability, self.driver);
        let plain = |c: char| if c.is_ascii_alphanumeric() || ".-".contains(c) { c } else { '_' };
        let name: String = name.chars().map(plain).collect();
        cache_dir.join("qualification").join(format!("{name}.json"))
    }
}

/// Makes sure that `device` computes right before it serves: by the record of an earlier start or
/// of `monsoon doctor`, or else by trying each op now, which takes a few seconds.
///
/// Errors: an op disagrees and has no alternative, or the device fails.
pub fn ensure(device: &CudaDevice, cache_dir: &Path) -> Result<(), StartupError> {
    let subject = Subject::of(device).map_err(StartupError::Device)?;
    let path = subject.path(cache_dir);
    if let Some(record) = load(&path).filter(|record| record.subject == subject) {
        switch_off(device, &record.switched_off);
        prefer(device, &record.preferred);
        return Ok(());
    }
    tracing::info!(device = device.name(), "trying each kernel on this GPU for the first time");
    let record = decide(device, &subject, &qualify(device, Depth::Short))?;
    confirm(device, &record)?;
    store(&record, &path);
    Ok(())
}

/// Acts on findings: switches kernels off on `device`.
///
/// Errors: what has no alternative.
pub fn decide(
    device: &CudaDevice,
    subject: &Subject,
    findings: &[Finding],
) -> Result<Record, StartupError> {
    let verdict = Verdict::of(findings);
    if let Some(finding) = verdict.hopeless.first() {
        return Err(StartupError::Unqualified {
            device: device.name().to_string(),
            what: describe(finding),
            others: verdict.hopeless.len() - 1,
        });
    }
    let names: Vec<String> = verdict.switch_off.iter().map(|k| k.name.to_string()).collect();
    switch_off(device, &names);
    Ok(Record { switched_off: names, ..open_record(subject.clone()) })
}

/// A record of a GPU of which nothing bad is known.
fn open_record(subject: Subject) -> Record {
    Record { subject, switched_off: Vec::new(), preferred: Vec::new(), cublaslt: None }
}

/// Where kernels were switched off, tries their alternatives at their places.
///
/// Errors: one of them disagrees, too.
pub fn confirm(device: &CudaDevice, record: &Record) -> Result<(), StartupError> {
    if record.switched_off.is_empty() {
        return Ok(());
    }
    let findings = qualify(device, Depth::Short);
    let mut wrong = findings.iter().filter(|finding| !finding.is_right());
    match wrong.next() {
        None => Ok(()),
        Some(finding) => Err(StartupError::Unqualified {
            device: device.name().to_string(),
            what: describe(finding),
            others: wrong.count(),
        }),
    }
}

/// Keeps the record for the next start, with what an earlier one says of other weight shapes. A
/// folder that cannot be written costs that start some seconds.
pub fn keep(mut record: Record, cache_dir: &Path) {
    let path = record.subject.path(cache_dir);
    let known = load(&path).filter(|known| known.subject == record.subject);
    if let Some(known) = known.and_then(|known| known.cublaslt) {
        match &mut record.cublaslt {
            Some(fresh) => fresh.keep_others(known),
            none => *none = Some(known),
        }
    }
    store(&record, &path);
}

/// One line about a finding.
pub fn describe(finding: &Finding) -> String {
    let activation = finding.activation.name().to_lowercase();
    let outcome = match &finding.outcome {
        Outcome::Deviation(d) => format!("is {d:.2} of the allowed distance from the reference"),
        Outcome::Failed(error) => format!("failed: {error}"),
    };
    let kernel = finding.kernel.map(|kernel| format!(" (kernel {})", kernel.name));
    let kernel = kernel.unwrap_or_default();
    format!("{} in {activation}, {}{kernel}: {outcome}", finding.op, finding.case)
}

/// A kernel that may be switched off or preferred.
fn find_kernel(name: &str) -> Option<&'static KernelSpec> {
    cuda_kernels().chain(&CUBLASLT).find(|kernel| kernel.name == name)
}

fn switch_off(device: &CudaDevice, names: &[String]) {
    for name in names {
        if let Some(kernel) = find_kernel(name) {
            tracing::warn!(
                device = device.name(),
                kernel = name,
                "this kernel disagrees with the reference on this GPU and is switched off"
            );
            device.switch_off(kernel);
        }
    }
}

fn prefer(device: &CudaDevice, pairs: &[[String; 2]]) {
    for [usual, faster] in pairs {
        if let (Some(usual), Some(faster)) = (find_kernel(usual), find_kernel(faster)) {
            device.prefer(usual, faster);
        }
    }
}

fn load(path: &Path) -> Option<Record> {
    let text = std::fs::read_to_string(path).ok()?;
    serde_json::from_str(&text).ok()
}

fn store(record: &Record, path: &Path) {
    let written = || -> std::io::Result<()> {
        let folder = path.parent().expect("a file in the cache folder");
        std::fs::create_dir_all(folder)?;
        let text = serde_json::to_string_pretty(record).expect("plain data");
        // Moved into place, so that a start beside this one reads all of it or nothing.
        let fresh = path.with_extension(format!("incomplete-{}", std::process::id()));
        std::fs::write(&fresh, text)?;
        std::fs::rename(fresh, path)
    };
    if let Err(error) = written() {
        tracing::warn!(path = %path.display(), %error, "the GPU's record was not kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        Subject {
            device: "NVIDIA A100/80GB".into(),
            compute_capability: "8.0".into(),
            driver: "13.0".into(),
            kernels: "abc".into(),
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let record = Record {
            switched_off: vec!["linear_w4_bf16_m16".into()],
            preferred: vec![["linear_w8_bf16_m16".into(), "linear_w8_bf16_m32".into()]],
            ..open_record(subject())
        };
        keep(record.clone(), folder.path());
        let path = record.subject.path(folder.path());
        assert_eq!(load(&path), Some(record));
        let name = path.file_name().and_then(|n| n.to_str()).expect("a name");
        assert_eq!(name, "NVIDIA_A100_80GB-8.0-13.0.json");
    }

    #[test]
    fn a_broken_record_counts_as_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.json");
        std::fs::write(&path, "{\"subject\": 1}").expect("writable");
        assert_eq!(load(&path), None);
        assert_eq!(load(&folder.path().join("absent.json")), None);
    }
}
