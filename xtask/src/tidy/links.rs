//! Documents hold: relative links lead somewhere, and the commands of the README exist.

use std::{fs, path::Path};

use crate::documents::{self, Document};

/// The tasks that `cargo xtask` has.
const TASKS: [&str; 7] = ["up", "test", "bench", "fuzz", "sim", "setup", "tidy"];

/// What does not hold.
pub(super) fn check(documents: &[Document]) -> Vec<String> {
    let command_line: String = documents
        .iter()
        .filter(|it| it.path.starts_with("crates/cli/src/"))
        .filter_map(|it| it.text.as_deref())
        .collect();
    let mut complaints = Vec::new();
    for document in documents.iter().filter(|it| it.path.ends_with(".md")) {
        let text = document.text.as_deref().unwrap_or_default();
        complaints.extend(dead_links(&document.path, text));
        complaints.extend(unknown_commands(&document.path, text, &command_line));
    }
    if !documents.iter().any(|it| it.path == "README.md") {
        complaints.push("README.md is missing".to_owned());
    }
    complaints
}

fn dead_links(path: &str, text: &str) -> Vec<String> {
    let folder = Path::new(path).parent().unwrap_or(Path::new(""));
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .map(|target| target.split('#').next().unwrap_or(target))
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .filter(|target| {
            fs::metadata(documents::absolute(&folder.join(target).to_string_lossy())).is_err()
        })
        .map(|target| format!("{path}: the link to {target} leads nowhere"))
        .collect()
}

/// Commands in code: `cargo xtask TASK` and `athome COMMAND [SUBCOMMAND]`.
fn unknown_commands(path: &str, text: &str, command_line: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for line in code_pieces(text) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["cargo", "xtask", task, ..] if !TASKS.contains(task) => {
                complaints.push(format!("{path}: there is no `cargo xtask {task}`"));
            }
            ["athome", command, rest @ ..] => {
                let mut named = vec![*command];
                if let ("run" | "data", Some(subcommand)) = (*command, rest.first()) {
                    named.push(subcommand);
                }
                for word in named.into_iter().filter(|it| is_plain(it)) {
                    if !command_line.contains(&camel_case(word)) {
                        complaints.push(format!("{path}: `athome` has no `{word}` of `{line}`"));
                    }
                }
            }
            _ => {}
        }
    }
    complaints
}

/// Every line of a fenced block and every `inline` piece.
fn code_pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            pieces.push(line.trim().trim_start_matches("$ "));
        } else {
            pieces.extend(line.split('`').skip(1).step_by(2));
        }
    }
    pieces
}

fn is_plain(word: &str) -> bool {
    word.chars().all(|it| it.is_ascii_lowercase() || it == '-') && !word.starts_with('-')
}

fn camel_case(word: &str) -> String {
    word.split('-')
        .map(|part| {
            let mut letters = part.chars();
            letters
                .next()
                .map(|it| it.to_ascii_uppercase().to_string() + letters.as_str())
                .unwrap_or_default()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed() {
        assert!(dead_links("README.md", "[x](Cargo.toml#a) [y](https://example.org)").is_empty());
        assert_eq!(dead_links("README.md", "[x](docs/nothing.md)").len(), 1);
    }

    #[test]
    fn commands_are_looked_up() {
        let command_line = "enum Command { Join, Run }\nenum Run { CharterTemplate }";
        let check = |text: &str| unknown_commands("README.md", text, command_line).len();
        assert_eq!(check("```\ncargo xtask up\nathome join http://x\n```"), 0);
        assert_eq!(check("Type `athome run charter-template`."), 0);
        assert_eq!(check("Type `cargo xtask fly`."), 1);
        assert_eq!(check("```\n$ athome run fly\n```"), 1);
        assert_eq!(check("athome flies in prose"), 0);
    }
}
