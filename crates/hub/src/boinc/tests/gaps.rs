//! What is not the straight way: gaps between rounds, rounds that are over, keys that are gone.

use std::time::Duration;

use axum::body::Body;
use data::shard;
use engine::{
    evaluate::Evaluator,
    update::{
        delta::{self, Delta},
        hash::parameters_hash,
    },
};
use protocol::{
    Hash,
    boinc::{Evaluation, EvaluationTask, Output, UnitTask},
    state::{State, round::LATE_ROUNDS_MAX},
    units::RunId,
};

use super::{OK, WINDOW_MS, done, enrolled};
use crate::{
    boinc::{
        clean::clean,
        testing::{App, Fixture, HandMade, all_between, between, upload_head},
    },
    run::Run,
};

/// A window that a test can wait for.
const SHORT_WINDOW_MS: u64 = 4_000;
/// One in which there is a moment to ask between a round's first update and its end.
const GAP_WINDOW_MS: u64 = 12_000;
/// Questions of which one is answered with a task that trains.
const ASKED_MAX: usize = 50;
const PATIENCE: Duration = Duration::from_secs(30);

async fn until(run: &Run, what: &str, is_so: impl Fn(&State) -> bool) {
    let waited = async {
        let mut length = run.length.clone();
        while !is_so(&*run.state.read().await) {
            length.changed().await.unwrap();
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waited).await;
    waited.unwrap_or_else(|_| panic!("in vain: {what}"));
}

/// Measures what a task asks for with the files that came with it, as the application does.
async fn measured(fixture: &Fixture, run: &Run, task: &EvaluationTask) -> Evaluation {
    let file = async |hash: &str| fixture.get(&format!("/boinc/files/{hash}")).await.body;
    let charter = run.state.read().await.charter.clone();
    let config = engine::charter::model_config(&charter.model);
    let settings = engine::charter::merge_settings(&charter.outer).delta;
    let checkpoint = file(&task.work.model.checkpoint_blob).await;
    let mut parameters = engine::checkpoint::from_safetensors(&checkpoint, &config).unwrap();
    for it in &task.work.model.deltas {
        let bytes = file(&it.blob).await;
        let delta = Delta::decode(&bytes, &config.layout().lengths(), &settings).unwrap();
        delta::apply_delta(&mut parameters, &delta);
    }
    assert_eq!(Hash(parameters_hash(&parameters)), task.parameters);
    let held_out = charter.data.held_out[task.shard as usize].blob.hash;
    let tokens = shard::decode(&file(&held_out.to_string()).await)
        .unwrap()
        .tokens;
    let sequence = charter.inner.sequence as usize;
    let mut evaluator = Evaluator::new(&config, 1, sequence, 1);
    let mut evaluation = Evaluation {
        windows: task.windows,
        tokens: 0,
        loss_micronats: 0,
    };
    let first = task.first_window as usize;
    for window in first..first + task.windows as usize {
        let row = &tokens[window * sequence..=(window + 1) * sequence];
        let sum = evaluator.loss_sum(&parameters, row).unwrap();
        evaluation.tokens += sum.tokens;
        evaluation.loss_micronats += (sum.nats * 1e6).round() as u64;
    }
    evaluation
}

#[tokio::test]
async fn a_gap_is_filled_with_measuring_and_what_is_measured_is_compared() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(GAP_WINDOW_MS).await;
    let run = fixture.run(id).await;
    let (mut client, mut app) = enrolled(&fixture, id, "alice@example.org", 7).await;
    let (mut other, mut other_app) = enrolled(&fixture, id, "bob@example.org", 8).await;
    // A first round of both, so that there is a merged model that the hub has measured.
    let replies = [client.ask(&fixture).await, other.ask(&fixture).await];
    done(&fixture, &mut client, &mut app, id, &replies[0], 1e-4).await;
    done(&fixture, &mut other, &mut other_app, id, &replies[1], 1e-4).await;
    until(&run, "a measured merge", |it| {
        it.evaluation.is_some_and(|it| it.0 >= 1)
    })
    .await;

    for (is_honest, state) in [(true, "granted"), (false, "refused")] {
        let mut evaluation = None;
        // Whoever is done first has nothing to train until the other one is.
        for _ in 0..4 {
            let reply = client.ask(&fixture).await;
            let unit = fixture.unit(&reply).await;
            let UnitTask::Evaluate(task) = &unit.task else {
                done(&fixture, &mut client, &mut app, id, &reply, 1e-4).await;
                if other.held.is_empty() {
                    other.ask(&fixture).await;
                }
                continue;
            };
            let mut found = measured(&fixture, &run, task).await;
            assert!(found.tokens > 0);
            if !is_honest {
                found.loss_micronats *= 2;
            }
            let output = Output {
                unit: unit.name.clone(),
                commands: vec![],
                binding: None,
                evaluation: Some(found),
                files: vec![],
            };
            client.upload(&fixture, &reply, &output.head()).await;
            client.reports.push((client.held.pop().unwrap(), 5, 0));
            evaluation = Some(found);
            break;
        }
        let found = evaluation.expect("there was a gap");
        let noted = fixture.door().store.units_of(client.host, 1).await.unwrap();
        let noted = &noted[0];
        assert_eq!(noted.kind, "evaluate");
        assert_eq!(noted.state.name(), state, "{:?}", noted.refusal);
        let mean = found.loss_micronats / found.tokens;
        assert_eq!(noted.loss_measured, Some(mean));
        let of_hub = noted.loss_of_hub.expect("the hub measured this model");
        if is_honest {
            // The hub measures other windows of the same text.
            let apart = mean.abs_diff(of_hub) as f64 / of_hub as f64;
            assert!(apart < 0.2, "{mean} {of_hub}");
        }
    }
}

#[tokio::test]
async fn a_task_whose_round_is_over_is_called_back() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(SHORT_WINDOW_MS).await;
    let mut slow = enrolled(&fixture, id, "alice@example.org", 7).await;
    let mut quick = enrolled(&fixture, id, "bob@example.org", 8).await;
    let (reply, _) = task_that_trains(&fixture, id, &mut slow).await;
    is_called_back(&fixture, id, &mut slow.0, &reply, &mut quick).await;
}

#[tokio::test]
async fn a_task_is_called_back_also_if_the_update_before_it_came_late() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(GAP_WINDOW_MS).await;
    let run = fixture.run(id).await;
    let mut slow = enrolled(&fixture, id, "alice@example.org", 7).await;
    let mut quick = enrolled(&fixture, id, "bob@example.org", 8).await;
    let (late, late_round) = task_that_trains(&fixture, id, &mut slow).await;
    let (reply, _) = task_that_trains(&fixture, id, &mut quick).await;
    done(&fixture, &mut quick.0, &mut quick.1, id, &reply, 1e-4).await;
    let is_closed = |it: &State| it.closed.iter().any(|it| it.round == late_round);
    until(&run, "the end of the late task's round", is_closed).await;
    // The late update and the next task are of one round: what is merged in it is not what the task is for.
    done(&fixture, &mut slow.0, &mut slow.1, id, &late, 1e-4).await;
    let (reply, next) = task_that_trains(&fixture, id, &mut slow).await;
    assert!(late_round < next, "{late_round} {next}");
    is_called_back(&fixture, id, &mut slow.0, &reply, &mut quick).await;
    let state = run.state.read().await;
    let record = &state.workers[&slow.1.worker()];
    assert_eq!(record.last_of_round(), Some(late_round));
    assert!(record.last_round >= Some(next), "{record:?}");
}

/// The reply with a machine's next task that trains, and its round; it does what it is given before.
async fn task_that_trains(
    fixture: &Fixture,
    id: RunId,
    (client, app): &mut (HandMade, App),
) -> (String, u64) {
    for _ in 0..ASKED_MAX {
        let reply = client.ask(fixture).await;
        let task = fixture.unit(&reply).await.task;
        if matches!(task, UnitTask::Train(_)) {
            return (reply, round_of(&task));
        }
        done(fixture, client, app, id, &reply, 1e-4).await;
    }
    panic!("no task trains")
}

/// The round that a task is to train.
fn round_of(task: &UnitTask) -> u64 {
    let UnitTask::Train(training) = task else {
        panic!("it does not train: {task:?}");
    };
    training.work.assignment.as_ref().unwrap().round
}

/// Has one machine leave its task alone while another does rounds, until the hub calls the task back; no sooner than the
/// round's late updates are taken no more.
async fn is_called_back(
    fixture: &Fixture,
    id: RunId,
    slow: &mut HandMade,
    reply: &str,
    (quick, app): &mut (HandMade, App),
) {
    let run = fixture.run(id).await;
    let unit = fixture.unit(reply).await;
    let round = round_of(&unit.task);
    let begun = run.state.read().await.rounds_merged;
    // As long as the update can come in late, the task goes on.
    loop {
        let (merged, is_closed, is_over) = {
            let state = run.state.read().await;
            let merged = state.rounds_merged - begun;
            let is_closed = state.closed.iter().any(|it| it.round == round);
            let is_over = state.closed.iter().all(|it| it.round > round);
            (merged, is_closed, is_over && merged > 0)
        };
        if is_closed {
            slow.wants_work = false;
            let reply = slow.ask(fixture).await;
            // It may have ended meanwhile.
            let state = run.state.read().await;
            let is_closed = state.closed.iter().any(|it| it.round == round);
            let is_aborted = reply.contains("<result_abort>");
            assert!(!is_closed || !is_aborted, "{reply}");
        }
        if is_over {
            break;
        }
        assert!(merged <= LATE_ROUNDS_MAX + 2, "the round is never over");
        let reply = quick.ask(fixture).await;
        done(fixture, quick, app, id, &reply, 1e-4).await;
    }
    slow.wants_work = true;
    let reply = slow.ask(fixture).await;
    let task = slow.held[0].clone();
    let abort = between(&reply, "result_abort").unwrap_or_else(|| panic!("{reply}"));
    assert_eq!(between(&abort, "name"), Some(task.clone()));
    let noted = fixture.door().store.unit(&unit.name).await.unwrap();
    assert_eq!(noted.unwrap().state.name(), "aborted");
    // The client says so, and has something to do again.
    slow.held.clear();
    slow.reports.push((task, 6, 202));
    let reply = slow.ask(fixture).await;
    assert!(reply.contains("<workunit>"), "{reply}");
    let host = fixture.door().store.host(slow.host).await.unwrap().unwrap();
    assert_eq!(host.failures, 0, "it was no failure of the machine's");
}

#[tokio::test]
async fn what_a_stopped_hub_had_begun_to_settle_is_settled() {
    for is_merged in [false, true] {
        let fixture = Fixture::new().await;
        let id = fixture.create_run(WINDOW_MS).await;
        let run = fixture.run(id).await;
        let (mut client, mut app) = enrolled(&fixture, id, "alice@example.org", 7).await;
        let reply = client.ask(&fixture).await;
        let unit = fixture.unit(&reply).await;
        let UnitTask::Train(task) = &unit.task else {
            panic!("{reply}");
        };
        let round = task.work.assignment.as_ref().unwrap().round;
        let output = app.work(&unit, &run, &run.charter, 1e-4);
        let (head, start) = Output::read_head(&output).unwrap();
        for command in &head.commands {
            run.command(command.clone().checked().unwrap())
                .await
                .unwrap();
        }
        let [update] = head.files[..] else {
            panic!("one file");
        };
        let hub = fixture.hub();
        if is_merged {
            let bytes = output[start..].to_vec().into();
            hub.blobs.append(&update, 0, bytes).await.unwrap();
            run.uploaded(update.hash).await;
            until(&run, "the merge", |it| it.model.round >= round).await;
        } else {
            let part = hub.config.folder.join("parts");
            std::fs::write(part.join(update.hash.to_string()), &output[start..]).unwrap();
            until(&run, "the round's end", |it| {
                it.training.as_ref().is_none_or(|it| it.round != round)
            })
            .await;
        }
        client.wants_work = false;
        let answer = client.ask(&fixture).await;
        assert!(!answer.contains("<result_abort>"), "{answer}");
        let answer = client.upload(&fixture, &reply, &output).await;
        assert!(answer.contains(OK), "{answer}");
        until(&run, "the merge", |it| it.model.round >= round).await;
        assert!(hub.blobs.length(&update.hash).await.unwrap().is_some());
        let noted = fixture.door().store.unit(&unit.name).await.unwrap();
        let noted = noted.unwrap();
        assert_eq!((noted.state.name(), &noted.refusal), ("granted", &None));
    }
}

#[tokio::test]
async fn a_machine_whose_project_was_reset_goes_on_with_its_new_key() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let run = fixture.run(id).await;
    let (mut client, mut app) = enrolled(&fixture, id, "alice@example.org", 7).await;
    let reply = client.ask(&fixture).await;
    let unit = fixture.unit(&reply).await;
    assert!(matches!(unit.task, UnitTask::Train(_)));
    let mut renewed = App::new(9);
    let output = renewed.enrolment(&unit);
    client.upload(&fixture, &reply, &output).await;
    client.reports.push((client.held.pop().unwrap(), 5, 0));
    let workers = fixture.door().store.workers_of(client.host).await.unwrap();
    // The one before stays the machine's, with what it earned.
    assert_eq!(workers, [(id, app.worker()), (id, renewed.worker())]);
    {
        let state = run.state.read().await;
        let account = fixture.door().store.account(1).await.unwrap().unwrap();
        assert_eq!(state.bindings[&renewed.worker().0], account.key);
    }
    let reply = client.ask(&fixture).await;
    assert!(reply.contains("a new key"), "{reply}");
    let unit = fixture.unit(&reply).await;
    let UnitTask::Train(task) = &unit.task else {
        panic!("{reply}");
    };
    assert_eq!(task.worker, renewed.worker().0);
    // The folder of before comes back from a copy: the log knows its key, and more of it than its joining.
    let mut restored = App::new(7);
    let answer = restored.enrolment(&unit);
    client.upload(&fixture, &reply, &answer).await;
    client.reports.push((client.held.pop().unwrap(), 5, 0));
    let reply = client.ask(&fixture).await;
    let task = done(&fixture, &mut client, &mut app, id, &reply, 1e-4).await;
    assert!(matches!(task, UnitTask::Train(_)), "{task:?}");
    let noted = fixture.door().store.units_of(client.host, 1).await.unwrap();
    assert_eq!(
        (noted[0].state.name(), &noted[0].refusal),
        ("granted", &None)
    );
}

#[tokio::test]
async fn a_host_is_there_while_its_task_can_come_in_time() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let run = fixture.run(id).await;
    let (mut client, app) = enrolled(&fixture, id, "alice@example.org", 7).await;
    client.ask(&fixture).await;
    let clock = &fixture.hub().clock;
    let seen = || {
        let seen = run.presence.of(&app.worker(), clock.now_ms());
        seen.map(|it| it.0.last_ms)
    };
    let given = seen().expect("it waited for the round");
    tokio::time::sleep(Duration::from_millis(5)).await;
    client.wants_work = false;
    client.ask(&fixture).await;
    let asked = seen().unwrap();
    assert!(asked > given, "{asked} {given}");
    // What it lost says nothing, nor what is not its own.
    let held = std::mem::take(&mut client.held);
    tokio::time::sleep(Duration::from_millis(5)).await;
    client.ask(&fixture).await;
    assert_eq!(seen(), Some(asked));
    let mut stranger = HandMade::new(&fixture.account("eve@example.org").await);
    stranger.cpid = "stranger".into();
    stranger.wants_work = false;
    stranger.held = held;
    let reply = stranger.ask(&fixture).await;
    assert_eq!(all_between(&reply, "result_abort").len(), 1);
    assert_eq!(seen(), Some(asked));
}

#[tokio::test]
async fn a_task_allows_the_memory_that_the_application_asks_for() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let mut client = HandMade::new(&fixture.account("alice@example.org").await);
    let reply = client.ask(&fixture).await;
    let charter = fixture.run(id).await.state.read().await.charter.clone();
    let needed = engine::charter::worker_memory_bytes(&charter);
    let allowed: f64 = between(&reply, "rsc_memory_bound")
        .unwrap()
        .parse()
        .unwrap();
    assert!(needed as f64 * 1.2 < allowed, "{needed} {allowed}");
    // Who allows less is told so, and is given nothing that can never start.
    let mut small = HandMade::new(&client.key);
    small.cpid = "small".into();
    for (percent, is_given) in [(50.0, false), (150.0, true)] {
        let memory = format!(
            "<m_nbytes>{}</m_nbytes>\n</host_info>\n<working_global_preferences>\n<global_preferences>\n\
             <ram_max_used_busy_pct>{}</ram_max_used_busy_pct>\n<ram_max_used_idle_pct>{percent}</ram_max_used_idle_pct>\n\
             </global_preferences>\n</working_global_preferences>\n",
            allowed * 100.0 / 75.0,
            percent / 2.0
        );
        small.sequence += 1;
        let request = small.request().replace("</host_info>\n", &memory);
        let reply = fixture.post("/boinc/scheduler", request).await.text();
        assert_eq!(reply.contains("<workunit>"), is_given, "{reply}");
        assert_eq!(
            reply.contains("MiB of memory, and your preferences"),
            !is_given
        );
    }
    // Activations are most of it where batches are large.
    assert!(needed > 10 * 4 * charter.model.parameter_count());
}

#[tokio::test]
async fn a_client_with_too_much_to_say_is_answered_and_loses_nothing() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let (mut client, _) = enrolled(&fixture, id, "alice@example.org", 7).await;
    client.ask(&fixture).await;
    let task = client.held.pop().unwrap();
    // Its one task stands behind many that are nobody's.
    client.held = (0..300).map(|it| format!("train_1_9_{it}_0")).collect();
    client.held.push(task.clone());
    let reply = client.ask(&fixture).await;
    assert!(reply.contains("has 301 tasks of this project"), "{reply}");
    assert_eq!(all_between(&reply, "result_abort").len(), 256);
    let unit = task.strip_suffix("_0").unwrap();
    let state = async || {
        let unit = fixture.door().store.unit(unit).await.unwrap().unwrap();
        unit.state.name()
    };
    assert_eq!(state().await, "sent");
    assert!(!reply.contains("<workunit>"), "nor is it given twice");
    // Reports are taken in parts: what is not acknowledged comes again.
    client.held.clear();
    client.sequence += 1;
    let junk = (0..200).map(|it| (format!("train_1_9_{it}_0"), 5, 0));
    client.reports = junk.chain([(task.clone(), 6, 203)]).collect();
    let reply = fixture.post("/boinc/scheduler", client.request()).await;
    let reply = reply.text();
    let acknowledged = all_between(&reply, "result_ack").len();
    assert_eq!((acknowledged, state().await), (64, "sent"), "{reply}");
    assert!(reply.contains("reports the other 137"), "{reply}");
    client.reports.drain(..192);
    client.ask(&fixture).await;
    assert_eq!(state().await, "aborted");
}

#[tokio::test]
async fn what_came_of_a_task_that_is_over_is_removed_and_no_more_is_taken() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let (mut client, _) = enrolled(&fixture, id, "alice@example.org", 7).await;
    let reply = client.ask(&fixture).await;
    let door = fixture.door();
    let unit = door.store.units_of(client.host, 1).await.unwrap().remove(0);
    let output = [5; 1_000];
    let send = async |sent: &[u8]| {
        let body = [upload_head(&reply, &output, 0).as_bytes(), sent].concat();
        let answer = fixture.post("/boinc/file_upload_handler", body).await;
        answer.text()
    };
    assert!(send(&output[..500]).await.contains("<status>1</status>"));
    let path = door.uploads.path(&unit);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 500);
    // Its user gives it up, while another part is on its way.
    type Part = Result<Vec<u8>, std::io::Error>;
    let (sending, mut body) = tokio::sync::mpsc::channel::<Part>(1);
    let head = upload_head(&reply, &output, 500).into_bytes();
    let parts = futures_util::stream::poll_fn(move |context| body.poll_recv(context));
    let slow = fixture.post("/boinc/file_upload_handler", Body::from_stream(parts));
    let giving_up = async {
        sending.send(Ok(head)).await.unwrap();
        sending.send(Ok(output[500..700].to_vec())).await.unwrap();
        while std::fs::metadata(&path).unwrap().len() < 700 {
            tokio::task::yield_now().await;
        }
        client.reports.push((client.held.pop().unwrap(), 6, 203));
        client.wants_work = false;
        client.ask(&fixture).await;
        sending.send(Ok(output[700..].to_vec())).await.unwrap();
        drop(sending);
    };
    let (answer, ()) = tokio::join!(slow, giving_up);
    assert!(answer.text().contains("<status>-1</status>"), "{answer:?}");
    assert!(!path.exists());
    assert!(send(&output).await.contains("nobody waits for its result"));
    assert!(!path.exists());
    // The same of one that is in memory until all of it is here.
    client.wants_work = true;
    let reply = client.ask(&fixture).await;
    let (sending, mut body) = tokio::sync::mpsc::channel::<Part>(1);
    let head = upload_head(&reply, &output, 0).into_bytes();
    let parts = futures_util::stream::poll_fn(move |context| body.poll_recv(context));
    let slow = fixture.post("/boinc/file_upload_handler", Body::from_stream(parts));
    let giving_up = async {
        for part in [head, output[..700].to_vec(), output[700..].to_vec()] {
            sending.send(Ok(part)).await.unwrap();
        }
        client.reports.push((client.held.pop().unwrap(), 6, 203));
        client.wants_work = false;
        client.ask(&fixture).await;
        drop(sending);
    };
    let (answer, ()) = tokio::join!(slow, giving_up);
    let answer = answer.text();
    assert!(answer.contains("nobody waits for its result"), "{answer}");
}

#[tokio::test]
async fn who_gives_every_task_up_is_given_few() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let (mut client, _) = enrolled(&fixture, id, "alice@example.org", 7).await;
    let mut given = 0;
    let reply = loop {
        let reply = client.ask(&fixture).await;
        let Some(task) = client.held.pop() else {
            break reply;
        };
        given += 1;
        assert!(given < 40, "there is no end of it");
        client.reports.push((task, 6, 203));
    };
    assert!(
        reply.contains("<message priority=\"notice\">This computer has finished a daily quota of "),
        "{reply}"
    );
    let delay: f64 = between(&reply, "request_delay").unwrap().parse().unwrap();
    assert!((0.0..=25.0 * 3_600.0).contains(&delay), "{delay}");
    // Another machine of the account has a quota of its own.
    let mut other = HandMade::new(&client.key);
    other.cpid = "other".into();
    assert!(other.ask(&fixture).await.contains("<workunit>"));
}

#[tokio::test]
async fn what_is_old_goes_and_credit_stays() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let run = fixture.run(id).await;
    let (mut client, mut app) = enrolled(&fixture, id, "alice@example.org", 7).await;
    let reply = client.ask(&fixture).await;
    done(&fixture, &mut client, &mut app, id, &reply, 1e-4).await;
    until(&run, "a merge", |it| it.rounds_merged > 0).await;
    let reply = client.ask(&fixture).await;
    let total = |reply: &str| between(reply, "user_total_credit").unwrap();
    let before = total(&reply);
    assert_ne!(before, "0.000000");
    // A half of the last one's result is here, and the machine is not seen again for a long time.
    let door = fixture.door();
    let unit = door.store.units_of(client.host, 1).await.unwrap().remove(0);
    let body = upload_head(&reply, &[5; 9], 0) + "half";
    fixture.post("/boinc/file_upload_handler", body).await;
    assert!(door.uploads.path(&unit).exists());
    let days = |days: u64| fixture.hub().clock.now_ms() + days * 86_400_000;
    let names = async || {
        let units = door.store.units_of(client.host, 9).await.unwrap();
        units.len()
    };
    clean(door, days(13)).await.unwrap();
    assert!(door.uploads.path(&unit).exists());
    clean(door, days(15)).await.unwrap();
    assert!(!door.uploads.path(&unit).exists());
    assert_eq!(names().await, 3);
    clean(door, days(32)).await.unwrap();
    assert_eq!(names().await, 0);
    client.wants_work = false;
    let reply = client.ask(&fixture).await;
    assert_eq!(total(&reply), before);
    assert_eq!(all_between(&reply, "result_abort").len(), 1);
}
