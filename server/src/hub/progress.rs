//! Says how a download goes: bars in a terminal, one line per file elsewhere.

use crate::units::format_bytes;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// Where progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Bars,
    Lines,
    Quiet,
}

/// The progress of one file.
pub struct FileProgress {
    bar: ProgressBar,
}

impl Progress {
    /// Bars when standard error is a terminal.
    pub fn detect() -> Progress {
        match std::io::stderr().is_terminal() {
            true => Progress::Bars,
            false => Progress::Lines,
        }
    }

    /// One line for the operator, above any bar.
    pub fn say(&self, line: &str) {
        if *self != Progress::Quiet {
            eprintln!("{line}");
        }
    }

    /// `size`: bytes, when known.
    pub fn start_file(&self, name: &str, size: Option<u64>) -> FileProgress {
        if *self != Progress::Bars {
            let size = size.map(|s| format!(" ({})", format_bytes(s))).unwrap_or_default();
            self.say(&format!("downloading {name}{size}"));
            return FileProgress { bar: ProgressBar::hidden() };
        }
        let bar = ProgressBar::new(size.unwrap_or(0));
        let template = "{msg:40!} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        bar.set_style(ProgressStyle::with_template(template).expect("a fixed, valid template"));
        bar.set_message(name.to_string());
        FileProgress { bar }
    }
}

impl FileProgress {
    pub fn set_position(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    pub fn set_size(&self, bytes: u64) {
        self.bar.set_length(bytes);
    }
}

impl Drop for FileProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
