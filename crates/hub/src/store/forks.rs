//! What is kept of logs that part: entries that count no more, and proofs of what was said twice.

use anyhow::{Context, Result, ensure};
use network::world;
use protocol::{Hash, equivocation::Equivocation, state::State, units::RunId};
use sqlx::{Connection, Row};

use super::{Projected, REPLAY_PAGE, Store, hash_of, project};
use crate::store::entry_of;

/// Proofs kept of one run.
const EQUIVOCATIONS_MAX: i64 = 64;
/// Every table that is folded from the log.
const PROJECTIONS: [&str; 6] = [
    "round",
    "contribution",
    "worker",
    "loss",
    "checkpoint",
    "sample",
];

/// A kept proof.
pub(crate) struct Kept {
    pub(crate) proof: Equivocation,
    /// When it was found, Unix milliseconds.
    pub(crate) found_ms: u64,
}

impl Store {
    /// Sets aside all entries after the first `length` and folds the others anew; the state after them.
    ///
    /// # Errors
    /// Then nothing has changed.
    pub(crate) async fn rewind(&self, run: RunId, length: u64, now_ms: u64) -> Result<State> {
        world::settled(self.write_rewound(run, length, now_ms)).await
    }

    async fn write_rewound(&self, run: RunId, length: u64, now_ms: u64) -> Result<State> {
        ensure!(length > 0, "a log is not set aside whole");
        let mut writer = self.writer.lock().await;
        let mut connection = self.take_writer(&mut writer).await?;
        let mut transaction = connection.begin().await?;
        sqlx::query(
            "INSERT INTO set_aside (run, position, entry, set_aside_ms)
             SELECT run, position, entry, ? FROM log WHERE run = ? AND position >= ?",
        )
        .bind(now_ms as i64)
        .bind(&run.0.0[..])
        .bind(length as i64)
        .execute(&mut *transaction)
        .await?;
        sqlx::query("DELETE FROM log WHERE run = ? AND position >= ?")
            .bind(&run.0.0[..])
            .bind(length as i64)
            .execute(&mut *transaction)
            .await?;
        for table in PROJECTIONS {
            sqlx::query(&format!("DELETE FROM {table} WHERE run = ?"))
                .bind(&run.0.0[..])
                .execute(&mut *transaction)
                .await?;
        }
        // It is this copy's own log, checked before it was written: the chain of hashes and the last seal tell whether it is
        // whole, as at a start.
        let mut state: Option<State> = None;
        let mut last = None;
        loop {
            let from = state.as_ref().map_or(0, |it| it.head.length);
            let rows = sqlx::query(
                "SELECT entry FROM log WHERE run = ? AND position >= ? ORDER BY position LIMIT ?",
            )
            .bind(&run.0.0[..])
            .bind(from as i64)
            .bind(REPLAY_PAGE)
            .fetch_all(&mut *transaction)
            .await?;
            if rows.is_empty() {
                break;
            }
            for row in &rows {
                let entry = entry_of(row)?;
                let mut projected = Projected::default();
                match &mut state {
                    None => state = Some(State::create(&entry)?),
                    Some(state) => {
                        projected = Projected::before(state, &entry.event);
                        state.apply_decided(&entry)?;
                        projected.tokens = state.tokens;
                    }
                }
                project::apply(&mut transaction, &entry, &projected).await?;
                last = Some(entry);
            }
        }
        let (state, last) = state.zip(last).context("the log is empty")?;
        state.check_head(&last)?;
        transaction.commit().await?;
        *writer = Some(connection);
        Ok(state)
    }

    /// Entries that were set aside.
    pub(crate) async fn set_aside(&self, run: RunId) -> Result<u64> {
        let query = sqlx::query_scalar("SELECT count(*) FROM set_aside WHERE run = ?")
            .bind(run.0.0.to_vec());
        let count: i64 = world::settled(query.fetch_one(&self.pool)).await?;
        Ok(count.unsigned_abs())
    }

    /// Keeps a proof; false if it was here, or there are too many.
    pub(crate) async fn keep_equivocation(
        &self,
        run: RunId,
        proof: &Equivocation,
        found_ms: u64,
    ) -> Result<bool> {
        world::settled(self.write_equivocation(run, proof, found_ms)).await
    }

    async fn write_equivocation(
        &self,
        run: RunId,
        proof: &Equivocation,
        found_ms: u64,
    ) -> Result<bool> {
        let mut writer = self.writer.lock().await;
        let mut connection = self.take_writer(&mut writer).await?;
        let done = sqlx::query(
            "INSERT OR IGNORE INTO equivocation (run, id, proof, found_ms)
             SELECT ?1, ?2, ?3, ?4 WHERE (SELECT count(*) FROM equivocation WHERE run = ?1) < ?5",
        )
        .bind(&run.0.0[..])
        .bind(&proof.id().0[..])
        .bind(proof.to_bytes())
        .bind(found_ms as i64)
        .bind(EQUIVOCATIONS_MAX)
        .execute(&mut connection)
        .await?;
        *writer = Some(connection);
        Ok(done.rows_affected() > 0)
    }

    /// A proof by its id.
    pub(crate) async fn equivocation(&self, run: RunId, id: &Hash) -> Result<Option<Equivocation>> {
        let kept = self.equivocations(run).await?;
        let found = kept.into_iter().find(|it| it.proof.id() == *id);
        Ok(found.map(|it| it.proof))
    }

    /// The names of all proofs of a run.
    pub(crate) async fn equivocation_ids(&self, run: RunId) -> Result<Vec<Hash>> {
        let query = sqlx::query("SELECT id FROM equivocation WHERE run = ?").bind(run.0.0.to_vec());
        let rows = world::settled(query.fetch_all(&self.pool)).await?;
        rows.iter().map(|it| hash_of(it.try_get("id")?)).collect()
    }

    /// All proofs of a run, oldest first.
    pub(crate) async fn equivocations(&self, run: RunId) -> Result<Vec<Kept>> {
        let query = sqlx::query(
            "SELECT proof, found_ms FROM equivocation WHERE run = ? ORDER BY found_ms, id",
        )
        .bind(run.0.0.to_vec());
        let rows = world::settled(query.fetch_all(&self.pool)).await?;
        rows.iter()
            .map(|row| {
                let bytes: &[u8] = row.try_get("proof")?;
                let found_ms: i64 = row.try_get("found_ms")?;
                Ok(Kept {
                    proof: Equivocation::from_bytes(bytes)
                        .context("a stored proof does not read")?,
                    found_ms: found_ms.unsigned_abs(),
                })
            })
            .collect()
    }
}
