//! `athome run verify`: computes a run again from its log and its updates, and says what does not hold.

mod beside;
mod data;
mod report;

use anyhow::{Context as _, bail};
use clap::Args;
use engine::replay::verify::{Blobs as _, Finding, Unchecked, Verifier};
use protocol::units::BlobReference;
use tokio_util::sync::CancellationToken;

use self::report::Verified;
use super::Context;
use crate::{
    output::{StatusLine, grouped, size},
    source::Source,
};

/// Width of the progress bar in characters.
const BAR_CHARACTERS: u64 = 24;

const EXAMPLES: &str = "\
Examples:
  athome run verify ~/.athome/hub
  athome run verify http://127.0.0.1:7700 --run speeches
  athome run verify copy-of-a-folder --json

FOLDER is a hub's or mirror's folder, or a copy of one; no hub may work in it meanwhile. Nothing is written to it.
Checked: the chain of hashes and every signature; that each entry may follow; each accepted update's bytes; each merge,
computed again; each stored checkpoint, compared bit for bit; each refusal whose bytes are there; tokenizer and data
shards; every other blob in a folder against its name; in a folder, too, what was set aside, the proofs of what was said
twice, and whether the hub's key reads. Not recomputed: evaluations and samples, which the hub measures;
tables that the hub folds from the log for its pages.

Exit status: 0 if everything holds, 1 if not, or if something that the log names is not there.";

/// Compute a run again from its log and updates, and name what does not hold.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Verify {
    /// A hub's folder, or a hub's or mirror's address
    #[arg(value_name = "FOLDER|URL")]
    place: String,
    /// Name or id of the run [default: the only one]
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Leave out the training data shards and blobs that the log does not name
    #[arg(long)]
    quick: bool,
    /// Accept that blobs are missing (a mirror need not keep all)
    #[arg(long)]
    allow_missing: bool,
}

impl Verify {
    pub(super) async fn execute(self, context: &Context<'_>) -> anyhow::Result<()> {
        let source = Source::open(&self.place, self.run.as_deref(), context.places).await?;
        let (quick, shutdown) = (self.quick, context.shutdown.clone());
        let verified =
            tokio::task::spawn_blocking(move || verify(source, quick, &shutdown)).await??;
        context.output.result(&verified, || verified.text())?;
        if let Some(first) = verified.findings.first() {
            let count = grouped(verified.findings_count);
            bail!("{count} found wrong; the first: {}", first.text());
        }
        if verified.unchecked_count > 0 && !self.allow_missing {
            bail!(
                "nothing is wrong in what was checked, but {} could not be (--allow-missing accepts that)",
                grouped(verified.unchecked_count)
            );
        }
        Ok(())
    }
}

/// Everything, on a thread for blocking calls.
fn verify(
    mut source: Source,
    quick: bool,
    shutdown: &CancellationToken,
) -> anyhow::Result<Verified> {
    let mut status = StatusLine::new();
    status.set("reading the log");
    let mut verified = Verified::new(&source);
    for problem in source.database_problems()? {
        verified.add_database_problem(&source, problem);
    }
    let (first, broken) = source.entries(0)?;
    let Some(entry) = first.first() else {
        let problem = broken.unwrap_or_else(|| "the log is empty".to_owned());
        verified.end_of_log(&source, 0, problem);
        return Ok(verified);
    };
    let mut verifier = match Verifier::begin(entry, &mut source) {
        Ok(verifier) => verifier,
        Err(error) => {
            verified.end_of_log(&source, 0, format!("{:#}", anyhow::Error::from(error)));
            return Ok(verified);
        }
    };
    if verifier.state().run != source.run() {
        let problem = "the log is another run's than the one it stands under";
        verified.end_of_log(&source, 0, problem.to_owned());
        return Ok(verified);
    }
    follow(
        &mut verifier,
        &mut source,
        &mut verified,
        &mut status,
        shutdown,
    )?;
    verifier.end(&mut source);
    let entries_end = verifier.state().head.length;
    data::check(&mut verifier, &mut source, quick, &mut status);
    beside::check(verifier.state(), &source, &mut verified, &mut status)?;
    if quick {
        verified.left_out.push("training data shards".to_owned());
        verified
            .left_out
            .push("blobs that the log does not name".to_owned());
    } else {
        check_others(&mut verifier, &mut source, &mut verified, &mut status)?;
    }
    status.end();
    debug_assert_eq!(entries_end, verifier.report().entries);
    verified.take(&source, &verifier);
    Ok(verified)
}

/// Folds the log from its second entry to its end, or to where it breaks.
fn follow(
    verifier: &mut Verifier,
    source: &mut Source,
    verified: &mut Verified,
    status: &mut StatusLine,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let from = verifier.state().head.length;
        let (entries, broken) = source.entries(from)?;
        let is_end = entries.is_empty();
        for entry in entries {
            if shutdown.is_cancelled() {
                bail!("stopped before it was done");
            }
            if let Err(error) = verifier.next(&entry, source) {
                let problem = format!("{:#}", anyhow::Error::from(error));
                verified.end_of_log(source, verifier.state().head.length, problem);
                return Ok(());
            }
            status.set(&progress(verifier, source.length()));
        }
        if let Some(problem) = broken {
            let next = verifier.state().head.length;
            verified.end_of_log(source, next, problem);
            return Ok(());
        }
        if is_end {
            return Ok(());
        }
    }
}

fn progress(verifier: &Verifier, length: u64) -> String {
    let (state, report) = (verifier.state(), verifier.report());
    let (done, length) = (report.entries, length.max(report.entries));
    let filled = (done * BAR_CHARACTERS / length) as usize;
    let bar = format!(
        "{}{}",
        "=".repeat(filled),
        " ".repeat(BAR_CHARACTERS as usize - filled)
    );
    format!(
        "[{bar}] entry {} of {}, round {}, {} read",
        grouped(done),
        grouped(length),
        state.round,
        size(report.blob_bytes)
    )
}

/// Blobs that no entry led to: refused updates that came late, what the last rounds left. Their names say what they are.
fn check_others(
    verifier: &mut Verifier,
    source: &mut Source,
    verified: &mut Verified,
    status: &mut StatusLine,
) -> anyhow::Result<()> {
    let others = source.others()?;
    verified.files_no_blobs = others.files;
    for (hash, path) in others.blobs {
        status.set(&format!(
            "reading blobs that the log does not name: {}",
            hash.short()
        ));
        let bytes = std::fs::metadata(&path)
            .with_context(|| format!("can't look at {}", path.display()))?
            .len();
        let what = "a blob that the log does not name";
        let blob = BlobReference { hash, bytes };
        let problem = match source.read(&blob) {
            Ok(Some(bytes)) if BlobReference::of(&bytes) == blob => {
                verified.blobs_unnamed += 1;
                continue;
            }
            Ok(Some(_)) => "its bytes are not those of its name: they were changed".to_owned(),
            Ok(None) => {
                verifier.add_unchecked(Unchecked {
                    entry: None,
                    blob: Some(hash),
                    what: what.to_owned(),
                });
                continue;
            }
            Err(problem) => problem,
        };
        verifier.add_finding(Finding {
            entry: None,
            blob: Some(hash),
            what: what.to_owned(),
            problem,
        });
    }
    Ok(())
}
