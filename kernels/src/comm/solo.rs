//! A group of one.

use super::{Communicator, expect_columns};
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

    fn all_gather_columns(&mut self, out: &mut Tensor, part: &Tensor) -> Result<(), KernelError> {
        expect_columns(out, part, 0, 1)?;
        out.copy_from(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;
    use crate::{Backend, DType};

    #[test]
    fn the_columns_of_a_group_of_one_are_all_columns() {
        let part = tensor(1, &[3, 5], 1.0);
        let mut out = tensor(2, &[3, 5], 1.0);
        Solo.all_gather_columns(&mut out, &part).expect("shapes fit");
        assert_same_bits(out.f32(), part.f32(), "on the host");
        for device in cuda_devices() {
            let there = on_device(&device, DType::F32, &[3, 5], part.f32());
            let mut out = Tensor::zeros_on(&Backend::Cuda(device), DType::F32, &[3, 5]).unwrap();
            Solo.all_gather_columns(&mut out, &there).expect("shapes fit");
            assert_same_bits(&out.to_f32().unwrap(), part.f32(), "on a GPU");
        }
        let short = tensor(1, &[3, 4], 1.0);
        let error = Solo.all_gather_columns(&mut out, &short);
        assert!(matches!(error, Err(KernelError::Shape { what: "part", .. })), "{error:?}");
    }
}
