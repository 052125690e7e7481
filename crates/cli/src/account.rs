//! `athome account …`: the key that a person's machines work for, on that person's own machine.
//!
//! The key never leaves it: hubs get signatures. What brings it back is a phrase of 24 words that is the key itself.

mod password;
mod phrase;

use std::{io::IsTerminal as _, path::PathBuf, time::SystemTime};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use network::{HubClient, accounts::Session};
use protocol::{
    SecretKey,
    api::accounts::SignIn,
    identity::{self, KeyRole},
    units::{AccountId, RunId},
};
use serde::Serialize;

use crate::{
    keys,
    output::{Output, printable},
    places::Places,
};

/// Make, restore and use the key that your machines' work counts for.
#[derive(Args)]
pub(crate) struct Account {
    #[command(subcommand)]
    command: Command,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Make the key of your account on this machine
    Create(Create),
    /// Bring the key back from its 24 words
    Recover(Recover),
    /// Have your key stand for an account that was made through a BOINC client or the web app
    Link(Link),
    /// Print a link that signs a browser in
    Login(Login),
}

/// Make the key of your account on this machine.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome account create\n\nIt prints 24 words: whoever has them has the account, and without key and words nobody has it. Write them on paper."
)]
struct Create {}

/// Bring the key back from its 24 words.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome account recover\n  athome account recover < words.txt\n\nThe words are read from standard input, so that they stand in no history of commands."
)]
struct Recover {}

/// Have your key stand for an account that was made through a BOINC client or the web app.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome account link https://hub.example --email ada@example.org\n  athome account link https://hub.example --email ada@example.org --worker\n\nUntil then the hub holds a key for that account. This signs, and the hub signs, that the hub's key acts for yours: both\nsignatures stand in the logs of the hub's runs. The password is asked for, or read from standard input."
)]
struct Link {
    /// The hub's address
    #[arg(env = "ATHOME_HUB", hide_env_values = true, value_name = "URL")]
    hub: String,
    /// The account's e-mail address
    #[arg(long, value_name = "ADDRESS")]
    email: String,
    /// Have the work of this machine's `athome join` count for the account too
    #[arg(long)]
    worker: bool,
    /// That worker's folder [default: worker in the home folder]
    #[arg(long, value_name = "FOLDER", requires = "worker")]
    worker_folder: Option<PathBuf>,
}

/// Print a link that signs a browser in.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome account login https://hub.example\n  athome account login https://hub.example --email ada@example.org\n\nThe link works once and for a quarter of an hour. Your key signs for it, if the account is linked; with --email the\npassword does."
)]
struct Login {
    /// The hub's address
    #[arg(env = "ATHOME_HUB", hide_env_values = true, value_name = "URL")]
    hub: String,
    /// Sign in with this address and its password instead of the key
    #[arg(long, value_name = "ADDRESS")]
    email: Option<String>,
}

/// What `--json` prints of a key.
#[derive(Serialize)]
struct Key {
    account: String,
    file: PathBuf,
    /// The recovery phrase, where it is shown at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    words: Option<String>,
}

/// What `--json` prints of a link between keys.
#[derive(Serialize)]
struct Linked {
    account: String,
    hub_key: String,
    runs: Vec<String>,
    worker: Option<String>,
}

/// What `--json` prints of a link for a browser.
#[derive(Serialize)]
struct LoginLink {
    url: String,
    expires_ms: u64,
}

impl Account {
    pub(crate) async fn execute(self, places: &Places) -> anyhow::Result<()> {
        let output = Output { json: self.json };
        match self.command {
            Command::Create(Create {}) => create(output, places),
            Command::Recover(Recover {}) => recover(output, places),
            Command::Link(command) => command.execute(output, places).await,
            Command::Login(command) => command.execute(output, places).await,
        }
    }
}

fn create(output: Output, places: &Places) -> anyhow::Result<()> {
    must_be_free(places)?;
    let key = keys::draw()?;
    keys::write(&places.account_key(), &key)?;
    let made = Key {
        account: key.public().to_string(),
        file: places.account_key(),
        words: Some(phrase::of(&key)),
    };
    output.result(&made, || {
        format!(
            "Account  {}\nKey      {}\n\nThese words bring it back with `athome account recover`. They are shown this once; write them on paper:\n\n{}",
            made.account,
            made.file.display(),
            phrase::lines(&phrase::of(&key))
        )
    })
}

fn recover(output: Output, places: &Places) -> anyhow::Result<()> {
    must_be_free(places)?;
    if std::io::stdin().is_terminal() {
        eprint_line("The 24 words, then Enter:")?;
    }
    let mut words = String::new();
    std::io::stdin()
        .read_line(&mut words)
        .context("can't read the words")?;
    // A file may have them on several lines.
    if !std::io::stdin().is_terminal() {
        let rest = std::io::read_to_string(std::io::stdin()).context("can't read the words")?;
        words.push_str(&rest);
    }
    let key = phrase::read(&words)?;
    keys::write(&places.account_key(), &key)?;
    let made = Key {
        account: key.public().to_string(),
        file: places.account_key(),
        words: None,
    };
    output.result(&made, || {
        format!(
            "Account  {}\nKey      {}",
            made.account,
            made.file.display()
        )
    })
}

/// Who has a key keeps it: another one in its place would be another account.
fn must_be_free(places: &Places) -> anyhow::Result<()> {
    let file = places.account_key();
    if let Some(key) = keys::read(&file)? {
        bail!(
            "there is a key already, of account {}, in {}; move it away first if you want another account",
            key.public(),
            file.display()
        );
    }
    Ok(())
}

impl Link {
    async fn execute(self, output: Output, places: &Places) -> anyhow::Result<()> {
        let key = own_key(places)?;
        let client = HubClient::new(&self.hub)?;
        let session = with_password(&client, self.email).await?;
        let runs = client.runs().await?;
        ensure!(
            !runs.is_empty(),
            "the hub has no run, and it is a run's log that says who acts for whom"
        );
        let own = AccountId(key.public());
        let mut linked = Linked {
            account: key.public().to_string(),
            hub_key: session.hub_key.to_string(),
            runs: Vec::new(),
            worker: None,
        };
        // First: a run takes the link of an account that a machine works for. If it fails, what can be linked is.
        let attached = match self.worker {
            true => {
                let folder = self.worker_folder.unwrap_or_else(|| places.worker());
                Some(attach_worker(&client, &session, &runs, folder).await)
            }
            false => None,
        };
        let mut not_yet = Vec::new();
        for run in &runs {
            let id: RunId = run.id.parse()?;
            let half = identity::sign_half(&key, id, own, session.hub_key, KeyRole::Session);
            match client.link_key(&session, id, own, half).await {
                Ok(()) => linked.runs.push(run.name.clone()),
                Err(error) if error.code() == Some("no_machine") => {
                    not_yet.push(run.name.clone());
                }
                Err(error) => return Err(error.into()),
            }
        }
        linked.worker = attached.transpose()?;
        output.result(&linked, || linked.lines(&not_yet))
    }
}

impl Linked {
    fn lines(&self, not_yet: &[String]) -> String {
        let mut lines = vec![format!("Account  {}", self.account)];
        let list = |names: &[String]| {
            let names: Vec<String> = names.iter().map(|it| printable(it)).collect();
            names.join(", ")
        };
        if !self.runs.is_empty() {
            lines.push(format!(
                "Linked   {}: the hub's key {} acts for it there",
                list(&self.runs),
                &self.hub_key[..8]
            ));
        }
        if !not_yet.is_empty() {
            lines.push(format!(
                "Not yet  {}: no machine of the account has joined; link again when one has",
                list(not_yet)
            ));
        }
        if let Some(worker) = &self.worker {
            lines.push(format!("Worker   {worker} works for it"));
        }
        lines.join("\n")
    }
}

/// Binds this machine's worker to the account in every run that it has joined.
async fn attach_worker(
    client: &HubClient,
    session: &Session,
    runs: &[protocol::api::RunSummary],
    folder: PathBuf,
) -> anyhow::Result<String> {
    let file = folder.join("worker.key");
    let key = keys::read(&file)?;
    let key = key.with_context(|| {
        format!(
            "{} is missing: `athome join` makes it; join once, or name the worker's folder with --worker-folder",
            file.display()
        )
    })?;
    let account = AccountId(session.hub_key);
    let mut attached = 0;
    for run in runs {
        let id: RunId = run.id.parse()?;
        let half = identity::sign_half(&key, id, account, key.public(), KeyRole::Worker);
        match client.attach_worker(session, id, key.public(), half).await {
            Ok(()) => attached += 1,
            Err(error) if error.code() == Some("not_joined") => {}
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(
        0 < attached,
        "the worker of {} is in no run of this hub now; start `athome join`, and link while it runs",
        folder.display()
    );
    Ok(key.public().to_string())
}

impl Login {
    async fn execute(self, output: Output, places: &Places) -> anyhow::Result<()> {
        let client = HubClient::new(&self.hub)?;
        let session = match self.email {
            Some(email) => with_password(&client, email).await?,
            None => client.sign_in_by_key(&own_key(places)?, now_ms()?).await?,
        };
        let link = client.make_link(&session).await?;
        let made = LoginLink {
            // Behind the number sign nothing is sent to servers, and so stands in no server's log.
            url: format!("{}/#/machines?link={}", client.address(), link.token),
            expires_ms: link.expires_ms,
        };
        output.result(&made, || made.url.clone())
    }
}

fn own_key(places: &Places) -> anyhow::Result<SecretKey> {
    let file = places.account_key();
    keys::read(&file)?.with_context(|| {
        format!(
            "there is no key in {}: `athome account create` makes one, `athome account recover` brings one back",
            file.display()
        )
    })
}

async fn with_password(client: &HubClient, email: String) -> anyhow::Result<Session> {
    let password = password::ask(&email)?;
    Ok(client
        .sign_in(&SignIn::Password { email, password })
        .await?)
}

fn now_ms() -> anyhow::Result<u64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Ok(since.context("this machine's clock is wrong")?.as_millis() as u64)
}

/// A line for people on standard error, beside what a program reads.
fn eprint_line(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    Ok(writeln!(std::io::stderr(), "{text}")?)
}
