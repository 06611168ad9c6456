//! `monsoon doctor` on a GPU: on the virtual one where the machine has no other.

use kernels::device::cuda;
use serde_json::Value;
use server::commands::doctor;
use server::config::{self, Command, Environment};
use std::path::Path;

fn run_doctor(cache_dir: &Path, json: &Path, gpus: &str) -> Result<(), String> {
    let env = Environment::new();
    let args = ["monsoon", "doctor", "--offline", "--gpus", gpus, "--json"];
    let args = args.iter().map(Into::into).chain([json.into(), "--download-dir".into()]);
    let args = args.chain([cache_dir.into()]);
    match config::parse(args, &env).expect("the arguments are right") {
        Command::Doctor(config) => doctor::run(config, &env).map_err(|e| e.to_string()),
        _ => panic!("another command"),
    }
}

fn report(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("the report was written");
    serde_json::from_str(&text).expect("it is JSON")
}

#[test]
fn doctor_tries_every_kernel_of_a_gpu_and_keeps_a_record_for_servers() {
    if tests::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("report.json");
    let result = run_doctor(folder.path(), &json, "short");
    let report = report(&json);
    let gpu = &report["gpus"][0];
    let wrong: Vec<&Value> = gpu["cases"].as_array().expect("cases").iter().collect();
    let wrong: Vec<&&Value> = wrong.iter().filter(|case| case["agrees"] != true).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    result.expect("all is well");
    let name = gpu["device"].as_str().expect("a name");
    assert_eq!(gpu["is_hardware"], !name.contains("no hardware"));
    let records = folder.path().join("qualification");
    assert_eq!(records.read_dir().expect("a folder").count(), cuda_kinds(&report));
}

/// Devices of one name share a record.
fn cuda_kinds(report: &Value) -> usize {
    let gpus = report["gpus"].as_array().expect("a list");
    let names: std::collections::BTreeSet<_> = gpus.iter().map(|g| g["device"].as_str()).collect();
    names.len()
}

#[test]
fn doctor_only_lists_gpus_when_told_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("report.json");
    run_doctor(folder.path(), &json, "none").expect("nothing can be wrong");
    let report = report(&json);
    assert_eq!(report["gpus"].as_array().map(Vec::len), Some(cuda::device_count()));
    assert!(report["gpus"].as_array().expect("a list").iter().all(|g| g["cases"].is_null()));
    assert!(!folder.path().join("qualification").exists());
}
