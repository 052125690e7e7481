//! What a host measured of a model, beside what the hub measured of it.

use anyhow::Result;
use protocol::boinc::Output;

use super::{No, Settling, never};
use crate::boinc::store::{Measured, Settled};

/// A measured loss that is further from the hub's than this share of it is not believed.
const LOSS_RATIO_MAX: f64 = 0.5;

impl Settling<'_> {
    pub(super) async fn evaluate(&self, output: &Output) -> Result<Settled, No> {
        let Some(found) = output.evaluation.filter(|it| it.tokens > 0) else {
            return Err(never("the machine measured nothing in the time it had"));
        };
        let round = self.unit.round.unwrap_or(0);
        let loss_micronats = found.loss_micronats / found.tokens;
        let loss_of_hub = self.loss_of_hub(round).await?;
        let measured = Measured {
            tokens: found.tokens,
            loss_micronats,
            loss_of_hub,
        };
        let is_far = |hub: u64| {
            let ratio = loss_micronats as f64 / (hub as f64).max(1.0);
            (ratio - 1.0).abs() > LOSS_RATIO_MAX
        };
        let refusal = loss_of_hub
            .filter(|it| is_far(*it))
            .map(|_| "the measured loss is far from what the hub measured of the same model");
        Ok(Settled {
            refusal: refusal.map(str::to_owned),
            measured: Some(measured),
            ..Settled::default()
        })
    }

    /// The held-out loss of a round's model by the hub, in 10^-6 nats a token.
    async fn loss_of_hub(&self, round: u64) -> Result<Option<u64>> {
        let newest = self.run.state.read().await.evaluation;
        if let Some((of_round, evaluation)) = newest
            && of_round == round
        {
            return Ok(Some(evaluation.loss_micronats));
        }
        let rounds = self.hub.store.rounds(self.run.id, round + 1, 1).await?;
        let found = rounds.into_iter().find(|it| it.round == round);
        let loss = found.and_then(|it| it.held_out_loss);
        Ok(loss.map(|it| (it * 1e6) as u64))
    }
}
