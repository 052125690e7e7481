//! `home-link`, `bytes` and `join`: real workers and a real hub with a shaped link between them.
//!
//! The program is `tests/examples/links`; it says what each figure means.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::report::Figure;
use crate::{process, setup, workspace};

/// Runs the program for one bench, shows what it says and keeps its figures.
pub(super) fn measure(bench: &str) -> Result<Vec<Figure>> {
    setup::debian(&["iproute2"])?;
    setup::corpora()?;
    // As the tests build it: another choice of packages would compile the dependencies once more.
    let build = ["build", "--locked", "--workspace"];
    let what = ["--bins", "--example", "links"];
    process::required(
        "bench-links-build",
        &mut process::cargo(&[&build[..], &what[..]].concat()),
    )?;
    let mut program = Command::new(workspace::target().join("debug/examples/links"))
        .arg(bench)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the example `links`")?;
    let output = program.stdout.take().context("it has an output")?;
    let mut figures = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read what `links` says")?;
        match line.strip_prefix("figure ") {
            Some(text) => figures.push(figure(text)?),
            None => println!("{line}"),
        }
    }
    let status = program.wait()?;
    ensure!(status.success(), "the bench {bench} failed with {status}");
    ensure!(!figures.is_empty(), "the bench {bench} printed no figure");
    Ok(figures)
}

/// `NAME VALUE UNIT`.
fn figure(text: &str) -> Result<Figure> {
    let mut words = text.splitn(3, ' ');
    let mut word = || words.next().context("a figure has three parts");
    let (name, value, unit) = (word()?, word()?, word()?);
    let value = value
        .parse()
        .with_context(|| format!("`links` printed `{text}`"))?;
    let unit = match unit {
        "s" => "s",
        "bytes" => "bytes",
        "rounds" => "rounds",
        _ => "ratio",
    };
    Ok(Figure::new(name, value, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_figures() {
        let figure = figure("join_seconds 7.25 s").unwrap();
        assert_eq!((figure.name.as_str(), figure.value), ("join_seconds", 7.25));
        assert_eq!(figure.unit, "s");
        assert!(super::figure("join_seconds soon s").is_err());
        assert!(super::figure("join_seconds").is_err());
    }
}
