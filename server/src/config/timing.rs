//! `--timing`: a device that is described instead of being there.

use super::{ConfigError, flag_error, read_flag_file};
use crate::ranks::GpuTimes;
use std::path::Path;

const FLAG: &str = "--timing";

/// `typed` is 0 or a file. Errors: a file that cannot be read or says what it cannot mean; ranks,
/// of which there are none.
pub fn check(typed: &str, tensor_parallel: usize) -> Result<GpuTimes, ConfigError> {
    if tensor_parallel > 1 {
        let reason = format!("describes all there is; --tensor-parallel-size {tensor_parallel}");
        return Err(flag_error(FLAG, format!("{reason} has nothing to split")));
    }
    if typed == "0" {
        return Ok(GpuTimes::zero());
    }
    let text = read_flag_file(Path::new(typed))?;
    GpuTimes::parse(&text).map_err(|error| flag_error(FLAG, format!("{typed}: {error}")))
}
