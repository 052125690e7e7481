//! Spot checks: another account's machine makes an update again.

use protocol::{
    boinc::{Output, TrainingTask, Unit, UnitTask},
    units::BlobReference,
};

use super::{done, enrolled};
use crate::{
    Config,
    boinc::testing::{App, Fixture, HandMade},
    run::Run,
};

/// Long enough for all that one round sees here.
const WINDOW_MS: u64 = 120_000;
/// How long a machine waits for its place in the round, and for another round before it is given a copy to make.
const WAIT_S: u64 = 4;

/// A host that is done with the round.
struct Machine {
    client: HandMade,
    app: App,
    /// Its update's file.
    file: Vec<u8>,
    /// And the task that it was made for.
    name: String,
}

impl Machine {
    /// Trains the round that is open.
    async fn trained(fixture: &Fixture, run: &Run, email: &str, app: App) -> Self {
        let mut client = HandMade::new(&fixture.account(email).await);
        client.cpid = email.to_owned();
        let mut app = app;
        let reply = client.ask(fixture).await;
        done(fixture, &mut client, &mut app, run.id, &reply, 1e-4).await;
        let reply = client.ask(fixture).await;
        let unit = fixture.unit(&reply).await;
        let UnitTask::Train(task) = &unit.task else {
            panic!("it had no place in time: {:?}", unit.task);
        };
        assert_eq!(task.repeated_steps, None, "it had no place in time");
        let charter = run.state.read().await.charter.clone();
        let output = app.work(&unit, run, &charter, 1e-4);
        client.upload(fixture, &reply, &output).await;
        client.reports.push((client.held.pop().unwrap(), 5, 0));
        let (_, start) = Output::read_head(&output).unwrap();
        Self {
            client,
            app,
            file: output[start..].to_vec(),
            name: unit.name,
        }
    }

    /// Is given another's round again.
    async fn asked(&mut self, fixture: &Fixture) -> (String, Unit, TrainingTask) {
        let reply = self.client.ask(fixture).await;
        let unit = fixture.unit(&reply).await;
        match &unit.task {
            UnitTask::Train(task) if task.repeated_steps == Some(100) => {
                let task = (**task).clone();
                (reply, unit, task)
            }
            other => panic!("nothing to check: {other:?}"),
        }
    }

    /// Hands a copy in.
    async fn answers(&mut self, fixture: &Fixture, reply: &str, unit: &Unit, file: &[u8]) {
        let output = Output {
            unit: unit.name.clone(),
            commands: vec![],
            binding: None,
            evaluation: None,
            files: vec![BlobReference::of(file)],
        };
        let output = [output.head(), file.to_vec()].concat();
        self.client.upload(fixture, reply, &output).await;
        self.client
            .reports
            .push((self.client.held.pop().unwrap(), 5, 0));
    }

    async fn agreed_in_row(&self, fixture: &Fixture) -> u64 {
        let host = fixture.door().store.host(self.client.host).await;
        host.unwrap().unwrap().valid_in_row
    }

    async fn check(&self, fixture: &Fixture) -> String {
        let unit = fixture.door().store.unit(&self.name).await;
        unit.unwrap().unwrap().check.expect("it is checked")
    }
}

/// A run whose round stays open, because one host has not committed.
async fn open_round() -> (Fixture, Run, HandMade) {
    let fixture = Fixture::with(Config {
        boinc_wait_s: WAIT_S,
        ..Config::default()
    })
    .await;
    let id = fixture.create_run(WINDOW_MS).await;
    let (mut slow, _) = enrolled(&fixture, id, "slow@example.org", 99).await;
    slow.ask(&fixture).await;
    let run = fixture.run(id).await;
    (fixture, run, slow)
}

#[tokio::test]
async fn an_update_is_made_again_by_other_accounts_until_two_say_the_same() {
    let (fixture, run, _slow) = open_round().await;
    let mut alice = Machine::trained(&fixture, &run, "alice@example.org", App::new(1)).await;
    assert_eq!(alice.check(&fixture).await, "open");
    let mut bob = Machine::trained(&fixture, &run, "bob@example.org", App::new(2)).await;
    let mut carol = Machine::trained(&fixture, &run, "carol@example.org", App::new(3)).await;

    // Bob makes Alice's update again, to the bit.
    let (reply, unit, task) = bob.asked(&fixture).await;
    assert_eq!(task.worker, alice.app.worker().0);
    assert_eq!(task.work.worker.carried, None);
    let file = alice.file.clone();
    bob.answers(&fixture, &reply, &unit, &file).await;
    assert_eq!(alice.check(&fixture).await, "agreed");
    assert_eq!(alice.agreed_in_row(&fixture).await, 1);

    // Bob's own comes out differently on two machines, one after the other. Carol is offered it while nobody has it only.
    let (reply, unit, task) = alice.asked(&fixture).await;
    assert_eq!(task.worker, bob.app.worker().0);
    let held = bob.agreed_in_row(&fixture).await;
    let file = alice.file.clone();
    alice.answers(&fixture, &reply, &unit, &file).await;
    assert_eq!(bob.check(&fixture).await, "doubted");
    let (reply, unit, task) = carol.asked(&fixture).await;
    assert_eq!(task.worker, bob.app.worker().0);
    assert_eq!(bob.agreed_in_row(&fixture).await, held);
    let file = carol.file.clone();
    carol.answers(&fixture, &reply, &unit, &file).await;
    assert_eq!(bob.check(&fixture).await, "differs");
    assert_eq!(bob.agreed_in_row(&fixture).await, 0);
    bob.client.wants_work = false;
    let reply = bob.client.ask(&fixture).await;
    let told = format!("Task {}: a spot check", bob.name);
    assert!(reply.contains(&told), "{reply}");
    // The log knows nothing of it.
    assert_eq!(
        run.state.read().await.workers[&bob.app.worker()].updates_refused,
        0
    );
}

#[tokio::test]
async fn a_third_machine_speaks_for_an_honest_one() {
    let (fixture, run, _slow) = open_round().await;
    let alice = Machine::trained(&fixture, &run, "alice@example.org", App::new(1)).await;
    let mut bob = Machine::trained(&fixture, &run, "bob@example.org", App::new(2)).await;
    let mut carol = Machine::trained(
        &fixture,
        &run,
        "carol@example.org",
        App {
            arithmetic: "another".into(),
            ..App::new(3)
        },
    )
    .await;
    let (reply, unit, _) = bob.asked(&fixture).await;
    bob.answers(&fixture, &reply, &unit, b"no update at all")
        .await;
    assert_eq!(alice.check(&fixture).await, "doubted");
    let (reply, unit, task) = carol.asked(&fixture).await;
    assert_eq!(task.worker, alice.app.worker().0);
    // Another arithmetic: other bits, and the same direction.
    let charter = run.state.read().await.charter.clone();
    let assignment = task.work.assignment.as_ref().unwrap();
    let copy = alice.app.update(&run, &charter, assignment, 1.01e-4);
    assert_ne!(copy, alice.file);
    carol.answers(&fixture, &reply, &unit, &copy).await;
    assert_eq!(alice.check(&fixture).await, "agreed");
    assert_eq!(alice.agreed_in_row(&fixture).await, 1);
    assert_eq!(bob.agreed_in_row(&fixture).await, 0);
    // Nobody of the account is asked about its own, and nobody twice.
    let store = &fixture.door().store;
    for machine in [&alice, &bob, &carol] {
        let host = store.host(machine.client.host).await.unwrap().unwrap();
        for check in store.open_checks(run.id, host.account).await.unwrap() {
            assert!(
                ![&alice.file, &machine.file]
                    .map(|it| BlobReference::of(it))
                    .contains(&check.update)
            );
        }
    }
}
