//! Teams as they are listed: those that earned most first. What everyone earned is added up now and then; whoever makes,
//! joins or leaves a team sees it in the list at once.

use std::sync::Arc;

use anyhow::Result;
use protocol::api::accounts::TeamSummary;

use super::{
    Door,
    store::{TEAMS_SHOWN_MAX, Team},
};
use crate::Hub;

/// A team in the list.
#[derive(Clone, Debug)]
pub(crate) struct ListedTeam {
    founder: u64,
    pub(crate) summary: TeamSummary,
}

impl Door {
    /// A team by number.
    pub(crate) async fn team_summary(&self, hub: &Hub, id: u64) -> Result<Option<TeamSummary>> {
        let listed = self.listed_team(hub, id).await?;
        Ok(listed.map(|it| it.summary))
    }

    /// Teams that have members, those that earned most first.
    pub(crate) async fn teams(self: &Arc<Self>, hub: &Arc<Hub>) -> Result<Arc<Vec<ListedTeam>>> {
        let (door, hub) = (Arc::clone(self), Arc::clone(hub));
        self.teams_kept
            .get(async move {
                let mut teams = Vec::new();
                for team in door.store.teams().await? {
                    teams.push(door.listed(&hub, team).await?);
                }
                sort(&mut teams);
                Ok(teams)
            })
            .await
    }

    /// Says that members came to a team or left it.
    pub(crate) async fn note_members(&self, hub: &Hub, id: u64) -> Result<()> {
        let now = self.listed_team(hub, id).await?;
        self.teams_kept.change(|teams| {
            teams.retain(|it| it.summary.id != id);
            teams.extend(now.filter(|it| it.summary.members > 0));
            sort(teams);
            teams.truncate(TEAMS_SHOWN_MAX);
        });
        Ok(())
    }

    /// Says that an account is shown by this name as the founder of teams, or no more.
    pub(crate) fn note_founder(&self, account: u64, name: Option<&str>) {
        self.teams_kept.change(|teams| {
            for team in teams.iter_mut().filter(|it| it.founder == account) {
                team.summary.founder = name.map(str::to_owned);
            }
        });
    }

    async fn listed_team(&self, hub: &Hub, id: u64) -> Result<Option<ListedTeam>> {
        match self.store.team(id).await? {
            Some(team) => self.listed(hub, team).await.map(Some),
            None => Ok(None),
        }
    }

    async fn listed(&self, hub: &Hub, team: Team) -> Result<ListedTeam> {
        let earned = self.earned_together(hub, &team.shown_members).await?;
        Ok(ListedTeam {
            founder: team.founder,
            summary: TeamSummary {
                id: team.id,
                name: team.name,
                founder: team.founder_name,
                created_ms: team.created_ms,
                members: team.members,
                earned: earned.shown(),
            },
        })
    }
}

fn sort(teams: &mut [ListedTeam]) {
    teams.sort_by_key(|it| std::cmp::Reverse(it.summary.earned.credits_micro));
}
