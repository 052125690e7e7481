//! What a hub may lack that was replaced, or that started again from an older copy of its log: it is given again.
//!
//! A hub's acknowledgement is only as good as the copies of its log. The mirror that takes over may lack the last entries,
//! and the bytes that were not public yet. A commitment that the log lacks while a round still takes it is sent again, in
//! the order of rounds, because each names the state that the one before left; so is what the log waits for.

use std::time::Duration;

use anyhow::Result;
use protocol::{
    api::Work,
    command::{Command, Commitment},
    state::round::LATE_ROUNDS_MAX,
};

use super::{Session, round_of_run};

/// Longest time for sending one commitment again: a round may be training meanwhile.
const SEND_MAX: Duration = Duration::from_secs(5);
/// Refusals of a commitment that say nothing against it.
const NOT_YET: [&str; 3] = ["between_rounds", "not_joined", "replayed"];

impl Session<'_> {
    /// Gives the hub what its log lacks; the length of its log with the newest commitment of those, if there was one.
    pub(super) async fn mend(&mut self, work: &Work) -> Result<Option<u64>> {
        let (asked, reunions) = {
            let news = self.news.borrow();
            (news.asked, news.reunions)
        };
        let (Some(asked), Some(round)) = (asked, round_of_run(work)) else {
            return Ok(None);
        };
        self.outbox.come_to(round, work.model.round);
        if self.reunions.replace(reunions) != Some(reunions) {
            // Another log has other lengths.
            self.committed_at = 0;
            // The last merge with this worker's work may have been of a late update, and one of an earlier round than that
            // merge's, or of a merge that the hub before had done, may still be waited for.
            let merged = work.worker.last_round.unwrap_or(0);
            self.outbox
                .send_again(merged.saturating_sub(LATE_ROUNDS_MAX));
        }
        let mut length = None;
        while work.worker.joined
            && let Some(commitment) = self.outbox.missing(work, asked).cloned()
        {
            match self.commit_again(&commitment).await? {
                Some(log_length) => length = Some(log_length),
                None => break,
            }
        }
        Ok(length)
    }

    /// The log's length with the commitment; `None` if it is to be tried again, or no round takes it.
    async fn commit_again(&mut self, commitment: &Commitment) -> Result<Option<u64>> {
        let (update, round) = (commitment.update.hash, commitment.header.round);
        tracing::warn!(
            round,
            "the hub does not know this round's update: committing again"
        );
        let command = self.sign(Command::Commit(Box::new(commitment.clone())));
        let sent = tokio::time::timeout(SEND_MAX, self.client.command(&command)).await;
        self.outbox.touch(update);
        match sent {
            Ok(Ok(reply)) => {
                self.outbox.send(update);
                Ok(Some(reply.log_length))
            }
            Ok(Err(error)) if !is_final(&error) => {
                tracing::debug!("committing again: {error}");
                Ok(None)
            }
            Ok(Err(error)) => {
                self.outbox.forget(update);
                self.status.last_refusal = Some(format!("round {round}, sent again: {error}"));
                Ok(None)
            }
            Err(_) => Ok(None),
        }
    }
}

/// Whether a commitment was refused for good.
pub(super) fn is_final(error: &network::ClientError) -> bool {
    let is_early = error.refusal_code().is_some_and(|it| NOT_YET.contains(&it));
    !error.is_temporary() && !is_early
}
