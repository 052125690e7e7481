//! Safetensors bytes to parameters.

use safetensors::{Dtype, SafeTensorError, SafeTensors};

use crate::config::ModelConfig;
use crate::layout::TensorSpec;

/// Why a checkpoint was refused.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Not a safetensors file, or its header contradicts its size.
    #[error("not a readable safetensors file")]
    Format(#[from] SafeTensorError),
    /// A tensor that the configuration demands is missing.
    #[error("tensor {name} is missing")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor that the configuration does not know.
    #[error("tensor {name} is not part of the model")]
    Unknown {
        /// Its name.
        name: String,
    },
    /// A tensor of another shape.
    #[error("tensor {name} has shape {found:?}, the configuration says {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by the configuration.
        expected: Vec<usize>,
    },
    /// An element type other than f32, f16 and bf16.
    #[error("tensor {name} has element type {found}")]
    ElementType {
        /// Its name.
        name: String,
        /// The type's name.
        found: String,
    },
    /// An infinity or NaN.
    #[error("tensor {name} holds a value that is not finite")]
    NotFinite {
        /// Its name.
        name: String,
    },
    /// A model said to be tied comes with an output matrix that differs from its embedding.
    #[error("lm_head.weight differs from the embedding, but the configuration ties them")]
    Untied,
}

/// Reads all parameters of a model from one safetensors file; f32, f16 and bf16 are accepted.
///
/// Memory: the result only; `bytes` is read in place.
///
/// # Errors
/// Anything missing, left over, of another shape or type, or not finite. An output matrix beside a tied embedding is
/// accepted if it is equal, rotary tables of old exports are passed over.
pub fn from_safetensors(bytes: &[u8], config: &ModelConfig) -> Result<Vec<f32>, CheckpointError> {
    let file = SafeTensors::deserialize(bytes)?;
    let layout = config.layout();
    for name in file.names() {
        let known = layout.tensors.iter().any(|spec| spec.name == *name);
        let tied_copy = config.tie_word_embeddings && name == "lm_head.weight";
        if !known && !tied_copy && !name.ends_with(".rotary_emb.inv_freq") {
            return Err(CheckpointError::Unknown {
                name: name.to_owned(),
            });
        }
    }
    // Shapes are checked before anything is allocated: the file then is as large as the model.
    for spec in &layout.tensors {
        check_shape(&file, spec)?;
    }
    let mut parameters = Vec::with_capacity(layout.len);
    for spec in &layout.tensors {
        let start = parameters.len();
        decode(&file, spec, &mut parameters)?;
        if !parameters[start..].iter().all(|value| value.is_finite()) {
            return Err(CheckpointError::NotFinite {
                name: spec.name.clone(),
            });
        }
    }
    if config.tie_word_embeddings && file.names().contains(&"lm_head.weight") {
        let embedding = file.tensor(&layout.tensors[0].name)?;
        if file.tensor("lm_head.weight")?.data() != embedding.data() {
            return Err(CheckpointError::Untied);
        }
    }
    Ok(parameters)
}

fn check_shape(file: &SafeTensors, spec: &TensorSpec) -> Result<(), CheckpointError> {
    let Ok(tensor) = file.tensor(&spec.name) else {
        return Err(CheckpointError::Missing {
            name: spec.name.clone(),
        });
    };
    if tensor.shape() != spec.shape {
        return Err(CheckpointError::Shape {
            name: spec.name.clone(),
            found: tensor.shape().to_vec(),
            expected: spec.shape.clone(),
        });
    }
    Ok(())
}

fn decode(
    file: &SafeTensors,
    spec: &TensorSpec,
    into: &mut Vec<f32>,
) -> Result<(), CheckpointError> {
    let tensor = file.tensor(&spec.name)?;
    let data = tensor.data();
    let pairs = || data.chunks_exact(2).map(|bytes| [bytes[0], bytes[1]]);
    match tensor.dtype() {
        Dtype::F32 => {
            into.extend(
                data.chunks_exact(4)
                    .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
            );
        }
        Dtype::F16 => into.extend(pairs().map(|bytes| half::f16::from_le_bytes(bytes).to_f32())),
        Dtype::BF16 => into.extend(pairs().map(|bytes| half::bf16::from_le_bytes(bytes).to_f32())),
        other => {
            return Err(CheckpointError::ElementType {
                name: spec.name.clone(),
                found: format!("{other:?}"),
            });
        }
    }
    Ok(())
}
