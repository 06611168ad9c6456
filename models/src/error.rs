//! Why a checkpoint cannot be served: always the operator's to mend.

use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// The file is broken or lies about itself.
    #[error("{path} is not valid: {reason}")]
    Invalid { path: PathBuf, reason: String },
    /// The file is fine, but asks for something that is not supported.
    #[error("unsupported model: {key} is {value}; supported: {supported}")]
    Unsupported { key: String, value: String, supported: String },
    #[error("tensor {name} is missing in the checkpoint")]
    MissingTensor { name: String },
    #[error("tensor {name} has shape {got:?}, expected {expected:?}")]
    TensorShape { name: String, got: Vec<usize>, expected: Vec<usize> },
    #[error(transparent)]
    Kernel(#[from] kernels::KernelError),
}

impl LoadError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> LoadError {
        LoadError::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn invalid(path: &Path, reason: impl Into<String>) -> LoadError {
        LoadError::Invalid { path: path.to_path_buf(), reason: reason.into() }
    }

    pub(crate) fn unsupported(
        key: impl Into<String>,
        value: impl ToString,
        supported: impl Into<String>,
    ) -> LoadError {
        LoadError::Unsupported {
            key: key.into(),
            value: value.to_string(),
            supported: supported.into(),
        }
    }
}
