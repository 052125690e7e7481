//! The house rules that a program can check: layers, purity, names, file lengths, licences, sources, documents.
//!
//! Runs as `cargo xtask tidy` and, so that nobody has to remember it, as a test.

mod layers;
mod licences;
mod links;
mod purity;
mod registries;
mod rust_files;

use anyhow::{Result, bail};

use crate::documents;

/// Checks everything and lists what is wrong.
pub(crate) fn run() -> Result<()> {
    let complaints = complaints()?;
    if !complaints.is_empty() {
        bail!(
            "{}\ntidy: {} complaints",
            complaints.join("\n"),
            complaints.len()
        );
    }
    println!("tidy: nothing to complain about");
    Ok(())
}

fn complaints() -> Result<Vec<String>> {
    let documents = documents::all()?;
    let metadata = layers::metadata()?;
    let mut complaints = layers::check(&metadata);
    complaints.extend(licences::check(&metadata)?);
    complaints.extend(registries::check(&documents));
    complaints.extend(links::check(&documents));
    for document in &documents {
        complaints.extend(rust_files::check(document));
        complaints.extend(purity::check(document));
    }
    Ok(complaints)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_repository_is_tidy() {
        let complaints = super::complaints().unwrap();
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    }
}
