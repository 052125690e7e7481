//! Teams: a name, and who is in it.

use anyhow::Result;
use protocol::{PublicKey, units::AccountId};
use sqlx::{Row, sqlite::SqliteRow};

use super::{DoorStore, bytes_of, count};

/// Teams in a list.
const TEAMS_SHOWN_MAX: i64 = 1_000;

/// A team.
#[derive(Clone, Debug)]
pub(crate) struct Team {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) founder: u64,
    /// The founder's name, if that account is shown in statistics.
    pub(crate) founder_name: Option<String>,
    pub(crate) created_ms: u64,
    /// Accounts of its members.
    pub(crate) members: Vec<AccountId>,
}

impl DoorStore {
    /// Makes a team and puts its founder into it; `None` if the name is taken.
    pub(crate) async fn create_team(
        &self,
        name: String,
        founder: u64,
        now_ms: u64,
    ) -> Result<Option<u64>> {
        self.write(move |connection| {
            Box::pin(async move {
                let made: Option<i64> = sqlx::query_scalar(
                    "INSERT INTO team (name, founder, created_ms) VALUES (?, ?, ?)
                     ON CONFLICT (name) DO NOTHING RETURNING id",
                )
                .bind(name)
                .bind(founder as i64)
                .bind(now_ms as i64)
                .fetch_optional(&mut *connection)
                .await?;
                if let Some(team) = made {
                    sqlx::query("UPDATE account SET team = ? WHERE id = ?")
                        .bind(team)
                        .bind(founder as i64)
                        .execute(connection)
                        .await?;
                }
                Ok(made.map(i64::unsigned_abs))
            })
        })
        .await
    }

    /// Puts an account into a team, or out of any; whether there is such a team.
    pub(crate) async fn set_team(&self, account: u64, team: Option<u64>) -> Result<bool> {
        let team = team.map(|it| i64::try_from(it).unwrap_or(-1));
        self.write(move |connection| {
            Box::pin(async move {
                let changed = sqlx::query(
                    "UPDATE account SET team = ?1 WHERE id = ?2
                     AND (?1 IS NULL OR EXISTS (SELECT 1 FROM team WHERE id = ?1))",
                )
                .bind(team)
                .bind(account as i64)
                .execute(connection)
                .await?;
                Ok(changed.rows_affected() > 0)
            })
        })
        .await
    }

    /// A team by number.
    pub(crate) async fn team(&self, id: u64) -> Result<Option<Team>> {
        let row = sqlx::query(&selected("WHERE team.id = ?"))
            .bind(id as i64)
            .fetch_optional(&mut *self.reader().await)
            .await?;
        match row {
            Some(row) => Ok(Some(self.with_members(&row).await?)),
            None => Ok(None),
        }
    }

    /// Teams that have members, by number.
    pub(crate) async fn teams(&self) -> Result<Vec<Team>> {
        let text = selected(
            "WHERE EXISTS (SELECT 1 FROM account WHERE account.team = team.id) ORDER BY team.id LIMIT ?",
        );
        let rows = sqlx::query(&text)
            .bind(TEAMS_SHOWN_MAX)
            .fetch_all(&mut *self.reader().await)
            .await?;
        let mut teams = Vec::new();
        for row in &rows {
            teams.push(self.with_members(row).await?);
        }
        Ok(teams)
    }

    async fn with_members(&self, row: &SqliteRow) -> Result<Team> {
        let id = count(row, "id")?;
        let members = sqlx::query("SELECT key FROM account WHERE team = ?")
            .bind(id as i64)
            .fetch_all(&mut *self.reader().await)
            .await?;
        let key = |row| Ok(AccountId(PublicKey(bytes_of(row, "key")?)));
        Ok(Team {
            id,
            name: row.try_get("name")?,
            founder: count(row, "founder")?,
            founder_name: row.try_get("founder_name")?,
            created_ms: count(row, "created_ms")?,
            members: members.iter().map(key).collect::<Result<_>>()?,
        })
    }
}

fn selected(which: &str) -> String {
    format!(
        "SELECT team.*, (SELECT name FROM account WHERE account.id = team.founder AND shows_statistics = 1)
         AS founder_name FROM team {which}"
    )
}
