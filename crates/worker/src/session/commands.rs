//! Signed commands: join, commit, leave.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use network::ClientError;
use protocol::{
    api::{CommandReply, Work},
    command::{Command, Commitment, SignedCommand},
};
use tokio::time::Instant;

use super::{GOODBYE, Session, begin::worker_name};
use crate::{
    Activity,
    poll::{News, Token},
};

/// Wait before a command that got no answer is sent again.
const RESEND: Duration = Duration::from_millis(300);
/// Longest wait for news of a command that was granted.
const NEWS_MAX: Duration = Duration::from_secs(30);

impl Session<'_> {
    /// Asks to take part; the news then say whether it was granted.
    pub(super) async fn join(&mut self) -> Result<()> {
        self.show(Activity::Joining);
        match self.send_join().await {
            Ok(reply) => {
                self.status.problem = None;
                self.wait_for_log(reply.log_length).await;
                let is_joined =
                    |(work, _): &(Arc<Work>, Instant)| work.worker.joined || work.finished;
                if self.latest().as_ref().is_some_and(|it| !is_joined(it)) {
                    let problem = self.news.borrow().problem.clone();
                    let problem =
                        problem.unwrap_or_else(|| "the hub took the join and forgets it".into());
                    self.try_again("joining", &anyhow::Error::msg(problem))
                        .await;
                }
                Ok(())
            }
            // Of a run that is finished the news will tell; one that is full may have room later.
            Err(error) if error.refusal_code() == Some("closed") => {
                self.try_again("joining", &error.into()).await;
                Ok(())
            }
            Err(error) if error.is_temporary() || error.refusal_code() == Some("replayed") => {
                self.try_again("joining", &error.into()).await;
                Ok(())
            }
            Err(error) => Err(anyhow::Error::from(error).context("the hub refused this worker")),
        }
    }

    pub(super) async fn send_join(&mut self) -> Result<CommandReply, ClientError> {
        let name = match worker_name(self.config, self.worker) {
            Ok(name) => name,
            Err(error) => {
                return Err(ClientError::Malformed {
                    what: "the worker's name",
                    problem: error.to_string(),
                });
            }
        };
        let command = self.sign(Command::Join {
            name,
            device: self.device.clone(),
        });
        let reply = self.client.command(&command).await?;
        if let Some(text) = reply.token.clone() {
            let address = self.client.current_address();
            let given = Some(Token { text, address });
            self.token.send_if_modified(|token| {
                let is_new = *token != given;
                *token = given;
                is_new
            });
        }
        Ok(reply)
    }

    /// Commits, again and again until the hub answers or `until` has passed.
    pub(super) async fn commit(
        &mut self,
        commitment: &Commitment,
        until: Instant,
    ) -> Result<CommandReply, ClientError> {
        let command = self.sign(Command::Commit(Box::new(commitment.clone())));
        loop {
            match self.client.command(&command).await {
                Err(error)
                    if (error.is_temporary() || error.refusal_code() == Some("between_rounds"))
                        && Instant::now() < until =>
                {
                    tracing::debug!("committing again: {error}");
                    tokio::time::sleep(RESEND).await;
                }
                answer => return answer,
            }
        }
    }

    /// Takes leave; a hub that does not answer will notice by itself.
    pub(super) async fn say_goodbye(&mut self) {
        let command = self.sign(Command::Leave {
            reason: "stopped by its owner".into(),
        });
        match tokio::time::timeout(GOODBYE / 2, self.client.command(&command)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!("leaving: {error}"),
            Err(_) => tracing::debug!("leaving: the hub does not answer"),
        }
    }

    /// Until the news know of the log's entries up to `length` and were asked for with the newest token, so that an older
    /// answer decides nothing; or until they are another hub's, whose log has other lengths.
    pub(super) async fn wait_for_log(&mut self, length: u64) {
        let token = self.token.borrow().clone();
        let reunions = self.news.borrow().reunions;
        let is_enough = |news: &News| {
            let is_new = |work: &Work| work.log_length >= length && news.token == token;
            news.problem.is_some()
                || news.reunions != reunions
                || news.work.as_ref().is_some_and(|(work, _)| is_new(work))
        };
        let (is_known, has_token) = {
            let news = self.news.borrow();
            (is_enough(&news), news.token == token)
        };
        if !is_known && has_token {
            // A worker's own commitment is no news for it: the question under way may wait for others. A new token has the hub
            // asked anew by itself.
            self.held_round.ask_now();
        }
        self.wait_for_news(is_enough).await;
    }

    /// Until the news are as wanted. A hub that names a length which its log never has is not waited for.
    pub(super) async fn wait_for_news(&self, is_wanted: impl FnMut(&News) -> bool) {
        let mut news = self.news.clone();
        let waited = tokio::time::timeout(NEWS_MAX, news.wait_for(is_wanted));
        self.shutdown.run_until_cancelled(waited).await;
    }

    pub(super) fn sign(&mut self, command: Command) -> SignedCommand {
        self.sequence = self.clock.now_ms().max(self.sequence.saturating_add(1));
        SignedCommand::sign(self.folder.key(), self.run, self.sequence, command)
    }
}
