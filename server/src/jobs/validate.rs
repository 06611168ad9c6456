//! Whether every line of a file is a request, each with a name of its own.

use super::config::FAULTS_MAX;
use super::lines::Lines;
use super::{JobsError, LineFault, Rows};
use std::collections::HashSet;

/// Reads the whole file without keeping it. Returns how many requests there are, or what is wrong,
/// at most `FAULTS_MAX` faults. `accept` gets the number and the name of each good one.
///
/// Errors: the store.
pub async fn validate<R: Rows>(
    rows: &R,
    endpoint: Option<&str>,
    mut lines: Lines,
    rows_max: u64,
    mut accept: impl FnMut(u64, &str),
) -> Result<Result<u64, Vec<LineFault>>, JobsError> {
    let mut names = Names::default();
    let mut faults = Vec::new();
    let mut num_rows = 0;
    loop {
        let line = match lines.next().await {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(JobsError::LineTooLong { line, bytes_max }) => {
                let message = format!("This line is longer than {bytes_max} bytes.");
                faults.push(fault("line_too_long", message, Some(line)));
                break;
            }
            Err(error) => return Err(error),
        };
        num_rows += 1;
        if num_rows > rows_max {
            let message = format!("The file has more than {rows_max} requests.");
            faults.push(fault("too_many_requests", message, Some(line.number)));
            break;
        }
        match rows.check(endpoint, &line.bytes) {
            Ok(name) if names.is_new(&name) => accept(line.number, &name),
            Ok(name) => {
                let shown: String = name.chars().take(NAME_CHARS_SHOWN).collect();
                let message = format!(
                    "The custom_id '{shown}' of this request is that of an earlier one; each must \
                     have its own."
                );
                let mut fault = fault("duplicate_custom_id", message, Some(line.number));
                fault.param = Some("custom_id".into());
                faults.push(fault);
            }
            Err(fault) => faults.push(LineFault { line: Some(line.number), ..fault }),
        }
        if faults.len() == FAULTS_MAX {
            break;
        }
        // Reading may never wait; others on this thread get their turn.
        if num_rows % LINES_AT_A_TIME == 0 {
            tokio::task::yield_now().await;
        }
    }
    if num_rows == 0 && faults.is_empty() {
        let message = "The file is empty: it must hold at least one request.".to_owned();
        faults.push(fault("empty_file", message, None));
    }
    Ok(if faults.is_empty() { Ok(num_rows) } else { Err(faults) })
}

const NAME_CHARS_SHOWN: usize = 60;
const LINES_AT_A_TIME: u64 = 64;

fn fault(code: &str, message: String, line: Option<u64>) -> LineFault {
    LineFault { code: code.into(), message, param: None, line }
}

/// Names seen so far, as 16 bytes of a strong hash each, so that long ones take no more.
#[derive(Debug, Default)]
pub struct Names(HashSet<[u8; 16]>);

impl Names {
    pub fn is_new(&mut self, name: &str) -> bool {
        self.0.insert(short_hash(name))
    }

    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(&short_hash(name))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// 128 bits: among five million names two are alike once in 10^25 files.
pub fn short_hash(text: &str) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
    short
}
