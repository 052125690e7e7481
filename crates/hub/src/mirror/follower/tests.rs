//! Whether a mirror takes a run over, against a small real server on loopback that answers as the run's hub, or does not.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Json, Router,
    extract::State as Shared,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use engine::initial_parameters;
use network::world::Clock;
use protocol::{
    Hash, SecretKey,
    api::{ApiError, mirrors::RunHead},
    equivocation::Equivocation,
    event::{MergedUpdate, ModelState},
    log::{Entry, Head},
    state::State,
    units::{BlobReference, MicroCredits, RunId, WorkerId},
};

use super::*;
use crate::{
    blobs::Blobs,
    clock::SteadyClock,
    config::Config,
    ground::Ground,
    metrics::Metrics,
    mirror::{Mirroring, keep, why_stopped},
    model::Arithmetic,
    run::{Parts, room::Room},
    store::{Projected, Store, tests::created},
};

/// What is at the hub's address when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    /// A server that knows nothing of the run.
    Nobody,
    Hub,
    /// A hub that is asked too much.
    BusyHub,
    /// A hub that says that it seals nothing more.
    StoppedHub,
}
use There::{BusyHub, Hub, Nobody, StoppedHub};

struct Answering {
    /// One for each question; the last one for all that follow.
    script: Vec<There>,
    asked: AtomicUsize,
    head: RunHead,
}

async fn answer(Shared(answering): Shared<Arc<Answering>>) -> Response {
    let asked = answering.asked.fetch_add(1, Ordering::Relaxed);
    let there = answering.script[asked.min(answering.script.len() - 1)];
    let refuse = |status: StatusCode, code: &str| {
        let body = ApiError {
            code: code.to_owned(),
            message: "no".to_owned(),
        };
        (status, Json(body)).into_response()
    };
    let stopped = (there == StoppedHub).then(|| "said twice".to_owned());
    match there {
        Nobody => refuse(StatusCode::NOT_FOUND, "not_found"),
        BusyHub => refuse(StatusCode::TOO_MANY_REQUESTS, "too_many"),
        Hub | StoppedHub => Json(RunHead {
            stopped,
            ..answering.head.clone()
        })
        .into_response(),
    }
}

struct Fixture {
    _folder: tempfile::TempDir,
    follower: Follower,
    answering: Arc<Answering>,
    shutdown: CancellationToken,
}

/// A mirror of a run whose log, beside its beginning, has one merge if `has_merge`, whose update was never copied.
async fn fixture(script: &[There], has_merge: bool) -> Fixture {
    let [hub, own, succession] = [1, 2, 3].map(|seed| SecretKey::from_entropy([seed; 32]));
    let folder = tempfile::tempdir().unwrap();
    let ground = Ground::machine();
    let blobs = Blobs::open(folder.path(), &ground).unwrap();
    let store = Store::open(folder.path(), &ground).await.unwrap();

    let Event::RunCreated { mut charter, .. } = created(&hub, "one").0.event else {
        panic!("a log begins with its run");
    };
    charter.succession = vec![succession.public()];
    let run = charter.id();
    let arithmetic = Arithmetic::new(&charter).unwrap();
    let model = arithmetic.first_model(initial_parameters(&arithmetic.config, 1));
    let checkpoint = arithmetic.store(&model, run, &blobs).await.unwrap();
    let event = Event::RunCreated {
        model: model.state,
        checkpoint,
        charter,
    };
    let entry = Head::empty().next(&hub, run, 1_000, event);
    let state = State::create(&entry).unwrap();
    store.create(&entry, &state).await.unwrap();

    let answering = Arc::new(Answering {
        script: script.to_vec(),
        asked: AtomicUsize::new(0),
        head: head(&hub, &state),
    });
    let router = Router::new()
        .route("/api/v1/runs/{run}/head", get(answer))
        .with_state(Arc::clone(&answering));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let limits = network::server::Limits::default();
    let serving = network::server::serve(listener, router, limits, shutdown.clone(), TICK);
    tokio::spawn(serving);

    let config = Config::default();
    let parts = Parts {
        key: own,
        store: store.clone(),
        blobs,
        metrics: Arc::new(Metrics::new()),
        room: Room::new(&config),
        config: Arc::new(config),
        clock: SteadyClock::new(Clock::system()),
        mirroring: Arc::new(Mirroring {
            follow: Some(address),
            address: Some("http://mirror.example".to_owned()),
            succession: Some(succession),
            process: "mirror".to_owned(),
            ..Mirroring::default()
        }),
    };
    let keeper = Keeper::open(run, parts).await.unwrap();
    if has_merge {
        let entry = merge(&hub, &state);
        let entries = [(entry, Projected::default())];
        store.append(&entries).await.unwrap();
        keeper.length.send_replace(2);
        let mut state = keeper.run.state.write().await;
        state.head.advance_unsigned(run, &entries[0].0).unwrap();
    }
    Fixture {
        _folder: folder,
        follower: Follower::new(keeper, None),
        answering,
        shutdown,
    }
}

fn merge(hub: &SecretKey, state: &State) -> Entry {
    let merged = MergedUpdate {
        slot: 0,
        of_round: 1,
        worker: WorkerId(hub.public()),
        update: BlobReference::of(b"an update"),
        tokens: 1,
        weight: 1,
        credits: MicroCredits(1),
    };
    let event = Event::RoundMerged {
        round: 1,
        rate_q16: 65_536,
        updates: vec![merged],
        delta: BlobReference::of(b"a delta"),
        model: ModelState {
            round: 1,
            parameters: Hash::default(),
            outer: Hash::default(),
        },
    };
    state.head.next(hub, state.run, 2_000, event)
}

fn head(hub: &SecretKey, state: &State) -> RunHead {
    RunHead {
        run: state.run.to_string(),
        role: "hub".to_owned(),
        key: hub.public().to_string(),
        process: "hub".to_owned(),
        hub: hub.public().to_string(),
        hub_address: None,
        generation: 0,
        successions: Vec::new(),
        length: state.head.length,
        hash: state.head.hash.to_string(),
        current_ms: 0,
        blobs_missing: 0,
        entries_set_aside: 0,
        equivocations: Vec::new(),
        stopped: None,
    }
}

/// Whether the mirror gets ready to take over with these answers: what keeps it from it, how often it asked, and how many
/// entries it set aside. (It lacks the held-out text: that keeps it last.)
async fn check(
    script: &[There],
    (has_merge, confirmed, force): (bool, u64, bool),
    (refusal, asked, set_aside): (&str, usize, u64),
) {
    let fixture = fixture(script, has_merge).await;
    let keeper = &fixture.follower.keeper;
    keeper.run.copied.confirms(confirmed);
    let ready = fixture.follower.make_ready(force).await;
    let found = ready.err().map_or_else(String::new, |it| format!("{it:#}"));
    let what = format!("{script:?} {has_merge} {confirmed} {force}: {found}");
    assert!(found.contains(refusal), "{what}");
    let count = fixture.answering.asked.load(Ordering::Relaxed);
    assert_eq!(count, asked, "{what}");
    let aside = keeper.parts.store.set_aside(keeper.run.id).await;
    assert_eq!(aside.unwrap(), set_aside, "{what}");
    fixture.shutdown.cancel();
}

const LACKING: &str = "tokenizer is missing";

#[tokio::test]
async fn a_hub_that_answers_is_not_taken_over() {
    check(&[Hub], (false, 0, false), ("answers at", 1, 0)).await;
    check(&[BusyHub], (false, 0, false), ("has no time", 1, 0)).await;
    check(&[Nobody], (false, 0, false), (LACKING, 2, 0)).await;
    // By the operator's word, or its own.
    check(&[Hub], (false, 0, true), (LACKING, 1, 0)).await;
    check(&[StoppedHub], (false, 0, false), (LACKING, 2, 0)).await;
}

#[tokio::test]
async fn a_hub_that_answers_again_while_the_model_is_rebuilt_loses_nothing() {
    for has_merge in [false, true] {
        let nothing = (has_merge, 0, false);
        check(&[Nobody, Hub], nothing, ("answers at", 2, 0)).await;
        check(&[Nobody, BusyHub], nothing, ("has no time", 2, 0)).await;
    }
}

#[tokio::test]
async fn what_was_confirmed_is_set_aside_only_by_the_operator() {
    check(&[Nobody], (true, 2, false), ("only with --force", 2, 0)).await;
    check(&[Nobody], (true, 1, false), (LACKING, 2, 1)).await;
    check(&[Nobody], (true, 2, true), (LACKING, 1, 1)).await;
}

#[tokio::test]
async fn a_proof_stops_the_hub_whose_key_it_is_of_and_nobody_else() {
    let fixture = fixture(&[Nobody], false).await;
    let keeper = &fixture.follower.keeper;
    let (run, of_mirror) = (&keeper.run, &keeper.parts);
    let hub = SecretKey::from_entropy([1; 32]);
    let of_hub = Parts {
        key: hub.clone(),
        ..of_mirror.clone()
    };
    let head = run.state.read().await.head;
    let said_twice = |key: &SecretKey, id| {
        let empty = |round| head.next(key, id, 1_000, Event::RoundEmpty { round });
        Equivocation::find(key.public(), &empty(1), &empty(2)).unwrap()
    };
    let stranger = SecretKey::from_entropy([9; 32]);
    assert!(!keep(run, &of_hub, &said_twice(&stranger, run.id)).await);
    assert!(!keep(run, &of_hub, &said_twice(&hub, RunId::default())).await);
    assert!(run.refuses().is_ok());

    assert!(keep(run, of_mirror, &said_twice(&hub, run.id)).await);
    assert!(run.refuses().is_ok());
    assert_eq!(why_stopped(run, of_mirror).await.unwrap(), None);
    // What is on the disk stops the hub at its next look, and at its next start; and at once when it is shown.
    let why = why_stopped(run, &of_hub).await.unwrap().unwrap();
    assert!(why.contains("sealed two different entries 1"), "{why}");
    assert!(keep(run, &of_hub, &said_twice(&hub, run.id)).await);
    assert!(matches!(run.must_be_hub(), Err(RunError::Stopped(told)) if told == why));
    fixture.shutdown.cancel();
}
