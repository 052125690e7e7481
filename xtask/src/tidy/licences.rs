//! Licences, sources and bans of every dependency, against deny.toml.
//!
//! The advisories database is not read: it is not in any package registry.

use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::layers::{Metadata, Package};
use crate::workspace;

/// The part of deny.toml that is checked here.
#[derive(Deserialize)]
struct Rules {
    licenses: Licences,
    sources: Sources,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    name: String,
}

/// Packages that break deny.toml.
pub(super) fn check(metadata: &Metadata) -> Result<Vec<String>> {
    let path = workspace::root().join("deny.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let rules: Rules = toml::from_str(&text).context("deny.toml does not read")?;
    Ok(metadata
        .packages
        .iter()
        .flat_map(|it| check_package(it, &rules))
        .collect())
}

fn check_package(package: &Package, rules: &Rules) -> Vec<String> {
    let name = format!("{} {}", package.name, package.version);
    let mut complaints = Vec::new();
    match &package.license {
        None => complaints.push(format!("{name} names no licence")),
        Some(expression) if !is_allowed(expression, &rules.licenses.allow) => {
            complaints.push(format!("{name} has licence {expression}; see deny.toml"));
        }
        Some(_) => {}
    }
    if let Some(source) = &package.source {
        let known = rules
            .sources
            .allow_registry
            .iter()
            .any(|it| source.strip_prefix("registry+") == Some(it));
        if !known {
            complaints.push(format!("{name} comes from {source}; see deny.toml"));
        }
    } else {
        for dependency in &package.dependencies {
            if dependency.req == "*" && dependency.path.is_none() {
                complaints.push(format!("{name} takes any version of {}", dependency.name));
            }
        }
    }
    if rules.bans.deny.iter().any(|it| it.name == package.name) {
        complaints.push(format!("{name} is banned by deny.toml"));
    }
    complaints
}

/// Whether an SPDX expression can be satisfied by allowed licences.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    // Before SPDX, `A/B` meant either.
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut position = 0;
    let satisfied = either(&tokens, &mut position, allowed);
    satisfied && position == tokens.len()
}

fn either(tokens: &[&str], position: &mut usize, allowed: &[String]) -> bool {
    let mut satisfied = both(tokens, position, allowed);
    while tokens.get(*position) == Some(&"OR") {
        *position += 1;
        satisfied |= both(tokens, position, allowed);
    }
    satisfied
}

fn both(tokens: &[&str], position: &mut usize, allowed: &[String]) -> bool {
    let mut satisfied = one(tokens, position, allowed);
    while tokens.get(*position) == Some(&"AND") {
        *position += 1;
        satisfied &= one(tokens, position, allowed);
    }
    satisfied
}

fn one(tokens: &[&str], position: &mut usize, allowed: &[String]) -> bool {
    let Some(token) = tokens.get(*position) else {
        return false;
    };
    *position += 1;
    if *token == "(" {
        let satisfied = either(tokens, position, allowed);
        let closed = tokens.get(*position) == Some(&")");
        *position += 1;
        return satisfied && closed;
    }
    let mut licence = (*token).to_owned();
    if tokens.get(*position) == Some(&"WITH") {
        licence = format!(
            "{licence} WITH {}",
            tokens.get(*position + 1).unwrap_or(&"")
        );
        *position += 2;
    }
    allowed.contains(&licence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_expression(expression: &str, expected: bool) {
        let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }

    #[test]
    fn expressions() {
        check_expression("MIT", true);
        check_expression("GPL-3.0", false);
        check_expression("GPL-3.0 OR MIT", true);
        check_expression("MIT/GPL-3.0", true);
        check_expression("MIT AND GPL-3.0", false);
        check_expression("(MIT OR GPL-3.0) AND Apache-2.0", true);
        check_expression("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true);
        check_expression("Apache-2.0 WITH other-exception", false);
        check_expression("(MIT", false);
        check_expression("MIT MIT", false);
        check_expression("", false);
    }
}
