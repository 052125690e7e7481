//! The fold of log entries into tables. Each arm is a handful of statements in the log's own transaction.

use anyhow::Result;
use protocol::{
    command::{Command, Commitment},
    event::{Event, MergedUpdate, ModelState},
    log::Entry,
    units::{BlobReference, WorkerId},
};
use sqlx::{Sqlite, Transaction};

use super::Projected;

type Tx<'a, 'b> = &'a mut Transaction<'b, Sqlite>;

/// Whether two entries, one after the other, are folded together.
pub(super) fn go_together(a: &Entry, b: &Entry) -> bool {
    matches!(
        (&a.event, &b.event),
        (Event::UpdateAccepted { .. }, Event::UpdateAccepted { .. })
    )
}

/// Folds entries that go together, or a single one.
pub(super) async fn apply_group(tx: Tx<'_, '_>, group: &[(Entry, Projected)]) -> Result<()> {
    match group {
        [(entry, known)] => apply(tx, entry, known).await,
        _ => accepted(tx, group).await,
    }
}

/// Rows for one statement: SQLite takes them apart with `json_each`, which costs one walk to its thread for all of them.
/// Where they are joined to a table they are materialized first: else SQLite takes them apart again for each row of the table.
fn json(rows: impl Iterator<Item = serde_json::Value>) -> String {
    serde_json::Value::Array(rows.collect()).to_string()
}

async fn accepted(tx: Tx<'_, '_>, group: &[(Entry, Projected)]) -> Result<()> {
    let rows = group.iter().filter_map(|(entry, _)| match &entry.event {
        Event::UpdateAccepted {
            round,
            slot,
            weight,
            ..
        } => Some(serde_json::json!([
            round,
            slot,
            *weight as i64,
            entry.time_ms,
            entry.index
        ])),
        _ => None,
    });
    let Some((first, _)) = group.first() else {
        return Ok(());
    };
    sqlx::query(
        "WITH given AS MATERIALIZED
             (SELECT value ->> 0 AS round, value ->> 1 AS slot, value ->> 2 AS weight, value ->> 3 AS time_ms, value ->> 4 AS event
              FROM json_each(?))
         UPDATE contribution SET state = 'accepted', weight = given.weight, judged_ms = given.time_ms, event = given.event
         FROM given WHERE contribution.run = ? AND contribution.round = given.round AND contribution.slot = given.slot",
    )
    .bind(json(rows))
    .bind(run(first))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Folds one entry.
pub(super) async fn apply(tx: Tx<'_, '_>, entry: &Entry, known: &Projected) -> Result<()> {
    match &entry.event {
        Event::RunCreated {
            model, checkpoint, ..
        } => {
            insert_checkpoint(tx, entry, 0, checkpoint.parameters, model).await?;
            insert_loss(tx, entry, 0, 0, None).await
        }
        Event::WorkerJoined { command } => {
            joined(tx, entry, &command.command, command.worker).await
        }
        Event::WorkerLeft { command } => {
            sqlx::query("UPDATE worker SET joined = 0 WHERE run = ? AND id = ?")
                .bind(run(entry))
                .bind(worker(&command.worker))
                .execute(&mut **tx)
                .await?;
            Ok(())
        }
        Event::IdentityBound { .. } | Event::RunFinished { .. } | Event::HubReplaced { .. } => {
            Ok(())
        }
        Event::RoundOpened {
            round,
            deadline_ms,
            assignments,
            ..
        } => {
            sqlx::query(
                "INSERT INTO round (run, round, phase, opened_ms, deadline_ms, opened_event)
                 VALUES (?, ?, 'training', ?, ?, ?)",
            )
            .bind(run(entry))
            .bind(*round as i64)
            .bind(entry.time_ms as i64)
            .bind(*deadline_ms as i64)
            .bind(entry.index as i64)
            .execute(&mut **tx)
            .await?;
            let workers = assignments.iter().map(|it| it.to_string().into());
            sqlx::query(
                "INSERT INTO contribution (run, round, slot, worker, state, event)
                 SELECT ?, ?, key, unhex(value), 'assigned', ? FROM json_each(?)",
            )
            .bind(run(entry))
            .bind(*round as i64)
            .bind(entry.index as i64)
            .bind(json(workers))
            .execute(&mut **tx)
            .await?;
            Ok(())
        }
        Event::SlotAdded {
            round,
            slot,
            worker,
        } => insert_slot(tx, entry, *round, *slot, worker).await,
        Event::UpdateCommitted { command } => {
            let Command::Commit(commitment) = &command.command else {
                return Ok(());
            };
            committed(tx, entry, command.worker, commitment, known).await
        }
        Event::RoundExtended { round, deadline_ms } => {
            sqlx::query("UPDATE round SET deadline_ms = ? WHERE run = ? AND round = ?")
                .bind(*deadline_ms as i64)
                .bind(run(entry))
                .bind(*round as i64)
                .execute(&mut **tx)
                .await?;
            Ok(())
        }
        Event::CommitmentsClosed { round, .. } => {
            sqlx::query(
                "UPDATE round SET phase = 'revealing', closed_ms = ? WHERE run = ? AND round = ?",
            )
            .bind(entry.time_ms as i64)
            .bind(run(entry))
            .bind(*round as i64)
            .execute(&mut **tx)
            .await?;
            Ok(())
        }
        Event::UpdateAccepted { .. } => accepted(tx, &[(entry.clone(), known.clone())]).await,
        Event::UpdateRefused {
            round,
            slot,
            worker,
            reason,
        } => refused(tx, entry, (*round, *slot), worker, &reason.sentence()).await,
        Event::UpdateDeferred { round, slot, .. } => {
            deferred(tx, entry, (*round, *slot), known).await
        }
        Event::RoundMerged {
            round,
            updates,
            delta,
            model,
            ..
        } => merged(tx, entry, *round, updates, *delta, model, known).await,
        Event::RoundEmpty { round } => {
            end_round(tx, entry, *round, "empty").await?;
            sqlx::query(
                "UPDATE contribution SET state = 'lost', event = ?
                 WHERE run = ? AND round = ? AND state IN ('assigned', 'committed')",
            )
            .bind(entry.index as i64)
            .bind(run(entry))
            .bind(*round as i64)
            .execute(&mut **tx)
            .await?;
            Ok(())
        }
        Event::CheckpointPublished { round, checkpoint } => {
            let hash: Vec<u8> =
                sqlx::query_scalar("SELECT parameters_hash FROM round WHERE run = ? AND round = ?")
                    .bind(run(entry))
                    .bind(*round as i64)
                    .fetch_one(&mut **tx)
                    .await?;
            let model = ModelState {
                round: *round,
                parameters: super::hash_of(&hash)?,
                outer: protocol::Hash::default(),
            };
            insert_checkpoint(tx, entry, *round, checkpoint.parameters, &model).await
        }
        Event::ModelEvaluated { round, evaluation } => {
            sqlx::query(
                "UPDATE loss SET held_out = ?, bits_per_byte = ?, event = ? WHERE run = ? AND round = ?",
            )
            .bind(evaluation.loss_micronats as i64)
            .bind(evaluation.microbits_per_byte as i64)
            .bind(entry.index as i64)
            .bind(run(entry))
            .bind(*round as i64)
            .execute(&mut **tx)
            .await?;
            Ok(())
        }
        Event::SampleDrawn {
            round,
            prompt,
            text,
        } => {
            sqlx::query(
                "INSERT OR REPLACE INTO sample (run, round, prompt, text) VALUES (?, ?, ?, ?)",
            )
            .bind(run(entry))
            .bind(*round as i64)
            .bind(prompt)
            .bind(text)
            .execute(&mut **tx)
            .await?;
            Ok(())
        }
    }
}

async fn joined(tx: Tx<'_, '_>, entry: &Entry, command: &Command, id: WorkerId) -> Result<()> {
    let Command::Join { name, device } = command else {
        return Ok(());
    };
    sqlx::query(
        "INSERT INTO worker (run, id, name, joined, joined_ms, arithmetic, threads, tokens_per_s, event)
         VALUES (?, ?, ?, 1, ?, ?, ?, ?, ?)
         ON CONFLICT (run, id) DO UPDATE SET name = excluded.name, joined = 1, arithmetic = excluded.arithmetic,
         threads = excluded.threads, tokens_per_s = excluded.tokens_per_s, event = excluded.event",
    )
    .bind(run(entry))
    .bind(worker(&id))
    .bind(name)
    .bind(entry.time_ms as i64)
    .bind(&device.arithmetic)
    .bind(device.threads)
    .bind(device.tokens_per_s)
    .bind(entry.index as i64)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn insert_slot(
    tx: Tx<'_, '_>,
    entry: &Entry,
    round: u64,
    slot: u32,
    id: &WorkerId,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO contribution (run, round, slot, worker, state, event) VALUES (?, ?, ?, ?, 'assigned', ?)",
    )
    .bind(run(entry))
    .bind(round as i64)
    .bind(slot)
    .bind(worker(id))
    .bind(entry.index as i64)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// A commitment in its own slot, or a late one as a further slot of the open round.
async fn committed(
    tx: Tx<'_, '_>,
    entry: &Entry,
    id: WorkerId,
    commitment: &Commitment,
    known: &Projected,
) -> Result<()> {
    let header = &commitment.header;
    let own = (header.round, header.slot);
    let (round, slot) = known.place.unwrap_or(own);
    if (round, slot) != own {
        mark(tx, entry, own, "late").await?;
        insert_slot(tx, entry, round, slot, &id).await?;
    }
    sqlx::query(
        "UPDATE contribution SET state = 'committed', of_round = ?, steps = ?, tokens = ?, loss = ?,
         update_hash = ?, update_bytes = ?, committed_ms = ?, event = ?
         WHERE run = ? AND round = ? AND slot = ?",
    )
    .bind(header.round as i64)
    .bind(header.steps)
    .bind(header.tokens as i64)
    .bind(header.loss_micronats as i64)
    .bind(&commitment.update.hash.0[..])
    .bind(commitment.update.bytes as i64)
    .bind(entry.time_ms as i64)
    .bind(entry.index as i64)
    .bind(run(entry))
    .bind(round as i64)
    .bind(slot)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// A commitment goes on to the next round.
async fn deferred(
    tx: Tx<'_, '_>,
    entry: &Entry,
    from: (u64, u32),
    known: &Projected,
) -> Result<()> {
    if let Some((round, slot)) = known.place {
        sqlx::query(
            "INSERT INTO contribution (run, round, slot, worker, state, of_round, steps, tokens, loss,
             update_hash, update_bytes, committed_ms, event)
             SELECT run, ?, ?, worker, 'committed', of_round, steps, tokens, loss,
             update_hash, update_bytes, committed_ms, ? FROM contribution WHERE run = ? AND round = ? AND slot = ?",
        )
        .bind(round as i64)
        .bind(slot)
        .bind(entry.index as i64)
        .bind(run(entry))
        .bind(from.0 as i64)
        .bind(from.1)
        .execute(&mut **tx)
        .await?;
    }
    mark(tx, entry, from, "deferred").await
}

async fn mark(tx: Tx<'_, '_>, entry: &Entry, (round, slot): (u64, u32), state: &str) -> Result<()> {
    sqlx::query(
        "UPDATE contribution SET state = ?, event = ? WHERE run = ? AND round = ? AND slot = ?",
    )
    .bind(state)
    .bind(entry.index as i64)
    .bind(run(entry))
    .bind(round as i64)
    .bind(slot)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn refused(
    tx: Tx<'_, '_>,
    entry: &Entry,
    (round, slot): (u64, u32),
    id: &WorkerId,
    sentence: &str,
) -> Result<()> {
    sqlx::query(
        "UPDATE contribution SET state = 'refused', refusal = ?, judged_ms = ?, event = ?
         WHERE run = ? AND round = ? AND slot = ?",
    )
    .bind(sentence)
    .bind(entry.time_ms as i64)
    .bind(entry.index as i64)
    .bind(run(entry))
    .bind(round as i64)
    .bind(slot)
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "UPDATE worker SET updates_refused = updates_refused + 1, last_refusal = ?, last_refusal_event = ?
         WHERE run = ? AND id = ?",
    )
    .bind(sentence)
    .bind(entry.index as i64)
    .bind(run(entry))
    .bind(worker(id))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn merged(
    tx: Tx<'_, '_>,
    entry: &Entry,
    round: u64,
    updates: &[MergedUpdate],
    delta: BlobReference,
    model: &ModelState,
    known: &Projected,
) -> Result<()> {
    end_round(tx, entry, round, "merged").await?;
    let tokens: u64 = updates.iter().map(|it| it.tokens).sum();
    sqlx::query(
        "UPDATE round SET tokens = ?, delta = ?, delta_bytes = ?, parameters_hash = ? WHERE run = ? AND round = ?",
    )
    .bind(tokens as i64)
    .bind(&delta.hash.0[..])
    .bind(delta.bytes as i64)
    .bind(&model.parameters.0[..])
    .bind(run(entry))
    .bind(round as i64)
    .execute(&mut **tx)
    .await?;
    let slots = updates
        .iter()
        .map(|it| serde_json::json!([it.slot, it.weight as i64, it.credits.0 as i64]));
    sqlx::query(
        "WITH given AS MATERIALIZED
             (SELECT value ->> 0 AS slot, value ->> 1 AS weight, value ->> 2 AS credits FROM json_each(?))
         UPDATE contribution SET state = 'merged', weight = given.weight, credits_micro = given.credits, event = ?
         FROM given WHERE contribution.run = ? AND contribution.round = ? AND contribution.slot = given.slot",
    )
    .bind(json(slots))
    .bind(entry.index as i64)
    .bind(run(entry))
    .bind(round as i64)
    .execute(&mut **tx)
    .await?;
    let workers = updates.iter().map(|it| {
        serde_json::json!([
            it.worker.to_string(),
            it.tokens as i64,
            it.credits.0 as i64,
            it.update.bytes as i64
        ])
    });
    // One worker may have several updates in a merge: its own and late ones.
    sqlx::query(
        "UPDATE worker SET tokens = tokens + given.tokens_more, credits_micro = credits_micro + given.credits_more,
         bytes_up = bytes_up + given.bytes_more, updates_accepted = updates_accepted + given.updates_more, last_round = ?
         FROM (SELECT unhex(value ->> 0) AS id_given, SUM(value ->> 1) AS tokens_more, SUM(value ->> 2) AS credits_more,
               SUM(value ->> 3) AS bytes_more, COUNT(*) AS updates_more FROM json_each(?) GROUP BY 1) AS given
         WHERE worker.run = ? AND worker.id = given.id_given",
    )
    .bind(round as i64)
    .bind(json(workers))
    .bind(run(entry))
    .execute(&mut **tx)
    .await?;
    // Whoever was assigned and never came is not waited for any more.
    sqlx::query(
        "UPDATE contribution SET state = 'lost' WHERE run = ? AND round = ? AND state = 'assigned'",
    )
    .bind(run(entry))
    .bind(round as i64)
    .execute(&mut **tx)
    .await?;
    insert_loss(tx, entry, round, known.tokens, known.training_loss).await
}

async fn end_round(tx: Tx<'_, '_>, entry: &Entry, round: u64, phase: &str) -> Result<()> {
    sqlx::query(
        "UPDATE round SET phase = ?, ended_ms = ?, ended_event = ? WHERE run = ? AND round = ?",
    )
    .bind(phase)
    .bind(entry.time_ms as i64)
    .bind(entry.index as i64)
    .bind(run(entry))
    .bind(round as i64)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn insert_loss(
    tx: Tx<'_, '_>,
    entry: &Entry,
    round: u64,
    tokens: u64,
    training: Option<u64>,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO loss (run, round, tokens, time_ms, training, event) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(run(entry))
    .bind(round as i64)
    .bind(tokens as i64)
    .bind(entry.time_ms as i64)
    .bind(training.map(|it| it as i64))
    .bind(entry.index as i64)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn insert_checkpoint(
    tx: Tx<'_, '_>,
    entry: &Entry,
    round: u64,
    blob: BlobReference,
    model: &ModelState,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO checkpoint (run, round, time_ms, blob, bytes, parameters_hash, event)
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(run(entry))
    .bind(round as i64)
    .bind(entry.time_ms as i64)
    .bind(&blob.hash.0[..])
    .bind(blob.bytes as i64)
    .bind(&model.parameters.0[..])
    .bind(entry.index as i64)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn run(entry: &Entry) -> &[u8] {
    &entry.run.0.0
}

fn worker(id: &WorkerId) -> &[u8] {
    &id.0.0
}
