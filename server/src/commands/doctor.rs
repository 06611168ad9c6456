//! `monsoon doctor`: what this machine has, whether its GPUs compute right, where models are looked
//! for, and which hubs answer.

mod gpus;

use super::CommandError;
use crate::config::{DoctorConfig, Environment, cuda_obstacle};
use crate::hub::client::HubClient;
use crate::hub::default_model::{self, State};
use crate::hub::{Access, Endpoint, HubConfig};
use crate::machine;
use crate::units::format_bytes;
use kernels::device::cpu::Isa;
use kernels::device::cuda::images;
use serde_json::{Value, json};
use std::path::Path;

/// Variables whose values are secrets: only their presence is told.
const SECRET_MARKS: [&str; 3] = ["KEY", "TOKEN", "SECRET"];

/// Prints the findings on standard output, and those about GPUs to the file that `--json` names.
///
/// Errors: a GPU that does not compute what the reference does, or a file that cannot be written.
/// The rest is for the operator to judge.
pub fn run(config: DoctorConfig, env: &Environment) -> Result<(), CommandError> {
    println!("monsoon {}", env!("CARGO_PKG_VERSION"));
    print_machine();
    print_models(&config.hub);
    print_environment(env);
    print_hubs(&config.hub);
    let (gpus, nccl_sum, all_well) = gpus::examine(config.gpus, &config.hub.cache_dir);
    if let Some(path) = &config.json {
        let text = serde_json::to_string_pretty(&report(gpus, nccl_sum)).expect("plain data");
        let io = |source| CommandError::Io { path: path.clone(), source };
        std::fs::write(path, text + "\n").map_err(io)?;
    }
    if all_well { Ok(()) } else { Err(CommandError::Unqualified) }
}

fn report(gpus: Value, nccl_sum: Value) -> Value {
    json!({
        "monsoon": env!("CARGO_PKG_VERSION"),
        "system": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
        "cores": machine::cores(),
        "memory_free_bytes": machine::available_memory(),
        "holds_cuda_kernels": images::has_kernels(),
        "gpus": gpus,
        "nccl_sum": nccl_sum,
    })
}

fn print_machine() {
    println!("\nmachine");
    println!("  system          {} {}", std::env::consts::OS, std::env::consts::ARCH);
    println!("  cores usable    {}", machine::cores());
    println!("  instructions    {:?} of {:?}", Isa::detect(), Isa::available());
    let memory = machine::available_memory().map_or("unknown".to_string(), format_bytes);
    println!("  memory free     {memory}");
    let cuda = match cuda_obstacle() {
        None => "cpu, reference, cuda".to_string(),
        Some(obstacle) => format!("cpu, reference ({obstacle})"),
    };
    println!("  devices         {cuda}");
}

fn print_models(hub: &HubConfig) {
    println!("\nmodels");
    println!("  own cache       {}{}", hub.cache_dir.display(), presence(&hub.cache_dir));
    println!("  Hugging Face    {}{}", hub.hf_cache.display(), presence(&hub.hf_cache));
    let modelscope = &hub.modelscope_cache;
    println!("  ModelScope      {}{}", modelscope.display(), presence(modelscope));
    let state = match default_model::state(hub) {
        State::Missing => "not here; fetched at the first start",
        State::Checked => "here, checked",
        State::Unchecked => "here, to be checked at the next start",
    };
    println!("  default model   {}: {state}", default_model::NAME);
}

fn presence(path: &Path) -> &'static str {
    if path.is_dir() { "" } else { " (no such folder)" }
}

fn print_environment(env: &Environment) {
    println!("\nenvironment");
    let known = |name: &str| ["MONSOON_", "HF_", "MODELSCOPE_"].iter().any(|p| name.starts_with(p));
    let mut found = env.iter().filter(|(name, _)| known(name)).peekable();
    if found.peek().is_none() {
        println!("  no MONSOON_, HF_ or MODELSCOPE_ variable is set");
    }
    for (name, value) in found {
        let secret = SECRET_MARKS.iter().any(|mark| name.contains(mark));
        println!("  {name}={}", if secret { "(set)" } else { value });
    }
}

fn print_hubs(hub: &HubConfig) {
    println!("\nhubs");
    if hub.access == Access::Offline {
        println!("  not asked: offline");
        return;
    }
    for (name, endpoint) in [("Hugging Face", &hub.hf), ("ModelScope", &hub.modelscope)] {
        println!("  {name:15} {}: {}", endpoint.url, reach(endpoint));
    }
}

/// Any answer at all shows that the hub can be reached.
fn reach(endpoint: &Endpoint) -> String {
    use crate::hub::HubError;
    match HubClient::new(endpoint).get(&format!("{}/", endpoint.url), 0) {
        Ok(_) => "answers".to_string(),
        Err(failure) => match HubError::from(failure) {
            HubError::Unreachable { reason, .. } => format!("cannot be reached ({reason})"),
            HubError::Status { status, .. } => format!("answers (status {status})"),
            other => format!("answers ({other})"),
        },
    }
}
