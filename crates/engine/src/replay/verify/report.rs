//! What a verification found, with the places.

use protocol::{Hash, units::BlobReference};

use super::Blobs;

/// Findings and unchecked blobs that are kept by name; more are only counted.
pub const LISTED_MAX: usize = 1_000;
/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Position of the log entry that names it; none if no entry does.
    pub entry: Option<u64>,
    /// The blob, if it is about one.
    pub blob: Option<Hash>,
    /// What it is about, for people.
    pub what: String,
    /// What is wrong, for people.
    pub problem: String,
}

/// Something that could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unchecked {
    /// Position of the log entry that names it; none if no entry does.
    pub entry: Option<u64>,
    /// The blob that is not there, if that is why.
    pub blob: Option<Hash>,
    /// What it is, for people.
    pub what: String,
}

/// What was found out about a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Log entries whose place, hash, signatures and transition hold.
    pub entries: u64,
    /// Merges in the log.
    pub merges: u64,
    /// Merges that were computed again.
    pub merges_recomputed: u64,
    /// Accepted updates whose bytes were read, hashed and decoded.
    pub updates: u64,
    /// Refused updates whose bytes are there and deserve the refusal.
    pub refusals: u64,
    /// Refused updates whose bytes are not there, or that the hub lost: nobody can look at them again.
    pub refusals_gone: u64,
    /// Verdicts on updates of the round that takes commitments at the log's end, whose bytes nobody is given yet.
    pub private: u64,
    /// Published inner states that were read and decoded.
    pub inner_states: u64,
    /// Checkpoints, the first model among them, that were compared with the recomputed model.
    pub checkpoints: u64,
    /// Evaluations in the log: measured by the hub, not recomputed.
    pub evaluations: u64,
    /// Samples in the log: written by the hub, not recomputed.
    pub samples: u64,
    /// Blobs read.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Whether the first model is the one that the charter's seed gives.
    pub is_first_model_drawn: bool,
    /// What is wrong, at most [`LISTED_MAX`] of it.
    pub findings: Vec<Finding>,
    /// How much is wrong.
    pub findings_count: u64,
    /// What was not looked at, at most [`LISTED_MAX`] of it.
    pub unchecked: Vec<Unchecked>,
    /// How much was not looked at.
    pub unchecked_count: u64,
}

impl Report {
    /// Whether nothing is wrong and everything that the model follows from was checked.
    pub fn holds(&self) -> bool {
        self.findings_count == 0 && self.unchecked_count == 0
    }

    pub(super) fn add_finding(&mut self, finding: Finding) {
        self.findings_count += 1;
        if self.findings.len() < LISTED_MAX {
            self.findings.push(finding);
        }
    }

    pub(super) fn add_unchecked(&mut self, unchecked: Unchecked) {
        self.unchecked_count += 1;
        if self.unchecked.len() < LISTED_MAX {
            self.unchecked.push(unchecked);
        }
    }

    pub(super) fn wrong(&mut self, entry: u64, blob: Option<Hash>, what: String, problem: String) {
        self.add_finding(Finding {
            entry: Some(entry),
            blob,
            what,
            problem,
        });
    }

    pub(super) fn not_checked(&mut self, entry: u64, blob: Option<Hash>, what: String) {
        self.add_unchecked(Unchecked {
            entry: Some(entry),
            blob,
            what,
        });
    }

    /// What this entry named and was not there need not be there after all.
    pub(super) fn is_not_needed(&mut self, entry: u64) {
        let before = self.unchecked.len();
        self.unchecked.retain(|it| it.entry != Some(entry));
        self.unchecked_count -= (before - self.unchecked.len()) as u64;
    }

    /// A blob that hashes to its name.
    pub(super) fn fetch(
        &mut self,
        entry: u64,
        blob: &BlobReference,
        what: &str,
        blobs: &mut dyn Blobs,
    ) -> Option<Vec<u8>> {
        let read = blobs.read(blob);
        self.look_at(entry, blob, what, read)
    }

    /// A blob that need not be there; damaged bytes are a finding all the same.
    pub(super) fn fetch_if_there(
        &mut self,
        entry: u64,
        blob: &BlobReference,
        what: &str,
        blobs: &mut dyn Blobs,
    ) -> Option<Vec<u8>> {
        match blobs.read(blob) {
            Ok(None) => None,
            read => self.look_at(entry, blob, what, read),
        }
    }

    fn look_at(
        &mut self,
        entry: u64,
        blob: &BlobReference,
        what: &str,
        read: Result<Option<Vec<u8>>, String>,
    ) -> Option<Vec<u8>> {
        let problem = match read {
            Ok(None) => {
                self.not_checked(entry, Some(blob.hash), what.to_owned());
                return None;
            }
            Ok(Some(bytes)) => {
                self.blobs += 1;
                self.blob_bytes += bytes.len() as u64;
                let found = BlobReference::of(&bytes);
                if found == *blob {
                    return Some(bytes);
                }
                format!(
                    "its {} bytes hash to {}: they were changed",
                    found.bytes, found.hash
                )
            }
            Err(problem) => problem,
        };
        self.wrong(entry, Some(blob.hash), what.to_owned(), problem);
        None
    }
}
