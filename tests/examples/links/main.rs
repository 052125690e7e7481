//! What the benches `home-link`, `bytes` and `join` measure: real workers and a real hub, with a shaped link between them.
//!
//! Arguments: the bench; for `bytes` also `a` or `b`, for `home-link` `a` or `1b`, for one of its
//! two runs alone. Output: `figure NAME VALUE UNIT` lines; everything else is for whoever watches.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

mod bytes;
mod charters;
mod home_link;
mod join;
mod log;

use anyhow::{Result, bail};

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (bench, part) = (arguments.next(), arguments.next());
    match bench.as_deref() {
        Some("bytes") => bytes::measure(part.as_deref()).await,
        Some("home-link") => home_link::measure(part.as_deref()).await,
        Some("join") => join::measure().await,
        _ => bail!("usage: links bytes [a|b]|home-link [a|1b]|join"),
    }
}

/// Prints a figure.
fn figure(name: &str, value: f64, unit: &str) {
    println!("figure {name} {value} {unit}");
}
