//! The model and everything that computes on it: configuration, training step, evaluation, generation, checkpoints.
//!
//! One architecture, the Llama family (RMSNorm, rotary positions, SwiGLU, grouped-query attention, optionally tied
//! embeddings), so that what is trained here opens in Hugging Face transformers and what was trained there runs here.
//! Forward and backward are written out by hand over preallocated buffers; matrix products come from the `gemm` crate.
//!
//! Pure: reads no clock, no entropy and no socket. Seeds are arguments, and equal inputs give equal bits for any number
//! of threads (see [`arithmetic`] for what "equal" covers between machines).

pub mod arithmetic;
pub mod batch;
pub mod charter;
pub mod checkpoint;
pub mod config;
pub mod evaluate;
pub mod generate;
pub mod layout;
pub mod replay;
pub mod train;
pub mod update;

mod kernels;
mod model;
mod threads;
mod workspace;

pub use config::ModelConfig;
pub use layout::{Layout, TensorSpec, initial_parameters};
