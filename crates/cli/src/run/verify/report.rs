//! What a verification prints.

use engine::replay::verify::{LISTED_MAX, Verifier};
use serde::Serialize;

use crate::{
    output::{grouped, printable, size, table},
    run::show::credits,
    source::Source,
};

/// Findings that are printed for people; `--json` has more.
const SHOWN_MAX: usize = 20;

/// The result: what `--json` prints.
#[derive(Debug, Default, Serialize)]
pub(super) struct Verified {
    run: String,
    name: String,
    /// Whether nothing is wrong and everything that the model follows from was checked.
    holds: bool,
    log_entries: u64,
    log_entries_checked: u64,
    log_head: String,
    round: u64,
    merges: u64,
    merges_recomputed: u64,
    updates_checked: u64,
    refusals_checked: u64,
    refusals_gone: u64,
    /// Of the round that takes commitments now: nobody is given their bytes yet.
    updates_private: u64,
    inner_states_checked: u64,
    checkpoints_checked: u64,
    blobs_read: u64,
    blob_bytes_read: u64,
    /// Blobs beside those that the log names, each of them hashed.
    pub(super) blobs_unnamed: u64,
    /// Files among the blobs whose names are no hashes.
    pub(super) files_no_blobs: u64,
    /// Entries of a log that counts no more; each says what its sealer signed.
    pub(super) set_aside_checked: u64,
    /// Proofs that a key said two things.
    pub(super) proofs_checked: u64,
    /// Whose the key in a folder is.
    pub(super) key: Option<String>,
    evaluations_not_recomputed: u64,
    samples_not_recomputed: u64,
    first_model: &'static str,
    parameters_hash: String,
    outer_hash: String,
    tokens: u64,
    credits_micro: u64,
    workers: Vec<WorkerWork>,
    /// Left out because it was asked for.
    pub(super) left_out: Vec<String>,
    pub(super) unchecked: Vec<Missing>,
    pub(super) unchecked_count: u64,
    pub(super) findings: Vec<Wrong>,
    pub(super) findings_count: u64,
}

/// One worker's accepted work, recomputed.
#[derive(Debug, Serialize)]
struct WorkerWork {
    worker: String,
    name: String,
    updates_accepted: u64,
    updates_refused: u64,
    tokens: u64,
    credits_micro: u64,
}

/// Something wrong, with its place.
#[derive(Debug, Serialize)]
pub(super) struct Wrong {
    log_entry: Option<u64>,
    blob: Option<String>,
    place: String,
    what: String,
    problem: String,
}

/// Something that could not be checked.
#[derive(Debug, Serialize)]
pub(super) struct Missing {
    log_entry: Option<u64>,
    blob: Option<String>,
    what: String,
}

impl Wrong {
    /// One line for people.
    pub(super) fn text(&self) -> String {
        let entry = self
            .log_entry
            .map_or_else(String::new, |it| format!("log entry {it}: "));
        // Some problems say themselves where they are.
        let problem = self.problem.strip_prefix(&entry);
        format!(
            "{entry}{}: {} ({})",
            printable(&self.what),
            printable(problem.unwrap_or(&self.problem)),
            self.place
        )
    }
}

impl Verified {
    pub(super) fn new(source: &Source) -> Self {
        Self {
            run: source.run().to_string(),
            name: source.name().to_owned(),
            log_entries: source.length(),
            first_model: "unknown",
            ..Self::default()
        }
    }

    /// The database's own structure does not hold.
    pub(super) fn add_database_problem(&mut self, source: &Source, problem: String) {
        self.add(Wrong {
            log_entry: None,
            blob: None,
            place: source.log_place(),
            what: "the database".to_owned(),
            problem,
        });
    }

    /// Something beside the log does not hold.
    pub(super) fn add_beside(
        &mut self,
        place: String,
        log_entry: Option<u64>,
        what: &str,
        problem: String,
    ) {
        self.add(Wrong {
            log_entry,
            blob: None,
            place,
            what: what.to_owned(),
            problem,
        });
    }

    /// The log can't be followed beyond `entry`.
    pub(super) fn end_of_log(&mut self, source: &Source, entry: u64, problem: String) {
        self.add(Wrong {
            log_entry: Some(entry),
            blob: None,
            place: source.log_place(),
            what: "the log".to_owned(),
            problem,
        });
        let after = source.length().saturating_sub(entry + 1);
        if after > 0 {
            self.unchecked_count += 1;
            self.unchecked.push(Missing {
                log_entry: Some(entry + 1),
                blob: None,
                what: format!("the {} log entries from here on", grouped(after)),
            });
        }
    }

    fn add(&mut self, wrong: Wrong) {
        self.findings_count += 1;
        if self.findings.len() < LISTED_MAX {
            self.findings.push(wrong);
        }
    }

    /// Takes over what the verifier found.
    pub(super) fn take(&mut self, source: &Source, verifier: &Verifier) {
        let (state, report) = (verifier.state(), verifier.report());
        self.log_entries_checked = report.entries;
        self.log_head = state.head.hash.to_string();
        self.round = state.model.round;
        self.merges = report.merges;
        self.merges_recomputed = report.merges_recomputed;
        self.updates_checked = report.updates;
        self.refusals_checked = report.refusals;
        self.refusals_gone = report.refusals_gone;
        self.updates_private = report.private;
        self.inner_states_checked = report.inner_states;
        self.checkpoints_checked = report.checkpoints;
        self.blobs_read = report.blobs;
        self.blob_bytes_read = report.blob_bytes;
        self.evaluations_not_recomputed = report.evaluations;
        self.samples_not_recomputed = report.samples;
        self.first_model = match report.is_first_model_drawn {
            true => "drawn from the charter's seed",
            false => "given by the operator",
        };
        self.parameters_hash = state.model.parameters.to_string();
        self.outer_hash = state.model.outer.to_string();
        self.tokens = state.tokens;
        self.workers = state
            .workers
            .iter()
            .map(|(id, it)| WorkerWork {
                worker: id.to_string(),
                name: it.name.clone(),
                updates_accepted: it.updates_accepted,
                updates_refused: it.updates_refused,
                tokens: it.tokens,
                credits_micro: it.credits.0,
            })
            .collect();
        let credits = self.workers.iter().map(|it| it.credits_micro);
        self.credits_micro = credits.fold(0, u64::saturating_add);
        for finding in &report.findings {
            let place = match &finding.blob {
                Some(blob) => source.blob_place(blob),
                None => source.log_place(),
            };
            self.findings.push(Wrong {
                log_entry: finding.entry,
                blob: finding.blob.map(|it| it.to_string()),
                place,
                what: finding.what.clone(),
                problem: finding.problem.clone(),
            });
        }
        self.findings_count += report.findings_count;
        self.unchecked
            .extend(report.unchecked.iter().map(|it| Missing {
                log_entry: it.entry,
                blob: it.blob.map(|blob| blob.to_string()),
                what: it.what.clone(),
            }));
        self.unchecked_count += report.unchecked_count;
        self.holds = self.findings_count == 0 && self.unchecked_count == 0;
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut lines = vec![
            format!("run          {} ({})", printable(&self.name), self.run),
            format!(
                "log          {} of {} entries hold, head {}",
                grouped(self.log_entries_checked),
                grouped(self.log_entries.max(self.log_entries_checked)),
                self.log_head
            ),
            format!(
                "merges       {} of {} computed again, from {} updates",
                grouped(self.merges_recomputed),
                grouped(self.merges),
                grouped(self.updates_checked)
            ),
            format!(
                "checkpoints  {} compared with the recomputed model; the first was {}",
                grouped(self.checkpoints_checked),
                self.first_model
            ),
            format!(
                "refusals     {} deserved, {} without their bytes",
                grouped(self.refusals_checked),
                grouped(self.refusals_gone)
            ),
            format!(
                "blobs        {} read, {}; {} more hash to their names",
                grouped(self.blobs_read),
                size(self.blob_bytes_read),
                grouped(self.blobs_unnamed)
            ),
            format!(
                "model        round {}, parameters {}",
                self.round, self.parameters_hash
            ),
            format!("             outer state {}", self.outer_hash),
            format!(
                "accepted     {} tokens, {} credits",
                grouped(self.tokens),
                credits(self.credits_micro)
            ),
            format!(
                "not computed {} evaluations, {} samples: the hub measured them",
                grouped(self.evaluations_not_recomputed),
                grouped(self.samples_not_recomputed)
            ),
        ];
        if self.set_aside_checked + self.proofs_checked > 0 {
            lines.push(format!(
                "beside       {} entries that were set aside, {} proofs of what was said twice",
                grouped(self.set_aside_checked),
                grouped(self.proofs_checked)
            ));
        }
        if let Some(key) = &self.key {
            lines.push(format!("key          {key}"));
        }
        if self.updates_private > 0 {
            lines.push(format!(
                "not public   {} updates of the round that takes commitments now: verify again when it is over",
                grouped(self.updates_private)
            ));
        }
        for left_out in &self.left_out {
            lines.push(format!("left out     {left_out}, as asked"));
        }
        if self.files_no_blobs > 0 {
            let files = grouped(self.files_no_blobs);
            lines.push(format!(
                "left out     {files} files that are no blobs by name"
            ));
        }
        if !self.workers.is_empty() {
            lines.extend([String::new(), self.workers_table()]);
        }
        self.list_missing(&mut lines);
        self.list_wrong(&mut lines);
        lines.push(String::new());
        lines.push(self.verdict());
        lines.join("\n")
    }

    fn workers_table(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .workers
            .iter()
            .map(|it| {
                vec![
                    printable(&it.name),
                    grouped(it.updates_accepted),
                    grouped(it.updates_refused),
                    grouped(it.tokens),
                    credits(it.credits_micro),
                    it.worker.clone(),
                ]
            })
            .collect();
        let heading = ["WORKER", "ACCEPTED", "REFUSED", "TOKENS", "CREDITS", "ID"];
        table(&heading, &rows)
    }

    fn list_missing(&self, lines: &mut Vec<String>) {
        if self.unchecked_count == 0 {
            return;
        }
        lines.push(String::new());
        lines.push(format!(
            "Could not be checked: {}",
            grouped(self.unchecked_count)
        ));
        for missing in self.unchecked.iter().take(SHOWN_MAX) {
            let entry = missing
                .log_entry
                .map_or_else(String::new, |it| format!("log entry {it}: "));
            let blob = missing
                .blob
                .as_ref()
                .map_or_else(String::new, |it| format!(": blob {it} is not here"));
            lines.push(format!("  {entry}{}{blob}", printable(&missing.what)));
        }
        more(lines, self.unchecked_count);
    }

    fn list_wrong(&self, lines: &mut Vec<String>) {
        if self.findings_count == 0 {
            return;
        }
        lines.push(String::new());
        lines.push(format!("WRONG: {}", grouped(self.findings_count)));
        for wrong in self.findings.iter().take(SHOWN_MAX) {
            lines.push(format!("  {}", wrong.text()));
        }
        more(lines, self.findings_count);
    }

    fn verdict(&self) -> String {
        let verdict = if self.holds {
            "Everything holds."
        } else if self.findings_count == 0 {
            "Nothing is wrong in what could be checked."
        } else {
            "This run does not hold."
        };
        verdict.to_owned()
    }
}

fn more(lines: &mut Vec<String>, count: u64) {
    let more = count.saturating_sub(SHOWN_MAX as u64);
    if more > 0 {
        lines.push(format!("  and {} more", grouped(more)));
    }
}
