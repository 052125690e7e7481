//! No tracked file names the host of a package registry: which one is used is the package client's own setting.

use std::{env, fs, path::PathBuf};

use crate::{documents::Document, process};

/// What is wrong in all tracked files.
pub(super) fn check(documents: &[Document]) -> Vec<String> {
    let hosts = configured_hosts();
    documents
        .iter()
        .flat_map(|it| check_document(it, &hosts))
        .collect()
}

fn check_document(document: &Document, hosts: &[String]) -> Vec<String> {
    let path = &document.path;
    let Some(text) = &document.text else {
        return Vec::new();
    };
    let mut complaints: Vec<String> = hosts
        .iter()
        .filter(|it| text.contains(it.as_str()))
        .map(|host| format!("{path}: names the registry host {host}"))
        .collect();
    if path.ends_with("package-lock.json") && text.contains("\"resolved\": \"http") {
        complaints.push(format!(
            "{path}: has download addresses; `omit-lockfile-registry-resolved=true` in .npmrc leaves them out"
        ));
    }
    complaints
}

/// Hosts that npm, pip and cargo are set up to ask on this machine.
fn configured_hosts() -> Vec<String> {
    let mut texts: Vec<String> = [
        process::answer("npm", &["config", "get", "registry"]),
        process::answer("/usr/bin/python3", &["-m", "pip", "config", "list"]),
        process::answer("python3", &["-m", "pip", "config", "list"]),
    ]
    .into_iter()
    .flatten()
    .collect();
    let cargo_home = env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    for name in ["config.toml", "config"] {
        texts.extend(fs::read_to_string(cargo_home.join(name)));
    }
    let mut hosts: Vec<String> = texts.iter().flat_map(|it| hosts_in(it)).collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

fn hosts_in(text: &str) -> Vec<String> {
    text.split("://")
        .skip(1)
        .filter_map(|rest| {
            let authority = rest.split(['/', '"', '\'', '\n', ' ']).next()?;
            let host = authority.rsplit('@').next()?.split(':').next()?;
            // One label is a name of this machine's own network, too short to look for in texts.
            (host.contains('.') && host != "github.com").then(|| host.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_come_out_of_settings() {
        assert_eq!(
            hosts_in("global.index-url='https://user:secret@packages.example.org:8080/simple'\n"),
            ["packages.example.org"]
        );
        assert!(hosts_in("no address here").is_empty());
    }

    #[test]
    fn lock_files_with_addresses_are_refused() {
        let document = |text: &str| Document {
            path: "web/package-lock.json".to_owned(),
            text: Some(text.to_owned()),
        };
        let hosts = ["packages.example.org".to_owned()];
        assert!(check_document(&document("{\"version\": 1}"), &hosts).is_empty());
        let bad = document("{\"resolved\": \"https://packages.example.org/x.tgz\"}");
        assert_eq!(check_document(&bad, &hosts).len(), 2);
    }
}
