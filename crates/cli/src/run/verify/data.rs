//! The data that a charter names: the tokenizer and the data shards are there, whole, and what the charter says of them.

use data::{
    shard::{self, Split},
    tokenizer::Tokenizer,
};
use engine::replay::verify::{Finding, Verifier};
use protocol::{charter::Charter, charter::ShardReference, units::BlobReference};

use crate::{output::StatusLine, source::Source};

/// The log entry that has the charter.
const CHARTER: u64 = 0;

/// Checks tokenizer, held-out shards and, unless it must be quick, training shards.
pub(super) fn check(
    verifier: &mut Verifier,
    source: &mut Source,
    quick: bool,
    status: &mut StatusLine,
) {
    let charter = verifier.state().charter.clone();
    let mut looking = Looking {
        verifier,
        source,
        charter: &charter,
    };
    status.set("checking the tokenizer");
    looking.tokenizer();
    for (place, shard) in charter.data.held_out.iter().enumerate() {
        status.set(&format!("checking held-out data shard {place}"));
        looking.shard(
            shard,
            &format!("held-out data shard {place}"),
            Split::HeldOut,
        );
    }
    if quick {
        return;
    }
    let count = charter.data.training.len();
    for (place, shard) in charter.data.training.iter().enumerate() {
        status.set(&format!("checking training data shard {place} of {count}"));
        looking.shard(
            shard,
            &format!("training data shard {place}"),
            Split::Training,
        );
    }
}

/// What a look at the data needs.
struct Looking<'a> {
    verifier: &'a mut Verifier,
    source: &'a mut Source,
    charter: &'a Charter,
}

impl Looking<'_> {
    fn tokenizer(&mut self) {
        let blob = self.charter.data.tokenizer;
        let Some(bytes) = self
            .verifier
            .fetch(CHARTER, &blob, "the tokenizer", self.source)
        else {
            return;
        };
        match Tokenizer::from_bytes(&bytes) {
            Ok(tokenizer) if tokenizer.vocabulary_size() <= self.charter.model.vocab_size => {}
            Ok(_) => self.wrong(&blob, "the tokenizer", "it has more tokens than the model"),
            Err(error) => self.wrong(&blob, "the tokenizer", &error.to_string()),
        }
    }

    fn shard(&mut self, reference: &ShardReference, what: &str, split: Split) {
        let blob = reference.blob;
        let Some(bytes) = self.verifier.fetch(CHARTER, &blob, what, self.source) else {
            return;
        };
        let shard = match shard::decode(&bytes) {
            Ok(shard) => shard,
            Err(error) => return self.wrong(&blob, what, &error.to_string()),
        };
        let text_bytes: u64 = shard.header.documents.iter().map(|it| it.text_bytes).sum();
        if shard.header.split != split {
            self.wrong(&blob, what, "it is on the other side of the split");
        }
        if shard.header.tokenizer_hash != self.charter.data.tokenizer.hash {
            self.wrong(&blob, what, "another tokenizer made it");
        }
        if shard.tokens.len() as u64 != reference.tokens || text_bytes != reference.text_bytes {
            self.wrong(&blob, what, "it has another length than the charter says");
        }
    }

    fn wrong(&mut self, blob: &BlobReference, what: &str, problem: &str) {
        self.verifier.add_finding(Finding {
            entry: Some(CHARTER),
            blob: Some(blob.hash),
            what: what.to_owned(),
            problem: problem.to_owned(),
        });
    }
}
