//! Parameters to safetensors bytes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::config::ModelConfig;

/// The header is padded with spaces to a multiple of this, so that tensors are aligned when the file is mapped.
const HEADER_ALIGNMENT: usize = 8;

/// All parameters as one safetensors file, f32, tensors in the layout's order.
///
/// `metadata` is stored as it is, plus `format = pt`, which transformers demands. Equal inputs give equal bytes.
///
/// # Panics
/// If `parameters` is not as long as the configuration says.
pub fn to_safetensors(
    config: &ModelConfig,
    parameters: &[f32],
    metadata: &BTreeMap<String, String>,
) -> Vec<u8> {
    let header = header(config, metadata);
    let layout = config.layout();
    assert_eq!(parameters.len(), layout.len, "parameters of another model");
    let mut bytes = Vec::with_capacity(8 + header.len() + 4 * parameters.len());
    bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    for parameter in parameters {
        bytes.extend_from_slice(&parameter.to_le_bytes());
    }
    bytes
}

fn header(config: &ModelConfig, metadata: &BTreeMap<String, String>) -> String {
    let mut metadata = metadata.clone();
    metadata.insert("format".to_owned(), "pt".to_owned());
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let pairs: Vec<String> = metadata
        .iter()
        .map(|(key, value)| format!("{}:{}", quoted(key), quoted(value)))
        .collect();
    let mut header = format!("{{\"__metadata__\":{{{}}}", pairs.join(","));
    for tensor in config.layout().tensors {
        let (start, end) = (4 * tensor.offset, 4 * (tensor.offset + tensor.len()));
        let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
        // Writing to a string cannot fail.
        let _ = write!(
            header,
            ",{}:{{\"dtype\":\"F32\",\"shape\":[{}],\"data_offsets\":[{start},{end}]}}",
            quoted(&tensor.name),
            shape.join(",")
        );
    }
    header.push('}');
    while !header.len().is_multiple_of(HEADER_ALIGNMENT) {
        header.push(' ');
    }
    header
}
