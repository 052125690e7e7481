//! Bounded reading: which files a path stands for, their bytes, their text.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use super::{ImportError, ImportReason};

/// What one import may read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Files of one call.
    pub(super) files_max: usize,
    /// Documents of one call.
    pub(super) documents_max: usize,
    /// Bytes of one document's file or line.
    pub(super) document_bytes_max: u64,
    /// Bytes of all texts of one call: they are held in memory.
    pub(super) total_bytes_max: u64,
}

impl Limits {
    /// Enough for a corpus that fits in a home machine's memory; larger ones are cut into several datasets.
    pub(super) const DEFAULT: Self = Self {
        files_max: 1_000_000,
        documents_max: 10_000_000,
        document_bytes_max: 64 << 20,
        total_bytes_max: 4 << 30,
    };
}

impl ImportError {
    /// A fault of the whole file.
    pub(super) fn of_file(file: &Path, reason: ImportReason) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            reason,
        }
    }

    /// A fault in a line, counted from 1.
    pub(super) fn at_line(file: &Path, line: u64, reason: ImportReason) -> Self {
        Self {
            file: file.to_owned(),
            line: Some(line),
            reason,
        }
    }
}

/// Keeps count of what one call has taken in.
pub(super) struct Intake<'a> {
    limits: &'a Limits,
    documents: usize,
    bytes: u64,
}

impl<'a> Intake<'a> {
    pub(super) fn new(limits: &'a Limits) -> Self {
        Self {
            limits,
            documents: 0,
            bytes: 0,
        }
    }

    /// Counts one more document, or says which limit it breaks.
    pub(super) fn add(&mut self, text: &str) -> Result<(), ImportReason> {
        self.documents += 1;
        self.bytes += text.len() as u64;
        if self.documents > self.limits.documents_max {
            return Err(ImportReason::TooManyDocuments {
                documents_max: self.limits.documents_max,
            });
        }
        if self.bytes > self.limits.total_bytes_max {
            return Err(ImportReason::TotalTooLarge {
                bytes_max: self.limits.total_bytes_max,
            });
        }
        Ok(())
    }
}

/// The files that `path` stands for: itself, or the files in the folder whose names end in `.extension`, sorted by name.
pub(super) fn files_at(
    path: &Path,
    extension: &'static str,
    limits: &Limits,
) -> Result<Vec<PathBuf>, ImportError> {
    let refused = |reason| ImportError::of_file(path, reason);
    let kind = fs::metadata(path).map_err(|error| refused(ImportReason::Unreadable(error)))?;
    if !kind.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    let entries = fs::read_dir(path).map_err(|error| refused(ImportReason::Unreadable(error)))?;
    for entry in entries {
        let file = entry
            .map_err(|error| refused(ImportReason::Unreadable(error)))?
            .path();
        if file.extension().is_none_or(|found| found != extension) || !file.is_file() {
            continue;
        }
        if files.len() == limits.files_max {
            return Err(refused(ImportReason::TooManyFiles {
                files_max: limits.files_max,
            }));
        }
        files.push(file);
    }
    if files.is_empty() {
        return Err(refused(ImportReason::NoMatchingFile { extension }));
    }
    files.sort();
    Ok(files)
}

/// Opens a regular file; a pipe or device would block or never end.
pub(super) fn open_file(file: &Path) -> Result<File, ImportError> {
    let refused = |reason| ImportError::of_file(file, reason);
    let kind = fs::metadata(file).map_err(|error| refused(ImportReason::Unreadable(error)))?;
    if !kind.is_file() {
        return Err(refused(ImportReason::NotAFile));
    }
    File::open(file).map_err(|error| refused(ImportReason::Unreadable(error)))
}

/// The whole file as text, at most `document_bytes_max` bytes of it, without a byte-order mark.
pub(super) fn file_text(file: &Path, limits: &Limits) -> Result<String, ImportError> {
    let refused = |reason| ImportError::of_file(file, reason);
    let mut bytes = Vec::new();
    open_file(file)?
        .take(limits.document_bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| refused(ImportReason::Unreadable(error)))?;
    if bytes.len() as u64 > limits.document_bytes_max {
        return Err(refused(ImportReason::DocumentTooLarge {
            bytes_max: limits.document_bytes_max,
        }));
    }
    utf8(file, 1, bytes)
}

/// Bytes as text, without a byte-order mark; `first_line` is the line that they begin with.
pub(super) fn utf8(file: &Path, first_line: u64, bytes: Vec<u8>) -> Result<String, ImportError> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = first_line + good.iter().filter(|&&byte| byte == b'\n').count() as u64;
        let line_start = good
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        let byte = (good.len() - line_start) as u64 + 1;
        ImportError::at_line(file, line, ImportReason::NotUtf8 { byte })
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// A JSON parser's complaint; `line_offset` is added to the line that the parser counted.
pub(super) fn json_error(file: &Path, line_offset: u64, error: &serde_json::Error) -> ImportError {
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = error.to_string();
    let message = message.strip_suffix(&place).unwrap_or(&message).to_owned();
    ImportError::at_line(
        file,
        line_offset + error.line().max(1) as u64,
        ImportReason::NotJson {
            message,
            column: error.column(),
        },
    )
}

/// The file's name, for titles and metadata; a name that is not UTF-8 is shown with replacement characters.
pub(super) fn name_of(file: &Path) -> String {
    file.file_name()
        .unwrap_or(file.as_os_str())
        .to_string_lossy()
        .into_owned()
}
