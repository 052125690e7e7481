//! Names, lengths and first lines of Rust files.

use crate::documents::Document;

/// A longer file has at least two subjects.
const LINES_MAX: usize = 800;
/// Words that say nothing about what a file or type does.
const FORBIDDEN_WORDS: [&str; 9] = [
    "util", "utils", "common", "shared", "core", "helper", "manager", "misc", "base",
];

/// What is wrong with one file.
pub(super) fn check(document: &Document) -> Vec<String> {
    let path = &document.path;
    let (Some(stem), Some(text)) = (path.strip_suffix(".rs"), &document.text) else {
        return Vec::new();
    };
    let stem = stem.rsplit('/').next().unwrap_or(stem);
    let mut complaints = Vec::new();
    if stem == "mod" {
        complaints.push(format!(
            "{path}: name the file after the module, beside its folder"
        ));
    }
    if stem.split('_').any(|it| FORBIDDEN_WORDS.contains(&it)) {
        complaints.push(format!("{path}: the name says nothing about what is in it"));
    }
    let lines = text.lines().count();
    if LINES_MAX < lines {
        complaints.push(format!("{path}: {lines} lines; at most {LINES_MAX}"));
    }
    // `foo/tests.rs` is the end of `foo.rs`, which says what it is about.
    if stem != "tests" && !text.trim_start().starts_with("//!") {
        complaints.push(format!(
            "{path}: begins without `//!`: what, why, what it never does"
        ));
    }
    for name in public_type_names(text) {
        if words(name).any(|it| FORBIDDEN_WORDS.contains(&it.as_str())) {
            complaints.push(format!(
                "{path}: the name of type `{name}` says nothing about it"
            ));
        }
    }
    complaints
}

/// Names that other crates read; what a private type is called shows beside its use.
fn public_type_names(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let mut words = line.trim_start().strip_prefix("pub ")?.split_whitespace();
        matches!(
            words.next()?,
            "struct" | "enum" | "trait" | "type" | "union"
        )
        .then_some(())?;
        let name = words.next()?;
        let end = name
            .find(|it: char| !it.is_alphanumeric() && it != '_')
            .unwrap_or(name.len());
        Some(&name[..end])
    })
}

/// The words of a type's name in lower case.
fn words(name: &str) -> impl Iterator<Item = String> {
    let mut words: Vec<String> = Vec::new();
    for letter in name.chars() {
        match words.last_mut() {
            Some(word) if !letter.is_uppercase() => word.push(letter),
            _ => words.push(letter.to_lowercase().collect()),
        }
    }
    words.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_file(path: &str, text: &str, expected: usize) {
        let document = Document {
            path: path.to_owned(),
            text: Some(text.to_owned()),
        };
        let complaints = check(&document);
        assert_eq!(complaints.len(), expected, "{complaints:?}");
    }

    #[test]
    fn good_files_pass() {
        check_file(
            "crates/hub/src/merge.rs",
            "//! Merges.\nstruct Database;\n",
            0,
        );
        check_file("crates/hub/src/merge/tests.rs", "use super::*;\n", 0);
        check_file("docs/util.md", "no Rust", 0);
    }

    #[test]
    fn bad_files_are_named() {
        check_file("crates/hub/src/merge/mod.rs", "//! Merges.", 1);
        check_file("crates/hub/src/http_util.rs", "//! Things.", 1);
        check_file("crates/hub/src/merge.rs", "fn main() {}", 1);
        check_file("crates/hub/src/merge.rs", &"//! x\n".repeat(801), 1);
        check_file(
            "crates/hub/src/a.rs",
            "//! A.\npub struct RoundManager {}",
            1,
        );
        check_file(
            "crates/hub/src/a.rs",
            "//! A.\n    pub enum BaseError<T> {}",
            1,
        );
    }
}
