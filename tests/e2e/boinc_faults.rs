//! What happens to BOINC hosts: transfers that are cut, replies that are lost, a client that ends in mid-unit, a user who
//! suspends, units that became useless, a program that was tampered with, a data directory that was copied, and who knocks
//! at the door with anything but XML. Nothing of it loses work that was done, or takes work that was not.

#![cfg(target_os = "linux")]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use protocol::{
    api::accounts::{SignIn, TaskSummary},
    units::RunId,
};
use tests::{
    boinc::{BoincClient, Task},
    charters,
    network::Network,
    relay::{Moment, Relay, Wanted},
};

/// Time that a unit trains where nothing is done in its middle, and where something is.
const SHORT_MS: u64 = 5_000;
const LONG_MS: u64 = 25_000;
/// Steps after which a worker without a unit commits.
const SHORT_STEPS: u64 = 400;
const LONG_STEPS: u64 = 4_000;
/// A round's window: the client takes half a minute beside. And one in which a reply may be lost several times.
const WINDOW_MS: u64 = 60_000;
const LONG_WINDOW_MS: u64 = 300_000;
/// Longest wait for a request to stand in a trap, and for the next thing of a client's.
const WAIT_MAX: Duration = Duration::from_secs(90);
/// Longest wait for a first training unit: the client attaches, fetches the program, and measures the machine.
const TRAINS_MAX: Duration = Duration::from_secs(150);
/// Processor time from the order on: a second, and another for the client's own delay.
const STOPPING_CPU_MAX: Duration = Duration::from_secs(2);
/// How long processor time is watched, and how often before it must be at rest.
const WATCHES_MAX: usize = 3;
const WATCHED: Duration = Duration::from_secs(4);
/// A suspended application may look for messages, and no more.
const SUSPENDED_CPU_MAX: Duration = Duration::from_millis(100);
/// Questions of which one is answered with a task.
const QUESTIONS_MAX: usize = 6;
/// What an application says when it has kept its state.
const KEPT: &str = "checkpoint steps=";
const PASSWORD: &str = "correct horse battery";

async fn opened(
    name: &str,
    (unit_ms, window_ms): (u64, u64),
    steps_max: u64,
) -> Result<(Network, RunId)> {
    let network = Network::start_with_boinc(name).await?;
    // Updates of more than 8 KiB: a client asks of no shorter file how much of it arrived.
    let charter =
        charters::boinc(unit_ms, window_ms, steps_max)?.replace("kept = 128", "kept = 1024");
    ensure!(charter.contains("kept = 1024"));
    // A fast machine must not have finished the run before the test is at its end.
    let lasting = |line: &str| match line.starts_with("tokens_max") {
        true => "tokens_max = 1000000000\n".to_owned(),
        false => format!("{line}\n"),
    };
    let charter: String = charter.lines().map(lasting).collect();
    ensure!(charter.contains("tokens_max = 1000000000"));
    let run = network.open_small_run_of(&charter).await?;
    Ok((network, run))
}

async fn attached(network: &Network, name: &str, url: &str) -> Result<BoincClient> {
    let mut host = BoincClient::start(&network.folder.join(name)).await?;
    let email = format!("{name}@example.org");
    let key = host
        .create_account(&network.project_url(), &email, PASSWORD)
        .await?;
    host.attach(url, &key).await?;
    Ok(host)
}

/// A unit that trains right now, not one that evaluates or measures the machine.
fn trains(task: &Task) -> bool {
    task.name.starts_with("train_") && task.active_state == "EXECUTING"
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_transfers_and_lost_replies_are_made_good() -> Result<()> {
    let (mut network, run) = opened("boinc-cuts", (SHORT_MS, LONG_WINDOW_MS), SHORT_STEPS).await?;
    let relay = Relay::start(network.hub_address()).await?;
    let url = format!("{}/", relay.url());
    // The program is the first file: cut in its middle.
    relay.set_trap(Wanted::BoincDownload, Moment::WithinAnswer(300_000));
    let mut host = attached(&network, "cut", &url).await?;
    relay.caught(WAIT_MAX).await.context("a download")?;
    let (_, before) = relay.bytes();
    relay.cut();
    relay.set_trap(Wanted::BoincUpload, Moment::Within(400));
    host.says("Finished download of athome_101", 0, WAIT_MAX)
        .await?;
    let program = fs::metadata(
        fs::read_dir(network.folder.join("release"))?
            .flatten()
            .map(|it| it.path())
            .find(|it| it.extension().is_none())
            .context("the release has no program")?,
    )?;
    let (_, after) = relay.bytes();
    ensure!(
        after - before < program.len(),
        "{} bytes came after the cut of a program of {}",
        after - before,
        program.len()
    );

    // The answer to the measurement of the machine, and then an update.
    relay.caught(TRAINS_MAX).await.context("a first upload")?;
    relay.cut();
    let worker = network.has_joined_within(run, TRAINS_MAX).await?;
    relay.set_trap(Wanted::BoincUpload, Moment::Within(9_000));
    relay.caught(TRAINS_MAX).await.context("an update")?;
    relay.cut();
    network.merged_of_within(run, worker, TRAINS_MAX).await?;

    a_lost_reply_is_given_again(&network, &relay, &mut host).await?;
    network.merged_of_within(run, worker, TRAINS_MAX).await?;
    host.quit().await?;
    network.finish().await
}

/// The hub gives a task, and the client never hears of it: with the next question the client is given that very task.
async fn a_lost_reply_is_given_again(
    network: &Network,
    relay: &Relay,
    host: &mut BoincClient,
) -> Result<()> {
    let mut lost = None;
    for _ in 0..QUESTIONS_MAX {
        relay.set_trap(Wanted::BoincScheduler, Moment::BeforeAnswer);
        relay.caught(TRAINS_MAX).await.context("a question")?;
        let held = host.tasks().await?;
        lost = tasks_at_hub(network, "cut").await?.into_iter().find(|it| {
            it.state == "sent" && !held.iter().any(|held| held.name.starts_with(&it.name))
        });
        relay.cut();
        if lost.is_some() {
            break;
        }
    }
    let lost = lost.context("no question was answered with a task")?;
    host.task_that("task given again", TRAINS_MAX, |it| {
        it.name.starts_with(&lost.name)
    })
    .await?;
    let tasks = tasks_at_hub(network, "cut").await?;
    ensure!(tasks.iter().all(|it| it.state != "lost"), "{tasks:?}");
    Ok(())
}

/// What the page Machines shows of the tasks of an account.
async fn tasks_at_hub(network: &Network, account: &str) -> Result<Vec<TaskSummary>> {
    let client = network.client()?;
    let session = client
        .sign_in(&SignIn::Password {
            email: format!("{account}@example.org"),
            password: PASSWORD.to_owned(),
        })
        .await?;
    let hosts = client.hosts(&session).await?;
    Ok(hosts.into_iter().flat_map(|it| it.tasks).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_restarted_and_called_back() -> Result<()> {
    let (mut network, run) = opened("boinc-suspended", (LONG_MS, WINDOW_MS), LONG_STEPS).await?;
    let mut host = attached(&network, "suspended", &network.project_url()).await?;
    let worker = network.has_joined_within(run, TRAINS_MAX).await?;
    let task = host.task_that("training task", TRAINS_MAX, trains).await?;

    suspension_stops_the_processor(&mut host, &task).await?;
    a_client_ends_and_goes_on(&mut host, &task).await?;
    a_killed_process_is_started_again(&host).await?;
    network.merged_of_within(run, worker, TRAINS_MAX).await?;

    // Rounds go on with others while the user has the task suspended: then nobody wants it any more.
    let task = host
        .task_that("next training task", TRAINS_MAX, trains)
        .await?;
    host.task_order(&task.name, "suspend").await?;
    network.start_worker(run, "native", "1.0")?;
    network.merged_of_others(run, worker, 5).await?;
    // Unless the client asked by itself meanwhile, and was told already.
    host.update().await?;
    let aborted = format!("result state=ABORTED for {}", task.name);
    host.says(&aborted, 0, WAIT_MAX).await?;
    host.task_that("task after the one called back", TRAINS_MAX, |it| {
        it.name != task.name && it.active_state == "EXECUTING"
    })
    .await?;
    let tasks = tasks_at_hub(&network, "suspended").await?;
    let called_back = tasks.iter().find(|it| task.name.starts_with(&it.name));
    ensure!(
        called_back.is_some_and(|it| it.state == "aborted" && it.refusal.is_some()),
        "{called_back:?}"
    );
    host.quit().await?;
    network.finish().await
}

/// "Suspend" in the client is the end of processor time, after a second of it and one more for the client's own delay at most;
/// "resume" is its return.
async fn suspension_stops_the_processor(host: &mut BoincClient, task: &Task) -> Result<()> {
    let used = |host: &BoincClient| host.applications_cpu();
    computes(host).await.context("a task that runs")?;
    let before = used(host);
    host.task_order(&task.name, "suspend").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // On a busy machine the client itself may be late: what counts is the time that the task had.
    for _ in 0..WATCHES_MAX {
        let begun = used(host);
        tokio::time::sleep(WATCHED).await;
        let while_suspended = used(host).saturating_sub(begun);
        if while_suspended <= SUSPENDED_CPU_MAX {
            break;
        }
    }
    let before_rest = used(host);
    tokio::time::sleep(WATCHED).await;
    let at_rest = used(host).saturating_sub(before_rest);
    let in_all = used(host).saturating_sub(before);
    ensure!(
        at_rest <= SUSPENDED_CPU_MAX && in_all <= STOPPING_CPU_MAX,
        "a suspended task used {at_rest:?} of processor time in {WATCHED:?}, and {in_all:?} since the order"
    );
    host.task_order(&task.name, "resume").await?;
    computes(host).await.context("a task that was resumed")
}

/// Waits until the application has used so much processor time that it can't be looking for messages alone.
async fn computes(host: &BoincClient) -> Result<()> {
    let (begin, before) = (Instant::now(), host.applications_cpu());
    while host.applications_cpu() <= before + 2 * SUSPENDED_CPU_MAX {
        ensure!(begin.elapsed() < WAIT_MAX, "it uses no processor time");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// The client ends, and its application with it; after the next start the task goes on from where it was.
async fn a_client_ends_and_goes_on(host: &mut BoincClient, task: &Task) -> Result<()> {
    host.task_that("task that is under way", WAIT_MAX, |it| {
        it.name == task.name && it.fraction_done > 0.2
    })
    .await?;
    let kept_before = steps_of(host, KEPT).len();
    host.quit().await?;
    let kept = steps_of(host, KEPT);
    ensure!(kept.len() > kept_before, "it kept nothing at its end");
    let &kept = kept.last().context("it kept nothing")?;
    ensure!(
        host.applications().is_empty(),
        "an application outlives its client"
    );
    let told_before = steps_told(host).len();
    host.resume().await?;
    // What the client shows first is from its own notes; the application says from which step it goes on.
    let begin = Instant::now();
    let step = loop {
        if let Some(&step) = steps_told(host).get(told_before) {
            break step;
        }
        ensure!(begin.elapsed() < WAIT_MAX, "the task did not go on");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    ensure!(
        0 < kept && kept <= step,
        "it kept step {kept}, and went on with step {step}"
    );
    Ok(())
}

/// Somebody ends the process that computes, as a system that is short of memory does: the task goes on from what was kept.
async fn a_killed_process_is_started_again(host: &BoincClient) -> Result<()> {
    let begin = Instant::now();
    let told_before = steps_told(host).len();
    let computing = host.applications().into_iter().find(|it| {
        let line = fs::read_to_string(format!("/proc/{it}/cmdline"));
        line.is_ok_and(|it| it.split('\0').nth(1) == Some("compute"))
    });
    let computing = computing.context("no process computes")?;
    let killed = std::process::Command::new("kill")
        .args(["-KILL", &computing.to_string()])
        .status()?;
    ensure!(killed.success(), "the process was gone");
    // The client itself waits about a minute.
    while steps_told(host).len() == told_before {
        ensure!(
            begin.elapsed() < TRAINS_MAX,
            "the task did not go on:\n{}",
            host.log()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// The steps from which an application went on, by its words in the slot or, once it has ended, in the client's state.
fn steps_told(host: &BoincClient) -> Vec<u64> {
    steps_of(host, "the round goes on steps=")
}

/// The steps behind words that an application said.
fn steps_of(host: &BoincClient, words: &str) -> Vec<u64> {
    ["slots/0/stderr.txt", "client_state.xml"]
        .iter()
        .filter_map(|it| fs::read_to_string(host.folder().join(it)).ok())
        .map(|text| {
            let steps = text.lines().filter_map(|it| {
                let step = it.split_once(words)?.1;
                step.trim().parse().ok()
            });
            steps.collect()
        })
        .find(|steps: &Vec<u64>| !steps.is_empty())
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_hosts_and_strangers_at_the_door() -> Result<()> {
    let (mut network, run) = opened("boinc-copies", (SHORT_MS, WINDOW_MS), SHORT_STEPS).await?;
    let url = network.project_url();
    wrong_words_are_refused(&network)
        .await
        .context("strangers")?;
    let mut first = attached(&network, "first", &url).await?;
    let worker = network.has_joined_within(run, TRAINS_MAX).await?;
    network.merged_of_within(run, worker, TRAINS_MAX).await?;

    // Another machine is attached with the same key of a device, and gets a copy of what the first one's program keeps: two
    // hosts would sign with one worker's key.
    let mut copy = BoincClient::start(&network.folder.join("copy")).await?;
    let kept = Path::new("projects")
        .join(first.project_folder()?)
        .join("athome");
    copy_folder(&first.folder().join(&kept), &copy.folder().join(&kept))?;
    copy.attach(&url, first.key().context("it has no key")?)
        .await?;
    garbage_is_answered(&network).await?;
    network
        .merged_with_hosts(run, 2, TRAINS_MAX * 2)
        .await
        .context("a machine and its copy")?;
    first.must_run()?;
    copy.must_run()?;
    let workers = network.client()?.workers(run).await?;
    let distinct: BTreeSet<_> = workers.iter().map(|it| &it.id).collect();
    ensure!(distinct.len() == 2, "{distinct:?}");
    ensure!(
        workers.iter().all(|it| it.updates_refused == 0),
        "{workers:?}"
    );
    copy.quit().await?;
    first.quit().await?;
    network.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_was_tampered_with_does_not_run() -> Result<()> {
    let (network, run) = opened("boinc-tampered", (SHORT_MS, WINDOW_MS), SHORT_STEPS).await?;
    // After the hub has checked its release and copied it, somebody changes the copy.
    let program = fs::read_dir(network.folder.join("hub/boinc-programs"))?
        .flatten()
        .map(|it| it.path())
        .next()
        .context("the hub has no program")?;
    let mut bytes = fs::read(&program)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&program, bytes)?;
    let mut host = attached(&network, "tampered", &network.project_url()).await?;
    host.says("Signature verification failed for athome_101", 0, WAIT_MAX)
        .await?;
    ensure!(host.applications().is_empty(), "it runs all the same");
    ensure!(network.client()?.workers(run).await?.is_empty());
    // The client reports the failure; the hub does not let it fetch the same again and again.
    host.update().await?;
    host.says("last tasks failed", 0, WAIT_MAX).await?;
    host.quit().await?;
    network.finish().await
}

/// Passwords and addresses that are wrong, and keys that are none.
async fn wrong_words_are_refused(network: &Network) -> Result<()> {
    let url = network.project_url();
    let mut stranger = BoincClient::start(&network.folder.join("stranger")).await?;
    let made = stranger
        .create_account(&url, "stranger@example.org", PASSWORD)
        .await?;
    let again = stranger
        .look_up_account(&url, "stranger@example.org", PASSWORD)
        .await?;
    ensure!(made != again, "two devices have one key");
    for (email, password) in [
        ("stranger@example.org", "wrong password"),
        ("nobody@example.org", PASSWORD),
    ] {
        let answer = stranger.look_up_account(&url, email, password).await;
        ensure!(answer.is_err(), "{email} got in: {answer:?}");
    }
    stranger.attach(&url, "d_nobodyskey").await?;
    stranger.says("Invalid or revoked", 0, WAIT_MAX).await?;
    stranger.quit().await
}

/// What is no request is answered with words, quickly, and the hub goes on.
async fn garbage_is_answered(network: &Network) -> Result<()> {
    let scheduler = format!("{}/boinc/scheduler", network.hub_url());
    let uploads = format!("{}/boinc/file_upload_handler", network.hub_url());
    // A connection of its own for each: the hub may close one on which something is left that it would not read.
    let http = reqwest::Client::builder()
        .pool_max_idle_per_host(0)
        .build()?;
    let deep = "<a>".repeat(100_000);
    let bodies = [
        Vec::new(),
        vec![0xFF; 4_096],
        b"<scheduler_request>".to_vec(),
        deep.into_bytes(),
        b"<!DOCTYPE x [<!ENTITY a \"aaaa\">]><scheduler_request><authenticator>&a;</authenticator></scheduler_request>"
            .to_vec(),
        b"<scheduler_request><authenticator>d_x</authenticator><rpc_seqno>-99999999999999999999</rpc_seqno></scheduler_request>"
            .to_vec(),
    ];
    for (at, body) in bodies.into_iter().enumerate() {
        let answer = http.post(&scheduler).body(body.clone()).send().await?;
        ensure!(answer.status().is_success(), "{at}: {}", answer.status());
        let text = answer.text().await?;
        ensure!(
            text.contains("<message") && !text.contains("<result>"),
            "{at} was answered with {text}"
        );
        let answer = http.post(&uploads).body(body).send().await?;
        let text = answer.text().await?;
        ensure!(
            text.contains("<status>-1</status>") || text.contains("<status>1</status>"),
            "{at} was uploaded: {text}"
        );
    }
    // Too much is cut off or refused, whichever comes first.
    if let Ok(answer) = http
        .post(&scheduler)
        .body(vec![b'<'; 16 << 20])
        .send()
        .await
    {
        let text = answer.text().await?;
        ensure!(!text.contains("<result>"), "{text}");
    }
    network.client()?.hub_info().await?;
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type()? {
            it if it.is_dir() => copy_folder(&path, &target)?,
            it if it.is_file() => drop(fs::copy(&path, &target)?),
            _ => {}
        }
    }
    Ok(())
}
