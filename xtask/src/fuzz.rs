//! `cargo xtask fuzz`: libFuzzer over the decoders of strangers' bytes, one target after the other.
//!
//! Needs a nightly toolchain and `cargo-fuzz` (`cargo install cargo-fuzz`); `cargo xtask test` runs a short version on stable
//! without either. Inputs begin with `fuzz/corpus/NAME`; what fuzzing adds stays in `fuzz/target/grown`, and what fails lands in
//! `fuzz/artifacts/NAME`: mend it and move the file to the corpus, where the short version finds it again.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{process, workspace};

/// Longest input.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// Memory at which an input counts as a failure.
const MEMORY_MIB_MAX: usize = 2_048;
/// Seconds at which one input counts as a failure.
const SECONDS_OF_INPUT_MAX: usize = 10;

/// What to fuzz.
#[derive(Args)]
pub(crate) struct Options {
    /// One target (`fuzz/Cargo.toml` lists them); all without one.
    target: Option<String>,
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Runs the targets.
pub(crate) fn run(options: &Options) -> Result<()> {
    let root = workspace::root();
    let known = targets(&root)?;
    let wanted = match &options.target {
        Some(name) => {
            ensure!(
                known.contains(name),
                "there is no target {name}; there are {}",
                known.join(", ")
            );
            vec![name.clone()]
        }
        None => known,
    };
    // The versions of everything but the fuzzer itself are the repository's.
    fs::copy(root.join("Cargo.lock"), root.join("fuzz/Cargo.lock"))?;
    for name in wanted {
        fuzz(&root, &name, options.seconds)?;
    }
    Ok(())
}

fn targets(root: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(root.join("fuzz/Cargo.toml"))?;
    let manifest: toml::Value = toml::from_str(&text)?;
    let binaries = manifest["bin"].as_array().context("no targets")?;
    let names = binaries.iter().filter_map(|it| it["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

fn fuzz(root: &Path, name: &str, seconds: u64) -> Result<()> {
    let grown = root.join("fuzz/target/grown").join(name);
    let corpus = root.join("fuzz/corpus").join(name);
    fs::create_dir_all(&grown)?;
    ensure!(
        corpus.is_dir(),
        "{} is missing: `cargo run -p tests --example corpus` writes it",
        corpus.display()
    );
    println!("{name}: {seconds} s");
    let arguments = [
        "+nightly".to_owned(),
        "fuzz".into(),
        "run".into(),
        // The decoders are safe Rust: panics and overflows are what to look for.
        "--sanitizer=none".into(),
        "--debug-assertions".into(),
        name.into(),
        grown.to_string_lossy().into_owned(),
        corpus.to_string_lossy().into_owned(),
        "--".into(),
        format!("-max_total_time={seconds}"),
        format!("-max_len={INPUT_BYTES_MAX}"),
        format!("-rss_limit_mb={MEMORY_MIB_MAX}"),
        format!("-timeout={SECONDS_OF_INPUT_MAX}"),
        "-print_final_stats=1".into(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let log = process::logged(
        &format!("fuzz-{name}"),
        &mut process::command_in(root, "cargo", &arguments),
    )
    .context(
        "cannot start cargo; install rustup's nightly toolchain and `cargo install cargo-fuzz`",
    )?;
    ensure!(
        log.success,
        "{name} found something, or does not build; see {}\n{}",
        log.path.display(),
        process::tail(&log.text)
    );
    let done = log
        .text
        .lines()
        .filter(|it| it.contains("stat::number_of_executed_units"));
    println!("{}", done.collect::<Vec<_>>().join("\n"));
    Ok(())
}
