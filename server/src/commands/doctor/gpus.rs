//! What `doctor` finds out about the GPUs: does every kernel agree with the reference, and how fast
//! is it all. The result for servers on this machine is kept, see `qualification`.

use crate::commands::qualification::products::{self, Clock, Product, Products};
use crate::commands::qualification::{self, Record, Subject, describe};
use crate::config::GpuTrial;
use crate::units::format_bytes;
use kernels::KernelError;
use kernels::device::cuda::{self, CudaDevice, cublaslt, images};
use kernels::ops::linear::cuda as linear;
use kernels::qualify::speed::{Race, Timing, measure, race};
use kernels::qualify::{Depth, Finding, Outcome, all_reduce, qualify};
use serde_json::{Value, json};
use std::path::Path;

/// Outputs and inputs of the weights of Qwen3 0.6B and 8B, the heads left out. A server tries those
/// of other models when it first starts.
const PRODUCTS: [[usize; 2]; 9] = [
    [2048, 1024],
    [1024, 1024],
    [1024, 2048],
    [3072, 1024],
    [1024, 3072],
    [4096, 4096],
    [1024, 4096],
    [12_288, 4096],
    [4096, 12_288],
];
/// What a virtual GPU can do in no time.
const PRODUCTS_OF_A_VIRTUAL_GPU: [[usize; 2]; 1] = [[256, 512]];

/// Prints what was found, and gives it as JSON: one entry for each GPU, and what became of a sum
/// over all of them. Also says whether all is well.
pub fn examine(trial: GpuTrial, cache_dir: &Path) -> (Value, Value, bool) {
    println!("\ngpus");
    let count = cuda::device_count();
    if count == 0 {
        println!("  none: no CUDA driver, or it shows no device");
    } else if !images::has_kernels() {
        println!("  {count}, but this build holds no CUDA kernels");
    }
    let mut all_well = true;
    let (mut entries, mut devices) = (Vec::new(), Vec::new());
    for ordinal in 0..count {
        let entry = match CudaDevice::open(ordinal) {
            Ok(device) => {
                devices.push(device.clone());
                examine_one(&device, trial, cache_dir)
            }
            Err(error) => Err(error),
        };
        let (entry, is_well) = entry.unwrap_or_else(|error| {
            println!("  {ordinal}: {error}");
            (json!({ "ordinal": ordinal, "error": error.to_string() }), false)
        });
        all_well &= is_well;
        entries.push(entry);
    }
    let (sum, is_well) = match trial != GpuTrial::None && devices.len() > 1 {
        true => sum_over(&devices),
        false => (Value::Null, true),
    };
    (Value::Array(entries), sum, all_well && is_well)
}

/// That NCCL is not installed is no fault: one GPU serves without.
fn sum_over(devices: &[CudaDevice]) -> (Value, bool) {
    match all_reduce(devices) {
        Ok(deviation) => {
            let agrees = deviation <= 1.0;
            let verdict = if agrees { "right" } else { "WRONG" };
            println!("  NCCL sum over {} GPUs: {verdict}", devices.len());
            (json!({ "gpus": devices.len(), "agrees": agrees }), agrees)
        }
        Err(error) => {
            println!("  NCCL sum over {} GPUs: {error}", devices.len());
            (json!({ "gpus": devices.len(), "error": error.to_string() }), true)
        }
    }
}

fn examine_one(
    device: &CudaDevice,
    trial: GpuTrial,
    cache_dir: &Path,
) -> Result<(Value, bool), KernelError> {
    let subject = Subject::of(device)?;
    let (free, total) = device.memory()?;
    println!("  {}: {}", device.ordinal(), device.name());
    println!(
        "     compute capability {}, driver for CUDA {}",
        subject.compute_capability, subject.driver
    );
    println!(
        "     memory          {} free of {}",
        format_bytes(free as u64),
        format_bytes(total as u64)
    );
    let is_virtual = qualification::is_virtual(device);
    let mut entry = json!({
        "ordinal": device.ordinal(),
        "is_hardware": !is_virtual,
        "device": subject.device,
        "compute_capability": subject.compute_capability,
        "driver_cuda_version": subject.driver,
        "kernels": subject.kernels,
        "memory_bytes": { "free": free, "total": total },
        "multiprocessors": device.num_multiprocessors()?,
    });
    if !images::has_kernels() || trial == GpuTrial::None {
        return Ok((entry, true));
    }
    let record = try_kernels(device, trial, &subject, &mut entry);
    if trial == GpuTrial::Timed {
        let told = timings(device, is_virtual);
        entry["timings"] = told.unwrap_or_else(|error| json!({ "error": error.to_string() }));
    }
    let Some(mut record) = record else { return Ok((entry, false)) };
    if trial == GpuTrial::Timed {
        let races = race(device)?;
        entry["alternatives"] = races.iter().map(race_json).collect();
        // What a virtual GPU is fast at means nothing for any other, nor for itself.
        if !is_virtual {
            let pair =
                |race: &Race| Some([race.usual.name.to_string(), race.winner()?.name.to_string()]);
            record.preferred = races.iter().filter_map(pair).collect();
        }
        record.cublaslt = try_products(device)?;
        entry["cublaslt"] = json!(&record.cublaslt);
    }
    qualification::keep(record, cache_dir);
    Ok((entry, true))
}

/// Tries every kernel and notes it in `entry`. Gives what a server may do, if it may do anything.
fn try_kernels(
    device: &CudaDevice,
    trial: GpuTrial,
    subject: &Subject,
    entry: &mut Value,
) -> Option<Record> {
    let depth = if trial == GpuTrial::Short { Depth::Short } else { Depth::Full };
    let findings = qualify(device, depth);
    let right = findings.iter().filter(|f| f.is_right()).count();
    println!("     kernels         {right} of {} cases agree with the reference", findings.len());
    for finding in findings.iter().filter(|f| !f.is_right()) {
        println!("       WRONG: {}", describe(finding));
    }
    entry["cases"] = findings.iter().map(case_json).collect();
    let record = qualification::decide(device, subject, &findings)
        .and_then(|record| qualification::confirm(device, &record).map(|()| record));
    match &record {
        Ok(Record { switched_off, .. }) => {
            for kernel in switched_off {
                println!("       switched off: {kernel}; its alternative agrees");
            }
            entry["switched_off"] = json!(switched_off);
        }
        Err(error) => {
            println!("       {error}");
            entry["refused"] = json!(error.to_string());
        }
    }
    record.ok()
}

/// Tries cuBLASLt with weight shapes of well-known models. `None` where it is not installed, or
/// was found to be wrong with small ones.
fn try_products(device: &CudaDevice) -> Result<Option<Products>, KernelError> {
    let Some(library_version) = cublaslt::version() else {
        println!("     cuBLASLt        not installed");
        return Ok(None);
    };
    println!("     cuBLASLt        version {library_version}");
    if device.is_switched_off(linear::cublaslt(device.activation_dtype())) {
        return Ok(None);
    }
    let (shapes, clock) = match qualification::is_virtual(device) {
        true => (&PRODUCTS_OF_A_VIRTUAL_GPU[..], Clock::Off),
        false => (&PRODUCTS[..], Clock::On),
    };
    let tried = shapes.iter().map(|&shape| products::examine(device, shape, clock));
    let shapes = tried.collect::<Result<Vec<_>, _>>()?;
    for Product { out_features, in_features, refused, is_faster, .. } in &shapes {
        let verdict = match (refused, is_faster) {
            (Some(reason), _) => format!("refused: {reason}"),
            (None, true) => "right and faster than our own kernels".to_string(),
            (None, false) => "right".to_string(),
        };
        println!("       weights [{out_features}, {in_features}]: {verdict}");
    }
    Ok(Some(Products { library_version, shapes }))
}

fn case_json(finding: &Finding) -> Value {
    let mut case = json!({
        "op": finding.op,
        "activation": finding.activation.name(),
        "case": finding.case,
        "kernel": finding.kernel.map(|k| k.name),
        "agrees": finding.is_right(),
    });
    match &finding.outcome {
        // Infinity has no form in JSON; what is that far away is as well said in words.
        Outcome::Deviation(d) if d.is_finite() => case["share_of_allowed_distance"] = json!(d),
        Outcome::Deviation(_) => case["share_of_allowed_distance"] = json!("not a number"),
        Outcome::Failed(error) => case["error"] = json!(error.to_string()),
    }
    case
}

fn timings(device: &CudaDevice, is_virtual: bool) -> Result<Value, KernelError> {
    let timings = measure(device)?;
    if is_virtual {
        println!("     times           of a virtual GPU: they mean nothing");
    } else {
        for Timing { what, median_ms, rate, unit } in &timings {
            println!("     {what}: {median_ms:.3} ms, {rate:.1} {unit}");
        }
    }
    let one = |t: &Timing| {
        let Timing { what, median_ms, rate, unit, .. } = t;
        json!({ "what": what, "median_ms": median_ms, "rate": rate, "unit": unit })
    };
    let list: Vec<Value> = timings.iter().map(one).collect();
    let note = match is_virtual {
        true => "a virtual GPU: these times mean nothing",
        false => "medians of 7 runs between events on the stream",
    };
    Ok(json!({ "note": note, "list": list }))
}

fn timing_json(t: &Timing) -> Value {
    json!({ "what": t.what, "median_ms": t.median_ms, "rate": t.rate, "unit": t.unit })
}

fn race_json(race: &Race) -> Value {
    let times = race.times.iter().map(|(kernel, timing)| {
        let mut entry = timing_json(timing);
        entry["kernel"] = json!(kernel.name);
        entry
    });
    json!({
        "usual": race.usual.name,
        "rows": race.rows,
        "faster": race.winner().map(|kernel| kernel.name),
        "times": times.collect::<Vec<_>>(),
    })
}
