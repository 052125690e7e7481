//! JSON Lines: one object a line, one document an object.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use serde_json::{Map, Value};

use super::{
    Document, ImportError, ImportReason, METADATA_VALUE_BYTES_MAX, Provenance,
    read::{Intake, Limits, files_at, json_error, name_of, open_file, utf8},
};

pub(super) fn read(
    path: &Path,
    text_field: &str,
    provenance: &Provenance,
    limits: &Limits,
) -> Result<Vec<Document>, ImportError> {
    let mut intake = Intake::new(limits);
    let mut documents = Vec::new();
    for file in files_at(path, "jsonl", limits)? {
        let before = documents.len();
        read_file(&file, text_field, provenance, limits, |line, document| {
            document
                .check()
                .and_then(|()| intake.add(&document.text))
                .map_err(|reason| ImportError::at_line(&file, line, reason))?;
            documents.push(document);
            Ok(())
        })?;
        if documents.len() == before {
            return Err(ImportError::of_file(&file, ImportReason::NoDocument));
        }
    }
    Ok(documents)
}

/// Gives every document of one file to `take`, with its line.
fn read_file(
    file: &Path,
    text_field: &str,
    provenance: &Provenance,
    limits: &Limits,
    mut take: impl FnMut(u64, Document) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let mut reader = BufReader::new(open_file(file)?);
    for line in 1.. {
        let mut bytes = Vec::new();
        let read = reader
            .by_ref()
            .take(limits.document_bytes_max + 1)
            .read_until(b'\n', &mut bytes)
            .map_err(|error| ImportError::at_line(file, line, ImportReason::Unreadable(error)))?;
        if read == 0 {
            break;
        }
        if read as u64 > limits.document_bytes_max {
            let reason = ImportReason::DocumentTooLarge {
                bytes_max: limits.document_bytes_max,
            };
            return Err(ImportError::at_line(file, line, reason));
        }
        // Without its end the line is one line to the parser too, whatever is wrong with it.
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        let text = utf8(file, line, bytes)?;
        if text.trim().is_empty() {
            continue;
        }
        let value: Value =
            serde_json::from_str(&text).map_err(|error| json_error(file, line - 1, &error))?;
        let document = document_of(value, text_field, provenance, &name_of(file), line)
            .map_err(|reason| ImportError::at_line(file, line, reason))?;
        take(line, document)?;
    }
    Ok(())
}

/// The document that one line's object describes.
fn document_of(
    value: Value,
    text_field: &str,
    provenance: &Provenance,
    file_name: &str,
    line: u64,
) -> Result<Document, ImportReason> {
    let Value::Object(mut fields) = value else {
        return Err(ImportReason::NotAnObject);
    };
    let text = take_string(&mut fields, text_field)?.ok_or(ImportReason::FieldMissing {
        field: text_field.to_owned(),
    })?;
    let title = take_string(&mut fields, "title")?;
    let source = take_string(&mut fields, "source")?;
    let owner = take_string(&mut fields, "owner")?;
    let licence = match take_string(&mut fields, "licence")? {
        Some(licence) => Some(licence),
        None => take_string(&mut fields, "license")?,
    };
    let mut metadata = BTreeMap::new();
    for (name, value) in fields {
        let value = match value {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            Value::Bool(truth) => truth.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => continue,
        };
        if value.len() <= METADATA_VALUE_BYTES_MAX {
            metadata.insert(name, value);
        }
    }
    metadata.insert("file".to_owned(), format!("{file_name}:{line}"));
    Ok(Document {
        text,
        title: title.unwrap_or_else(|| format!("{file_name}:{line}")),
        source: source.unwrap_or_else(|| provenance.source.clone()),
        licence: licence.unwrap_or_else(|| provenance.licence.clone()),
        owner: owner.unwrap_or_else(|| provenance.owner.clone()),
        metadata,
    })
}

/// Takes a string out of the object; a null counts as absent.
fn take_string(
    fields: &mut Map<String, Value>,
    field: &str,
) -> Result<Option<String>, ImportReason> {
    match fields.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(ImportReason::FieldOfOtherKind {
            field: field.to_owned(),
            expected: "a string",
        }),
    }
}
