//! Answers that are committed and not yet in a file.

use super::config::{PAGE_BYTES, PAGE_ROWS};
use super::{Counts, RowResult, Verdict};
use rusqlite::{Connection, params};

/// Bits of `results.place` for the line.
const LINE_BITS: u32 = 32;

/// Pages of the database given back at a time.
const VACUUM_PAGES: i64 = 8192;

/// An answer and the line of the job's file that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineResult {
    pub number: u64,
    pub result: RowResult,
}

/// Lines of one job's file that have an answer, one bit each.
#[derive(Debug, Default)]
pub struct DoneLines(Vec<u64>);

impl DoneLines {
    pub fn insert(&mut self, number: u64) {
        let word = (number / 64) as usize;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (number % 64);
    }

    pub fn contains(&self, number: u64) -> bool {
        self.0.get((number / 64) as usize).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }
}

fn place(batch: i64, number: u64) -> i64 {
    (batch << LINE_BITS) | number as i64
}

/// Commits answers; one that is there already stays. Returns what was new, by verdict.
pub fn record(
    db: &mut Connection,
    batch: i64,
    results: &[&LineResult],
) -> rusqlite::Result<Counts> {
    let transaction = db.transaction()?;
    let mut new = Counts::default();
    {
        let mut insert = transaction.prepare_cached(
            "INSERT OR IGNORE INTO results (place, is_answered, line) VALUES (?1, ?2, ?3)",
        )?;
        for LineResult { number, result } in results {
            let is_answered = result.verdict == Verdict::Answered;
            let count =
                insert.execute(params![place(batch, *number), is_answered, result.line])? as u64;
            match result.verdict {
                Verdict::Answered => new.completed += count,
                Verdict::Failed => new.failed += count,
            }
        }
    }
    transaction.execute(
        "UPDATE batches SET completed = completed + ?2, failed = failed + ?3 WHERE seq = ?1",
        params![batch, new.completed, new.failed],
    )?;
    transaction.commit()?;
    Ok(new)
}

/// Some answers for the lines after `number`, in order; none: there are no more.
pub fn after(db: &Connection, batch: i64, number: u64) -> rusqlite::Result<Vec<LineResult>> {
    let mut statement = db.prepare_cached(
        "SELECT place, is_answered, line FROM results
         WHERE place > ?1 AND place < ?2 ORDER BY place LIMIT ?3",
    )?;
    let (first, end) = (place(batch, number), place(batch + 1, 0));
    let mut rows = statement.query(params![first, end, PAGE_ROWS as i64])?;
    let (mut page, mut bytes) = (Vec::new(), 0);
    while bytes < PAGE_BYTES
        && let Some(row) = rows.next()?
    {
        let verdict = if row.get(1)? { Verdict::Answered } else { Verdict::Failed };
        let number = row.get::<_, i64>(0)? as u64 & ((1 << LINE_BITS) - 1);
        let line: Vec<u8> = row.get(2)?;
        bytes += line.len();
        page.push(LineResult { number, result: RowResult { verdict, line } });
    }
    Ok(page)
}

pub fn done_lines(db: &Connection, batch: i64) -> rusqlite::Result<DoneLines> {
    let mut done = DoneLines::default();
    let mut statement = db.prepare("SELECT place FROM results WHERE place > ?1 AND place < ?2")?;
    let mut rows = statement.query(params![place(batch, 0), place(batch + 1, 0)])?;
    while let Some(row) = rows.next()? {
        done.insert(row.get::<_, i64>(0)? as u64 & ((1 << LINE_BITS) - 1));
    }
    Ok(done)
}

/// Forgets a page of answers whose job has ended or is forgotten: they are in its files. Returns
/// whether there may be more.
pub fn forget_some(db: &Connection, batch: i64) -> rusqlite::Result<bool> {
    let mut statement = db.prepare_cached(
        "DELETE FROM results WHERE place IN
            (SELECT place FROM results WHERE place > ?1 AND place < ?2 LIMIT ?3)",
    )?;
    let pages = 16 * PAGE_ROWS as i64;
    let gone = statement.execute(params![place(batch, 0), place(batch + 1, 0), pages])?;
    // Gives the room back to the file system, page by page.
    db.pragma(None, "incremental_vacuum", VACUUM_PAGES, |_| Ok(()))?;
    Ok(gone > 0)
}

/// Jobs that have answers and are not open: a process ended before it had forgotten them.
pub fn left_over(db: &Connection) -> rusqlite::Result<Vec<i64>> {
    let mut found = Vec::new();
    let mut next = 0;
    // One look-up for each job with answers, not one for each answer.
    while let Some(place) = db
        .prepare_cached("SELECT MIN(place) FROM results WHERE place >= ?1")?
        .query_row([next], |row| row.get::<_, Option<i64>>(0))?
    {
        let batch = place >> LINE_BITS;
        let is_open: bool = db
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM batches WHERE seq = ?1 AND status IN
                    ('validating', 'in_progress', 'finalizing', 'cancelling'))",
            )?
            .query_row([batch], |row| row.get(0))?;
        if !is_open {
            found.push(batch);
        }
        next = (batch + 1) << LINE_BITS;
    }
    Ok(found)
}
