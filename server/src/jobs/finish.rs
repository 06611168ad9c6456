//! The end of a job: its committed answers become files.

use super::batches::BatchRecord;
use super::bytes::{ByteStore, ByteWriter};
use super::database::Database;
use super::files::FileRecord;
use super::lines::Lines;
use super::results::{self, DoneLines, LineResult};
use super::validate::short_hash;
use super::{Counts, JobsError, Rows, Status, Unanswered, Verdict};
use bytes::Bytes;

/// The files of a job's results, which nobody sees until the job has ended.
pub struct Written {
    pub counts: Counts,
    /// `None`: there would be nothing in it.
    pub output: Option<FileRecord>,
    pub errors: Option<FileRecord>,
}

/// Writes the files anew from what is committed. Rows without an answer, because the job expired or
/// was cancelled, stand in the file of errors, so that every row stands in one of the two.
///
/// `lines`: the job's file, where it is known to be good.
pub async fn write_files<R: Rows>(
    rows: &R,
    database: &Database,
    store: &ByteStore,
    batch: &BatchRecord,
    lines: Option<Lines>,
    now: u64,
) -> Result<Written, JobsError> {
    let mut output = Half::new(store, &batch.id, "output");
    let mut errors = Half::new(store, &batch.id, "errors");
    let (seq, mut number) = (batch.seq, 0);
    let mut done = DoneLines::default();
    loop {
        let page = database.call(move |db| results::after(db, seq, number)).await?;
        let Some(last) = page.last() else { break };
        number = last.number;
        for LineResult { number, result } in page {
            done.insert(number);
            match result.verdict {
                Verdict::Answered => output.push(result.line).await?,
                Verdict::Failed => errors.push(result.line).await?,
            }
        }
    }
    if let Some(mut lines) = lines {
        let why = match batch.status {
            Status::Cancelling => Unanswered::Cancelled,
            _ => Unanswered::Expired,
        };
        while let Some(line) = lines.next().await? {
            if !done.contains(line.number) {
                errors.push(rows.unanswered(&line.bytes, why)).await?;
            }
        }
    }
    let total = batch.counts.total;
    let counts = Counts { total, completed: output.num_lines, failed: errors.num_lines };
    Ok(Written {
        counts,
        output: output.finish(batch, now).await?,
        errors: errors.finish(batch, now).await?,
    })
}

/// One of the two files.
struct Half {
    id: String,
    filename: String,
    writer: ByteWriter,
    num_lines: u64,
}

impl Half {
    fn new(store: &ByteStore, batch_id: &str, kind: &str) -> Half {
        let hash = short_hash(&format!("{batch_id} {kind}"));
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let id = format!("file-{hex}");
        let filename = format!("{batch_id}_{kind}.jsonl");
        Half { writer: store.write(&id), id, filename, num_lines: 0 }
    }

    async fn push(&mut self, mut line: Vec<u8>) -> Result<(), JobsError> {
        line.push(b'\n');
        self.num_lines += 1;
        self.writer.write(Bytes::from(line)).await
    }

    async fn finish(self, batch: &BatchRecord, now: u64) -> Result<Option<FileRecord>, JobsError> {
        if self.num_lines == 0 {
            self.writer.abort().await;
            return Ok(None);
        }
        let bytes = self.writer.finish().await?;
        Ok(Some(FileRecord {
            id: self.id,
            owner: batch.owner.clone(),
            purpose: "batch_output".into(),
            filename: self.filename,
            bytes,
            created_at: now,
            expires_at: batch.output_expires_after.map(|seconds| now.saturating_add(seconds)),
        }))
    }
}
