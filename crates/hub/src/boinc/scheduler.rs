//! The scheduler: a client reports what it did, says what it holds, and is given the next thing to do.
//!
//! Nothing of a report is believed but that the client is done with a task: it is acknowledged whatever it says, or the
//! client would send it for ever.

mod choice;
mod outcome;

use std::sync::Arc;

use anyhow::Result;

use self::{choice::Unreported, outcome::outcome};
use super::{
    Door,
    accounts::md5_hex,
    credit::Earning,
    hosts::Identified,
    release::Platform,
    reply::{Account as AccountBlock, Body, Message, SchedulerReply, Task, unit_of_result},
    request::{HELD_MAX, REPORTS_MAX, SchedulerRequest, without_space},
    store::{Account, Enrolment, Host, Unit, UnitState},
    tasks::{self, For},
    xml::XmlError,
};
use crate::{Hub, blobs::PART_BYTES_MAX, run::Run};

/// Delays in seconds that BOINC's own scheduler tells.
const INVALID_DELAY_S: f64 = 3_600.0;
const PLATFORM_DELAY_S: f64 = 86_400.0;
const NO_RUN_DELAY_S: f64 = 3_600.0;
const BUSY_DELAY_S: f64 = 60.0;
const DAY_MS: u64 = 86_400_000;
/// A host is given so many times as many tasks in a day as it can train, and never fewer than this: what it measures
/// between two rounds is shorter, and much that is given comes to nothing by nobody's fault.
const DAILY_QUOTA_TIMES: u64 = 8;
const DAILY_QUOTA_LEAST: u64 = 64;
/// Bounds of the least delay between requests: short where tasks are short.
const DELAY_S: (f64, f64) = (5.0, 60.0);
/// Bounds of the longest delay: a host that is called back learns it at its next request.
const NEXT_DELAY_S: (f64, f64) = (60.0, 1_800.0);

/// Answers a request of a client.
pub(crate) async fn answer(
    hub: &Arc<Hub>,
    door: &Door,
    request: Result<SchedulerRequest, XmlError>,
    master_url: &str,
) -> Result<SchedulerReply> {
    let now_ms = hub.clock.now_ms();
    let request = match request {
        Ok(request) => request,
        Err(error) => return Ok(SchedulerReply::only(error.to_string(), true, BUSY_DELAY_S)),
    };
    let Some(_turn) = door.turn_of(&request) else {
        let text = "another request of this host is being answered";
        return Ok(SchedulerReply::only(text, false, BUSY_DELAY_S));
    };
    let caller = door
        .caller(&request.authenticator, request.host, now_ms)
        .await?;
    let Some((account, is_of_client, named)) = caller else {
        let text = "Invalid or revoked account key: detach this project and attach it again";
        return Ok(SchedulerReply::only(text, true, INVALID_DELAY_S));
    };
    let Some(platform) = door.platform_for(&request).cloned() else {
        let text = format!(
            "AI@home has no application for {} yet",
            request.platforms.join(" or ")
        );
        return Ok(SchedulerReply::only(text, true, PLATFORM_DELAY_S));
    };
    let found = door
        .identify(&account, &request, named, &platform.platform, now_ms)
        .await?;
    let Some(mut found) = found else {
        let text = "this account has as many machines as it may have";
        return Ok(SchedulerReply::only(text, true, PLATFORM_DELAY_S));
    };
    let noted = found.noted.take();
    let call = Call {
        hub,
        door,
        account,
        is_of_client,
        found,
        platform,
        request,
        now_ms,
    };
    let reply = call.answer(master_url).await?;
    if let Some(noted) = noted {
        noted.written().await?;
    }
    Ok(reply)
}

/// The answer to a request that is too long to be read.
pub(crate) fn too_long() -> SchedulerReply {
    let mib = PART_BYTES_MAX >> 20;
    let text = format!("the request has more than {mib} MiB");
    SchedulerReply::only(text, true, BUSY_DELAY_S)
}

impl Door {
    fn platform_for(&self, request: &SchedulerRequest) -> Option<&Platform> {
        let wanted = request.platforms.iter();
        let found = |name: &String| {
            let mut platforms = self.release.platforms.iter();
            platforms.find(|it| it.platform == *name && it.plan_class.is_empty())
        };
        wanted.into_iter().find_map(found)
    }

    /// One request of a host at a time; a new one is told by what it calls itself. Whose the named host is isn't known yet:
    /// who shows another key takes no turn from it.
    pub(super) fn turn_of(&self, request: &SchedulerRequest) -> Option<super::Turn<String>> {
        let key = &request.authenticator;
        self.hosts.begin(match request.host {
            0 => format!("new {key} {}", request.machine.cpid),
            host => format!("{host} {key}"),
        })
    }
}

/// A request of a host that is known.
struct Call<'a> {
    hub: &'a Arc<Hub>,
    door: &'a Door,
    account: Account,
    /// Whether its client got the key that it shows for the account's password.
    is_of_client: bool,
    found: Identified,
    platform: Platform,
    request: SchedulerRequest,
    now_ms: u64,
}

/// What a reply says besides who it is for.
#[derive(Default)]
struct Answer {
    messages: Vec<Message>,
    aborted: Vec<String>,
    deleted: Vec<String>,
    task: Option<Task>,
    /// Longer than usual, where there is a reason.
    delay_s: Option<f64>,
}

impl Answer {
    fn say(&mut self, is_notice: bool, text: impl Into<String>) {
        let text = text.into();
        self.messages.push(Message { is_notice, text });
    }
}

impl Call<'_> {
    async fn answer(&self, master_url: &str) -> Result<SchedulerReply> {
        let mut answer = Answer::default();
        self.tell_what_is_left(&mut answer);
        let run = tasks::run_for_hosts(self.hub).await?;
        self.note_reports(run.as_ref()).await?;
        self.note_trickles().await?;
        self.note_cross_id().await?;
        let unreported = self.unreported(&mut answer).await?;
        match &run {
            None => {
                answer.say(false, "No run of this hub takes BOINC clients now");
                answer.delay_s = Some(NO_RUN_DELAY_S);
            }
            Some(run) => {
                self.note_presence(run, &unreported.held).await;
                self.tell_refusals(run, &mut answer).await?;
                self.choose_task(run, unreported, &mut answer).await?;
            }
        }
        let (least, longest) = match &run {
            Some(run) => delays(run),
            None => (NO_RUN_DELAY_S, None),
        };
        Ok(SchedulerReply {
            request_delay_s: answer.delay_s.unwrap_or(least),
            next_request_s: longest.filter(|_| answer.delay_s.is_none()),
            messages: std::mem::take(&mut answer.messages),
            body: Some(self.body(master_url, answer).await?),
        })
    }

    fn host(&self) -> &Host {
        &self.found.standing.host
    }

    /// Which worker the host is in a run.
    fn enrolment(&self, run: &Run) -> Enrolment {
        let mut enrolments = self.found.standing.enrolments.iter();
        let found = enrolments.find(|it| it.0 == run.id);
        found.map(|it| it.1).unwrap_or_default()
    }

    fn whom<'b>(&'b self, run: &'b Run) -> For<'b> {
        For {
            hub: self.hub,
            run,
            account: &self.account,
            host: self.host(),
            platform: &self.platform,
            request: &self.request,
            now_ms: self.now_ms,
        }
    }

    /// Says what of the request was not looked at: nobody's list keeps the database from everyone else.
    fn tell_what_is_left(&self, answer: &mut Answer) {
        if self.request.reports_left > 0 {
            answer.say(
                true,
                format!(
                    "{REPORTS_MAX} reported tasks are taken at once: the client reports the other {} with its next requests",
                    self.request.reports_left
                ),
            );
        }
        if self.request.held_left > 0 {
            answer.say(
                true,
                format!(
                    "The client has {} tasks of this project, and {HELD_MAX} are looked at: it gets more when it has fewer. \
                     If they do not go away, reset the project",
                    HELD_MAX + self.request.held_left
                ),
            );
        }
    }

    async fn note_reports(&self, run: Option<&Run>) -> Result<()> {
        if self.request.reports.is_empty() {
            return Ok(());
        }
        let (host, door) = (self.host().id, self.door);
        let reports = self.request.reports.iter();
        let outcomes: Vec<_> = reports.filter_map(|it| outcome(it, host)).collect();
        let of = |name: &String| outcomes.iter().find(|it| it.name == *name);
        let is_failure =
            |name: &String| of(name).is_some_and(|it| it.otherwise == UnitState::Failed);
        let ended = door
            .store
            .note_reports(outcomes.clone(), self.now_ms)
            .await?;
        door.uploads.give_up(&ended, self.account.id).await?;
        let spoilt = ended.iter().filter_map(of).filter(|it| it.lessens_quota);
        let spoilt = spoilt.count();
        if spoilt > 0 {
            let whole = match run {
                Some(run) => daily_quota(run),
                None => DAILY_QUOTA_LEAST,
            };
            door.store.lessen_quota(host, spoilt, whole).await?;
        }
        if ended.iter().any(is_failure) {
            door.store.note_failure(host, self.now_ms).await?;
        }
        Ok(())
    }

    async fn note_trickles(&self) -> Result<()> {
        let told = self.request.trickles.iter().filter_map(|it| {
            let unit = unit_of_result(&it.result)?;
            Some((unit.to_owned(), it.clone()))
        });
        let told: Vec<_> = told.collect();
        match told.is_empty() {
            true => Ok(()),
            false => self.door.store.note_progress(self.host().id, told).await,
        }
    }

    /// The oldest identifier of a person wins at every project: the client brings it. A key that was made for somebody to
    /// paste computes and changes nothing.
    async fn note_cross_id(&self) -> Result<()> {
        if !self.is_of_client {
            return Ok(());
        }
        let brought = &self.request.cross_project_id;
        let is_id = brought.len() == 32 && brought.bytes().all(|it| it.is_ascii_hexdigit());
        if is_id && *brought != self.account.cross_id {
            let id = self.account.id;
            self.door.store.set_cross_id(id, brought.clone()).await?;
        }
        Ok(())
    }

    /// The tasks that the host still has, or lost with a reply. What it has and nobody wants is called back.
    async fn unreported(&self, answer: &mut Answer) -> Result<Unreported> {
        let door = self.door;
        // What its reports of just now changed is in the database alone.
        let open = match self.request.reports.is_empty() {
            true => self.found.standing.open.clone(),
            false => door.store.open_units(self.host().id).await?,
        };
        let held: Vec<&str> = self.request.held.iter().map(String::as_str).collect();
        let is_held = |unit: &Unit| held.iter().any(|it| unit_of_result(it) == Some(&unit.name));
        // Of a list that is longer than is looked at, nobody knows what is not in it.
        let is_cut = self.request.held_left > 0 || self.request.reports_left > 0;
        let (mut unreported, mut gone) = (Unreported::default(), Vec::new());
        unreported.is_busy = is_cut;
        // Only of this host's own: what else the client lists may be another's.
        let mut called_back = Vec::new();
        for unit in &open {
            match (is_held(unit), unit.state) {
                (true, UnitState::Sent)
                    if !door.store.settling.has(&unit.name) && !self.is_wanted(unit).await =>
                {
                    answer.aborted.push(super::reply::result_name(&unit.name));
                    called_back.push(unit.name.clone());
                    unreported.is_busy = true;
                }
                (true, state) => {
                    unreported.is_busy = true;
                    if state == UnitState::Sent {
                        unreported.held.push(unit.clone());
                    }
                }
                (false, _) if is_cut => {}
                (false, UnitState::Sent) => unreported.lost.push(unit.clone()),
                (false, _) => gone.push(unit.name.clone()),
            }
        }
        let strangers = held.iter().filter(|it| {
            let unit = unit_of_result(it);
            !open.iter().any(|open| unit == Some(&open.name))
        });
        answer.aborted.extend(strangers.map(|it| (*it).to_owned()));
        if !gone.is_empty() {
            door.store.note_gone(gone, self.now_ms).await?;
        }
        if !called_back.is_empty() {
            let why = "the round was over before the task was done";
            let state = UnitState::Aborted;
            let account = self.account.id;
            door.give_up(account, called_back, state, why).await?;
        }
        Ok(unreported)
    }

    async fn is_wanted(&self, unit: &Unit) -> bool {
        let Ok(run) = Door::run(self.hub, unit.run).await else {
            return false;
        };
        let state = run.state.read().await;
        match (unit.kind.as_str(), unit.round, &unit.worker) {
            ("train", Some(round), Some(worker)) => tasks::is_wanted(&state, round, worker),
            _ => !state.is_finished(),
        }
    }

    /// Tells the user why something did not count: results that the door refused, updates that the run did.
    async fn tell_refusals(&self, run: &Run, answer: &mut Answer) -> Result<()> {
        let (store, host) = (&self.door.store, self.host().id);
        let untold = match self.found.standing.has_untold {
            true => store.take_refusals(host).await?,
            false => Vec::new(),
        };
        for (name, state, why) in untold {
            answer.say(
                true,
                match state {
                    // What was granted may be doubted afterwards.
                    UnitState::Granted => format!("Task {name}: {why}"),
                    _ => format!("Task {name} was refused: {why}"),
                },
            );
        }
        let enrolment = self.enrolment(run);
        let Some(worker) = enrolment.worker else {
            return Ok(());
        };
        // Most were never refused anything, and the state in memory knows.
        let was_refused = {
            let state = run.state.read().await;
            let record = state.workers.get(&worker);
            record.is_some_and(|it| it.updates_refused > 0)
        };
        if !was_refused {
            return Ok(());
        }
        let refused = self.hub.store.last_refusal_event(run.id, &worker).await?;
        if let Some((refusal, event)) = refused
            && event > enrolment.refusal_told
        {
            answer.say(
                true,
                format!("An update of this machine was refused: {refusal}"),
            );
            store.note_refusal_told(host, run.id, event).await?;
        }
        Ok(())
    }

    async fn body(&self, master_url: &str, answer: Answer) -> Result<Body> {
        let (door, host) = (self.door, self.host());
        let workers = &self.found.standing.workers;
        let of_host = door.credit.of_workers(self.hub, workers).await?;
        let release_key = &door.release.code_sign_key;
        let holds_key = without_space(release_key) == self.request.code_sign_key;
        let reports = self.request.reports.iter();
        Ok(Body {
            master_url: master_url.to_owned(),
            project: super::PROJECT.to_owned(),
            account: self.account_block().await?,
            host: self.found.is_news.then_some(host.id),
            host_created_s: host.created_ms / 1_000,
            host_total: of_host.cobblestones(),
            host_recent: of_host.recent(),
            acknowledged: reports.map(|it| it.name.clone()).collect(),
            has_trickles: !self.request.trickles.is_empty(),
            aborted: answer.aborted,
            deleted: answer.deleted,
            task: answer.task,
            code_sign_key: (!holds_key).then(|| release_key.clone()),
        })
    }

    async fn account_block(&self) -> Result<AccountBlock> {
        let (door, account) = (self.door, &self.account);
        let earned = door.credit.of_accounts(self.hub, &[account.key]).await?;
        let earned: Earning = earned.into_iter().next().unwrap_or_default();
        let team = match account.team {
            Some(id) => door.store.team(id).await?.map(|it| (it.id, it.name)),
            None => None,
        };
        Ok(AccountBlock {
            id: account.id,
            name: account.name.clone(),
            total: earned.cobblestones(),
            recent: earned.recent(),
            created_s: account.created_ms / 1_000,
            email_hash: md5_hex(account.email.as_bytes()),
            cross_project_id: account.cross_id.clone(),
            external_id: external_id(account),
            team,
        })
    }
}

/// The identifier by which statistics know a person: not to be told from the one that clients carry.
pub(super) fn external_id(account: &Account) -> String {
    md5_hex(format!("{}{}", account.cross_id, account.email).as_bytes())
}

/// Tasks that a run has for a host in a day at most.
pub(super) fn daily_quota(run: &Run) -> u64 {
    let unit_ms = run.charter.round.boinc_unit_ms;
    let longest = DAY_MS / unit_ms.max(1);
    (longest * DAILY_QUOTA_TIMES).max(DAILY_QUOTA_LEAST)
}

/// Least and longest time to a host's next request, in seconds.
fn delays(run: &Run) -> (f64, Option<f64>) {
    let round = &run.charter.round;
    let least = round.boinc_unit_ms as f64 / 8_000.0;
    let longest = round.window_ms as f64 / 2_000.0;
    (
        least.clamp(DELAY_S.0, DELAY_S.1),
        Some(longest.clamp(NEXT_DELAY_S.0, NEXT_DELAY_S.1)),
    )
}
