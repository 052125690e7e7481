//! A model folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` open.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{CheckpointError, from_safetensors, to_safetensors};
use crate::config::{CONFIG_BYTES_MAX, ConfigError, ModelConfig};

/// Bytes that a weights file may have beyond its tensors: header and metadata.
const HEADER_BYTES_MAX: u64 = 16 << 20;

/// Why a folder could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The file system refused.
    #[error("{path}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// `config.json` was refused.
    #[error("config.json was refused")]
    Config(#[from] ConfigError),
    /// `model.safetensors` was refused.
    #[error("model.safetensors was refused")]
    Checkpoint(#[from] CheckpointError),
    /// `tokenizer.json` is not JSON.
    #[error("tokenizer.json was refused")]
    Tokenizer(#[source] serde_json::Error),
    /// A file is longer than its content can be.
    #[error("{path} is longer than {bytes_max} bytes")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The most that would be read.
        bytes_max: u64,
    },
}

/// The part of `tokenizer.json` that is looked at.
#[derive(Deserialize)]
struct Tokenizer {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

/// Writes `model.safetensors`, `config.json`, `generation_config.json`, `tokenizer.json` and `tokenizer_config.json`
/// into `folder`, which is made if need be.
///
/// # Errors
/// A tokenizer that is not JSON, or a file that cannot be written; files written before that stay.
///
/// # Panics
/// If `parameters` is not as long as the configuration says.
pub fn write_folder(
    folder: &Path,
    config: &ModelConfig,
    parameters: &[f32],
    tokenizer_json: &[u8],
    metadata: &BTreeMap<String, String>,
) -> Result<(), FolderError> {
    let tokenizer: Tokenizer =
        serde_json::from_slice(tokenizer_json).map_err(FolderError::Tokenizer)?;
    std::fs::create_dir_all(folder).map_err(|source| FolderError::File {
        path: folder.to_owned(),
        source,
    })?;
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|source| FolderError::File { path, source })
    };
    write("config.json", config.to_json().as_bytes())?;
    write(
        "generation_config.json",
        generation_config(config).as_bytes(),
    )?;
    write("tokenizer.json", tokenizer_json)?;
    write(
        "tokenizer_config.json",
        tokenizer_config(config, &tokenizer).as_bytes(),
    )?;
    write(
        "model.safetensors",
        &to_safetensors(config, parameters, metadata),
    )
}

/// Reads `config.json` and `model.safetensors` of a folder.
///
/// # Errors
/// A file is missing, too long, or refused.
pub fn read_folder(folder: &Path) -> Result<(ModelConfig, Vec<f32>), FolderError> {
    let config = ModelConfig::from_json(&read_bounded(
        &folder.join("config.json"),
        CONFIG_BYTES_MAX as u64,
    )?)?;
    // Twice the tensors: an equal copy of a tied embedding may lie beside them.
    let tensors = 4 * (config.parameter_count() + config.vocab_size * config.hidden_size) as u64;
    let bytes = read_bounded(
        &folder.join("model.safetensors"),
        tensors + HEADER_BYTES_MAX,
    )?;
    let parameters = from_safetensors(&bytes, &config)?;
    Ok((config, parameters))
}

fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, FolderError> {
    let failed = |source| FolderError::File {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        return Err(FolderError::TooLong {
            path: path.to_owned(),
            bytes_max,
        });
    }
    Ok(bytes)
}

fn generation_config(config: &ModelConfig) -> String {
    let value = serde_json::json!({
        "_from_model_config": true,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
    });
    format!("{value:#}\n")
}

fn tokenizer_config(config: &ModelConfig, tokenizer: &Tokenizer) -> String {
    let content = |id: Option<u32>| {
        let token = tokenizer
            .added_tokens
            .iter()
            .find(|token| Some(token.id) == id);
        token.map(|token| token.content.clone())
    };
    let value = serde_json::json!({
        "bos_token": content(config.bos_token_id),
        "clean_up_tokenization_spaces": false,
        "eos_token": content(config.eos_token_id),
        "model_max_length": config.max_position_embeddings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    format!("{value:#}\n")
}
