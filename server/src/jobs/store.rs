//! Files and jobs as the API's routes see them.

use super::batches::{self, BatchRecord, NewBatch, Status};
use super::bytes::{ByteStore, ByteStream, ByteWriter};
use super::config::{Clock, JobsConfig, JobsLimits, UPLOADS_MAX};
use super::database::Database;
use super::files::{self, FileRecord};
use super::{JobsError, JobsStartError, Owner, Refused};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Cheap to clone; dropping the last one closes the store.
#[derive(Clone)]
pub struct Jobs {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub database: Database,
    pub bytes: ByteStore,
    pub limits: JobsLimits,
    pub clock: Clock,
    /// Counts what the runner should look at.
    pub changes: watch::Sender<u64>,
    pub row_places: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    pub rows_answered: AtomicU64,
    pub rows_failed: AtomicU64,
}

/// Which part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The id of the last one of the page before.
    pub after: Option<String>,
    pub limit: usize,
    pub order: Order,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    OldestFirst,
    NewestFirst,
}

impl Order {
    /// How the place of a later entry compares, and the direction.
    pub(super) fn sql(self) -> (&'static str, &'static str) {
        match self {
            Order::OldestFirst => (">", "ASC"),
            Order::NewestFirst => ("<", "DESC"),
        }
    }
}

/// A file that a client is sending. Dropping it before `finish` has returned takes it back.
pub struct Upload {
    jobs: Jobs,
    id: String,
    /// Taken when it is written.
    writer: Option<ByteWriter>,
    is_settled: bool,
    _place: OwnedSemaphorePermit,
}

/// What the metrics say.
#[derive(Debug, Clone, Default)]
pub struct JobsStats {
    pub by_status: Vec<(Status, u64)>,
    /// Since the start of the process.
    pub rows_answered: u64,
    pub rows_failed: u64,
    pub rows_in_flight: u64,
    pub files: u64,
    pub file_bytes: u64,
}

impl Jobs {
    /// Errors: the folder cannot be used, or another process uses it.
    pub fn open(config: &JobsConfig) -> Result<Jobs, JobsStartError> {
        let database = Database::open(&config.folder)?;
        let shared = Shared {
            database,
            bytes: ByteStore::open(config)?,
            limits: config.limits.clone(),
            clock: config.clock.clone(),
            changes: watch::Sender::new(0),
            row_places: Arc::new(Semaphore::new(config.limits.rows_in_flight_max)),
            uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
            rows_answered: AtomicU64::new(0),
            rows_failed: AtomicU64::new(0),
        };
        Ok(Jobs { shared: Arc::new(shared) })
    }

    pub fn limits(&self) -> &JobsLimits {
        &self.shared.limits
    }

    /// Jobs that could not go on may be able to now.
    pub fn look_again(&self) {
        self.shared.tell();
    }

    /// Begins a file; `id` is new.
    ///
    /// Errors: too many files, bytes or uploads; the database.
    pub async fn begin_upload(&self, owner: &Owner, id: &str) -> Result<Upload, JobsError> {
        let place = Arc::clone(&self.shared.uploads).try_acquire_owned().map_err(|_| {
            Refused::TooManyUploads { uploads: UPLOADS_MAX, uploads_max: UPLOADS_MAX }
        })?;
        let record = FileRecord {
            id: id.into(),
            owner: owner.clone(),
            purpose: "batch".into(),
            filename: String::new(),
            bytes: 0,
            created_at: self.shared.clock.now(),
            expires_at: None,
        };
        let writer = Some(self.shared.bytes.write(id));
        // From here on, so that a client that leaves meanwhile keeps no place.
        let mut upload =
            Upload { jobs: self.clone(), id: id.into(), writer, is_settled: false, _place: place };
        let JobsLimits { files_max, files_bytes_max: bytes_max, .. } = self.shared.limits;
        let refused = self.shared.database.call(move |db| {
            let kept = files::kept(db)?;
            if kept.files >= files_max {
                return Ok(Some(Refused::TooManyFiles { files: kept.files, files_max }));
            }
            if kept.bytes >= bytes_max {
                return Ok(Some(Refused::TooManyBytes { bytes: kept.bytes, bytes_max }));
            }
            files::reserve(db, &record)?;
            Ok(None)
        });
        if let Some(refused) = refused.await? {
            upload.is_settled = true;
            return Err(refused.into());
        }
        Ok(upload)
    }

    pub async fn file(&self, owner: &Owner, id: &str) -> Result<FileRecord, JobsError> {
        let (owner, key) = (owner.clone(), id.to_owned());
        let found = self.shared.database.call(move |db| files::get(db, &owner, &key)).await?;
        Ok(found.ok_or_else(|| Refused::NoFile { id: id.into() })?)
    }

    /// Also says whether there are more.
    pub async fn files(
        &self,
        owner: &Owner,
        purpose: Option<String>,
        page: Page,
    ) -> Result<(Vec<FileRecord>, bool), JobsError> {
        let (owner, limit) = (owner.clone(), page.limit);
        let query =
            move |db: &mut rusqlite::Connection| files::list(db, &owner, purpose.as_deref(), &page);
        Ok(cut(self.shared.database.call(query).await?, limit))
    }

    pub async fn content(
        &self,
        owner: &Owner,
        id: &str,
    ) -> Result<(FileRecord, ByteStream), JobsError> {
        let record = self.file(owner, id).await?;
        let stream = self.shared.bytes.read(id).await?;
        Ok((record, stream))
    }

    /// From now on nobody sees it; its bytes go now, or where the store fails, later.
    ///
    /// Errors: it is not there, or a job still reads it.
    pub async fn delete_file(&self, owner: &Owner, id: &str) -> Result<(), JobsError> {
        self.file(owner, id).await?;
        let key = id.to_owned();
        let reader = self.shared.database.call(move |db| {
            let transaction = db.transaction()?;
            let reader = batches::reader_of(&transaction, &key)?;
            if reader.is_none() {
                files::hide(&transaction, &key)?;
            }
            transaction.commit()?;
            Ok(reader)
        });
        if let Some(batch) = reader.await? {
            return Err(Refused::FileInUse { id: id.into(), batch }.into());
        }
        if let Err(error) = self.shared.delete_bytes(id).await {
            tracing::warn!(%error, "the bytes of a deleted file stay for now");
        }
        Ok(())
    }

    /// Errors: its file is not there; too many jobs.
    pub async fn create(&self, new: NewBatch) -> Result<BatchRecord, JobsError> {
        let (batches_max, now) = (self.shared.limits.batches_max, self.shared.clock.now());
        let create =
            move |db: &mut rusqlite::Connection| batches::create(db, &new, batches_max, now);
        let record = self.shared.database.call(create).await??;
        self.shared.tell();
        Ok(record)
    }

    pub async fn batch(&self, owner: &Owner, id: &str) -> Result<BatchRecord, JobsError> {
        let (owner, key) = (owner.clone(), id.to_owned());
        let found = self.shared.database.call(move |db| batches::get(db, &owner, &key)).await?;
        Ok(found.ok_or_else(|| Refused::NoBatch { id: id.into() })?)
    }

    /// Also says whether there are more.
    pub async fn batches(
        &self,
        owner: &Owner,
        page: Page,
    ) -> Result<(Vec<BatchRecord>, bool), JobsError> {
        let (owner, limit) = (owner.clone(), page.limit);
        let query = move |db: &mut rusqlite::Connection| batches::list(db, &owner, &page);
        Ok(cut(self.shared.database.call(query).await?, limit))
    }

    /// Errors: it is not there, or has ended. One that is being cancelled stays so.
    pub async fn cancel(&self, owner: &Owner, id: &str) -> Result<BatchRecord, JobsError> {
        let batch = self.batch(owner, id).await?;
        let (seq, now) = (batch.seq, self.shared.clock.now());
        let record = self.shared.database.call(move |db| {
            batches::cancel(db, seq, now)?;
            batches::by_seq(db, seq)
        });
        let record = record.await?;
        self.shared.tell();
        match record.status {
            Status::Cancelling | Status::Cancelled => Ok(record),
            status => Err(Refused::HasEnded { id: id.into(), status: status.name() }.into()),
        }
    }

    pub async fn stats(&self) -> Result<JobsStats, JobsError> {
        let database = &self.shared.database;
        let read =
            |db: &mut rusqlite::Connection| Ok((batches::count_by_status(db)?, files::kept(db)?));
        let (by_status, kept) = database.call(read).await?;
        let shared = &self.shared;
        let in_flight = shared.limits.rows_in_flight_max - shared.row_places.available_permits();
        Ok(JobsStats {
            by_status,
            rows_answered: shared.rows_answered.load(Ordering::Relaxed),
            rows_failed: shared.rows_failed.load(Ordering::Relaxed),
            rows_in_flight: in_flight as u64,
            files: kept.files,
            file_bytes: kept.bytes,
        })
    }
}

impl Upload {
    /// Errors: longer than `file_bytes_max`; the store.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), JobsError> {
        let bytes_max = self.jobs.shared.limits.file_bytes_max;
        let writer = self.writer.as_mut().expect("it is taken by finish alone");
        if writer.bytes() + bytes.len() as u64 > bytes_max {
            return Err(Refused::FileTooLong { bytes_max }.into());
        }
        writer.write(bytes).await
    }

    /// From now on the file is there. It is finished also when whoever asked for it leaves
    /// meanwhile: what the store is about to do cannot be taken back.
    pub async fn finish(
        self,
        owner: &Owner,
        filename: String,
        expires_after: Option<u64>,
    ) -> Result<FileRecord, JobsError> {
        let work = self.finish_all(owner.clone(), filename, expires_after);
        tokio::spawn(work).await.map_err(|_| JobsError::Stopped)?
    }

    async fn finish_all(
        mut self,
        owner: Owner,
        filename: String,
        expires_after: Option<u64>,
    ) -> Result<FileRecord, JobsError> {
        let writer = self.writer.take().expect("it is taken once");
        let shared = Arc::clone(&self.jobs.shared);
        let now = shared.clock.now();
        let record = FileRecord {
            id: self.id.clone(),
            owner,
            purpose: "batch".into(),
            filename,
            bytes: writer.finish().await?,
            created_at: now,
            expires_at: expires_after.map(|seconds| now.saturating_add(seconds)),
        };
        let written = record.clone();
        shared.database.call(move |db| files::insert(db, &written)).await?;
        self.is_settled = true;
        Ok(record)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        let (shared, id) = (Arc::clone(&self.jobs.shared), std::mem::take(&mut self.id));
        let writer = self.writer.take();
        let take_back = async move {
            if let Some(writer) = writer {
                writer.abort().await;
            }
            if let Err(error) = shared.delete_bytes(&id).await {
                tracing::debug!(%error, "an upload is taken back later");
            }
        };
        // Without a runtime the process is about to end, and the next start does it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(take_back);
        }
    }
}

impl Shared {
    /// The runner looks again.
    pub fn tell(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Of a file that nobody is to see any more. Where the store fails it is deleted later.
    pub async fn delete_bytes(&self, id: &str) -> Result<(), JobsError> {
        let key = id.to_owned();
        self.database.call(move |db| files::hide(db, &key)).await?;
        self.bytes.delete(id).await?;
        let key = id.to_owned();
        self.database.call(move |db| files::forget(db, &key)).await
    }
}

fn cut<T>(mut list: Vec<T>, limit: usize) -> (Vec<T>, bool) {
    let has_more = list.len() > limit;
    list.truncate(limit);
    (list, has_more)
}
