//! Checkpoints: round trips, equal bytes, and files that must be refused.

use std::collections::BTreeMap;

use engine::ModelConfig;
use engine::checkpoint::{
    CheckpointError, from_safetensors, read_folder, to_safetensors, write_folder,
};

use crate::sample;

fn config(tied: bool) -> ModelConfig {
    ModelConfig {
        eos_token_id: Some(2),
        ..sample::config([13, 8, 6, 1, 2, 1, 16], tied)
    }
}

fn metadata() -> BTreeMap<String, String> {
    [("run", "r\"1\n"), ("checkpoint", "7")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn file(tied: bool) -> Vec<u8> {
    let config = config(tied);
    to_safetensors(&config, &sample::parameters(&config), &metadata())
}

/// A safetensors file with this header over this much data.
fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

fn split(bytes: &[u8]) -> (String, Vec<u8>) {
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    (
        String::from_utf8(bytes[8..8 + len].to_vec()).expect("a JSON header"),
        bytes[8 + len..].to_vec(),
    )
}

#[test]
fn bytes_read_back_and_repeat() {
    for tied in [true, false] {
        let config = config(tied);
        let bytes = file(tied);
        assert_eq!(
            from_safetensors(&bytes, &config).expect("our own file"),
            sample::parameters(&config)
        );
        assert_eq!(bytes, file(tied));
        let (header, _) = split(&bytes);
        assert!(
            header
                .starts_with(r#"{"__metadata__":{"checkpoint":"7","format":"pt","run":"r\"1\n"},"#),
            "{header}"
        );
        assert_eq!(header.len() % 8, 0);
    }
}

#[test]
fn golden_bytes() {
    let hash = blake3::hash(&file(true)).to_hex();
    assert_eq!(&hash[..16], "f4773d5021340ddd");
}

#[test]
fn half_precision_is_accepted() {
    let config = config(true);
    let parameters = sample::parameters(&config);
    type Encode = fn(f32) -> [u8; 2];
    let kinds: [(&str, Encode, f32); 2] = [
        (
            "F16",
            |value| half::f16::from_f32(value).to_le_bytes(),
            1e-3,
        ),
        (
            "BF16",
            |value| half::bf16::from_f32(value).to_le_bytes(),
            1e-2,
        ),
    ];
    for (kind, encode, tolerance) in kinds {
        let mut header = "{".to_owned();
        for tensor in config.layout().tensors {
            let (name, shape) = (&tensor.name, format!("{:?}", tensor.shape));
            let (start, end) = (2 * tensor.offset, 2 * (tensor.offset + tensor.len()));
            header += &format!(
                r#""{name}":{{"dtype":"{kind}","shape":{shape},"data_offsets":[{start},{end}]}},"#
            );
        }
        header.pop();
        header.push('}');
        let data: Vec<u8> = parameters.iter().flat_map(|&value| encode(value)).collect();
        let read = from_safetensors(&with_header(&header, &data), &config).expect(kind);
        for (read, value) in read.iter().zip(&parameters) {
            assert!(
                (read - value).abs() <= tolerance * value.abs() + 1e-6,
                "{kind}: {read}, was {value}"
            );
        }
    }
}

fn refused(bytes: &[u8]) -> CheckpointError {
    from_safetensors(bytes, &config(true)).expect_err("a file that must be refused")
}

#[test]
fn hostile_files_are_refused() {
    let good = file(true);
    let (header, data) = split(&good);
    for end in (0..good.len()).step_by(61) {
        assert!(
            matches!(refused(&good[..end]), CheckpointError::Format(_)),
            "cut at {end}"
        );
    }
    assert!(matches!(
        refused(&[good.as_slice(), &[0; 4]].concat()),
        CheckpointError::Format(_)
    ));
    let mut huge = good.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(refused(&huge), CheckpointError::Format(_)));

    let edit = |from: &str, to: &str| {
        assert!(header.contains(from), "{from}");
        refused(&with_header(&header.replacen(from, to, 1), &data))
    };
    assert!(matches!(
        edit("[13,8]", "[8,13]"),
        CheckpointError::Shape { .. }
    ));
    assert!(matches!(
        edit("[13,8]", "[13,9]"),
        CheckpointError::Format(_)
    ));
    assert!(matches!(
        edit("\"F32\"", "\"I32\""),
        CheckpointError::ElementType { .. }
    ));
    assert!(matches!(
        edit("model.norm.weight", "model.morn.weight"),
        CheckpointError::Unknown { .. }
    ));
    assert!(matches!(
        edit("model.norm.weight", "lm_head.weight"),
        CheckpointError::Missing { .. }
    ));
    assert!(matches!(
        edit("[0,416]", "[4,416]"),
        CheckpointError::Format(_)
    ));
    for value in [f32::NAN, f32::INFINITY] {
        let mut damaged = data.clone();
        damaged[40..44].copy_from_slice(&value.to_le_bytes());
        assert!(matches!(
            refused(&with_header(&header, &damaged)),
            CheckpointError::NotFinite { .. }
        ));
    }
    // Another model's file, and an output matrix that a tied model cannot have.
    assert!(matches!(refused(&file(false)), CheckpointError::Untied));
}

#[test]
fn every_flipped_header_bit_is_refused_or_harmless() {
    let good = file(true);
    let parameters = sample::parameters(&config(true));
    let (header, _) = split(&good);
    for bit in 0..8 * (8 + header.len()) {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(read) = from_safetensors(&bytes, &config(true)) {
            assert_eq!(read.len(), parameters.len(), "bit {bit}");
        }
    }
}

#[test]
fn a_folder_reads_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("new/model");
    let config = config(true);
    let parameters = sample::parameters(&config);
    let tokenizer = br#"{"added_tokens":[{"id":2,"content":"<|end|>"}],"model":{}}"#;
    write_folder(&path, &config, &parameters, tokenizer, &metadata()).expect("a writable folder");
    assert_eq!(
        read_folder(&path).expect("our own folder"),
        (config, parameters)
    );
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path.join(name)).expect(name)).expect(name)
    };
    assert_eq!(json("tokenizer_config.json")["eos_token"], "<|end|>");
    assert_eq!(
        json("tokenizer_config.json")["tokenizer_class"],
        "PreTrainedTokenizerFast"
    );
    assert_eq!(json("generation_config.json")["eos_token_id"], 2);
    assert_eq!(
        std::fs::read(path.join("tokenizer.json")).expect("tokenizer"),
        tokenizer
    );

    assert!(
        write_folder(
            &path,
            &self::config(true),
            &sample::parameters(&self::config(true)),
            b"{",
            &metadata()
        )
        .is_err()
    );
    std::fs::write(path.join("config.json"), vec![b' '; 1 << 20]).expect("a writable file");
    assert!(read_folder(&path).is_err());
    assert!(read_folder(&folder.path().join("absent")).is_err());
}
