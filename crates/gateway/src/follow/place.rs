//! Where a run is followed: the hub or mirror, among the addresses that its charter names, whose log counts and is longest.
//!
//! Any of them is as good for reading: what is served hashes to its name. But a hub that was replaced and does not know shows
//! old models, and one that is away shows none; so now and then, and whenever another address answered, all are asked where
//! their logs stand.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use futures_util::future::join_all;
use network::{ClientError, HubClient, retry::RetryPolicy};
use protocol::{
    api::RunSummary,
    charter::Charter,
    succession::{Choice, Sealing, choose},
    units::RunId,
};
use tokio::time::Instant;

/// Time between two comparisons.
const COMPARE_EVERY: Duration = Duration::from_secs(30);
/// Whoever does not say within this time where its log stands is not asked for models.
const HEAD_MAX: Duration = Duration::from_secs(5);

/// A run's place. Clones share the client and its addresses.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) client: HubClient,
    /// Takeovers that were proven; a log with fewer does not count.
    sealing: Sealing,
    /// When all addresses were compared last, and the address that it led to.
    compared: Option<(Instant, Arc<str>)>,
}

/// Where a log stands.
struct Standing {
    address: Arc<str>,
    sealing: Sealing,
    length: u64,
}

impl Place {
    /// The place of a run that `client` found.
    pub(super) fn new(client: &HubClient, charter: &Charter) -> anyhow::Result<Self> {
        let found = client.at(&client.current_address())?;
        found.add_addresses(charter.addresses.iter().map(String::as_str));
        found.add_addresses(client.addresses().iter().map(|it| &**it));
        Ok(Self {
            client: found,
            sealing: Sealing::of(charter),
            compared: None,
        })
    }

    /// Goes to the address whose log counts.
    ///
    /// # Errors
    /// If only logs answer that count no more.
    pub(super) async fn settle(&mut self) -> anyhow::Result<()> {
        let addresses = self.client.addresses();
        let current = self.client.current_address();
        let is_settled = self
            .compared
            .as_ref()
            .is_some_and(|(at, led_to)| at.elapsed() < COMPARE_EVERY && *led_to == current);
        if addresses.len() < 2 || is_settled {
            return Ok(());
        }
        // The current one first: it stays if no other is better.
        let others = addresses.into_iter().filter(|it| *it != current);
        let asked = std::iter::once(Arc::clone(&current)).chain(others);
        let answers = join_all(asked.map(|it| self.ask(it))).await;
        let mut answers = answers.into_iter().flatten().peekable();
        if answers.peek().is_none() {
            // Nobody says where its log stands: whoever answers anything is asked.
            return Ok(());
        }
        let counts = |it: &Standing| choose(&self.sealing, &it.sealing);
        let best = answers
            .filter(|it| matches!(counts(it), Choice::Same | Choice::Second))
            .reduce(|best, it| if it.is_better_than(&best) { it } else { best });
        let Some(best) = best else {
            bail!("only hubs of the run answer that were replaced");
        };
        if best.address != current {
            tracing::info!(
                run.id = %self.sealing.run(),
                generation = best.sealing.generation(),
                entries = best.length,
                "the run is followed at {} now",
                best.address
            );
        }
        if let Some(newest) = best.sealing.newest() {
            self.client.add_addresses([newest.address.as_str()]);
        }
        self.client.prefer_address(&best.address);
        self.sealing = best.sealing;
        self.compared = Some((Instant::now(), best.address));
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn compare_again(&mut self) {
        self.compared = None;
    }

    /// The run as it stands there, or wherever it is found.
    pub(super) async fn summary(&self, run: RunId) -> Result<RunSummary, ClientError> {
        let run = run.to_string();
        let mut left = self.client.addresses().len();
        loop {
            let address = self.client.current_address();
            left -= 1;
            match self.client.run(&run).await {
                Err(ClientError::Refused { status: 404, .. })
                    if 0 < left && self.client.leave_address(&address) => {}
                answer => return answer,
            }
        }
    }

    async fn ask(&self, address: Arc<str>) -> Option<Standing> {
        let ask = async {
            let alone = self.client.at(&address)?.with_retry(RetryPolicy::once());
            let (head, sealing) = alone.head_and_sealing(&self.sealing).await?;
            anyhow::Ok(Standing {
                address: Arc::clone(&address),
                sealing,
                length: head.length,
            })
        };
        let answer = tokio::time::timeout(HEAD_MAX, ask).await;
        match answer.context("no answer in time").flatten() {
            Ok(standing) => Some(standing),
            Err(error) => {
                tracing::debug!("where the log of {address} stands: {error:#}");
                None
            }
        }
    }
}

impl Standing {
    fn is_better_than(&self, other: &Self) -> bool {
        match choose(&self.sealing, &other.sealing) {
            Choice::First => true,
            Choice::Same => other.length < self.length,
            Choice::Second | Choice::Undecided => false,
        }
    }
}
