//! Results that are here and can't be taken yet.

use std::sync::Arc;

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
    tokio::time::timeout(std::time::Duration::from_secs(20), taken)
        .await
        .expect("it is taken");
}
