//! Log entries as lines for people, and the stream of new ones that survives a hub's absence.

use std::{collections::BTreeMap, time::Duration};

use network::{ClientError, HubClient, events::Events};
use protocol::{
    api::LogEntry,
    charter::Charter,
    event::RefusalReason,
    succession::{Choice, Sealing, choose},
    units::RunId,
};
use serde_json::Value;

use crate::output::{grouped, printable};

/// Wait before a broken stream is opened again.
const REOPEN_AFTER: Duration = Duration::from_secs(2);

/// Workers whose words are remembered; beyond that, memory begins anew.
const JOINED_MAX: usize = 65_536;

/// A run's log entries from some point on, as they happen.
pub(super) struct Follower {
    client: HubClient,
    run: RunId,
    /// The last entry that was seen.
    after: Option<u64>,
    events: Option<Events>,
    /// Takeovers that were proven so far.
    sealing: Sealing,
    /// Whether the hub may have been replaced since the last entry.
    is_lost: bool,
}

impl Follower {
    pub(super) fn new(client: HubClient, charter: &Charter, after: Option<u64>) -> Self {
        Self {
            client,
            run: charter.id(),
            after,
            events: None,
            sealing: Sealing::of(charter),
            is_lost: false,
        }
    }

    /// The next entry; waits for the hub while it is away.
    ///
    /// # Errors
    /// What waiting cannot mend.
    pub(super) async fn next(&mut self) -> Result<LogEntry, ClientError> {
        loop {
            match self.attempt().await {
                Ok(Some(entry)) => {
                    self.after = Some(entry.index);
                    return Ok(entry);
                }
                Ok(None) => {}
                Err(error) if error.is_temporary() => {
                    tracing::warn!("the stream of events broke, trying again: {error}");
                }
                Err(error) => return Err(error),
            }
            self.events = None;
            self.is_lost = true;
            tokio::time::sleep(REOPEN_AFTER).await;
        }
    }

    /// A hub that took the run over may lack the last entries that its predecessor told: then its own are shown, from the
    /// takeover on.
    async fn find(&mut self) -> Result<(), ClientError> {
        let (_, sealing) = self.client.head_and_sealing(&self.sealing).await?;
        let is_newer = choose(&self.sealing, &sealing) == Choice::Second;
        if let Some(newest) = sealing.newest().filter(|_| is_newer) {
            tracing::warn!("the run has a new hub at {}", newest.address);
            self.after = self.after.min(newest.index.checked_sub(1));
            self.client.add_addresses([newest.address.as_str()]);
            self.sealing = sealing;
        }
        self.is_lost = false;
        Ok(())
    }

    async fn attempt(&mut self) -> Result<Option<LogEntry>, ClientError> {
        if self.is_lost {
            self.find().await?;
        }
        let events = match &mut self.events {
            Some(events) => events,
            None => self
                .events
                .insert(self.client.events(self.run, self.after).await?),
        };
        events.next().await
    }
}

/// Writes entries as lines. What an entry means may depend on those before it.
#[derive(Default)]
pub(super) struct Lines {
    /// What a worker that takes part said of itself, without its speed.
    joined: BTreeMap<String, Value>,
}

impl Lines {
    /// An entry on one line.
    pub(super) fn line(&mut self, entry: &LogEntry) -> String {
        let time = clock(entry.time_ms);
        let said = self
            .joined_again(entry)
            .unwrap_or_else(|| sentence(&entry.kind, &entry.body));
        format!("{:>6}  {time}  {}", entry.index, printable(&said))
    }

    /// The sentence for a worker that takes part already and only tells its speed anew.
    fn joined_again(&mut self, entry: &LogEntry) -> Option<String> {
        let command = &entry.body["command"];
        let worker = command["worker"].as_str()?;
        match entry.kind.as_str() {
            "worker_joined" => {}
            "worker_left" => {
                self.joined.remove(worker);
                return None;
            }
            _ => return None,
        }
        let mut join = command["command"]["join"].clone();
        let speed = join["device"]
            .as_object_mut()
            .and_then(|device| device.remove("tokens_per_s"));
        if self.joined.len() >= JOINED_MAX {
            self.joined.clear();
        }
        let before = self.joined.insert(worker.to_owned(), join.clone());
        (before.as_ref() == Some(&join)).then(|| {
            let speed = speed
                .and_then(|it| it.as_u64())
                .map_or_else(|| "?".to_owned(), grouped);
            let short: String = worker.chars().take(8).collect();
            format!("worker {short} measured itself again: {speed} tokens/s")
        })
    }
}

/// What happened, in a few words.
fn sentence(kind: &str, body: &Value) -> String {
    let number = |name: &str| body[name].as_u64().map_or_else(|| "?".to_owned(), grouped);
    let worker = || {
        body["worker"]
            .as_str()
            .map_or_else(String::new, |it| it.chars().take(8).collect())
    };
    let command = &body["command"];
    let signer = || {
        command["worker"]
            .as_str()
            .map_or_else(String::new, |it| it.chars().take(8).collect())
    };
    match kind {
        "run_created" => format!(
            "the run was created: {}",
            body["charter"]["name"].as_str().unwrap_or("")
        ),
        "worker_joined" => {
            let name = command["command"]["join"]["name"].as_str().unwrap_or("");
            format!("worker {} joined: {name}", signer())
        }
        "worker_left" => format!("worker {} left", signer()),
        "round_opened" => {
            let slots = body["assignments"].as_array().map_or(0, Vec::len);
            format!(
                "round {} opened for {slots} workers, {} tokens before",
                number("round"),
                number("tokens_before")
            )
        }
        "slot_added" => format!(
            "worker {} got slot {} of round {}",
            worker(),
            number("slot"),
            number("round")
        ),
        "update_committed" => {
            let header = &command["command"]["commit"]["header"];
            let round = header["round"]
                .as_u64()
                .map_or_else(|| "?".to_owned(), grouped);
            format!(
                "worker {} committed to an update of round {round}",
                signer()
            )
        }
        "commitments_closed" => format!("round {} takes no more commitments", number("round")),
        "update_accepted" => {
            format!(
                "worker {}'s update of round {} was accepted, weight {}",
                worker(),
                number("round"),
                number("weight")
            )
        }
        "update_refused" => {
            let reason = serde_json::from_value::<RefusalReason>(body["reason"].clone());
            let why = reason.map_or_else(|_| body["reason"].to_string(), |it| it.sentence());
            format!(
                "worker {}'s update of round {} was refused: {why}",
                worker(),
                number("round")
            )
        }
        "round_merged" => {
            let updates = body["updates"].as_array().map_or(0, Vec::len);
            format!("round {} merged, {updates} updates", number("round"))
        }
        "round_empty" => format!("round {} ended empty", number("round")),
        "checkpoint_published" => format!("checkpoint of round {} is kept whole", number("round")),
        "model_evaluated" => {
            let nats = body["evaluation"]["loss_micronats"]
                .as_f64()
                .unwrap_or(f64::NAN)
                / 1e6;
            format!(
                "the model of round {} has a held-out loss of {nats:.3} nats a token",
                number("round")
            )
        }
        "sample_drawn" => format!(
            "the model of round {} writes: {}{}",
            number("round"),
            body["prompt"].as_str().unwrap_or(""),
            body["text"].as_str().unwrap_or("")
        ),
        "run_finished" => "the run is finished".to_owned(),
        other => format!("{other} {body}"),
    }
}

/// Time of day, UTC.
fn clock(time_ms: u64) -> String {
    let seconds = time_ms / 1_000 % 86_400;
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(kind: &str, body: Value) -> LogEntry {
        LogEntry {
            index: 7,
            hash: String::new(),
            previous: String::new(),
            time_ms: 86_400_000 + 3_723_000,
            kind: kind.to_owned(),
            body,
            signature: String::new(),
        }
    }

    fn check(kind: &str, body: Value, expected: &str) {
        assert_eq!(
            Lines::default().line(&entry(kind, body)),
            format!("     7  01:02:03  {expected}")
        );
    }

    #[test]
    fn a_worker_that_tells_its_speed_anew_has_not_joined_twice() {
        let join = |name: &str, tokens_per_s: u32| {
            let device = json!({"arithmetic": "a", "threads": 2, "memory_mib": 9, "tokens_per_s": tokens_per_s});
            let command = json!({"join": {"name": name, "device": device}});
            entry(
                "worker_joined",
                json!({"command": {"worker": "abcdef0123456789", "command": command}}),
            )
        };
        let left = entry(
            "worker_left",
            json!({"command": {"worker": "abcdef0123456789", "command": "leave"}}),
        );
        let mut lines = Lines::default();
        for (entry, expected) in [
            (join("kitchen", 100), "worker abcdef01 joined: kitchen"),
            (
                join("kitchen", 1_200),
                "worker abcdef01 measured itself again: 1,200 tokens/s",
            ),
            (join("cellar", 1_200), "worker abcdef01 joined: cellar"),
            (left, "worker abcdef01 left"),
            (join("cellar", 1_300), "worker abcdef01 joined: cellar"),
        ] {
            assert_eq!(lines.line(&entry), format!("     7  01:02:03  {expected}"));
        }
    }

    #[test]
    fn entries_read_as_sentences() {
        check(
            "round_merged",
            json!({"round": 1_200, "updates": [1, 2]}),
            "round 1,200 merged, 2 updates",
        );
        check(
            "update_refused",
            json!({"round": 3, "worker": "abcdef0123456789", "reason": {"norm": "too\nlarge"}}),
            "worker abcdef01's update of round 3 was refused: the update's size is out of range: too large",
        );
        check(
            "update_refused",
            json!({"round": 3, "worker": "abcdef0123456789", "reason": "not_revealed"}),
            "worker abcdef01's update of round 3 was refused: the update's bytes did not arrive in time",
        );
        check("something_new", json!({"a": 1}), "something_new {\"a\":1}");
    }
}
