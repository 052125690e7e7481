//! What the benches `home-link`, `bytes` and `join` measure: real workers and a real hub, with a shaped link between them.
//!
//! Argument: the bench. Output: `figure NAME VALUE UNIT` lines; everything else is for whoever watches.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

mod bytes;
mod charters;
mod home_link;
mod join;
mod log;

use anyhow::{Result, bail};

#[tokio::main]
async fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("bytes") => bytes::measure().await,
        Some("home-link") => home_link::measure().await,
        Some("join") => join::measure().await,
        _ => bail!("usage: links bytes|home-link|join"),
    }
}

/// Prints a figure.
fn figure(name: &str, value: f64, unit: &str) {
    println!("figure {name} {value} {unit}");
}
