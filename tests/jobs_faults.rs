//! Jobs whose rows, clients and store do what they should not.

use bytes::Bytes;
use futures_util::TryStreamExt;
use server::jobs::bytes::ByteStore;
use server::jobs::config::{BATCHES_AT_ONCE, PAGE_BYTES};
use server::jobs::database::Database;
use server::jobs::results::{self, LineResult};
use server::jobs::store::Order;
use server::jobs::{
    Answer, BatchRecord, Clock, FileRecord, Jobs, JobsConfig, JobsError, JobsLimits, LineFault,
    NewBatch, Owner, Page, Refused, RowResult, Rows, Status, Unanswered, Verdict, runner,
};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;
use tempfile::TempDir;

/// Each line is its own name, and says what becomes of it: `busy...` is refused for load as long as
/// it is among `refused`, `panic...` panics, anything else is answered with itself.
#[derive(Default)]
struct FakeRows {
    gone_owners: Mutex<HashSet<Owner>>,
    is_free: Mutex<bool>,
}

impl Rows for FakeRows {
    fn check(&self, _: Option<&str>, line: &[u8]) -> Result<String, LineFault> {
        Ok(String::from_utf8(line.to_vec()).expect("text"))
    }

    fn can_run(&self, owner: &Owner, _: &str) -> bool {
        !self.gone_owners.lock().expect("no panic").contains(owner)
    }

    async fn answer(&self, _: &Owner, line: &[u8]) -> Answer {
        if line.starts_with(b"busy") && !*self.is_free.lock().expect("no panic") {
            return Answer::Busy { retry_after: Duration::ZERO };
        }
        assert!(!line.starts_with(b"panic"), "a row that panics, as it is told to");
        Answer::Done(RowResult { verdict: Verdict::Answered, line: line.to_vec() })
    }

    fn unanswered(&self, line: &[u8], why: Unanswered) -> Vec<u8> {
        [line, format!(" {why:?}").as_bytes()].concat()
    }
}

struct Bench {
    folder: TempDir,
    config: JobsConfig,
    jobs: Jobs,
    rows: Arc<FakeRows>,
}

impl Bench {
    fn new(limits: JobsLimits) -> Bench {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("jobs");
        let config = JobsConfig { folder: path, store: None, limits, clock: Clock::default() };
        let jobs = Jobs::open(&config).expect("a folder of its own");
        Bench { folder, config, jobs, rows: Arc::default() }
    }

    fn run(&self) {
        tokio::spawn(runner::run(self.jobs.clone(), Arc::clone(&self.rows)));
    }

    fn path_of(&self, file: &str) -> PathBuf {
        self.folder.path().join("jobs/files").join(file)
    }

    async fn upload(&self, owner: &str, text: &str) -> FileRecord {
        let (owner, id) = (Owner(owner.into()), format!("file-{owner}-{}", text.len()));
        let mut upload = self.jobs.begin_upload(&owner, &id).await.expect("a place");
        upload.write(Bytes::copy_from_slice(text.as_bytes())).await.expect("written");
        upload.finish(&owner, "in.jsonl".into(), None).await.expect("finished")
    }

    /// A job of these lines.
    async fn start(&self, owner: &str, text: &str) -> BatchRecord {
        let file = self.upload(owner, text).await;
        let new = NewBatch {
            id: format!("batch-of-{}", file.id),
            owner: Owner(owner.into()),
            endpoint: "/x".into(),
            input_file_id: file.id,
            completion_window: "1h".into(),
            window_s: 3600,
            model: "m".into(),
            metadata: None,
            output_expires_after: None,
        };
        self.jobs.create(new).await.expect("created")
    }

    async fn wait_for(&self, batch: &BatchRecord, is_so: impl Fn(&BatchRecord) -> bool) {
        wait(async || is_so(&self.jobs.batch(&batch.owner, &batch.id).await.expect("it is there")))
            .await;
    }

    async fn wait_for_status(&self, batch: &BatchRecord, status: Status) -> BatchRecord {
        self.wait_for(batch, |batch| batch.status == status).await;
        self.jobs.batch(&batch.owner, &batch.id).await.expect("it is there")
    }

    /// The lines of a file of results, sorted.
    async fn lines(&self, owner: &Owner, file: &Option<String>) -> Vec<String> {
        let Some(id) = file else { return Vec::new() };
        let (_, stream) = self.jobs.content(owner, id).await.expect("it is there");
        let pieces: Vec<Bytes> = stream.try_collect().await.expect("all of it");
        let text = String::from_utf8(pieces.concat()).expect("text");
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// Files kept, those that nobody sees included.
    async fn num_files(&self) -> u64 {
        self.jobs.stats().await.expect("numbers").files
    }
}

/// Waits until it is so; only that it comes is asserted, not how fast.
async fn wait(is_so: impl AsyncFn() -> bool) {
    for _ in 0..3000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never became so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_panics_fails_and_none_is_lost() {
    let bench = Bench::new(JobsLimits { rows_in_flight_max: 2, ..JobsLimits::default() });
    bench.run();
    let batch = bench.start("ann", "a\npanic 1\nb\npanic 2\nc").await;
    let done = bench.wait_for_status(&batch, Status::Completed).await;
    assert_eq!((done.counts.total, done.counts.completed, done.counts.failed), (5, 3, 2));
    assert_eq!(bench.lines(&batch.owner, &done.output_file_id).await, ["a", "b", "c"]);
    let failed = bench.lines(&batch.owner, &done.error_file_id).await;
    assert_eq!(failed, ["panic 1 Lost", "panic 2 Lost"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_key_was_taken_away_keeps_no_place_from_others() {
    let bench = Bench::new(JobsLimits { rows_in_flight_max: 1, ..JobsLimits::default() });
    bench.run();
    let stuck = bench.start("ann", "a\nbusy").await;
    bench.wait_for(&stuck, |batch| batch.counts.completed == 1).await;
    let other = bench.start("bob", "b").await;
    bench.wait_for_status(&other, Status::InProgress).await;
    bench.rows.gone_owners.lock().expect("no panic").insert(stuck.owner.clone());
    bench.wait_for_status(&other, Status::Completed).await;
    *bench.rows.is_free.lock().expect("no panic") = true;
    bench.rows.gone_owners.lock().expect("no panic").clear();
    let done = bench.wait_for_status(&stuck, Status::Completed).await;
    assert_eq!(bench.lines(&stuck.owner, &done.output_file_id).await, ["a", "busy"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_cancelled_does_not_wait_for_those_that_go_on() {
    let bench = Bench::new(JobsLimits::default());
    bench.run();
    let mut jobs = Vec::new();
    for number in 0..BATCHES_AT_ONCE {
        let job = bench.start(&format!("owner {number}"), "busy").await;
        bench.wait_for_status(&job, Status::InProgress).await;
        jobs.push(job);
    }
    let late = bench.start("late", "a").await;
    bench.jobs.cancel(&late.owner, &late.id).await.expect("it has not ended");
    bench.wait_for_status(&late, Status::Cancelled).await;
    for job in jobs {
        let now = bench.jobs.batch(&job.owner, &job.id).await.expect("it is there");
        assert_eq!(now.status, Status::InProgress);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_with_what_it_has_when_its_file_is_gone() {
    let bench = Bench::new(JobsLimits { rows_in_flight_max: 1, ..JobsLimits::default() });
    bench.run();
    let batch = bench.start("ann", "a\nb\nbusy\nc").await;
    bench.wait_for(&batch, |batch| batch.counts.completed == 2).await;
    std::fs::remove_file(bench.path_of(&batch.input_file_id)).expect("it was there");
    bench.config.clock.turn_forward(3600);
    let expired = bench.wait_for_status(&batch, Status::Expired).await;
    assert_eq!(bench.lines(&batch.owner, &expired.output_file_id).await, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_whose_client_leaves_keeps_no_place() {
    let bench = Bench::new(JobsLimits { files_max: 1, ..JobsLimits::default() });
    let owner = Owner("ann".into());
    // Wherever its client leaves.
    for num_polls in 0..40 {
        let id = format!("file-{num_polls}");
        let upload = async {
            let mut upload = bench.jobs.begin_upload(&owner, &id).await?;
            upload.write(Bytes::from_static(b"a line")).await?;
            let done = upload.finish(&owner, "x".into(), None).await;
            // The client has its answer.
            done.map(|_| ())
        };
        let mut upload = Box::pin(upload);
        let mut ended = None;
        for _ in 0..num_polls {
            if ended.is_none()
                && let Poll::Ready(done) = futures_util::poll!(&mut upload)
            {
                ended = Some(done);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(upload);
        if let Some(done) = ended {
            done.expect("the place of the one before is free");
            assert!(bench.jobs.file(&owner, &id).await.is_ok());
        }
        // A file of which nobody was told may be there, but only whole.
        wait(async || {
            if let Ok(file) = bench.jobs.file(&owner, &id).await {
                assert_eq!(file.bytes, 6);
                bench.jobs.delete_file(&owner, &id).await.expect("it is there");
            }
            bench.num_files().await == 0
        })
        .await;
        let on_disk = || std::fs::read_dir(bench.path_of("")).expect("the folder").count();
        wait(async || on_disk() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_cannot_be_deleted_go_later() {
    let bench = Bench::new(JobsLimits::default());
    let file = bench.upload("ann", "a").await;
    let path = bench.path_of(&file.id);
    // Nothing that a store could delete as a file.
    std::fs::remove_file(&path).expect("it was there");
    std::fs::create_dir_all(path.join("inside")).expect("made");
    bench.jobs.delete_file(&file.owner, &file.id).await.expect("nobody sees it any more");
    let gone = bench.jobs.file(&file.owner, &file.id).await;
    assert!(matches!(gone, Err(JobsError::Refused(Refused::NoFile { .. }))), "{gone:?}");
    assert_eq!(bench.num_files().await, 1);
    std::fs::remove_dir_all(&path).expect("made above");
    std::fs::write(&path, "a").expect("written");
    bench.run();
    wait(async || bench.num_files().await == 0).await;
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_process_left_goes_and_what_is_being_sent_stays() {
    let bench = Bench::new(JobsLimits::default());
    let owner = Owner("ann".into());
    let mut left = bench.jobs.begin_upload(&owner, "file-left").await.expect("a place");
    left.write(Bytes::from_static(b"x")).await.expect("written");
    // A process that is killed drops nothing.
    std::mem::forget(left);
    let Bench { folder, config, jobs, rows } = bench;
    drop(jobs);
    let path = folder.path().join("jobs");
    let copy = folder.path().join("copy");
    std::fs::create_dir(&copy).expect("made");
    for name in ["jobs.sqlite", "jobs.sqlite-wal"] {
        std::fs::copy(path.join(name), copy.join(name)).expect("copied");
    }
    let config = JobsConfig { folder: copy, ..config };
    let jobs = Jobs::open(&config).expect("a folder of its own");
    let bench = Bench { folder, config, jobs, rows };
    let mut upload = bench.jobs.begin_upload(&owner, "file-sent").await.expect("a place");
    upload.write(Bytes::from_static(b"y")).await.expect("written");
    assert_eq!(bench.num_files().await, 2);
    bench.run();
    wait(async || bench.num_files().await == 1).await;
    upload.finish(&owner, "x".into(), None).await.expect("it is still there");
    let page = Page { after: None, limit: 9, order: Order::OldestFirst };
    let (files, _) = bench.jobs.files(&owner, None, page).await.expect("a list");
    assert_eq!(files.iter().map(|file| file.id.as_str()).collect::<Vec<_>>(), ["file-sent"]);
}

#[tokio::test]
async fn a_page_of_results_is_bounded_in_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let database = Database::open(folder.path()).expect("a folder of its own");
    let result = |number: u64| {
        let line = vec![b'x'; PAGE_BYTES / 2];
        LineResult { number, result: RowResult { verdict: Verdict::Answered, line } }
    };
    let all: Vec<LineResult> = (1..=5).map(result).collect();
    let written = all.clone();
    let pages = database.call(move |db| {
        let lines: Vec<&LineResult> = written.iter().collect();
        results::record(db, 1, &lines)?;
        let (mut pages, mut number) = (Vec::new(), 0);
        loop {
            let page = results::after(db, 1, number)?;
            let Some(last) = page.last() else { return Ok(pages) };
            number = last.number;
            pages.push(page);
        }
    });
    let pages = pages.await.expect("read");
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    assert_eq!(pages.concat(), all);
}

#[tokio::test]
async fn a_writer_that_is_dropped_leaves_nothing() {
    let bench = Bench::new(JobsLimits::default());
    let store = ByteStore::open(&bench.config).expect("a folder");
    // More than one part, so that the store has begun with it.
    let mut writer = store.write("dropped");
    for _ in 0..4 {
        writer.write(Bytes::from(vec![1; 3 << 20])).await.expect("written");
    }
    drop(writer);
    let on_disk = || std::fs::read_dir(bench.path_of("")).expect("the folder").count();
    wait(async || on_disk() == 0).await;
    let mut writer = store.write("kept");
    writer.write(Bytes::from_static(b"one\ntwo")).await.expect("written");
    assert_eq!(writer.finish().await.expect("finished"), 7);
    let stream = store.read("kept").await.expect("it is there");
    let pieces: Vec<Bytes> = stream.try_collect().await.expect("all of it");
    assert_eq!(pieces.concat(), b"one\ntwo");
}
