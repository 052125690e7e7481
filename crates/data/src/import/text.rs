//! Plain text: one file, one document.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    Document, ImportError, ImportReason, Provenance,
    read::{Intake, Limits, file_text, files_at, name_of},
};

const EXTENSION: &str = "txt";

pub(super) fn read(
    paths: &[PathBuf],
    provenance: &Provenance,
    limits: &Limits,
) -> Result<Vec<Document>, ImportError> {
    if paths.is_empty() {
        let reason = ImportReason::NoMatchingFile {
            extension: EXTENSION,
        };
        return Err(ImportError::of_file(Path::new("."), reason));
    }
    let mut intake = Intake::new(limits);
    let mut documents = Vec::new();
    for path in paths {
        for file in files_at(path, EXTENSION, limits)? {
            let text = file_text(&file, limits)?;
            let name = name_of(&file);
            let document = Document {
                text,
                title: name.strip_suffix(".txt").unwrap_or(&name).to_owned(),
                source: provenance.source.clone(),
                licence: provenance.licence.clone(),
                owner: provenance.owner.clone(),
                metadata: BTreeMap::from([("file".to_owned(), name)]),
            };
            document
                .check()
                .and_then(|()| intake.add(&document.text))
                .map_err(|reason| ImportError::of_file(&file, reason))?;
            documents.push(document);
        }
    }
    Ok(documents)
}
