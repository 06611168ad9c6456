//! The NCCL half of the Virtual GPU.
