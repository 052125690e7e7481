use protocol::{
    Hash, SecretKey,
    units::{RunId, WorkerId},
};

use super::{hosts::HOSTS_MAX, *};

pub(crate) async fn store(folder: &tempfile::TempDir) -> DoorStore {
    DoorStore::open(folder.path()).await.unwrap()
}

async fn account(store: &DoorStore, number: u8) -> u64 {
    let new = NewAccount {
        email: format!("{number}@example.org"),
        name: "A".into(),
        password: "x".into(),
        held_key: SecretKey::from_entropy([number; 32]),
        cross_id: "c".into(),
        now_ms: 1,
    };
    store.create_account(new).await.unwrap().unwrap()
}

fn run() -> RunId {
    RunId(Hash([9; 32]))
}

fn worker(seed: u8) -> WorkerId {
    WorkerId(SecretKey::from_entropy([seed; 32]).public())
}

async fn host(store: &DoorStore, account: u64) -> u64 {
    let new = Host {
        account,
        created_ms: 1,
        ..Host::default()
    };
    store.add_host(new).await.unwrap().unwrap()
}

fn unit_of(host: u64, account: u64, name: &str) -> NewUnit {
    NewUnit {
        name: name.into(),
        host,
        account,
        run: run(),
        kind: "train",
        round: Some(3),
        worker: Some(worker(1)),
        sealed: name.as_bytes().to_vec(),
        upload_bytes_max: 100,
        expected_ms: 10,
        sent_ms: 1_000,
        deadline_ms: 2_000,
    }
}

#[tokio::test]
async fn what_is_written_together_fails_apart() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let first = account(&store, 1).await;
    let failing = store.write::<()>(|connection| {
        execute(connection, "UPDATE account SET name = 'lost'", [])?;
        execute(connection, "INSERT INTO nowhere VALUES (1)", [])?;
        Ok(())
    });
    let (failed, kept) = tokio::join!(failing, store.set_consent(first, true));
    assert!(failed.is_err());
    kept.unwrap();
    drop(store);
    let store = self::store(&folder).await;
    let account = store.account(first).await.unwrap().unwrap();
    assert_eq!(
        (account.name.as_str(), account.shows_statistics),
        ("A", true)
    );
    assert_eq!(
        store.held_key(first).await.unwrap().unwrap().public(),
        account.key.0,
        "the hub holds the key that it made"
    );
}

#[tokio::test]
async fn many_write_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let owner = account(&store, 1).await;
    let hosts: Vec<u64> =
        futures_util::future::join_all((0..500).map(|_| host(&store, owner))).await;
    let different: std::collections::HashSet<_> = hosts.iter().collect();
    assert_eq!(different.len(), 500);
    assert_eq!(store.host_count(owner).await.unwrap(), 500);
    // What is long is read in parts, and all of it once.
    futures_util::future::join_all((0..PAGE).map(|_| host(&store, owner))).await;
    store.set_consent(owner, true).await.unwrap();
    let shown = store.shown_hosts().await.unwrap();
    let shown: Vec<u64> = shown.iter().map(|it| it.id).collect();
    assert_eq!(shown.len() as u64, 500 + PAGE);
    assert!(shown.is_sorted_by(|one, next| one < next));
}

#[tokio::test]
async fn a_link_works_once_and_a_session_until_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let owner = account(&store, 1).await;
    store
        .add_session([1; 32], owner, true, 0, 100)
        .await
        .unwrap();
    assert_eq!(store.session([1; 32], 50).await.unwrap(), None);
    assert_eq!(store.use_link([1; 32], 100).await.unwrap(), None);
    assert_eq!(store.use_link([1; 32], 50).await.unwrap(), Some(owner));
    assert_eq!(store.use_link([1; 32], 50).await.unwrap(), None);
    store
        .add_session([2; 32], owner, false, 0, 100)
        .await
        .unwrap();
    assert_eq!(store.use_link([2; 32], 50).await.unwrap(), None);
    assert_eq!(store.session([2; 32], 50).await.unwrap(), Some(owner));
    assert_eq!(store.session([2; 32], 100).await.unwrap(), None);
    store.end_session([2; 32]).await.unwrap();
    assert_eq!(store.session([2; 32], 50).await.unwrap(), None);
}

#[tokio::test]
async fn a_revoked_key_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let (owner, other) = (account(&store, 1).await, account(&store, 2).await);
    let key = store
        .add_device_key(owner, [1; 32], "a".into(), false, 5)
        .await;
    let key = key.unwrap().unwrap();
    let found = store.account_of_device([1; 32], 5).await.unwrap().unwrap();
    assert_eq!((found.0.id, found.1.is_news), (owner, true));
    assert!(!store.revoke_device_key(other, key, 9).await.unwrap());
    assert!(store.account_of_device([1; 32], 5).await.unwrap().is_some());
    assert!(store.revoke_device_key(owner, key, 9).await.unwrap());
    assert!(store.account_of_device([1; 32], 5).await.unwrap().is_none());
    assert!(!store.revoke_device_key(owner, u64::MAX, 9).await.unwrap());
}

#[tokio::test]
async fn a_worker_is_one_host() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let owner = account(&store, 1).await;
    let (first, second) = (host(&store, owner).await, host(&store, owner).await);
    assert!(store.enrol(first, run(), worker(1)).await.unwrap());
    assert!(store.enrol(first, run(), worker(1)).await.unwrap());
    assert!(!store.enrol(second, run(), worker(1)).await.unwrap());
    store.note_copy(second, run()).await.unwrap();
    let [(copied_in, copied)] = store.enrolments(second).await.unwrap()[..] else {
        panic!("one enrolment");
    };
    assert_eq!(copied_in, run());
    assert!(copied.is_copy && copied.worker.is_none());
    assert!(store.enrol(second, run(), worker(2)).await.unwrap());
    let [(enrolled_in, enrolled)] = store.enrolments(second).await.unwrap()[..] else {
        panic!("one enrolment");
    };
    assert_eq!(enrolled_in, run());
    assert_eq!(
        (enrolled.worker, enrolled.is_copy),
        (Some(worker(2)), false)
    );
    let host_of = async |seed| store.host_of_worker(run(), worker(seed)).await.unwrap();
    assert_eq!(host_of(1).await, Some(first));
    // What a host was stays its own, and comes back to it alone.
    assert!(store.enrol(first, run(), worker(3)).await.unwrap());
    let workers = store.workers_of(first).await.unwrap();
    assert_eq!(workers, [(run(), worker(1)), (run(), worker(3))]);
    assert_eq!(host_of(1).await, Some(first));
    assert!(!store.enrol(second, run(), worker(1)).await.unwrap());
    assert!(store.enrol(first, run(), worker(1)).await.unwrap());
    let workers = store.workers_of(first).await.unwrap();
    assert_eq!(workers, [(run(), worker(3)), (run(), worker(1))]);
    let of_account = store.workers_of_account(owner).await.unwrap();
    assert_eq!(of_account.len(), 3);
}

#[tokio::test]
async fn a_bug_in_one_function_closes_the_door_to_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let bug = || -> Result<()> { panic!("a bug, on purpose") };
    assert!(store.read(move |_| bug()).await.is_err());
    let both = tokio::join!(
        store.write(move |it| {
            execute(it, "DELETE FROM account", [])?;
            bug()
        }),
        account(&store, 1),
    );
    assert!(both.0.is_err());
    assert!(store.account(both.1).await.unwrap().is_some());
}

#[tokio::test]
async fn machines_that_never_joined_make_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let owner = account(&store, 1).await;
    let (joined, waiting) = (host(&store, owner).await, host(&store, owner).await);
    assert!(store.enrol(joined, run(), worker(1)).await.unwrap());
    store.add_unit(unit_of(waiting, owner, "a")).await.unwrap();
    store.note_uploaded("a".into(), 9, 1_400).await.unwrap();
    let unused = host(&store, owner).await;
    store.add_unit(unit_of(unused, owner, "b")).await.unwrap();
    while store.host_count(owner).await.unwrap() < HOSTS_MAX as u64 {
        let adding = (0..256).map(|_| host(&store, owner));
        futures_util::future::join_all(adding).await;
    }
    let newest = host(&store, owner).await;
    assert_eq!(store.host_count(owner).await.unwrap(), HOSTS_MAX as u64);
    for (id, is_there) in [
        (joined, true),
        (waiting, true),
        (unused, false),
        (newest, true),
    ] {
        assert_eq!(store.host(id).await.unwrap().is_some(), is_there, "{id}");
    }
    assert!(store.unit("b").await.unwrap().is_none());
}

#[tokio::test]
async fn a_task_ends_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let owner = account(&store, 1).await;
    let (first, second) = (host(&store, owner).await, host(&store, owner).await);
    store.add_unit(unit_of(first, owner, "a")).await.unwrap();
    let report = |host, exit_status| Outcome {
        lessens_quota: true,
        refusal: Some("it failed".into()),
        exit_status,
        stderr: "x".into(),
        cpu_ms: u64::MAX,
        elapsed_ms: u64::MAX,
        ..outcome("a", host)
    };
    // Another host's report changes nothing.
    let ended = store.note_reports(vec![report(second, 1)], 1_500).await;
    assert!(ended.unwrap().is_empty());
    assert_eq!(store.open_units(first).await.unwrap().len(), 1);
    let hash = store.unit("a").await.unwrap().unwrap().sealed_hash;
    assert_eq!(store.sealed(&hash).await.unwrap(), Some(b"a".to_vec()));
    store.note_uploaded("a".into(), 9, 1_400).await.unwrap();
    let settled = Settled {
        refusal: Some("no".into()),
        ..Settled::default()
    };
    store.settle("a".into(), settled).await.unwrap();
    let ended = store.note_reports(vec![report(first, 1)], 1_500).await;
    assert!(ended.unwrap().is_empty(), "its result was here");
    let unit = store.unit("a").await.unwrap().unwrap();
    assert_eq!(unit.state, UnitState::Refused);
    assert_eq!(unit.reported_ms, Some(1_500));
    assert_eq!(store.open_units(first).await.unwrap().len(), 0);
    assert_eq!(
        store.take_refusals(first).await.unwrap(),
        [("a".to_owned(), UnitState::Refused, "no".to_owned())]
    );
    assert!(store.take_refusals(first).await.unwrap().is_empty());
    assert_eq!(store.sealed(&hash).await.unwrap(), None);
}

#[tokio::test]
async fn a_quota_halves_with_what_is_spoilt_and_doubles_with_what_is_granted() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let owner = account(&store, 1).await;
    let id = host(&store, owner).await;
    let quota = async |day| store.host(id).await.unwrap().unwrap().quota.on(day, 100);
    assert_eq!(quota(0).await, (100, 100));
    let give = async |name: &str, sent_ms| {
        let unit = NewUnit {
            sent_ms,
            ..unit_of(id, owner, name)
        };
        store.add_unit(unit).await.unwrap();
    };
    for name in ["a", "b", "c"] {
        give(name, 86_400_000).await;
    }
    assert_eq!(quota(1).await, (100, 97));
    assert_eq!(quota(2).await, (100, 100), "each day is a new one");
    give("d", 2 * 86_400_000).await;
    assert_eq!(quota(2).await, (100, 99));
    store.lessen_quota(id, 1, 100).await.unwrap();
    assert_eq!(quota(2).await, (50, 49));
    store.lessen_quota(id, 3, 100).await.unwrap();
    assert_eq!(quota(2).await, (6, 5));
    store.lessen_quota(id, 64, 100).await.unwrap();
    assert_eq!(quota(2).await, (1, 0));
    for (name, expected) in [("a", 2), ("b", 4), ("c", 8)] {
        store.settle(name.into(), Settled::default()).await.unwrap();
        assert_eq!(quota(3).await.0, expected);
    }
    let refused = Settled {
        refusal: Some("no".into()),
        ..Settled::default()
    };
    store.settle("d".into(), refused).await.unwrap();
    assert_eq!(quota(3).await.0, 8);
    for number in 0..20 {
        give(&number.to_string(), 1).await;
        let settled = store.settle(number.to_string(), Settled::default());
        settled.await.unwrap();
    }
    assert_eq!(quota(3).await.0, 100, "never more than the run allows");
}

#[tokio::test]
async fn old_tasks_are_removed_in_batches() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let owner = account(&store, 1).await;
    let host = host(&store, owner).await;
    let many = (0..BATCH + 10).map(|it| store.add_unit(unit_of(host, owner, &it.to_string())));
    for added in futures_util::future::join_all(many).await {
        added.unwrap();
    }
    for (name, deadline_ms) in [("uploaded", 2_000), ("granted", 2_000), ("young", 9_000)] {
        let unit = NewUnit {
            deadline_ms,
            ..unit_of(host, owner, name)
        };
        store.add_unit(unit).await.unwrap();
        store.note_uploaded(name.into(), 1, 1).await.unwrap();
        if name != "uploaded" {
            store.settle(name.into(), Settled::default()).await.unwrap();
        }
    }
    // What a host has goes by nothing but its time.
    assert_eq!(store.remove_old_units(5_000).await.unwrap(), 1);
    assert!(store.unit("granted").await.unwrap().is_none());
    assert!(store.give_up_overdue(2_000).await.unwrap().is_empty());
    let overdue = store.give_up_overdue(5_000).await.unwrap();
    assert_eq!(overdue.len() as u64, BATCH);
    assert_eq!(store.give_up_overdue(5_000).await.unwrap().len(), 10);
    let lost = store.unit(&overdue[0].0).await.unwrap().unwrap();
    assert_eq!((lost.state, overdue[0].1), (UnitState::Lost, owner));
    assert_eq!(store.remove_old_units(5_000).await.unwrap(), BATCH);
    assert_eq!(store.remove_old_units(5_000).await.unwrap(), 10);
    assert_eq!(store.remove_old_units(5_000).await.unwrap(), 0);
    let left = store.units_of(host, 1_000).await.unwrap();
    let left: Vec<&str> = left.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(left, ["young", "uploaded"]);
}

#[tokio::test]
async fn a_check_is_made_by_one_machine_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let [owner, one, other, third] = [
        account(&store, 1).await,
        account(&store, 2).await,
        account(&store, 3).await,
        account(&store, 4).await,
    ];
    let of_owner = host(&store, owner).await;
    store
        .add_unit(unit_of(of_owner, owner, "made"))
        .await
        .unwrap();
    let check = NewCheck {
        unit: "made".into(),
        run: run(),
        account: owner,
        host: of_owner,
        update: protocol::units::BlobReference::of(b"update"),
        steps: 1,
        arithmetic: "a".into(),
        now_ms: 1,
    };
    store.add_check(check).await.unwrap();
    let offered = async || {
        let checks = store.open_checks(run(), third).await.unwrap();
        checks.first().map(|it| it.id)
    };
    let id = offered().await.expect("nobody makes it yet");
    let copy = async |account: u64, name: &str| {
        let host = host(&store, account).await;
        let new = NewUnit {
            kind: "again",
            ..unit_of(host, account, name)
        };
        store.add_unit(new).await.unwrap();
        let added = store.add_copy(name.into(), id, account, host).await;
        added.unwrap();
        host
    };
    let host_of_one = copy(one, "first").await;
    assert_eq!(offered().await, None);
    let lost = store.give_up(vec!["first".into()], UnitState::Lost, "x");
    assert_eq!(lost.await.unwrap(), ["first"]);
    assert_eq!(offered().await, Some(id));
    copy(other, "second").await;
    // The first machine reports at last; the second one is still at it.
    let late = outcome("first", host_of_one);
    store.note_reports(vec![late], 9).await.unwrap();
    assert_eq!(offered().await, None);
    let aborted = store.give_up(vec!["second".into()], UnitState::Aborted, "x");
    aborted.await.unwrap();
    assert_eq!(offered().await, Some(id));
}

#[tokio::test]
async fn a_task_whose_result_is_being_settled_is_not_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let owner = account(&store, 1).await;
    let host = host(&store, owner).await;
    store.add_unit(unit_of(host, owner, "a")).await.unwrap();
    let state = async || store.unit("a").await.unwrap().unwrap().state;
    let turn = store.settling.begin("a".to_owned()).unwrap();
    let names = || vec!["a".to_owned()];
    let given_up = store.give_up(names(), UnitState::Aborted, "x").await;
    assert!(given_up.unwrap().is_empty());
    let ended = store.note_reports(vec![outcome("a", host)], 9).await;
    assert!(ended.unwrap().is_empty());
    assert_eq!(state().await, UnitState::Sent);
    drop(turn);
    let ended = store.note_reports(vec![outcome("a", host)], 9).await;
    assert_eq!(ended.unwrap(), names());
    assert_eq!(state().await, UnitState::Failed);
}

/// What a client reports that could not do a task.
fn outcome(name: &str, host: u64) -> Outcome {
    Outcome {
        name: name.to_owned(),
        host,
        otherwise: UnitState::Failed,
        lessens_quota: false,
        refusal: None,
        exit_status: 1,
        stderr: String::new(),
        cpu_ms: 0,
        elapsed_ms: 0,
    }
}
