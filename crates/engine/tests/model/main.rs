//! The model as a whole: against PyTorch, against a plain f64 version, and against itself.

mod checkpoints;
mod generation;
mod gradients;
mod plain;
mod reference;
mod same_bits;
mod sample;
