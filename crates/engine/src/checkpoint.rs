//! Checkpoints in Hugging Face's form: `model.safetensors`, `config.json`, tokenizer files.
//!
//! Writing gives equal bytes for equal inputs (metadata is sorted), because a checkpoint's hash is recorded. Reading
//! trusts nothing: sizes, names, shapes and values are checked before a parameter is believed.
//! Format: the safetensors specification (8-byte header length, JSON header, little-endian data).

mod folder;
mod read;
mod write;

pub use folder::{FolderError, read_folder, write_folder};
pub use read::{CheckpointError, from_safetensors};
pub use write::to_safetensors;
