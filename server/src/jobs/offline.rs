//! A job from file to file, without a server: its results are its state.

use super::config::COMMIT_ROWS_MAX;
use super::lines::Lines;
use super::results::{DoneLines, LineResult};
use super::rows::{Answered, answer_lines};
use super::validate::{Names, validate};
use super::{Counts, JobsError, LineFault, Owner, Rows, Verdict};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};

/// Bytes read from the input at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Why the job cannot be done, or went no further.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is in use by another process")]
    InUse { path: PathBuf },
    #[error("{path}: {}", show(faults))]
    Faults { path: PathBuf, faults: Vec<LineFault> },
    #[error("{path}: line {line} is no result; name another file, or remove this one")]
    NoResult { path: PathBuf, line: u64 },
    #[error(
        "{path} and its file of errors hold {strange} results of other requests than those in the \
         input; name another output"
    )]
    OtherResults { path: PathBuf, strange: usize },
    #[error(transparent)]
    Jobs(#[from] JobsError),
}

/// One line for each fault.
fn show(faults: &[LineFault]) -> String {
    let lines = faults.iter().map(|fault| match fault.line {
        Some(line) => format!("\n  line {line}: {}", fault.message),
        None => format!("\n  {}", fault.message),
    });
    format!("the requests cannot be used:{}", lines.collect::<String>())
}

/// What a job is made of.
pub struct OfflineJob {
    pub input: PathBuf,
    pub output: PathBuf,
    pub errors: PathBuf,
    pub line_bytes_max: usize,
    pub rows_max: u64,
    pub rows_in_flight_max: usize,
}

/// A job whose input is good, and whose results so far have been read.
pub struct Prepared {
    job: OfflineJob,
    output: Results,
    errors: Results,
    done: DoneLines,
    /// What there is, and what was there already.
    pub counts: Counts,
}

impl OfflineJob {
    /// Validates the input and takes up the results of an earlier run, a line cut short at their
    /// end taken back. `name_of` gives the custom_id of a result.
    ///
    /// Errors: all but `Jobs` are for whoever started it to mend.
    pub async fn prepare<R: Rows>(
        self,
        rows: &R,
        name_of: impl Fn(&[u8]) -> Option<String>,
    ) -> Result<Prepared, OfflineError> {
        let mut names = Names::default();
        let output = Results::open(&self.output, &name_of, &mut names)?;
        let errors = Results::open(&self.errors, &name_of, &mut names)?;
        let (mut done, mut num_done) = (DoneLines::default(), 0);
        let lines = self.lines()?;
        let found = validate(rows, None, lines, self.rows_max, |number, name| {
            if names.contains(name) {
                done.insert(number);
                num_done += 1;
            }
        });
        let total = found
            .await?
            .map_err(|faults| OfflineError::Faults { path: self.input.clone(), faults })?;
        if num_done < names.len() {
            let strange = names.len() - num_done;
            return Err(OfflineError::OtherResults { path: self.output, strange });
        }
        let counts = Counts { total, completed: output.num_lines, failed: errors.num_lines };
        Ok(Prepared { job: self, output, errors, done, counts })
    }

    fn lines(&self) -> Result<Lines, OfflineError> {
        let failed = |source| OfflineError::Io { path: self.input.clone(), source };
        let file = File::open(&self.input).map_err(failed)?;
        let path = self.input.clone();
        let pieces = stream::unfold(Some(file), move |file| {
            let path = path.clone();
            async move {
                let mut file = file?;
                let mut piece = vec![0; PIECE_BYTES];
                match io::Read::read(&mut file, &mut piece) {
                    Ok(0) => None,
                    Ok(bytes) => {
                        piece.truncate(bytes);
                        Some((Ok(Bytes::from(piece)), Some(file)))
                    }
                    Err(source) => Some((Err(JobsError::Io { path, source }), None)),
                }
            }
        });
        Ok(Lines::new(pieces.boxed(), self.line_bytes_max))
    }
}

impl Prepared {
    /// Answers what has no result yet. A result is a line of one of the two files as soon as it is
    /// there, in the order in which they come. `tell` gets the counts from time to time.
    pub async fn run<R: Rows>(
        mut self,
        rows: &Arc<R>,
        tell: impl Fn(Counts),
    ) -> Result<Counts, OfflineError> {
        let owner = Owner(String::new());
        let lines = self.job.lines()?;
        let places = Arc::new(Semaphore::new(self.job.rows_in_flight_max));
        let (sender, mut receiver) = mpsc::channel(COMMIT_ROWS_MAX);
        let answering = async {
            let answered = answer_lines(rows, &owner, lines, &self.done, &places, sender);
            answered.await.map_err(OfflineError::from)
        };
        let writing = async {
            let mut page: Vec<Answered> = Vec::new();
            while receiver.recv_many(&mut page, COMMIT_ROWS_MAX).await > 0 {
                for Answered { line: LineResult { result, .. }, .. } in page.drain(..) {
                    match result.verdict {
                        Verdict::Answered => self.output.push(result.line)?,
                        Verdict::Failed => self.errors.push(result.line)?,
                    }
                }
                self.output.flush()?;
                self.errors.flush()?;
                self.counts.completed = self.output.num_lines;
                self.counts.failed = self.errors.num_lines;
                tell(self.counts);
            }
            Ok(())
        };
        tokio::try_join!(answering, writing)?;
        self.output.close()?;
        self.errors.close()?;
        Ok(self.counts)
    }
}

/// A file of results that grows. One that stays empty is not made.
struct Results {
    path: PathBuf,
    file: Option<BufWriter<File>>,
    num_lines: u64,
}

impl Results {
    fn open(
        path: &Path,
        name_of: &impl Fn(&[u8]) -> Option<String>,
        names: &mut Names,
    ) -> Result<Results, OfflineError> {
        let mut results = Results { path: path.to_path_buf(), file: None, num_lines: 0 };
        if path.exists() {
            let mut file = results.lock()?;
            let end = results.read(&file, name_of, names)?;
            let failed = |source| OfflineError::Io { path: path.to_path_buf(), source };
            file.set_len(end).map_err(failed)?;
            file.seek(io::SeekFrom::Start(end)).map_err(failed)?;
            results.file = Some(BufWriter::new(file));
        }
        Ok(results)
    }

    /// No second process writes to it.
    fn lock(&self) -> Result<File, OfflineError> {
        let failed = |source| OfflineError::Io { path: self.path.clone(), source };
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&self.path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => {
                Err(OfflineError::InUse { path: self.path.clone() })
            }
            Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Returns where the last whole line ends.
    fn read(
        &mut self,
        file: &File,
        name_of: &impl Fn(&[u8]) -> Option<String>,
        names: &mut Names,
    ) -> Result<u64, OfflineError> {
        let mut reader = BufReader::with_capacity(PIECE_BYTES, file);
        let (mut line, mut end) = (Vec::new(), 0);
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line);
            read.map_err(|source| OfflineError::Io { path: self.path.clone(), source })?;
            if line.pop() != Some(b'\n') {
                return Ok(end);
            }
            self.num_lines += 1;
            let name = name_of(&line).filter(|name| names.is_new(name));
            if name.is_none() {
                let (path, line) = (self.path.clone(), self.num_lines);
                return Err(OfflineError::NoResult { path, line });
            }
            end += line.len() as u64 + 1;
        }
    }

    fn push(&mut self, mut line: Vec<u8>) -> Result<(), OfflineError> {
        if self.file.is_none() {
            self.file = Some(BufWriter::new(self.lock()?));
        }
        line.push(b'\n');
        self.num_lines += 1;
        self.write(|file| file.write_all(&line))
    }

    fn flush(&mut self) -> Result<(), OfflineError> {
        self.write(BufWriter::flush)
    }

    /// All of it is on the disk.
    fn close(mut self) -> Result<(), OfflineError> {
        self.write(|file| {
            file.flush()?;
            file.get_ref().sync_all()
        })
    }

    fn write(
        &mut self,
        work: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), OfflineError> {
        let done = self.file.as_mut().map_or(Ok(()), work);
        done.map_err(|source| OfflineError::Io { path: self.path.clone(), source })
    }
}
