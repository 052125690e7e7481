//! Results that are here and can't be taken yet.

use std::{fs, os::unix::fs::FileExt, sync::Arc, time::Duration};

use protocol::boinc::UnitTask;

use super::{OK, WINDOW_MS, enrolled};
use crate::{
    Config,
    boinc::{
        settle::{Step, settle},
        testing::{App, CLIENT, Fixture, HandMade},
    },
};

#[tokio::test]
async fn one_account_over_its_share_of_an_hour_stops_no_other() {
    let fixture = Fixture::with(Config {
        bindings_per_hour_per_account: 2,
        bindings_per_hour_per_address: 4,
        ..Config::default()
    })
    .await;
    let id = fixture.create_run(WINDOW_MS).await;
    let (first, _) = enrolled(&fixture, id, "alice@example.org", 1).await;
    let mut app = App::new(2);
    let mut client = HandMade::new(&first.key);
    // Two machines of the account may join, and this is the third.
    for seed in [2, 3] {
        client = HandMade {
            cpid: format!("{seed:032x}"),
            ..HandMade::new(&first.key)
        };
        app = App::new(seed);
        let reply = client.ask(&fixture).await;
        let output = app.enrolment(&fixture.unit(&reply).await);
        let answer = client.upload(&fixture, &reply, &output).await;
        assert!(answer.contains(OK), "{answer}");
        client.reports.push((client.held.pop().unwrap(), 5, 0));
    }
    let hub = Arc::clone(&fixture.service.hub);
    let door = Arc::clone(hub.door.as_ref().unwrap());
    let units = door.store.units_of(client.host, 9).await.unwrap();
    assert_eq!((units.len(), units[0].state.name()), (1, "uploaded"));
    for _ in 0..100 {
        let step = settle(&hub, &door, &units[0].name, Some(CLIENT)).await;
        assert!(matches!(step.unwrap(), Step::Later(_)));
    }
    // Its machine is told why, and joins no second time.
    let reply = client.ask(&fixture).await;
    assert!(
        reply.contains("waits to be taken (as many keys were bound to this account"),
        "{reply}"
    );
    assert!(!reply.contains("<workunit>"));
    assert_eq!(door.store.units_of(client.host, 9).await.unwrap().len(), 1);
    // Others at the same address join all the same.
    for (email, seed) in [("bob@example.org", 4), ("carol@example.org", 5)] {
        let (other, other_app) = enrolled(&fixture, id, email, seed).await;
        let workers = door.store.workers_of(other.host).await.unwrap();
        assert_eq!(workers, [(id, other_app.worker())]);
    }
    // A restart begins a new hour: what waited is taken by itself.
    drop((hub, door));
    let fixture = fixture.restarted().await;
    let store = &fixture.door().store;
    let taken = async {
        while store.workers_of(client.host).await.unwrap() != [(id, app.worker())] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), taken)
        .await
        .expect("it is taken");
}

/// A machine whose result of a round was taken by the door, and can't be by the run for now; and the result.
async fn with_a_result_that_waits(window_ms: u64) -> (Fixture, HandMade, Vec<u8>) {
    let fixture = Fixture::with(Config {
        commands_per_minute_per_worker: 1,
        ..Config::default()
    })
    .await;
    let id = fixture.create_run(window_ms).await;
    let run = fixture.run(id).await;
    let (mut client, mut app) = enrolled(&fixture, id, "alice@example.org", 7).await;
    // It joins anew and commits: one command too many.
    (app.joins_again, app.tokens_per_s) = (true, 20_000_000);
    let reply = client.ask(&fixture).await;
    let unit = fixture.unit(&reply).await;
    assert!(matches!(unit.task, UnitTask::Train(_)));
    let output = app.work(&unit, &run, &run.charter, 1e-4);
    let answer = client.upload(&fixture, &reply, &output).await;
    assert!(answer.contains(OK), "{answer}");
    (fixture, client, output)
}

#[tokio::test]
async fn nobody_trains_on_from_a_result_that_waits() {
    let (fixture, mut client, _) = with_a_result_that_waits(8_000).await;
    client.reports.push((client.held.pop().unwrap(), 5, 0));
    // Its slot is still open, and what it carries is not what the log has: the update would be refused.
    let reply = client.ask(&fixture).await;
    let unit = fixture.unit(&reply).await;
    assert!(matches!(unit.task, UnitTask::Evaluate(_)), "{reply}");
}

#[tokio::test]
async fn a_result_that_waits_is_read_once() {
    let (fixture, client, output) = with_a_result_that_waits(WINDOW_MS).await;
    let hub = Arc::clone(&fixture.service.hub);
    let door = Arc::clone(hub.door.as_ref().unwrap());
    let unit = door.store.units_of(client.host, 1).await.unwrap().remove(0);
    let why = door.waiting.why(&unit.name).unwrap();
    assert!(why.contains("more commands than the hub takes"), "{why}");
    // What its files are is known: other bytes at the end would be refused.
    let file = fs::OpenOptions::new()
        .write(true)
        .open(door.uploads.path(&unit));
    let (file, at) = (file.unwrap(), output.len() as u64 - 1);
    file.write_all_at(&[!output[at as usize]], at).unwrap();
    let step = settle(&hub, &door, &unit.name, None).await.unwrap();
    assert!(matches!(step, Step::Later(_)));
    let state = async || door.store.unit(&unit.name).await.unwrap().unwrap().state;
    assert_eq!(state().await.name(), "uploaded");
    // Who knows nothing of it reads it; the hub itself may be at it just then.
    let read = async {
        loop {
            door.waiting.take(&unit.name);
            let step = settle(&hub, &door, &unit.name, None).await.unwrap();
            if step == Step::Settled {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .expect("it is settled");
    assert_eq!(state().await.name(), "refused");
}
