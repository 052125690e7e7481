//! The projections as the API shows them.

use anyhow::Result;
use data_encoding::HEXLOWER;
use network::world;
use protocol::{
    api::{CheckpointSummary, Contribution, LossPoint, RoundSummary, WorkDelta, WorkerSummary},
    units::{RunId, WorkerId},
};
use sqlx::{Row, sqlite::SqliteRow};

use super::Store;

/// Most points of the loss curves in one answer.
pub(crate) const LOSS_POINTS_MAX: usize = 2000;
/// Most contributions in one page of rounds.
const CONTRIBUTIONS_MAX: i64 = 50_000;
/// Over which time the accepted tokens a second are counted.
const SPEED_WINDOW_MS: u64 = 60_000;

const ROUND_COLUMNS: &str = "r.round, r.phase, r.opened_ms, r.deadline_ms, r.closed_ms, r.ended_ms, r.tokens, \
     r.delta_bytes, r.parameters_hash, r.opened_event, r.ended_event, l.held_out";

impl Store {
    /// Rounds below `before`, newest first, with everyone's part.
    pub(crate) async fn rounds(
        &self,
        run: RunId,
        before: u64,
        limit: u64,
    ) -> Result<Vec<RoundSummary>> {
        let text = format!(
            "SELECT {ROUND_COLUMNS} FROM round r LEFT JOIN loss l ON l.run = r.run AND l.round = r.round
             WHERE r.run = ? AND r.round < ? ORDER BY r.round DESC LIMIT ?"
        );
        let query = sqlx::query(&text)
            .bind(&run.0.0[..])
            .bind(i64::try_from(before).unwrap_or(i64::MAX))
            .bind(limit as i64);
        let rows = world::settled(query.fetch_all(&self.pool)).await?;
        let mut rounds = rows.iter().map(round).collect::<Result<Vec<_>>>()?;
        let (Some(newest), Some(oldest)) = (rounds.first(), rounds.last()) else {
            return Ok(rounds);
        };
        let newest_round = newest.round;
        let query = sqlx::query(
            "SELECT c.*, w.name FROM contribution c LEFT JOIN worker w ON w.run = c.run AND w.id = c.worker
             WHERE c.run = ? AND c.round BETWEEN ? AND ? ORDER BY c.round DESC, c.slot LIMIT ?",
        )
        .bind(&run.0.0[..])
        .bind(oldest.round as i64)
        .bind(newest.round as i64)
        .bind(CONTRIBUTIONS_MAX + 1);
        let parts = world::settled(query.fetch_all(&self.pool)).await?;
        if parts.len() > CONTRIBUTIONS_MAX as usize {
            // A page ends where there are too many; a single round is shown as far as it goes.
            let cut = count(&parts[CONTRIBUTIONS_MAX as usize], "round")?;
            rounds.retain(|it| it.round > cut || it.round == newest_round);
        }
        let mut index = 0;
        for part in &parts {
            let number = count(part, "round")?;
            while rounds.get(index).is_some_and(|it| it.round > number) {
                index += 1;
            }
            let Some(round) = rounds.get_mut(index) else {
                break;
            };
            round.contributions.push(contribution(part)?);
        }
        Ok(rounds)
    }

    /// Workers that ever joined, those with most accepted tokens first; presence is the caller's to add.
    pub(crate) async fn workers(
        &self,
        run: RunId,
        offset: u64,
        limit: u64,
    ) -> Result<Vec<WorkerSummary>> {
        let query = sqlx::query(
            "SELECT * FROM worker WHERE run = ? ORDER BY tokens DESC, joined_ms, id LIMIT ? OFFSET ?",
        )
        .bind(&run.0.0[..])
        .bind(limit as i64)
        .bind(i64::try_from(offset).unwrap_or(i64::MAX));
        let rows = world::settled(query.fetch_all(&self.pool)).await?;
        rows.iter().map(worker).collect()
    }

    /// Why a worker's last refused update was refused.
    pub(crate) async fn last_refusal(&self, run: RunId, id: &WorkerId) -> Result<Option<String>> {
        let query = sqlx::query_scalar("SELECT last_refusal FROM worker WHERE run = ? AND id = ?")
            .bind(&run.0.0[..])
            .bind(&id.0.0[..]);
        let refusal: Option<Option<String>> =
            world::settled(query.fetch_optional(&self.pool)).await?;
        Ok(refusal.flatten())
    }

    /// The same with the position of the refusal in the log.
    pub(crate) async fn last_refusal_event(
        &self,
        run: RunId,
        id: &WorkerId,
    ) -> Result<Option<(String, u64)>> {
        let query = sqlx::query(
            "SELECT last_refusal, last_refusal_event FROM worker
             WHERE run = ? AND id = ? AND last_refusal_event IS NOT NULL",
        )
        .bind(&run.0.0[..])
        .bind(&id.0.0[..]);
        let row = world::settled(query.fetch_optional(&self.pool)).await?;
        let refusal = row.map(|row| {
            let sentence: Option<String> = row.try_get("last_refusal")?;
            Ok((
                sentence.unwrap_or_default(),
                count(&row, "last_refusal_event")?,
            ))
        });
        refusal.transpose()
    }

    /// A worker's parts in rounds, newest first.
    pub(crate) async fn contributions_of(
        &self,
        run: RunId,
        id: &WorkerId,
        limit: u64,
    ) -> Result<Vec<(u64, Contribution)>> {
        let query = sqlx::query(
            "SELECT c.*, NULL AS name FROM contribution c WHERE run = ? AND worker = ? ORDER BY round DESC, slot LIMIT ?",
        )
        .bind(&run.0.0[..])
        .bind(&id.0.0[..])
        .bind(limit as i64);
        let rows = world::settled(query.fetch_all(&self.pool)).await?;
        let part = |row| Ok((count(row, "round")?, contribution(row)?));
        rows.iter().map(part).collect()
    }

    /// The loss curves, oldest first, thinned evenly to [`LOSS_POINTS_MAX`].
    pub(crate) async fn losses(&self, run: RunId) -> Result<Vec<LossPoint>> {
        let query =
            sqlx::query("SELECT * FROM loss WHERE run = ? ORDER BY round").bind(&run.0.0[..]);
        let rows = world::settled(query.fetch_all(&self.pool)).await?;
        let stride = rows.len().div_ceil(LOSS_POINTS_MAX).max(1);
        let last = rows.len().saturating_sub(1);
        rows.iter()
            .enumerate()
            .filter(|(index, _)| index % stride == 0 || *index == last)
            .map(|(_, row)| loss(row))
            .collect()
    }

    /// The newest evaluated point.
    pub(crate) async fn newest_evaluation(&self, run: RunId) -> Result<Option<LossPoint>> {
        let query = sqlx::query(
            "SELECT * FROM loss WHERE run = ? AND held_out IS NOT NULL ORDER BY round DESC LIMIT 1",
        )
        .bind(&run.0.0[..]);
        let row = world::settled(query.fetch_optional(&self.pool)).await?;
        row.as_ref().map(loss).transpose()
    }

    /// Whole checkpoints, newest first.
    pub(crate) async fn checkpoints(
        &self,
        run: RunId,
        limit: u64,
    ) -> Result<Vec<CheckpointSummary>> {
        let query = sqlx::query(
            "SELECT c.*, l.held_out, s.prompt, s.text FROM checkpoint c
             LEFT JOIN loss l ON l.run = c.run AND l.round = c.round
             LEFT JOIN sample s ON s.run = c.run AND s.round = c.round
             WHERE c.run = ? ORDER BY c.round DESC LIMIT ?",
        )
        .bind(&run.0.0[..])
        .bind(limit as i64);
        let rows = world::settled(query.fetch_all(&self.pool)).await?;
        rows.iter()
            .map(|row| {
                Ok(CheckpointSummary {
                    round: count(row, "round")?,
                    time_ms: count(row, "time_ms")?,
                    blob: hex(row, "blob")?,
                    bytes: count(row, "bytes")?,
                    parameters_hash: hex(row, "parameters_hash")?,
                    held_out_loss: micro(row, "held_out")?,
                    prompt: row.try_get("prompt")?,
                    sample: row.try_get("text")?,
                    event: count(row, "event")?,
                })
            })
            .collect()
    }

    /// Deltas of the merges after a round, oldest first.
    pub(crate) async fn deltas_after(&self, run: RunId, round: u64) -> Result<Vec<WorkDelta>> {
        let query = sqlx::query(
            "SELECT round, delta, delta_bytes, parameters_hash FROM round
             WHERE run = ? AND round > ? AND phase = 'merged' ORDER BY round",
        )
        .bind(&run.0.0[..])
        .bind(round as i64);
        let rows = world::settled(query.fetch_all(&self.pool)).await?;
        rows.iter()
            .map(|row| {
                Ok(WorkDelta {
                    round: count(row, "round")?,
                    blob: hex(row, "delta")?,
                    bytes: count(row, "delta_bytes")?,
                    parameters_hash: hex(row, "parameters_hash")?,
                })
            })
            .collect()
    }

    /// Accepted tokens a second over the last minute of merges before `now_ms`.
    pub(crate) async fn tokens_per_second(&self, run: RunId, now_ms: u64) -> Result<f64> {
        let since = now_ms.saturating_sub(SPEED_WINDOW_MS);
        let query = sqlx::query(
            "SELECT COALESCE(SUM(tokens), 0) AS tokens, MIN(opened_ms) AS first FROM round
             WHERE run = ? AND phase = 'merged' AND ended_ms >= ?",
        )
        .bind(&run.0.0[..])
        .bind(since as i64);
        let row = world::settled(query.fetch_one(&self.pool)).await?;
        let tokens: i64 = row.try_get("tokens")?;
        let first: Option<i64> = row.try_get("first")?;
        let Some(first) = first else { return Ok(0.0) };
        let span_ms = now_ms.saturating_sub(first as u64).max(1);
        Ok(tokens as f64 * 1_000.0 / span_ms as f64)
    }

    /// When a run was created.
    pub(crate) async fn created_ms(&self, run: RunId) -> Result<u64> {
        let query =
            sqlx::query_scalar("SELECT created_ms FROM run WHERE id = ?").bind(&run.0.0[..]);
        let created: i64 = world::settled(query.fetch_one(&self.pool)).await?;
        Ok(created as u64)
    }
}

fn round(row: &SqliteRow) -> Result<RoundSummary> {
    Ok(RoundSummary {
        round: count(row, "round")?,
        phase: row.try_get("phase")?,
        opened_ms: count(row, "opened_ms")?,
        deadline_ms: count(row, "deadline_ms")?,
        closed_ms: optional(row, "closed_ms")?,
        ended_ms: optional(row, "ended_ms")?,
        tokens: count(row, "tokens")?,
        delta_bytes: optional(row, "delta_bytes")?,
        parameters_hash: row
            .try_get::<Option<&[u8]>, _>("parameters_hash")?
            .map(|it| HEXLOWER.encode(it)),
        held_out_loss: micro(row, "held_out")?,
        contributions: Vec::new(),
        opened_event: count(row, "opened_event")?,
        ended_event: optional(row, "ended_event")?,
    })
}

fn contribution(row: &SqliteRow) -> Result<Contribution> {
    Ok(Contribution {
        slot: row.try_get("slot")?,
        worker: hex(row, "worker")?,
        name: row
            .try_get::<Option<String>, _>("name")?
            .unwrap_or_default(),
        state: row.try_get("state")?,
        of_round: optional(row, "of_round")?,
        steps: row.try_get("steps")?,
        tokens: optional(row, "tokens")?,
        training_loss: micro(row, "loss")?,
        update_bytes: optional(row, "update_bytes")?,
        weight: optional(row, "weight")?,
        credits_micro: optional(row, "credits_micro")?,
        committed_ms: optional(row, "committed_ms")?,
        judged_ms: optional(row, "judged_ms")?,
        refusal: row.try_get("refusal")?,
        event: count(row, "event")?,
    })
}

fn worker(row: &SqliteRow) -> Result<WorkerSummary> {
    Ok(WorkerSummary {
        id: hex(row, "id")?,
        name: row.try_get("name")?,
        present: row.try_get::<i64, _>("joined")? != 0,
        last_seen_ms: None,
        joined_ms: count(row, "joined_ms")?,
        arithmetic: row.try_get("arithmetic")?,
        threads: row.try_get("threads")?,
        tokens_per_s: row.try_get("tokens_per_s")?,
        tokens: count(row, "tokens")?,
        credits_micro: count(row, "credits_micro")?,
        updates_accepted: count(row, "updates_accepted")?,
        updates_refused: count(row, "updates_refused")?,
        last_refusal: row.try_get("last_refusal")?,
        last_refusal_event: optional(row, "last_refusal_event")?,
        last_round: optional(row, "last_round")?,
        bytes_up: count(row, "bytes_up")?,
        bytes_down: 0,
        event: count(row, "event")?,
    })
}

fn loss(row: &SqliteRow) -> Result<LossPoint> {
    Ok(LossPoint {
        round: count(row, "round")?,
        tokens: count(row, "tokens")?,
        time_ms: count(row, "time_ms")?,
        training_loss: micro(row, "training")?,
        held_out_loss: micro(row, "held_out")?,
        bits_per_byte: micro(row, "bits_per_byte")?,
        event: count(row, "event")?,
    })
}

fn count(row: &SqliteRow, column: &str) -> Result<u64> {
    Ok(row.try_get::<i64, _>(column)? as u64)
}

fn optional(row: &SqliteRow, column: &str) -> Result<Option<u64>> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(|it| it as u64))
}

fn micro(row: &SqliteRow, column: &str) -> Result<Option<f64>> {
    Ok(optional(row, column)?.map(|it| it as f64 / 1e6))
}

fn hex(row: &SqliteRow, column: &str) -> Result<String> {
    Ok(HEXLOWER.encode(row.try_get::<&[u8], _>(column)?))
}
