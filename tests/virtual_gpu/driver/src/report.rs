//! Counters, violations and leaks of the whole run, written as JSON at exit.

use crate::state::Driver;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{MutexGuard, PoisonError};
use virtual_gpu::Counters;

#[derive(Default)]
pub struct Report {
    kernels: BTreeMap<String, Counters>,
    violations: Vec<(String, String, String)>,
    pub api_refusals: BTreeMap<String, u64>,
}

/// Findings kept; a run that makes more is broken anyway.
const VIOLATIONS_MAX: usize = 1000;

impl Report {
    pub fn add_launch(&mut self, kernel: &str, counters: &Counters) {
        match self.kernels.get_mut(kernel) {
            Some(sum) => sum.merge(counters),
            None => {
                self.kernels.insert(kernel.to_owned(), counters.clone());
            }
        }
    }

    pub fn add_violation(&mut self, kernel: &str, check: &str, message: &str) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push((kernel.to_owned(), check.to_owned(), message.to_owned()));
        }
    }
}

impl Driver {
    pub fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The report as JSON: per kernel the summed counters, then violations, then per device what is
    /// still allocated and the most that ever was.
    pub fn report_json(&self) -> String {
        let state = self.lock();
        let report = self.report();
        let kernels = report.kernels.iter().map(|(name, sum)| (name.as_str(), counters_json(sum)));
        let violations = report.violations.iter().map(|(kernel, check, message)| {
            object([("kernel", text(kernel)), ("check", text(check)), ("message", text(message))])
        });
        let devices = state.devices.iter().enumerate().map(|(ordinal, device)| {
            let live = state.allocations.values().filter(|a| a.device == ordinal);
            object([
                ("live_allocations", live.count().to_string()),
                ("live_bytes", device.used_bytes.to_string()),
                ("live_bytes_max", device.used_bytes_high.to_string()),
                ("allocations", device.num_allocations.to_string()),
            ])
        });
        let refusals = report.api_refusals.iter().map(|(what, n)| (what.as_str(), n.to_string()));
        object([
            ("device", text(crate::api::device::NAME)),
            ("kernels", object(kernels)),
            ("violations", array(violations)),
            ("refused_calls", object(refusals)),
            ("devices", array(devices)),
            ("pinned_allocations_live", state.pinned.len().to_string()),
        ]) + "\n"
    }
}

fn counters_json(counters: &Counters) -> String {
    let classes = counters.by_class.iter().map(|(class, n)| (format!("{class:?}"), n.to_string()));
    let widths = counters.global_widths.iter().map(|(w, n)| (w.to_string(), n.to_string()));
    object([
        ("launches", counters.launches.to_string()),
        ("blocks", counters.blocks.to_string()),
        ("warps", counters.warps.to_string()),
        ("warp_instructions", counters.warp_instructions.to_string()),
        ("thread_instructions", counters.thread_instructions.to_string()),
        ("instructions_by_class", object(classes)),
        ("global_bytes_read", counters.global.read_bytes.to_string()),
        ("global_bytes_written", counters.global.written_bytes.to_string()),
        ("shared_bytes_read", counters.shared.read_bytes.to_string()),
        ("shared_bytes_written", counters.shared.written_bytes.to_string()),
        ("local_bytes_read", counters.local.read_bytes.to_string()),
        ("local_bytes_written", counters.local.written_bytes.to_string()),
        ("global_requests", counters.global_requests.to_string()),
        ("global_sectors", counters.global_sectors.to_string()),
        ("global_sectors_minimal", counters.global_sectors_minimal.to_string()),
        ("global_accesses_by_width", object(widths)),
        ("shared_wavefronts", counters.shared_wavefronts.actual.to_string()),
        ("shared_wavefronts_minimal", counters.shared_wavefronts.minimal.to_string()),
        ("barriers", counters.barriers.to_string()),
        ("fences", counters.fences.to_string()),
    ])
}

fn object<K: AsRef<str>>(fields: impl IntoIterator<Item = (K, String)>) -> String {
    let fields: Vec<String> =
        fields.into_iter().map(|(key, value)| format!("{}: {value}", text(key.as_ref()))).collect();
    format!("{{{}}}", fields.join(", "))
}

fn array(items: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", items.into_iter().collect::<Vec<_>>().join(", "))
}

fn text(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

pub fn write_at_exit() {
    extern "C" fn write() {
        let Ok(driver) = Driver::get() else { return };
        let Some(path) = &driver.config.report else { return };
        if let Err(error) = std::fs::write(path, driver.report_json()) {
            eprintln!("virtual GPU: the report {} was not written: {error}", path.display());
        }
    }
    // SAFETY: the library is never unloaded: the thread-locals of Rust libraries forbid it.
    unsafe { libc::atexit(write) };
}
