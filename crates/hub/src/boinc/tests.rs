//! What clients and the door say to each other, from the first request to the credit; and what those get who want more.

mod checks;
mod gaps;
mod waiting;

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use futures_util::StreamExt;
use protocol::{
    boinc::{Output, UnitTask},
    units::RunId,
};

use super::{
    request::SchedulerRequest,
    testing::{
        App, Fixture, HandMade, PLATFORM, PROGRAM, all_between, between, is_same_key, upload_head,
    },
};
use crate::Config;

/// Long enough that no round ends by itself in a test.
const WINDOW_MS: u64 = 60_000;
const OK: &str = "<status>0</status>";

/// A client whose host is enrolled, with its application.
async fn enrolled(fixture: &Fixture, run: RunId, email: &str, seed: u8) -> (HandMade, App) {
    let mut client = HandMade::new(&fixture.account(email).await);
    client.cpid = format!("{seed:032x}");
    let reply = client.ask(fixture).await;
    let mut app = App::new(seed);
    done(fixture, &mut client, &mut app, run, &reply, 1e-4).await;
    (client, app)
}

/// Does the task of a reply.
async fn done(
    fixture: &Fixture,
    client: &mut HandMade,
    app: &mut App,
    run: RunId,
    reply: &str,
    scale: f32,
) -> UnitTask {
    let run = fixture.run(run).await;
    let unit = fixture.unit(reply).await;
    let charter = run.state.read().await.charter.clone();
    let output = app.work(&unit, &run, &charter, scale);
    let answer = client.upload(fixture, reply, &output).await;
    assert!(answer.contains(OK), "{answer}");
    let name = client.held.pop().unwrap();
    client.reports.push((name, 5, 0));
    unit.task
}

#[tokio::test]
async fn a_client_finds_its_way_from_the_first_page() {
    let fixture = Fixture::new().await;
    let page = fixture.get("/").await;
    let scheduler = "http://hub.example.org:8700/boinc/scheduler";
    let link = format!("\n<link rel=\"boinc_scheduler\" href=\"{scheduler}\">\n");
    assert!(page.text().contains(&link), "{}", page.text());
    assert!(
        page.text()
            .contains(&format!("<scheduler>{scheduler}</scheduler>"))
    );
    let browser = fixture
        .send(
            Request::get("/").header(header::USER_AGENT, "Mozilla/5.0"),
            Body::empty(),
        )
        .await;
    assert!(!browser.text().contains("boinc_scheduler"));
    let config = fixture.get("/get_project_config.php").await.text();
    assert_eq!(between(&config, "name").as_deref(), Some("AI@home"));
    assert_eq!(between(&config, "platform_name").as_deref(), Some(PLATFORM));
    let master = between(&config, "master_url");
    assert_eq!(master.as_deref(), Some("http://hub.example.org:8700/"));
}

#[tokio::test]
async fn a_host_enrols_trains_and_earns() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let run = fixture.run(id).await;
    let key = fixture.account("alice@example.org").await;
    let mut client = HandMade::new(&key);
    let mut app = App::new(7);

    let reply = client.ask(&fixture).await;
    assert_eq!(client.host, 1);
    let release = &fixture.door().release;
    assert!(is_same_key(&client.code_sign_key, &release.code_sign_key));
    let task = done(&fixture, &mut client, &mut app, id, &reply, 1.0).await;
    assert!(matches!(
        task,
        UnitTask::Enrol {
            sequence: 0,
            with_new_key: false
        }
    ));
    {
        let state = run.state.read().await;
        assert!(state.workers[&app.worker()].joined);
        let account = fixture.door().store.account(1).await.unwrap().unwrap();
        assert_eq!(state.bindings[&app.worker().0], account.key);
    }

    let reply = client.ask(&fixture).await;
    assert!(!reply.contains("<code_sign_key>"), "the client holds it");
    assert!(!reply.contains("<hostid>"), "the client knows it");
    let task = done(&fixture, &mut client, &mut app, id, &reply, 1e-4).await;
    let UnitTask::Train(training) = task else {
        panic!("{task:?}");
    };
    assert_eq!(training.train_ms, WINDOW_MS / 2);
    let deadline = training.work.assignment.unwrap().deadline_ms;
    // The client's clock was not told: the hub's is taken.
    assert_eq!(
        training.until_ms,
        deadline - super::tasks::margin_ms(WINDOW_MS)
    );

    // All who are there have committed: the round is merged, and the next one opens.
    let merged = async {
        let mut length = run.length.clone();
        while run.state.read().await.rounds_merged == 0 {
            length.changed().await.unwrap();
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), merged)
        .await
        .expect("the round is merged");
    let reply = client.ask(&fixture).await;
    let total: f64 = between(&reply, "user_total_credit")
        .unwrap()
        .parse()
        .unwrap();
    let micro = run.state.read().await.workers[&app.worker()].credits.0;
    assert!(
        micro > 0 && (total - micro as f64 / 1e6 * 2_315.0).abs() < 1e-5,
        "{total} {micro}"
    );
    assert_eq!(
        between(&reply, "host_total_credit"),
        between(&reply, "user_total_credit")
    );
    assert!(reply.contains("<workunit>"), "the pipe is full");
    let unit = fixture.unit(&reply).await;
    assert!(matches!(unit.task, UnitTask::Train(_)));

    // One in progress a host, however much it asks for.
    let reply = client.ask(&fixture).await;
    assert!(!reply.contains("<workunit>") && !reply.contains("<result_abort>"));
    // A reply that was lost is sent again: the same task.
    client.held.clear();
    let reply = client.ask(&fixture).await;
    assert_eq!(fixture.unit(&reply).await, unit);
}

#[tokio::test]
async fn a_restart_changes_nothing() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let (mut client, mut app) = enrolled(&fixture, id, "alice@example.org", 7).await;
    let reply = client.ask(&fixture).await;
    let fixture = fixture.restarted().await;
    let task = done(&fixture, &mut client, &mut app, id, &reply, 1e-4).await;
    assert!(matches!(task, UnitTask::Train(_)));
    let unit = fixture.door().store.units_of(1, 1).await.unwrap().remove(0);
    assert_eq!((unit.state.name(), unit.refusal), ("granted", None));
}

#[tokio::test]
async fn an_upload_is_resumed_and_answered_alike() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let (mut client, mut app) = enrolled(&fixture, id, "alice@example.org", 7).await;
    let reply = client.ask(&fixture).await;
    let run = fixture.run(id).await;
    let charter = run.state.read().await.charter.clone();
    let output = app.work(&fixture.unit(&reply).await, &run, &charter, 1e-4);
    let task = client.held.last().unwrap().clone();
    let size = async || {
        let asked = format!("<data_server_request>\n<get_file_size>{task}_r0</get_file_size>\n");
        let answer = fixture
            .post("/boinc/file_upload_handler", asked)
            .await
            .text();
        between(&answer, "file_size")
            .unwrap()
            .parse::<usize>()
            .unwrap()
    };
    assert_eq!(size().await, 0);
    let half = output.len() / 2;
    let send = async |head: String, bytes: &[u8]| {
        let body = [head.as_bytes(), bytes].concat();
        fixture
            .post("/boinc/file_upload_handler", body)
            .await
            .text()
    };
    let cut = send(upload_head(&reply, &output, 0), &output[..half]).await;
    assert!(cut.contains("<status>1</status>"), "{cut}");
    // The last byte is asked for again: a client that heard of them all would never send the rest.
    assert_eq!(size().await, half - 1);
    // Nothing is written beyond the end, or longer than was said.
    let beyond = send(upload_head(&reply, &output, half + 1), &output[half + 1..]).await;
    assert!(beyond.contains("<status>1</status>"), "{beyond}");
    let longer = [&output[half..], b"more"].concat();
    let longer = send(upload_head(&reply, &output, half), &longer).await;
    assert!(longer.contains("<status>-1</status>"), "{longer}");
    // From the half again, in pieces of a few bytes, the head too.
    let whole = [
        upload_head(&reply, &output, half).as_bytes(),
        &output[half..],
    ]
    .concat();
    let pieces: Vec<Result<Vec<u8>, std::io::Error>> =
        whole.chunks(7).map(|it| Ok(it.to_vec())).collect();
    let body = Body::from_stream(futures_util::stream::iter(pieces));
    let answer = fixture
        .post("/boinc/file_upload_handler", body)
        .await
        .text();
    assert!(answer.contains(OK), "{answer}");
    let unit = fixture.door().store.units_of(1, 1).await.unwrap().remove(0);
    assert_eq!((unit.state.name(), unit.refusal), ("granted", None));
    // The answer was lost: the same again is done already.
    let again = send(upload_head(&reply, &output, 0), &output).await;
    assert!(again.contains(OK), "{again}");
    assert_eq!(size().await, output.len());
}

#[tokio::test]
async fn nobody_uploads_what_was_not_asked_of_them() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let (mut client, _) = enrolled(&fixture, id, "alice@example.org", 7).await;
    let reply = client.ask(&fixture).await;
    let name = client.held.last().unwrap().clone() + "_r0";
    let refused = async |head: String| {
        let body = head + "bytes";
        let answer = fixture
            .post("/boinc/file_upload_handler", body)
            .await
            .text();
        assert!(answer.contains("<status>-1</status>"), "{answer}");
    };
    let head = upload_head(&reply, b"bytes", 0);
    refused(head.replace("v1.", "v1.1")).await;
    refused(head.replace("v1.", "v2.")).await;
    refused(head.replace(&name, "../../hub.key")).await;
    refused(head.replace(&name, "../x_0_r0")).await;
    refused(head.replace(&name, "enrol_0_1_00000000_0_r0")).await;
    let max = between(&head, "max_nbytes").unwrap();
    refused(head.replace(&max, "99999999999")).await;
    refused(head.replace("<nbytes>5</nbytes>", "<nbytes>9999999999999999999</nbytes>")).await;
    refused(head.replace("<nbytes>5</nbytes>", "<nbytes>99999999</nbytes>")).await;
    refused(format!("<x>{}", "y".repeat(20_000))).await;
    refused("\u{0}\u{1}nonsense".into()).await;
    // Bytes that are not those announced are dropped, and asked for again.
    let wrong = head.replace(&between(&head, "md5_cksum").unwrap(), "00");
    let answer = fixture
        .post("/boinc/file_upload_handler", wrong + "bytes")
        .await
        .text();
    assert!(answer.contains("<status>1</status>"), "{answer}");
    // A whole result that is none is taken, refused, and the client told.
    let answer = client.upload(&fixture, &reply, b"no output at all").await;
    assert!(answer.contains(OK), "{answer}");
    let name = client.held.pop().unwrap();
    client.reports.push((name, 5, 0));
    let reply = client.ask(&fixture).await;
    assert!(
        reply.contains("<message priority=\"notice\">Task train_"),
        "{reply}"
    );
    // Whatever the client says of how the task ended, the machine failed.
    assert!(reply.contains("gets the next one after a pause"), "{reply}");
    assert!(!reply.contains("<workunit>"));
    let reply = client.ask(&fixture).await;
    assert!(!reply.contains("refused"), "it is told once");
    let host = fixture.door().store.host(client.host).await.unwrap();
    assert_eq!(host.unwrap().failures, 1);
}

#[tokio::test]
async fn a_settling_that_was_interrupted_goes_on() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let run = fixture.run(id).await;
    let (mut client, mut app) = enrolled(&fixture, id, "alice@example.org", 7).await;
    (app.joins_again, app.tokens_per_s) = (true, 20_000_000);
    let reply = client.ask(&fixture).await;
    let unit = fixture.unit(&reply).await;
    let charter = run.state.read().await.charter.clone();
    let output = app.work(&unit, &run, &charter, 1e-4);
    // The hub ended when the run had granted everything and the update's bytes were not yet its own.
    let commands = Output::read_head(&output).unwrap().0.commands;
    assert_eq!(commands.len(), 2);
    for command in commands {
        run.command(command.checked().unwrap()).await.unwrap();
    }
    let answer = client.upload(&fixture, &reply, &output).await;
    assert!(answer.contains(OK), "{answer}");
    let noted = fixture.door().store.units_of(client.host, 1).await.unwrap();
    assert_eq!(
        (noted[0].state.name(), &noted[0].refusal),
        ("granted", &None)
    );
}

#[tokio::test]
async fn an_update_that_does_not_count_is_told_with_its_reason() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let (mut client, mut app) = enrolled(&fixture, id, "alice@example.org", 7).await;
    let reply = client.ask(&fixture).await;
    let run = fixture.run(id).await;
    // An update of nothing has no norm.
    done(&fixture, &mut client, &mut app, id, &reply, 0.0).await;
    let refused = async {
        while run.state.read().await.workers[&app.worker()].updates_refused == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), refused)
        .await
        .expect("the update is refused");
    client.wants_work = false;
    let reply = client.ask(&fixture).await;
    assert!(
        reply.contains("An update of this machine was refused: "),
        "{reply}"
    );
    let reply = client.ask(&fixture).await;
    assert!(!reply.contains("was refused"));
}

#[tokio::test]
async fn a_copied_disk_makes_a_key_of_its_own() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let (first, app) = enrolled(&fixture, id, "alice@example.org", 7).await;
    // The copy believes to be the first host, and is behind it; its client has made itself another name.
    let mut copy = HandMade {
        sequence: 0,
        cpid: "copy".into(),
        ..first.clone()
    };
    copy.reports.clear();
    let mut newer = first.clone();
    newer.reports.clear();
    newer.wants_work = false;
    newer.ask(&fixture).await;
    let reply = copy.ask(&fixture).await;
    assert_ne!(copy.host, first.host);
    let mut copied_app = App::new(7);
    copied_app.sequence = app.sequence;
    done(&fixture, &mut copy, &mut copied_app, id, &reply, 1.0).await;
    let reply = copy.ask(&fixture).await;
    assert!(reply.contains("it makes a new one"), "{reply}");
    let mut own = App::new(8);
    let task = done(&fixture, &mut copy, &mut own, id, &reply, 1.0).await;
    assert!(matches!(
        task,
        UnitTask::Enrol {
            with_new_key: true,
            ..
        }
    ));
    let store = &fixture.door().store;
    let enrolled = store.workers_of(copy.host).await.unwrap();
    assert_eq!(enrolled, [(id, own.worker())]);
}

#[tokio::test]
async fn hosts_are_told_apart_and_found_again() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let (first, _) = enrolled(&fixture, id, "alice@example.org", 7).await;
    // The client forgot its number: it is found again by its name and hardware.
    let mut forgot = HandMade::new(&first.key);
    forgot.cpid.clone_from(&first.cpid);
    forgot.wants_work = false;
    let reply = forgot.ask(&fixture).await;
    assert!(reply.contains("<hostid>1</hostid>"), "{reply}");
    // Another account that shows the number gets a host of its own.
    let mut thief = HandMade::new(&fixture.account("eve@example.org").await);
    (thief.host, thief.sequence) = (first.host, 1_000);
    thief.wants_work = false;
    thief.reports.push(("train_1_1_x_0".into(), 5, 0));
    thief.held.push("enrol_0_1_x_0".into());
    let reply = thief.ask(&fixture).await;
    assert_ne!(thief.host, first.host);
    // What it was never given, it is not to go on with.
    assert!(reply.contains("<result_abort>"));
}

#[tokio::test]
async fn nobody_speaks_for_the_host_of_another_account() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let (mut client, _) = enrolled(&fixture, id, "alice@example.org", 7).await;
    client.ask(&fixture).await;
    let mut thief = HandMade::new(&fixture.account("eve@example.org").await);
    thief.cpid = "thief".into();
    (thief.host, thief.sequence) = (client.host, 1_000);
    thief.wants_work = false;
    // While a request with its number is answered, the host's own is too.
    let door = fixture.door();
    let request = |it: &HandMade| SchedulerRequest::read(it.request().as_bytes()).unwrap();
    let turn = door.turn_of(&request(&thief));
    assert!(turn.is_some());
    let own = door.turn_of(&request(&client));
    assert!(own.is_some() && door.turn_of(&request(&client)).is_none());
    drop((turn, own));
    // Its task is not called back because another lists it.
    thief.held.clone_from(&client.held);
    let reply = thief.ask(&fixture).await;
    assert!(reply.contains("<result_abort>"));
    let unit = door.store.units_of(client.host, 1).await.unwrap().remove(0);
    assert_eq!(unit.state.name(), "sent");
}

#[tokio::test]
async fn what_is_done_is_acknowledged_and_what_fails_waits() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let (mut client, _) = enrolled(&fixture, id, "alice@example.org", 7).await;
    client.ask(&fixture).await;
    client.reports.push((client.held.pop().unwrap(), 3, 7));
    client.reports.push(("never_heard_of_it".into(), 3, 7));
    client.reports.push(("<evil>&_0".into(), 3, 7));
    client.reports.pop();
    let reply = client.ask(&fixture).await;
    assert!(!reply.contains("<workunit>"));
    let delay: f64 = between(&reply, "request_delay").unwrap().parse().unwrap();
    assert!((50.0..=60.0).contains(&delay), "{delay}");
    let unit = fixture.door().store.units_of(1, 1).await.unwrap().remove(0);
    assert_eq!(unit.state.name(), "failed");
    assert!(unit.refusal.unwrap().contains("exit status 7"));
    // A trickle says how far a task is.
    client.trickle = "<msg_from_host>\n<result_name>train_1_1_x_0</result_name>\n<fraction_done>0.5</fraction_done><<&\n</msg_from_host>\n".into();
    let reply = client.ask(&fixture).await;
    assert!(reply.contains("<message_ack/>"));
}

#[tokio::test]
async fn keys_that_open_nothing_are_told_so() {
    let fixture = Fixture::new().await;
    fixture.create_run(WINDOW_MS).await;
    let key = fixture.account("alice@example.org").await;
    let store = &fixture.door().store;
    let id = store.device_keys(1).await.unwrap()[0].id;
    assert!(store.revoke_device_key(1, id, 1).await.unwrap());
    for key in [key.as_str(), "", "d_x", "0011"] {
        let reply = fixture
            .post("/boinc/scheduler", HandMade::new(key).request())
            .await
            .text();
        assert!(
            reply.contains("<message priority=\"notice\">Invalid"),
            "{reply}"
        );
        assert_eq!(
            between(&reply, "request_delay").as_deref(),
            Some("3600.000000")
        );
        assert!(!reply.contains("<hostid>") && !reply.contains("<workunit>"));
    }
    for garbage in [
        "",
        "<scheduler_request>",
        "\u{0}\u{ff}",
        "<a></a>",
        &"<a>".repeat(10_000),
    ] {
        let reply = fixture.post("/boinc/scheduler", garbage.to_owned()).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert!(
            reply.text().contains("<message priority=\"notice\">"),
            "{}",
            reply.text()
        );
    }
    let long = "x".repeat(crate::blobs::PART_BYTES_MAX + 1);
    let reply = fixture.post("/boinc/scheduler", long).await.text();
    assert!(reply.contains("4 MiB"), "{reply}");
}

#[tokio::test]
async fn slow_and_long_requests_keep_nobody_out() {
    let fixture = Fixture::new().await;
    fixture.create_run(WINDOW_MS).await;
    let mut client = HandMade::new(&fixture.account("alice@example.org").await);
    let fixture = &fixture;
    let slow = || async move {
        let begun = futures_util::stream::iter([Ok::<_, std::io::Error>(vec![b'<'; 1 << 20])]);
        let body = Body::from_stream(StreamExt::chain(begun, futures_util::stream::pending()));
        fixture.post("/boinc/scheduler", body).await
    };
    let many = futures_util::future::join_all((0..64).map(|_| slow()));
    let mut many = std::pin::pin!(many);
    // Single bytes take no more of the memory than they are: three times what it has in KiB.
    let bytes = futures_util::stream::iter((0..200_000).map(|_| Ok::<_, std::io::Error>("<")));
    let dripping = Body::from_stream(StreamExt::chain(bytes, futures_util::stream::pending()));
    let mut dripping = std::pin::pin!(fixture.post_from(9, "/boinc/scheduler", dripping));
    tokio::select! {
        biased;
        _ = &mut many => panic!("slow requests are read to their end"),
        answer = &mut dripping => panic!("{}", answer.text()),
        reply = client.ask(fixture) => assert!(reply.contains("<workunit>"), "{reply}"),
    }
    // And another address finds a place for a long one.
    let long = format!("{}{}", client.request(), " ".repeat(100_000));
    let reply = fixture.post_from(7, "/boinc/scheduler", long).await;
    assert_eq!(reply.status, StatusCode::OK);
    tokio::time::pause();
    let answers = many.await;
    // All are told to try again: the first are too slow, the others find no place.
    let is_told = |it: &str| answers.iter().filter(|one| one.text().contains(it)).count();
    assert!(
        answers
            .iter()
            .all(|it| it.status == StatusCode::SERVICE_UNAVAILABLE)
    );
    assert_eq!((is_told("too slowly"), is_told("long requests")), (2, 62));
}

#[tokio::test]
async fn a_key_that_was_made_to_be_pasted_changes_nothing_of_the_account() {
    let fixture = Fixture::new().await;
    let key = fixture.account("alice@example.org").await;
    let door = fixture.door();
    let made = door.make_device_key(1, "laboratory", false, 1).await;
    let pasted = made.unwrap().1.text;
    let cross_id = async || door.store.account(1).await.unwrap().unwrap().cross_id;
    let before = cross_id().await;
    let brought = "f".repeat(32);
    let tag = format!("<cross_project_id>{brought}</cross_project_id>\n</scheduler_request>");
    for (key, expected) in [(&pasted, &before), (&key, &brought)] {
        let request = HandMade::new(key).request();
        let request = request.replace("</scheduler_request>", &tag);
        fixture.post("/boinc/scheduler", request).await;
        assert_eq!(&cross_id().await, expected);
    }
}

#[tokio::test]
async fn the_program_of_the_release_before_is_still_to_be_had() {
    let fixture = Fixture::new().await;
    let before = fixture.door().release.platforms[0].files[0].blake3;
    fixture.release(102, b"another program");
    let fixture = fixture.restarted().await;
    let now = fixture.door().release.platforms[0].files[0].blake3;
    assert_ne!(now, before);
    // A copy that somebody changed is made anew at the next start.
    let copy = fixture.hub().config.folder.join("boinc-programs");
    std::fs::write(copy.join(now.to_string()), b"anoTher program").unwrap();
    let fixture = fixture.restarted().await;
    for (hash, content) in [(before, PROGRAM), (now, b"another program".as_slice())] {
        let answer = fixture.get(&format!("/boinc/files/{hash}")).await;
        assert_eq!(answer.body, content);
    }
    // A name means the same bytes for ever.
    fixture.release(101, b"other bytes by an old name");
    let error = fixture.cannot_open().await;
    assert!(error.contains("offered before with other bytes"), "{error}");
}

#[tokio::test]
async fn files_come_in_parts_and_pauses_are_no_ends() {
    let fixture = Fixture::with(Config {
        requests_per_s_per_address: 20,
        ..Config::default()
    })
    .await;
    let hash = fixture.door().release.platforms[0].files[0].blake3;
    let path = format!("/boinc/files/{hash}");
    assert_eq!(fixture.get(&path).await.body, PROGRAM);
    let request = Request::get(&path).header(header::RANGE, "bytes=10-");
    let part = fixture.send(request, Body::empty()).await;
    assert_eq!(part.status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.body, PROGRAM[10..]);
    let range = format!("bytes 10-{}/{}", PROGRAM.len() - 1, PROGRAM.len());
    assert_eq!(part.headers[header::CONTENT_RANGE], range);
    for name in [
        "../../hub.key",
        "..%2F..%2Fhub.key",
        "release.json",
        &"0".repeat(64),
    ] {
        let answer = fixture.get(&format!("/boinc/files/{name}")).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{name}");
    }
    // Whoever asks too often is told to wait in a way that BOINC takes for a pause.
    let mut paused = 0;
    for _ in 0..500 {
        let answer = fixture.get(&path).await;
        assert_ne!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        paused += u32::from(answer.status == StatusCode::SERVICE_UNAVAILABLE);
    }
    assert!(paused > 0);
}

#[tokio::test]
async fn statistics_show_those_who_agreed() {
    let fixture = Fixture::new().await;
    for email in ["alice@example.org", "bob@example.org"] {
        let mut client = HandMade::new(&fixture.account(email).await);
        client.wants_work = false;
        client.ask(&fixture).await;
    }
    let read = async |name: &str| {
        use std::io::Read;
        let request =
            Request::get(format!("/stats/{name}")).header(header::ACCEPT_ENCODING, "gzip");
        let packed = fixture.send(request, Body::empty()).await;
        assert!(!packed.headers.contains_key(header::CONTENT_ENCODING));
        let mut text = String::new();
        let mut reader = flate2::read::GzDecoder::new(&packed.body[..]);
        reader.read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!(read("user.gz").await, "<users>\n</users>\n");
    assert_eq!(read("host.gz").await, "<hosts>\n</hosts>\n");
    fixture.door().store.set_consent(2, true).await.unwrap();
    // Nobody has it made again and again by asking.
    assert_eq!(read("user.gz").await, "<users>\n</users>\n");
    tokio::time::pause();
    tokio::time::advance(super::kept::KEPT).await;
    tokio::time::resume();
    let users = read("user.gz").await;
    assert_eq!(all_between(&users, "id"), ["2"]);
    assert!(!users.contains("example.org"));
    let hosts = read("host.gz").await;
    assert_eq!(all_between(&hosts, "userid"), ["2"]);
    assert!(!hosts.contains("0123456789abcdef0123456789abcdef"));
    let tables = fixture.get("/stats/tables.xml").await;
    assert_eq!(
        between(&tables.text(), "nusers_total").as_deref(),
        Some("1")
    );
    let tag = fixture.get("/stats/user.gz").await.headers[header::ETAG].clone();
    let request = Request::get("/stats/user.gz").header(header::IF_NONE_MATCH, tag);
    let known = fixture.send(request, Body::empty()).await;
    assert_eq!(known.status, StatusCode::NOT_MODIFIED);
    assert_eq!(
        fixture.get("/stats/../hub.key").await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_host_fetches_as_little_as_it_can() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(WINDOW_MS).await;
    let run = fixture.run(id).await;
    let (mut client, mut app) = enrolled(&fixture, id, "alice@example.org", 7).await;
    let mut starts = std::collections::BTreeSet::new();
    for round in 1..=5 {
        let reply = client.ask(&fixture).await;
        let deleted = all_between(&reply, "delete_file_info");
        client.files.retain(|it| !deleted.contains(it));
        let UnitTask::Train(training) = fixture.unit(&reply).await.task else {
            panic!("{reply}");
        };
        let newest = super::tasks::poll(fixture.hub(), &run, app.worker())
            .await
            .unwrap();
        let missing = |model: &protocol::api::WorkModel| {
            let is_held = |hash: &String| client.files.contains(hash);
            let checkpoint = if is_held(&model.checkpoint_blob) {
                0
            } else {
                model.checkpoint_bytes
            };
            let deltas = model.deltas.iter().filter(|it| !is_held(&it.blob));
            checkpoint + deltas.map(|it| it.bytes).sum::<u64>()
        };
        let chosen = &training.work.model;
        assert!(missing(chosen) <= missing(&newest.model), "round {round}");
        assert_eq!(chosen.parameters_hash, newest.model.parameters_hash);
        let reached = chosen
            .deltas
            .last()
            .map_or(chosen.checkpoint_round, |it| it.round);
        assert_eq!(
            reached, chosen.round,
            "the deltas lead from the checkpoint to the model"
        );
        starts.insert(chosen.checkpoint_round);
        for info in all_between(&reply, "file_info") {
            let name = between(&info, "name").unwrap();
            if info.contains("<sticky/>") && !client.files.contains(&name) {
                client.files.push(name);
            }
        }
        done(&fixture, &mut client, &mut app, id, &reply, 1e-4).await;
        let merged = async {
            let mut length = run.length.clone();
            while run.state.read().await.rounds_merged < round {
                length.changed().await.unwrap();
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), merged)
            .await
            .expect("the round is merged");
    }
    assert!(!starts.is_empty());
}
