//! A group of one.

use super::Communicator;
use crate::{KernelError, Tensor};

pub struct Solo;

impl Communicator for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_reduce_sum(&mut self, _x: &mut Tensor) -> Result<(), KernelError> {
        Ok(())
    }
}
