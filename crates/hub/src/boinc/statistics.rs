//! What sites that collect statistics of BOINC projects read: of those who agreed to it, and nobody else.

use std::{collections::HashMap, fmt::Write, io::Write as _, sync::Arc};

use anyhow::Result;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use protocol::units::AccountId;

use super::{
    Door, accounts::md5_hex, credit::Earning, kept::Kept, scheduler::external_id, store::Account,
    xml::escaped,
};
use crate::Hub;

/// A file of the export.
pub(crate) struct Exported {
    pub(crate) content_type: &'static str,
    pub(crate) bytes: Bytes,
    /// A name for these very bytes.
    pub(crate) tag: String,
}

/// The files as they were made last: each takes a walk through all accounts or hosts.
#[derive(Default)]
pub(super) struct StatisticsKept {
    users: Kept<Exported>,
    hosts: Kept<Exported>,
    teams: Kept<Exported>,
    tables: Kept<Exported>,
}

/// The files that take long to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum File {
    Users,
    Hosts,
    Teams,
    Tables,
}

impl Exported {
    fn new(content_type: &'static str, bytes: Vec<u8>) -> Self {
        Self {
            content_type,
            tag: format!("\"{}\"", blake3::hash(&bytes).to_hex()),
            bytes: bytes.into(),
        }
    }
}

impl Door {
    /// The file of that name, as it was some minutes ago; `None` for names of none.
    pub(crate) async fn statistics(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        name: &str,
    ) -> Result<Option<Arc<Exported>>> {
        let all = &self.statistics_kept;
        let (kept, file) = match name {
            "user.gz" => (&all.users, File::Users),
            "host.gz" => (&all.hosts, File::Hosts),
            "team.gz" => (&all.teams, File::Teams),
            "tables.xml" => (&all.tables, File::Tables),
            "badge_user.gz" => return packed(&listed("badge_users", "")).map(Arc::new).map(Some),
            "badge_team.gz" => return packed(&listed("badge_teams", "")).map(Arc::new).map(Some),
            _ => return Ok(None),
        };
        let (door, hub) = (Arc::clone(self), Arc::clone(hub));
        kept.get(async move { door.export(&hub, file).await })
            .await
            .map(Some)
    }

    async fn export(&self, hub: &Hub, file: File) -> Result<Exported> {
        let text = match file {
            File::Users => self.users(hub).await?,
            File::Hosts => self.hosts_shown(hub).await?,
            File::Teams => self.teams_shown(hub).await?,
            File::Tables => {
                let text = self.tables(hub).await?;
                return Ok(Exported::new("text/xml", text.into_bytes()));
            }
        };
        packed(&text)
    }

    async fn users(&self, hub: &Hub) -> Result<String> {
        let accounts = self.store.shown_accounts().await?;
        let ids: Vec<AccountId> = accounts.iter().map(|it| it.key).collect();
        let earned = self.credit.of_accounts(hub, &ids).await?;
        let now_s = hub.clock.now_ms() / 1_000;
        let mut items = String::new();
        for (account, earned) in accounts.iter().zip(earned) {
            let _ = writeln!(
                items,
                "<user>\n <id>{}</id>\n <name>{}</name>\n <create_time>{}</create_time>\n{} <cpid>{}</cpid>\n \
                 <teamid>{}</teamid>\n <has_profile>0</has_profile>\n</user>",
                account.id,
                escaped(&account.name),
                account.created_ms / 1_000,
                credit(&earned, now_s),
                external_id(account),
                account.team.unwrap_or(0),
            );
        }
        Ok(listed("users", &items))
    }

    async fn hosts_shown(&self, hub: &Hub) -> Result<String> {
        let accounts = self.store.shown_accounts().await?;
        let emails: HashMap<u64, &Account> = accounts.iter().map(|it| (it.id, it)).collect();
        let now_s = hub.clock.now_ms() / 1_000;
        let mut items = String::new();
        for host in self.store.shown_hosts().await? {
            let Some(account) = emails.get(&host.account) else {
                continue;
            };
            let workers = self.store.workers_of(host.id).await?;
            let earned = self.credit.of_workers(hub, &workers).await?;
            let machine = &host.machine;
            let _ = writeln!(
                items,
                "<host>\n <id>{}</id>\n <userid>{}</userid>\n{} <p_vendor>{}</p_vendor>\n <p_model>{}</p_model>\n \
                 <os_name>{}</os_name>\n <os_version>{}</os_version>\n <create_time>{}</create_time>\n \
                 <rpc_time>{}</rpc_time>\n <timezone>{}</timezone>\n <ncpus>{}</ncpus>\n <p_fpops>{:.0}</p_fpops>\n \
                 <p_iops>{:.0}</p_iops>\n <m_nbytes>{}</m_nbytes>\n <host_cpid>{}</host_cpid>\n</host>",
                host.id,
                host.account,
                credit(&earned, now_s),
                escaped(&machine.vendor),
                escaped(&machine.model),
                escaped(&machine.os_name),
                escaped(&machine.os_version),
                host.created_ms / 1_000,
                host.seen_ms / 1_000,
                machine.timezone,
                machine.processors,
                machine.flops,
                machine.iops,
                machine.memory_bytes,
                md5_hex(format!("{}{}", machine.cpid, account.email).as_bytes()),
            );
        }
        Ok(listed("hosts", &items))
    }

    async fn teams_shown(&self, hub: &Hub) -> Result<String> {
        let now_s = hub.clock.now_ms() / 1_000;
        let mut items = String::new();
        for team in self.store.teams().await? {
            let earned = self.earned_together(hub, &team.shown_members).await?;
            let founder = team.founder_name.as_deref().unwrap_or_default();
            let _ = writeln!(
                items,
                "<team>\n <id>{}</id>\n <type>1</type>\n <name>{}</name>\n <userid>{}</userid>\n{} \
                 <founder_name>{}</founder_name>\n <create_time>{}</create_time>\n</team>",
                team.id,
                escaped(&team.name),
                if founder.is_empty() { 0 } else { team.founder },
                credit(&earned, now_s),
                escaped(founder),
                team.created_ms / 1_000,
            );
        }
        Ok(listed("teams", &items))
    }

    /// What accounts earned together.
    pub(crate) async fn earned_together(
        &self,
        hub: &Hub,
        accounts: &[AccountId],
    ) -> Result<Earning> {
        let earned = self.credit.of_accounts(hub, accounts).await?;
        Ok(earned.into_iter().fold(Earning::default(), Earning::plus))
    }

    async fn tables(&self, hub: &Hub) -> Result<String> {
        let accounts = self.store.shown_accounts().await?;
        let keys = self.store.account_keys().await?;
        let total = self.earned_together(hub, &keys).await?;
        let app = escaped(&self.release.app);
        Ok(format!(
            "<tables>\n<update_time>{}</update_time>\n<nusers_total>{}</nusers_total>\n<nteams_total>{}</nteams_total>\n\
             <nhosts_total>{}</nhosts_total>\n<total_credit>{:.6}</total_credit>\n<applications>\n    <application>\n        \
             <name>{app}</name>\n    </application>\n</applications>\n<badges>\n</badges>\n</tables>\n",
            hub.clock.now_ms() / 1_000,
            accounts.len(),
            self.store.teams().await?.len(),
            self.store.shown_hosts().await?.len(),
            total.cobblestones(),
        ))
    }

    /// What a worker, or several, earned.
    pub(crate) async fn earned_by_host(&self, hub: &Hub, host: u64) -> Result<Earning> {
        let workers = self.store.workers_of(host).await?;
        self.credit.of_workers(hub, &workers).await
    }

    /// What an account earned, its place, and how many have one.
    pub(crate) async fn standing(
        &self,
        hub: &Hub,
        account: AccountId,
    ) -> Result<(Earning, Option<u64>, u64)> {
        let keys = self.store.account_keys().await?;
        let earned = self.credit.of_accounts(hub, &[account]).await?;
        let (rank, ranked) = self.credit.rank(hub, account, &keys).await?;
        Ok((earned.into_iter().next().unwrap_or_default(), rank, ranked))
    }
}

fn credit(earned: &Earning, now_s: u64) -> String {
    format!(
        " <total_credit>{:.6}</total_credit>\n <expavg_credit>{:.6}</expavg_credit>\n <expavg_time>{now_s}</expavg_time>\n",
        earned.cobblestones(),
        earned.recent()
    )
}

fn packed(text: &str) -> Result<Exported> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(text.as_bytes())?;
    // Bytes as they are: packed once, whatever whoever asks can unpack.
    let content_type = "application/octet-stream";
    Ok(Exported::new(content_type, packed.finish()?))
}

fn listed(name: &str, items: &str) -> String {
    format!("<{name}>\n{items}</{name}>\n")
}
