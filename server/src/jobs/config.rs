//! Where jobs are kept, and the limits of the room.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Jobs whose rows are answered at the same time; the others wait in the order of their arrival.
/// Rows of different jobs take turns.
pub const BATCHES_AT_ONCE: usize = 8;
/// Beside them: jobs whose files of results are written, because they ended or were cancelled.
pub const ENDINGS_AT_ONCE: usize = 2;
/// Files being sent at the same time, each with some parts in memory; beyond it 429.
pub const UPLOADS_MAX: usize = 8;
/// Bytes of one part of a file on its way to the store (S3 takes no smaller ones).
pub const PART_BYTES: usize = 5 << 20;
/// Parts of one file under way at the same time.
pub const PARTS_AT_ONCE: usize = 2;
/// Faults of a file that are kept and shown; the rest of it is not read.
pub const FAULTS_MAX: usize = 100;
/// Answers written to the database in one transaction.
pub const COMMIT_ROWS_MAX: usize = 256;
/// Results read or deleted in one call of the database, so that others get their turn.
pub const PAGE_ROWS: usize = 256;
/// Bytes of results after which a page is full before it has so many.
pub const PAGE_BYTES: usize = 8 << 20;
/// How often expiry and new work are looked for when nobody tells.
pub const TICK: Duration = Duration::from_secs(1);
/// A job whose store or database fails is tried again after this.
pub const TROUBLE_PAUSE: Duration = Duration::from_secs(10);
/// Pause before a row that found no room is sent again; it doubles up to the second.
pub const RETRY_FIRST: Duration = Duration::from_millis(250);
pub const RETRY_MAX: Duration = Duration::from_secs(5);
/// Times that a row is tried whose request was lost inside the server.
pub const TRIES_MAX: u32 = 3;
/// Calls that wait for the database's thread; further ones wait outside.
pub const CALLS_MAX: usize = 256;

#[derive(Debug, Clone)]
pub struct JobsConfig {
    /// Holds the database, and the files too where there is no `store`.
    pub folder: PathBuf,
    /// `s3://bucket/prefix` or `file:///folder`.
    pub store: Option<String>,
    pub limits: JobsLimits,
    pub clock: Clock,
}

/// What the operator sets.
#[derive(Debug, Clone)]
pub struct JobsLimits {
    /// Longer files get 413.
    pub file_bytes_max: u64,
    /// Requests in one file; a job with more fails. Finding names used twice takes some 40 bytes of
    /// memory for each.
    pub rows_max: u64,
    /// A line beyond it fails the job.
    pub line_bytes_max: usize,
    /// Files kept; beyond it 429.
    pub files_max: u64,
    /// Bytes of all files kept; beyond it 429.
    pub files_bytes_max: u64,
    /// Jobs kept: the oldest ended ones are forgotten beyond it. When none has ended, 429.
    pub batches_max: u64,
    /// Rows that are being answered at the same time, of all jobs together.
    pub rows_in_flight_max: usize,
}

impl Default for JobsLimits {
    fn default() -> Self {
        Self {
            file_bytes_max: 2 << 30,
            rows_max: 5_000_000,
            line_bytes_max: (8 << 20) + (64 << 10),
            files_max: 10_000,
            files_bytes_max: 64 << 30,
            batches_max: 10_000,
            rows_in_flight_max: 64,
        }
    }
}

/// The time in seconds since 1970. Tests turn it forward.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    ahead_s: Arc<AtomicU64>,
}

impl Clock {
    pub fn now(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        now + self.ahead_s.load(Ordering::Relaxed)
    }

    pub fn turn_forward(&self, seconds: u64) {
        self.ahead_s.fetch_add(seconds, Ordering::Relaxed);
    }
}
