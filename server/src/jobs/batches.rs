//! What is known of jobs, and how they pass from one state to the next. Each change is one
//! statement that holds only in the state it starts from, so whoever comes second changes nothing.

use super::files::{self, FileRecord};
use super::{LineFault, Owner, Page, Refused};
use rusqlite::{Connection, OptionalExtension, Row, params};

/// As OpenAI names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Validating,
    Failed,
    InProgress,
    Finalizing,
    Completed,
    Expired,
    Cancelling,
    Cancelled,
}

impl Status {
    pub const ALL: [Status; 8] = [
        Status::Validating,
        Status::Failed,
        Status::InProgress,
        Status::Finalizing,
        Status::Completed,
        Status::Expired,
        Status::Cancelling,
        Status::Cancelled,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Status::Validating => "validating",
            Status::Failed => "failed",
            Status::InProgress => "in_progress",
            Status::Finalizing => "finalizing",
            Status::Completed => "completed",
            Status::Expired => "expired",
            Status::Cancelling => "cancelling",
            Status::Cancelled => "cancelled",
        }
    }

    /// The database holds names that this code wrote.
    fn parse(name: &str) -> rusqlite::Result<Status> {
        let found = Status::ALL.into_iter().find(|status| status.name() == name);
        found.ok_or_else(|| rusqlite::Error::InvalidParameterName(format!("status {name}")))
    }
}

/// Rows of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub total: u64,
    pub completed: u64,
    pub failed: u64,
}

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct NewBatch {
    pub id: String,
    pub owner: Owner,
    pub endpoint: String,
    pub input_file_id: String,
    /// As the client wrote it, and what it means.
    pub completion_window: String,
    pub window_s: u64,
    /// The model that is being served.
    pub model: String,
    /// JSON text, as it is shown again.
    pub metadata: Option<String>,
    /// Seconds after which its results are deleted.
    pub output_expires_after: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRecord {
    pub seq: i64,
    pub id: String,
    pub owner: Owner,
    pub endpoint: String,
    pub input_file_id: String,
    pub completion_window: String,
    pub model: String,
    pub metadata: Option<String>,
    pub output_expires_after: Option<u64>,
    pub status: Status,
    /// Why it is in `Finalizing`, if not because it is done.
    pub is_expired: bool,
    pub created_at: u64,
    pub expires_at: u64,
    pub in_progress_at: Option<u64>,
    pub finalizing_at: Option<u64>,
    pub completed_at: Option<u64>,
    pub failed_at: Option<u64>,
    pub expired_at: Option<u64>,
    pub cancelling_at: Option<u64>,
    pub cancelled_at: Option<u64>,
    pub counts: Counts,
    pub output_file_id: Option<String>,
    pub error_file_id: Option<String>,
    pub faults: Vec<LineFault>,
}

fn read(row: &Row<'_>) -> rusqlite::Result<BatchRecord> {
    Ok(BatchRecord {
        seq: row.get("seq")?,
        id: row.get("id")?,
        owner: Owner(row.get("owner")?),
        endpoint: row.get("endpoint")?,
        input_file_id: row.get("input_file_id")?,
        completion_window: row.get("completion_window")?,
        model: row.get("model")?,
        metadata: row.get("metadata")?,
        output_expires_after: row.get("output_expires_after")?,
        status: Status::parse(&row.get::<_, String>("status")?)?,
        is_expired: row.get("is_expired")?,
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
        in_progress_at: row.get("in_progress_at")?,
        finalizing_at: row.get("finalizing_at")?,
        completed_at: row.get("completed_at")?,
        failed_at: row.get("failed_at")?,
        expired_at: row.get("expired_at")?,
        cancelling_at: row.get("cancelling_at")?,
        cancelled_at: row.get("cancelled_at")?,
        counts: Counts {
            total: row.get("total")?,
            completed: row.get("completed")?,
            failed: row.get("failed")?,
        },
        output_file_id: row.get("output_file_id")?,
        error_file_id: row.get("error_file_id")?,
        faults: Vec::new(),
    })
}

const ENDED: &str = "('failed', 'completed', 'expired', 'cancelled')";

/// Enters a job; the oldest ended ones are forgotten where there are too many.
///
/// Errors (inner): its file is not there, or not for batches; too many jobs have not ended.
pub fn create(
    db: &mut Connection,
    new: &NewBatch,
    batches_max: u64,
    now: u64,
) -> rusqlite::Result<Result<BatchRecord, Refused>> {
    let transaction = db.transaction()?;
    let id = || new.input_file_id.clone();
    match files::get(&transaction, &new.owner, &new.input_file_id)? {
        None => return Ok(Err(Refused::NoFile { id: id() })),
        Some(FileRecord { purpose, .. }) if purpose != "batch" => {
            return Ok(Err(Refused::WrongPurpose { id: id(), purpose }));
        }
        Some(_) => {}
    }
    let batches: u64 =
        transaction.query_row("SELECT COUNT(*) FROM batches", [], |row| row.get(0))?;
    let surplus = (batches + 1).saturating_sub(batches_max);
    let forgotten =
        format!("SELECT seq FROM batches WHERE status IN {ENDED} ORDER BY seq LIMIT ?1");
    transaction.execute(&format!("DELETE FROM faults WHERE batch IN ({forgotten})"), [surplus])?;
    let gone = transaction
        .execute(&format!("DELETE FROM batches WHERE seq IN ({forgotten})"), [surplus])?;
    if (gone as u64) < surplus {
        return Ok(Err(Refused::TooManyBatches { batches, batches_max }));
    }
    transaction.execute(
        "INSERT INTO batches (id, owner, endpoint, input_file_id, completion_window, model,
            metadata, output_expires_after, status, created_at, expires_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'validating', ?9, ?10)",
        params![
            new.id,
            new.owner.0,
            new.endpoint,
            new.input_file_id,
            new.completion_window,
            new.model,
            new.metadata,
            new.output_expires_after,
            now,
            now.saturating_add(new.window_s),
        ],
    )?;
    let record = by_seq(&transaction, transaction.last_insert_rowid())?;
    transaction.commit()?;
    Ok(Ok(record))
}

pub fn by_seq(db: &Connection, seq: i64) -> rusqlite::Result<BatchRecord> {
    let record =
        db.prepare_cached("SELECT * FROM batches WHERE seq = ?1")?.query_row([seq], read)?;
    with_faults(db, record)
}

pub fn get(db: &Connection, owner: &Owner, id: &str) -> rusqlite::Result<Option<BatchRecord>> {
    let found = db
        .prepare_cached("SELECT * FROM batches WHERE id = ?1 AND owner = ?2")?
        .query_row(params![id, owner.0], read)
        .optional()?;
    found.map(|record| with_faults(db, record)).transpose()
}

/// One more than asked for where there are more.
pub fn list(db: &Connection, owner: &Owner, page: &Page) -> rusqlite::Result<Vec<BatchRecord>> {
    let (sign, order) = page.order.sql();
    let sql = format!(
        "SELECT * FROM batches
         WHERE owner = ?1
           AND (?2 IS NULL OR seq {sign} (SELECT seq FROM batches WHERE id = ?2 AND owner = ?1))
         ORDER BY seq {order} LIMIT ?3",
    );
    let mut statement = db.prepare_cached(&sql)?;
    let limit = page.limit as i64 + 1;
    let records: Vec<BatchRecord> = statement
        .query_map(params![owner.0, page.after, limit], read)?
        .collect::<Result<_, _>>()?;
    records.into_iter().map(|record| with_faults(db, record)).collect()
}

/// Jobs that are not done, the oldest first.
pub fn open(db: &Connection) -> rusqlite::Result<Vec<BatchRecord>> {
    let sql = format!("SELECT * FROM batches WHERE status NOT IN {ENDED} ORDER BY seq");
    db.prepare_cached(&sql)?.query_map([], read)?.collect()
}

/// A job that is not done and reads this file.
pub fn reader_of(db: &Connection, file_id: &str) -> rusqlite::Result<Option<String>> {
    let sql = format!("SELECT id FROM batches WHERE input_file_id = ?1 AND status NOT IN {ENDED}");
    db.query_row(&sql, [file_id], |row| row.get(0)).optional()
}

/// How many jobs are in each state.
pub fn count_by_status(db: &Connection) -> rusqlite::Result<Vec<(Status, u64)>> {
    let mut statement =
        db.prepare_cached("SELECT status, COUNT(*) FROM batches GROUP BY status")?;
    let rows = statement.query_map([], |row| {
        Ok((Status::parse(&row.get::<_, String>(0)?)?, row.get::<_, u64>(1)?))
    })?;
    rows.collect()
}

/// Its file is good: so many rows.
pub fn begin(db: &Connection, seq: i64, total: u64, now: u64) -> rusqlite::Result<()> {
    db.execute(
        "UPDATE batches SET status = 'in_progress', in_progress_at = ?3, total = ?2
         WHERE seq = ?1 AND status = 'validating'",
        params![seq, total, now],
    )?;
    Ok(())
}

/// Its file is not good.
pub fn fail(db: &mut Connection, seq: i64, faults: &[LineFault], now: u64) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    let changed = transaction.execute(
        "UPDATE batches SET status = 'failed', failed_at = ?2
         WHERE seq = ?1 AND status = 'validating'",
        params![seq, now],
    )?;
    for (number, fault) in faults.iter().enumerate().take(changed * faults.len()) {
        transaction.execute(
            "INSERT INTO faults (batch, number, line, code, message, param)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![seq, number as i64, fault.line, fault.code, fault.message, fault.param],
        )?;
    }
    transaction.commit()
}

/// Whether it could be: all its rows have a result.
pub fn finalize(db: &Connection, seq: i64, now: u64) -> rusqlite::Result<bool> {
    let changed = db.execute(
        "UPDATE batches SET status = 'finalizing', finalizing_at = ?2
         WHERE seq = ?1 AND status = 'in_progress' AND completed + failed = total",
        params![seq, now],
    )?;
    Ok(changed > 0)
}

/// Whether it could be: a job that has ended, or is about to, cannot.
pub fn cancel(db: &Connection, seq: i64, now: u64) -> rusqlite::Result<bool> {
    let changed = db.execute(
        "UPDATE batches SET status = 'cancelling', cancelling_at = ?2
         WHERE seq = ?1 AND status IN ('validating', 'in_progress')",
        params![seq, now],
    )?;
    Ok(changed > 0)
}

/// Jobs whose time is over do no more rows. Returns how many there were.
pub fn expire(db: &Connection, now: u64) -> rusqlite::Result<usize> {
    db.prepare_cached(
        "UPDATE batches SET status = 'finalizing', is_expired = 1, finalizing_at = ?1
         WHERE expires_at <= ?1 AND status IN ('validating', 'in_progress')",
    )?
    .execute([now])
}

/// The end: its files, if there is anything in them, become known together with its state.
pub fn end(
    db: &mut Connection,
    seq: i64,
    counts: Counts,
    output: Option<&FileRecord>,
    errors: Option<&FileRecord>,
    now: u64,
) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    let changed = transaction.execute(
        "UPDATE batches SET
            completed = ?2, failed = ?3, output_file_id = ?4, error_file_id = ?5,
            completed_at = iif(status = 'finalizing' AND NOT is_expired, ?6, NULL),
            expired_at = iif(is_expired, ?6, NULL),
            cancelled_at = iif(status = 'cancelling', ?6, NULL),
            status = iif(status = 'cancelling', 'cancelled',
                iif(is_expired, 'expired', 'completed'))
         WHERE seq = ?1 AND status IN ('finalizing', 'cancelling')",
        params![
            seq,
            counts.completed,
            counts.failed,
            output.map(|file| &file.id),
            errors.map(|file| &file.id),
            now,
        ],
    )?;
    if changed > 0 {
        for file in output.into_iter().chain(errors) {
            files::insert(&transaction, file)?;
        }
    }
    transaction.commit()
}

fn with_faults(db: &Connection, mut record: BatchRecord) -> rusqlite::Result<BatchRecord> {
    if record.status == Status::Failed {
        let mut statement = db.prepare_cached(
            "SELECT code, message, param, line FROM faults WHERE batch = ?1 ORDER BY number",
        )?;
        let rows = statement.query_map([record.seq], |row| {
            Ok(LineFault {
                code: row.get(0)?,
                message: row.get(1)?,
                param: row.get(2)?,
                line: row.get(3)?,
            })
        })?;
        record.faults = rows.collect::<Result<_, _>>()?;
    }
    Ok(record)
}
