//! Teams: a name, and who is in it.

use anyhow::Result;
use protocol::units::AccountId;
use rusqlite::{Connection, Row, params};

use super::{DoorStore, accounts::key_of, all, execute, first, number, sql};

/// Teams in a list.
pub(crate) const TEAMS_SHOWN_MAX: usize = 1_000;

/// A team.
#[derive(Clone, Debug)]
pub(crate) struct Team {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) founder: u64,
    /// The founder's name, if that account is shown in statistics.
    pub(crate) founder_name: Option<String>,
    pub(crate) created_ms: u64,
    /// How many are in it.
    pub(crate) members: u64,
    /// Accounts of its members that are shown in statistics: what the others earned is nobody's business.
    pub(crate) shown_members: Vec<AccountId>,
}

impl DoorStore {
    /// Makes a team and puts its founder into it; `None` if the name is taken.
    pub(crate) async fn create_team(
        &self,
        name: String,
        founder: u64,
        now_ms: u64,
    ) -> Result<Option<u64>> {
        self.write(move |it| {
            let made = first(
                it,
                "INSERT INTO team (name, founder, created_ms) VALUES (?, ?, ?)
                 ON CONFLICT (name) DO NOTHING RETURNING id",
                params![name, founder, now_ms],
                number,
            )?;
            if let Some(team) = made {
                execute(
                    it,
                    "UPDATE account SET team = ? WHERE id = ?",
                    [team, founder],
                )?;
            }
            Ok(made)
        })
        .await
    }

    /// Puts an account into a team, or out of any; whether there is such a team.
    pub(crate) async fn set_team(&self, account: u64, team: Option<u64>) -> Result<bool> {
        let change = "UPDATE account SET team = ?1 WHERE id = ?2
                      AND (?1 IS NULL OR EXISTS (SELECT 1 FROM team WHERE id = ?1))";
        let team = team.map(sql);
        self.write(move |it| Ok(execute(it, change, params![team, account])? > 0))
            .await
    }

    /// A team by number.
    pub(crate) async fn team(&self, id: u64) -> Result<Option<Team>> {
        let question = "SELECT team.*, (SELECT name FROM account WHERE account.id = team.founder AND shows_statistics = 1)
                        AS founder_name FROM team WHERE team.id = ?";
        self.read(move |it| first(it, question, [sql(id)], |row| team(it, row)))
            .await
    }

    /// Teams that have members, by number.
    pub(crate) async fn teams(&self) -> Result<Vec<Team>> {
        let question =
            "SELECT id FROM team WHERE EXISTS (SELECT 1 FROM account WHERE account.team = team.id)
                        ORDER BY id LIMIT ?";
        let ids = self.read(move |it| all(it, question, [TEAMS_SHOWN_MAX as u64], number));
        let mut teams = Vec::new();
        // One at a time: others ask in between.
        for id in ids.await? {
            teams.extend(self.team(id).await?);
        }
        Ok(teams)
    }
}

fn team(connection: &Connection, row: &Row<'_>) -> Result<Team> {
    let id: u64 = row.get("id")?;
    let members = "SELECT count(*) FROM account WHERE team = ?";
    let shown = "SELECT key FROM account WHERE team = ? AND shows_statistics = 1";
    Ok(Team {
        id,
        name: row.get("name")?,
        founder: row.get("founder")?,
        founder_name: row.get("founder_name")?,
        created_ms: row.get("created_ms")?,
        members: first(connection, members, [id], number)?.unwrap_or_default(),
        shown_members: all(connection, shown, [id], key_of)?,
    })
}
