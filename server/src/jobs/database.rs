//! The SQLite database, on a thread of its own.

use super::config::CALLS_MAX;
use super::{JobsError, JobsStartError, files};
use rusqlite::Connection;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot};

const FILE: &str = "jobs.sqlite";
const LOCK: &str = "jobs.lock";
/// Of the tables below, kept in the database's `user_version`.
const LAYOUT: i64 = 1;

/// `results.place` is the job's `seq` times 2^32 plus the line, so that the answers of a job lie
/// together in the order of its file, and none can be there twice.
const TABLES: &str = "
CREATE TABLE files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    filename TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    is_ready INTEGER NOT NULL
);
CREATE INDEX files_by_owner ON files (owner, seq);
CREATE TABLE batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    input_file_id TEXT NOT NULL,
    completion_window TEXT NOT NULL,
    model TEXT NOT NULL,
    metadata TEXT,
    output_expires_after INTEGER,
    status TEXT NOT NULL,
    is_expired INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    in_progress_at INTEGER,
    finalizing_at INTEGER,
    completed_at INTEGER,
    failed_at INTEGER,
    expired_at INTEGER,
    cancelling_at INTEGER,
    cancelled_at INTEGER,
    total INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    output_file_id TEXT,
    error_file_id TEXT
);
CREATE INDEX batches_by_owner ON batches (owner, seq);
CREATE INDEX batches_by_status ON batches (status, seq);
CREATE TABLE faults (
    batch INTEGER NOT NULL,
    number INTEGER NOT NULL,
    line INTEGER,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    param TEXT,
    PRIMARY KEY (batch, number)
);
CREATE TABLE results (
    place INTEGER PRIMARY KEY,
    is_answered INTEGER NOT NULL,
    line BLOB NOT NULL
);
";

type Call = Box<dyn FnOnce(&mut Connection) + Send>;

/// Dropping it waits for the calls made and closes the database.
pub struct Database {
    /// Taken when it is dropped.
    calls: Option<mpsc::Sender<Call>>,
    thread: Option<JoinHandle<()>>,
}

impl Database {
    /// Opens or makes the database, and keeps other processes out of the folder.
    pub fn open(folder: &Path) -> Result<Database, JobsStartError> {
        let io = |source| JobsStartError::Io { path: folder.to_path_buf(), source };
        private_folder(folder).map_err(io)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(LOCK))
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(JobsStartError::InUse { path: folder.to_path_buf() });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let path = folder.join(FILE);
        let failed = |source| JobsStartError::Database { path: path.clone(), source };
        let mut connection = Connection::open(&path).map_err(failed)?;
        let found = prepare(&mut connection).map_err(failed)?;
        if found > LAYOUT {
            return Err(JobsStartError::TooNew { path, found, known: LAYOUT });
        }
        let (calls, mut receiver) = mpsc::channel::<Call>(CALLS_MAX);
        let work = move || {
            while let Some(call) = receiver.blocking_recv() {
                call(&mut connection);
            }
            drop(connection);
            drop(lock);
        };
        let thread = std::thread::Builder::new().name("jobs".into()).spawn(work).map_err(io)?;
        Ok(Database { calls: Some(calls), thread: Some(thread) })
    }

    /// Runs `work` on the database's thread. What a transaction in it has committed is on the disk
    /// when this returns.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, JobsError> {
        let (sender, answer) = oneshot::channel();
        let call: Call = Box::new(move |connection| {
            // Whoever asked may have gone; the work is done all the same.
            let _ = sender.send(work(connection));
        });
        let calls = self.calls.as_ref().ok_or(JobsError::Stopped)?;
        calls.send(call).await.map_err(|_| JobsError::Stopped)?;
        Ok(answer.await.map_err(|_| JobsError::Stopped)??)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.calls = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was told when it happened.
            let _ = thread.join();
        }
    }
}

/// Returns the layout found.
fn prepare(connection: &mut Connection) -> rusqlite::Result<i64> {
    // Before the first table, or it has no effect.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Each commit reaches the disk; many answers share one.
    connection.pragma_update(None, "synchronous", "FULL")?;
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found == 0 {
        let transaction = connection.transaction()?;
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "user_version", LAYOUT)?;
        transaction.commit()?;
    }
    if found <= LAYOUT {
        // Before anybody sends a file to this process.
        files::hide_unfinished(connection)?;
    }
    Ok(found)
}

/// For the files of clients: nobody else on the machine is to read them.
pub fn private_folder(folder: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}
