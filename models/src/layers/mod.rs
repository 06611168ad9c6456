//! The parts that networks are made of: weights with the ops that use them.

pub mod embedding;
pub mod norm;
pub mod linear;
pub mod rope;
pub mod attention;
pub mod mlp;
pub mod scratch;
