//! What is known of files.

use super::{Owner, Page};
use rusqlite::{Connection, OptionalExtension, Row, params};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    pub id: String,
    pub owner: Owner,
    /// `batch` of what clients send, `batch_output` of results.
    pub purpose: String,
    pub filename: String,
    pub bytes: u64,
    /// Seconds since 1970.
    pub created_at: u64,
    pub expires_at: Option<u64>,
}

/// Files and their bytes, those being sent included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub files: u64,
    pub bytes: u64,
}

/// What `is_ready` says of a file; only those in this state are seen.
const BEING_SENT: i64 = 0;
const READY: i64 = 1;
/// Nobody sees it any more; its bytes are to be deleted.
const HIDDEN: i64 = -1;

const COLUMNS: &str = "id, owner, purpose, filename, bytes, created_at, expires_at";

fn read(row: &Row<'_>) -> rusqlite::Result<FileRecord> {
    Ok(FileRecord {
        id: row.get(0)?,
        owner: Owner(row.get(1)?),
        purpose: row.get(2)?,
        filename: row.get(3)?,
        bytes: row.get(4)?,
        created_at: row.get(5)?,
        expires_at: row.get(6)?,
    })
}

/// A place for a file that is being sent; nobody sees it yet.
pub fn reserve(db: &Connection, file: &FileRecord) -> rusqlite::Result<()> {
    put(db, file, BEING_SENT)
}

/// A file whose bytes are in the store. One of the same id is replaced.
pub fn insert(db: &Connection, file: &FileRecord) -> rusqlite::Result<()> {
    put(db, file, READY)
}

fn put(db: &Connection, file: &FileRecord, is_ready: i64) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT OR REPLACE INTO files
            (id, owner, purpose, filename, bytes, created_at, expires_at, is_ready)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        file.id,
        file.owner.0,
        file.purpose,
        file.filename,
        file.bytes,
        file.created_at,
        file.expires_at,
        is_ready,
    ])?;
    Ok(())
}

pub fn get(db: &Connection, owner: &Owner, id: &str) -> rusqlite::Result<Option<FileRecord>> {
    let sql = format!("SELECT {COLUMNS} FROM files WHERE id = ?1 AND owner = ?2 AND is_ready = 1");
    db.prepare_cached(&sql)?.query_row(params![id, owner.0], read).optional()
}

/// One more than asked for where there are more.
pub fn list(
    db: &Connection,
    owner: &Owner,
    purpose: Option<&str>,
    page: &Page,
) -> rusqlite::Result<Vec<FileRecord>> {
    let (sign, order) = page.order.sql();
    let sql = format!(
        "SELECT {COLUMNS} FROM files
         WHERE owner = ?1 AND is_ready = 1 AND (?2 IS NULL OR purpose = ?2)
           AND (?3 IS NULL OR seq {sign} (SELECT seq FROM files WHERE id = ?3 AND owner = ?1))
         ORDER BY seq {order} LIMIT ?4",
    );
    let limit = page.limit as i64 + 1;
    let mut statement = db.prepare_cached(&sql)?;
    statement.query_map(params![owner.0, purpose, page.after, limit], read)?.collect()
}

pub fn kept(db: &Connection) -> rusqlite::Result<Kept> {
    let sql = "SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM files";
    db.query_row(sql, [], |row| Ok(Kept { files: row.get(0)?, bytes: row.get(1)? }))
}

/// From now on nobody sees it; its bytes can be deleted.
pub fn hide(db: &Connection, id: &str) -> rusqlite::Result<()> {
    db.execute("UPDATE files SET is_ready = ?2 WHERE id = ?1", params![id, HIDDEN])?;
    Ok(())
}

/// Files that were being sent when the process before this one ended.
pub fn hide_unfinished(db: &Connection) -> rusqlite::Result<()> {
    db.execute("UPDATE files SET is_ready = ?1 WHERE is_ready = ?2", [HIDDEN, BEING_SENT])?;
    Ok(())
}

pub fn forget(db: &Connection, id: &str) -> rusqlite::Result<()> {
    db.execute("DELETE FROM files WHERE id = ?1", [id])?;
    Ok(())
}

/// Some of the files whose bytes are still to be deleted.
pub fn hidden(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = db.prepare_cached("SELECT id FROM files WHERE is_ready = ?1 LIMIT 100")?;
    statement.query_map([HIDDEN], |row| row.get(0))?.collect()
}

/// Hides the files whose time is over and that no job needs any more.
pub fn hide_expired(db: &Connection, now: u64) -> rusqlite::Result<()> {
    db.prepare_cached(
        "UPDATE files SET is_ready = ?2 WHERE is_ready = ?3 AND expires_at <= ?1 AND NOT EXISTS
            (SELECT 1 FROM batches WHERE input_file_id = files.id
             AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling'))",
    )?
    .execute(params![now, HIDDEN, READY])?;
    Ok(())
}
