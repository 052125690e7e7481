//! Which machine asks: BOINC clients lose their numbers, are copied with their disks, and say so only by the way.

use anyhow::Result;

use super::{
    Door,
    request::{Machine, SchedulerRequest},
    store::{Account, Host, Pending, Standing, UnitState},
};

/// Who asks.
#[derive(Debug)]
pub(super) struct Identified {
    pub(super) standing: Standing,
    /// Whether the client must be told the host's number: it believes another, or none.
    pub(super) is_news: bool,
    /// What its client said of it is on its way to the disk: no reply before it is there.
    pub(super) noted: Option<Pending<()>>,
}

impl Door {
    /// Finds the host, or makes one; `None` if the account has too many. `named` has the number that the request names.
    pub(super) async fn identify(
        &self,
        account: &Account,
        request: &SchedulerRequest,
        named: Option<Standing>,
        platform: &str,
        now_ms: u64,
    ) -> Result<Option<Identified>> {
        let described = |found: Host| Host {
            sequence: request.sequence,
            seen_ms: now_ms,
            platform: platform.to_owned(),
            client_version: request.client_version.clone(),
            machine: request.machine.clone(),
            ..found
        };
        if let Some(found) = named
            && found.host.account == account.id
            && request.sequence >= found.host.sequence
        {
            let host = described(found.host.clone());
            let noted = match says_the_same(&found.host, &host) {
                true => self.store.host_seen(&host).await?,
                false => self.store.update_host(host.clone()).await?,
            };
            return Ok(Some(Identified {
                standing: Standing { host, ..found },
                is_news: false,
                noted: Some(noted),
            }));
        }
        if let Some(found) = self.same_machine(account, request).await? {
            // The client forgot what it had: its tasks are over.
            let open = self.store.open_units(found.id).await?;
            let names = open.into_iter().map(|it| it.name).collect();
            let why = "the client was attached again and had forgotten the task";
            self.give_up(account.id, names, UnitState::Lost, why)
                .await?;
            let standing = Standing {
                enrolments: self.store.enrolments(found.id).await?,
                workers: self.store.workers_of(found.id).await?,
                host: described(found),
                open: Vec::new(),
                has_untold: true,
            };
            let noted = self.store.update_host(standing.host.clone()).await?;
            return Ok(Some(Identified {
                standing,
                is_news: true,
                noted: Some(noted),
            }));
        }
        let new = described(Host {
            account: account.id,
            created_ms: now_ms,
            ..Host::default()
        });
        let Some(id) = self.store.add_host(new.clone()).await? else {
            return Ok(None);
        };
        let host = Host { id, ..new };
        Ok(Some(Identified {
            standing: Standing {
                host,
                ..Standing::default()
            },
            is_news: true,
            noted: None,
        }))
    }

    /// The account's host that calls itself by this name and has this hardware.
    async fn same_machine(
        &self,
        account: &Account,
        request: &SchedulerRequest,
    ) -> Result<Option<Host>> {
        let machine = &request.machine;
        if request.allows_multiple_clients || machine.cpid.is_empty() {
            return Ok(None);
        }
        let named = self.store.hosts_named(account.id, &machine.cpid).await?;
        Ok(named.into_iter().find(|it| is_like(&it.machine, machine)))
    }
}

/// Whether a client says of its machine what is noted of it.
fn says_the_same(noted: &Host, now: &Host) -> bool {
    // What the machine may use is of this request, and not noted.
    let machine = Machine {
        disk_share_bytes: noted.machine.disk_share_bytes,
        memory_share_bytes: noted.machine.memory_share_bytes,
        ..now.machine.clone()
    };
    machine == noted.machine
        && now.platform == noted.platform
        && now.client_version == noted.client_version
}

/// Whether two descriptions may be of one machine: what changes with an update of its system is not looked at.
fn is_like(one: &Machine, other: &Machine) -> bool {
    one.vendor == other.vendor
        && one.model == other.model
        && one.processors == other.processors
        && one.os_name == other.os_name
}
