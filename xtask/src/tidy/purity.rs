//! Crates that decide what strangers must agree on read no clock, no entropy, no socket, no file.

use crate::documents::Document;

/// Sources that are pure.
const PURE: [&str; 4] = [
    "crates/protocol/src/",
    "crates/engine/src/",
    "crates/eval/src/",
    "crates/ledger/src/rules",
];
/// What a pure source never names.
const FORBIDDEN: [&str; 9] = [
    "SystemTime",
    "Instant",
    "std::net",
    "std::fs",
    "std::env",
    "tokio",
    "getrandom",
    "thread_rng",
    "OsRng",
];
/// Files that may name one of them after all, and why.
const EXCEPTIONS: [(&str, &str, &str); 1] = [(
    "crates/engine/src/checkpoint/folder.rs",
    "std::fs",
    "writes the folder that other programs open; the caller names the place",
)];

/// Where a pure source reaches for the world.
pub(super) fn check(document: &Document) -> Vec<String> {
    let path = &document.path;
    let Some(text) = &document.text else {
        return Vec::new();
    };
    if !path.ends_with(".rs") || !PURE.iter().any(|it| path.starts_with(it)) {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or(line);
        for word in FORBIDDEN {
            if has_word(code, word) && !is_excepted(path, word) {
                complaints.push(format!(
                    "{path}:{}: `{word}` in a pure crate: pass it as an argument",
                    index + 1
                ));
            }
        }
    }
    complaints
}

fn is_excepted(path: &str, word: &str) -> bool {
    EXCEPTIONS
        .iter()
        .any(|(file, what, _why)| *file == path && *what == word)
}

fn has_word(code: &str, word: &str) -> bool {
    let is_part = |it: Option<char>| it.is_some_and(|it| it.is_alphanumeric() || it == '_');
    code.match_indices(word).any(|(from, _)| {
        !is_part(code[..from].chars().next_back())
            && !is_part(code[from + word.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_line(path: &str, line: &str, expected: usize) {
        let document = Document {
            path: path.to_owned(),
            text: Some(line.to_owned()),
        };
        assert_eq!(check(&document).len(), expected, "{path}: {line}");
    }

    #[test]
    fn the_world_stays_outside() {
        let pure = "crates/protocol/src/log.rs";
        check_line(pure, "let now = std::time::SystemTime::now();", 1);
        check_line(pure, "use std::{net::TcpStream}; use tokio::spawn;", 1);
        check_line(pure, "use std::fs;", 1);
        check_line(pure, "struct Instantaneous; // not an Instant", 0);
        check_line("crates/hub/src/lib.rs", "use std::fs;", 0);
        check_line(EXCEPTIONS[0].0, "use std::fs;", 0);
        check_line(EXCEPTIONS[0].0, "use std::net;", 1);
    }
}
