//! What shall go wrong, by `VIRTUAL_GPU_FAULT`.

use std::sync::OnceLock;

pub struct Faults {
    /// One output of each column is wrong.
    pub is_wrong: bool,
    /// Sums depend on the number of columns.
    pub depends_on_batch: bool,
}

pub fn faults() -> &'static Faults {
    static FAULTS: OnceLock<Faults> = OnceLock::new();
    FAULTS.get_or_init(|| {
        let text = std::env::var("VIRTUAL_GPU_FAULT").unwrap_or_default();
        let has = |name: &str| text.split(',').any(|item| item.trim() == name);
        Faults { is_wrong: has("cublaslt-wrong"), depends_on_batch: has("cublaslt-batch") }
    })
}
