//! Accounts, as a hub with an open BOINC door keeps them: sign-in, machines, keys of devices, teams.
//!
//! What an account earned is folded from the log. Passwords, sessions and machines are the hub's own and stand in no log.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Cobblestones, as BOINC shows credit, in one credit: a cobblestone is 432 × 10^9 FLOP.
pub const COBBLESTONES_PER_CREDIT: f64 = 2_315.0;
/// Name of the cookie that carries a session.
pub const SESSION_COOKIE: &str = "athome_session";
/// What the key of a device begins with.
pub const DEVICE_KEY_PREFIX: &str = "d_";
/// Shortest password.
pub const PASSWORD_BYTES_MIN: usize = 8;
/// Tasks of one machine in an answer, newest first.
pub const TASKS_SHOWN_MAX: usize = 50;

/// What BOINC clients are told of this hub.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BoincProject {
    /// Address to give to a BOINC client as the project's URL.
    pub url: String,
    /// Version of the application: 101 is 1.01.
    pub version: u32,
    /// Platforms that the application is made for, as BOINC names them.
    pub platforms: Vec<String>,
    /// The run that BOINC clients work for now, if one takes them.
    pub run: Option<String>,
}

/// A new account.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NewAccount {
    /// Address by which to sign in; no message is ever sent to it.
    pub email: String,
    /// At least 8 bytes.
    pub password: String,
    /// Name for people.
    pub name: String,
}

/// A sign-in: by `email` and `password`, or by the token of a link.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum SignIn {
    /// As in a BOINC client.
    Password {
        /// The account's address.
        email: String,
        /// Its password.
        password: String,
    },
    /// By the account's own key ([`crate::identity::sign_in`]), once it is linked.
    Key {
        /// The account's own public key.
        key: String,
        /// The moment of signing by the signer's clock, Unix milliseconds; a few minutes from now at most.
        time_ms: u64,
        /// Its signature, in hexadecimal.
        signature: String,
    },
    /// By a link that a signed-in browser made; it works once.
    Link {
        /// The link's token.
        token: String,
    },
}

/// A link for signing in elsewhere.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SignInLink {
    /// What to show in [`SignIn::Link`]; a secret.
    pub token: String,
    /// When it stops working, Unix milliseconds.
    pub expires_ms: u64,
}

/// An amount of credit in both figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Earned {
    /// In millionths of a credit.
    pub credits_micro: u64,
    /// The same in BOINC's figure, rounded.
    pub cobblestones: f64,
    /// Cobblestones a day, averaged with a half-life of 7 days, as BOINC shows it.
    pub recent_cobblestones: f64,
}

/// An account, to whoever is signed in to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AccountSummary {
    /// Name for people.
    pub name: String,
    /// Address by which it signs in.
    pub email: String,
    /// Its public key: the account, as the log names it.
    pub key: String,
    /// Whether the hub made that key and holds it.
    pub is_key_held_by_hub: bool,
    /// The key that the hub made and holds: what the account's machines are bound to.
    pub hub_key: String,
    /// When it was made.
    pub created_ms: u64,
    /// What its workers earned, of all runs of this hub.
    pub earned: Earned,
    /// Its place among the accounts of this hub by credit, 1 for the first; none before the first credit.
    pub rank: Option<u64>,
    /// Accounts with credit.
    pub ranked: u64,
    /// Its team.
    pub team: Option<TeamSummary>,
    /// Whether it may be shown in the statistics that other sites collect.
    pub shows_statistics: bool,
    /// BOINC's identifier of the same person at several projects.
    pub cross_project_id: String,
    /// Its machines.
    pub hosts: u64,
    /// Workers bound to it that are no BOINC machines, by public key.
    pub workers: Vec<String>,
}

/// What others may know of an account that agreed to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AccountIdentity {
    /// Its public key: what a worker's half of a binding names.
    pub key: String,
    /// Name for people.
    pub name: String,
}

/// A machine with a BOINC client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostSummary {
    /// Its number at this hub.
    pub id: u64,
    /// When it was first seen.
    pub created_ms: u64,
    /// When its client was last heard of.
    pub seen_ms: u64,
    /// BOINC's name of the platform.
    pub platform: String,
    /// Its processor.
    pub processor: String,
    /// Threads.
    pub processors: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// Its operating system.
    pub operating_system: String,
    /// Version of its BOINC client.
    pub client_version: String,
    /// The worker that it is, by public key, in the run it works for.
    pub worker: Option<String>,
    /// The name of that worker.
    pub worker_name: Option<String>,
    /// What it earned.
    pub earned: Earned,
    /// Failures in a row; with each the machine waits longer for its next task.
    pub failures: u64,
    /// Spot checks in a row that agreed with it: from ten on, some of its updates go unchecked.
    pub checks_agreed: u64,
    /// Its newest tasks.
    pub tasks: Vec<TaskSummary>,
}

/// A task that a machine was given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskSummary {
    /// Its name, as the BOINC client shows it.
    pub name: String,
    /// `enrol`, `train`, `again` (another machine's round once more, as a check of it) or `evaluate`.
    pub kind: String,
    /// The run, by id.
    pub run: String,
    /// The round that it trains, or the round of the model that it measures.
    pub round: Option<u64>,
    /// `sent`, `uploaded`, `granted`, `refused`, `failed`, `aborted` or `lost`; of a granted training also what the log says
    /// of its update: `accepted`, `merged`.
    pub state: String,
    /// When it was given.
    pub sent_ms: u64,
    /// By when it is expected.
    pub deadline_ms: u64,
    /// How far it said it was, in millionths.
    pub progress_ppm: Option<u32>,
    /// Inner steps that it said it had done.
    pub steps_told: Option<u64>,
    /// The training loss that it told with them, in nats a token.
    pub loss_told: Option<f64>,
    /// When its result was whole at the hub.
    pub uploaded_ms: Option<u64>,
    /// When the client reported it.
    pub reported_ms: Option<u64>,
    /// Why it was refused or failed, a sentence.
    pub refusal: Option<String>,
    /// Tokens of its update, by the log.
    pub tokens: Option<u64>,
    /// Credit for it, in millionths.
    pub credits_micro: Option<u64>,
    /// The same in BOINC's figure.
    pub cobblestones: Option<f64>,
    /// The loss it measured, in nats a token.
    pub measured_loss: Option<f64>,
    /// The loss of the same model by the hub, in nats a token.
    pub hub_loss: Option<f64>,
    /// Where the spot check of its update stands, if it has one: `open`, `agreed`, `doubted` (one other machine got another
    /// update, a third is asked), `differs` (two did) or `dropped`.
    pub check: Option<String>,
}

/// The key of a device: it computes for the account and can do nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceKeySummary {
    /// Its number.
    pub id: u64,
    /// What it is for, for people.
    pub name: String,
    /// When it was made.
    pub made_ms: u64,
    /// When it was used last.
    pub used_ms: Option<u64>,
    /// When it was revoked.
    pub revoked_ms: Option<u64>,
}

/// A wish for a key of a device.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NewDeviceKey {
    /// What it is for, for people; at most 64 bytes.
    pub name: String,
}

/// A new key of a device.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MadeDeviceKey {
    /// Its number.
    pub id: u64,
    /// The key, which is shown this once: the hub keeps its hash.
    pub key: String,
}

/// Whether an account may be shown in the statistics that other sites collect.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct StatisticsConsent {
    /// Whether it may.
    pub shows_statistics: bool,
}

/// A team.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TeamSummary {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Who made it, if that account is shown in statistics.
    pub founder: Option<String>,
    /// When it was made.
    pub created_ms: u64,
    /// Its members.
    pub members: u64,
    /// What they earned.
    pub earned: Earned,
}

/// A wish for a team.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NewTeam {
    /// Its name, at most 64 bytes.
    pub name: String,
}

/// A wish to join a team.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct JoinTeam {
    /// The team's number.
    pub id: u64,
}

/// A worker's half of its binding to the account ([`crate::identity::sign_half`] as a worker); the hub adds the account's.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AttachWorker {
    /// The run, by id or name.
    pub run: String,
    /// The worker's public key.
    pub worker: String,
    /// Its signature, in hexadecimal.
    pub signature: String,
}

/// An own key's half of the statement that the hub's key acts for it ([`crate::identity::sign_half`] as a session); the hub
/// adds the other half.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LinkKey {
    /// The run whose log says so, by id or name.
    pub run: String,
    /// The account's own public key.
    pub key: String,
    /// Its signature, in hexadecimal.
    pub signature: String,
}
