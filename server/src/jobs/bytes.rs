//! The bytes of files, in an object store: a local folder, or S3 and what speaks its protocol.

use super::config::{JobsConfig, PART_BYTES, PARTS_AT_ONCE};
use super::database::private_folder;
use super::{JobsError, JobsStartError};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

/// Below the database's folder, where no other store is named.
const FOLDER: &str = "files";

#[derive(Clone)]
pub struct ByteStore {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

/// A file on its way into the store; it is there when `finish` has returned, and not before.
/// Dropped without that, it leaves nothing behind.
pub struct ByteWriter {
    /// Taken when it has ended.
    writer: Option<BufWriter>,
    bytes: u64,
}

pub type ByteStream = BoxStream<'static, Result<Bytes, JobsError>>;

impl ByteStore {
    /// Credentials, region and endpoint of an S3 store come from the variables with `AWS_` that its
    /// own tools read.
    pub fn open(config: &JobsConfig) -> Result<ByteStore, JobsStartError> {
        match &config.store {
            None => {
                let folder = config.folder.join(FOLDER);
                let store = ByteStore::in_folder(&folder)?;
                remove_pieces(&folder)
                    .map_err(|source| JobsStartError::Io { path: folder, source })?;
                Ok(store)
            }
            Some(url) => ByteStore::at(url),
        }
    }

    fn in_folder(folder: &std::path::Path) -> Result<ByteStore, JobsStartError> {
        let io = |source| JobsStartError::Io { path: folder.to_path_buf(), source };
        private_folder(folder).map_err(io)?;
        let local = LocalFileSystem::new_with_prefix(folder).map_err(|error| {
            JobsStartError::Store { url: folder.display().to_string(), reason: error.to_string() }
        })?;
        Ok(ByteStore { store: Arc::new(local.with_fsync(true)), prefix: Path::default() })
    }

    fn at(url: &str) -> Result<ByteStore, JobsStartError> {
        let failed = |reason| JobsStartError::Store { url: url.to_string(), reason };
        let parsed = url::Url::parse(url).map_err(|error| failed(error.to_string()))?;
        match parsed.scheme() {
            "file" => {
                let path = parsed.to_file_path();
                let path = path.map_err(|()| failed("not a path of this machine".into()))?;
                return ByteStore::in_folder(&path);
            }
            "s3" | "s3a" | "https" => {}
            other => return Err(failed(format!("{other}: is not among file:, s3: and https:"))),
        }
        if !cfg!(feature = "s3") {
            let reason = "this build of monsoon knows no S3; build it with --features s3";
            return Err(failed(reason.into()));
        }
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?.to_ascii_lowercase();
            Some((name, value.into_string().ok()?))
        });
        // Files are deleted one by one, for which every such store has a call.
        let options = [("aws_disable_bulk_delete".to_owned(), "true".to_owned())];
        let options =
            options.into_iter().chain(variables.filter(|(name, _)| name.starts_with("aws_")));
        choose_ciphers();
        let opened = object_store::parse_url_opts(&parsed, options);
        let (store, prefix) = opened.map_err(|error| failed(error.to_string()))?;
        Ok(ByteStore { store: Arc::from(store), prefix })
    }

    /// Replaces a file of this name when it is finished.
    pub fn write(&self, id: &str) -> ByteWriter {
        let store = Arc::clone(&self.store);
        let writer = BufWriter::with_capacity(store, self.path(id), PART_BYTES);
        ByteWriter { writer: Some(writer.with_max_concurrency(PARTS_AT_ONCE)), bytes: 0 }
    }

    /// Errors: `Gone` where there is no such file.
    pub async fn read(&self, id: &str) -> Result<ByteStream, JobsError> {
        match self.store.get(&self.path(id)).await {
            Ok(found) => Ok(found.into_stream().map_err(JobsError::from).boxed()),
            Err(object_store::Error::NotFound { .. }) => Err(JobsError::Gone { id: id.into() }),
            Err(error) => Err(error.into()),
        }
    }

    /// A file that is not there is fine.
    pub async fn delete(&self, id: &str) -> Result<(), JobsError> {
        match self.store.delete(&self.path(id)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn path(&self, id: &str) -> Path {
        self.prefix.clone().join(id)
    }
}

/// The store's requests are encrypted as the process says.
#[cfg(feature = "s3")]
fn choose_ciphers() {
    // Whoever chose before has chosen for all.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(not(feature = "s3"))]
fn choose_ciphers() {}

/// What a process had written of files when it ended: the store marks it with a `#`. Nobody else
/// writes into a folder of our own.
fn remove_pieces(folder: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains('#') {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl ByteWriter {
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), JobsError> {
        self.bytes += bytes.len() as u64;
        Ok(self.writer().put(bytes).await?)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns how many bytes the file has.
    pub async fn finish(mut self) -> Result<u64, JobsError> {
        // One that fails here gives up what it had sent.
        let mut writer = self.writer.take().expect("it is taken at the end alone");
        let done = writer.shutdown().await;
        done.map_err(|source| JobsError::Io { path: "file store".into(), source })?;
        Ok(self.bytes)
    }

    /// Nothing of it stays.
    pub async fn abort(mut self) {
        if let Some(writer) = self.writer.take() {
            abort(writer).await;
        }
    }

    fn writer(&mut self) -> &mut BufWriter {
        self.writer.as_mut().expect("it is taken at the end alone")
    }
}

impl Drop for ByteWriter {
    fn drop(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        // Without a runtime the process is about to end; what a local folder then holds of it goes
        // at the next start.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(abort(writer));
        }
    }
}

async fn abort(mut writer: BufWriter) {
    if let Err(error) = writer.abort().await {
        tracing::debug!(%error, "an upload was not taken back");
    }
}
