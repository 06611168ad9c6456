//! All arithmetic: tensors, devices and the ops that run on them. Knows nothing of models, requests
//! or text.

pub mod backend;
pub mod comm;
pub mod device;
pub mod dtype;
pub mod error;
pub mod indices;
pub mod ops;
pub mod tensor;
pub mod qualify;

pub use backend::Backend;
pub use dtype::DType;
pub use error::KernelError;
pub use indices::Indices;
pub use tensor::Tensor;
