use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use protocol::{SecretKey, identity::KeyRole, identity::sign_half};
use serde_json::{Value, json};

use crate::boinc::testing::{Answer, App, Fixture, HandMade, between};

/// A browser.
struct Browser<'a> {
    fixture: &'a Fixture,
    cookie: String,
    origin: &'static str,
}

impl<'a> Browser<'a> {
    fn new(fixture: &'a Fixture) -> Self {
        Self {
            fixture,
            cookie: String::new(),
            origin: "http://hub.example.org:8700",
        }
    }

    async fn call(&mut self, method: Method, path: &str, body: Value) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ORIGIN, self.origin)
            .header(header::COOKIE, &self.cookie);
        let answer = self
            .fixture
            .send(request, Body::from(body.to_string()))
            .await;
        if let Some(set) = answer.headers.get(header::SET_COOKIE) {
            let set = set.to_str().unwrap();
            assert!(set.contains("; HttpOnly; SameSite=Strict"), "{set}");
            self.cookie = set.split(';').next().unwrap().to_owned();
        }
        answer
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.call(Method::GET, path, Value::Null).await
    }

    async fn post(&mut self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, body).await
    }
}

fn alice() -> Value {
    json!({"email": "alice@example.org", "password": "secret99", "name": "Alice B"})
}

#[tokio::test]
async fn a_browser_and_a_client_are_signed_in_to_one_account() {
    let fixture = Fixture::new().await;
    let mut browser = Browser::new(&fixture);
    assert_eq!(
        browser.get("/api/v1/account").await.status,
        StatusCode::UNAUTHORIZED
    );
    let made = browser.post("/api/v1/accounts", alice()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    assert_eq!(made.json()["is_key_held_by_hub"], true);
    // The client's create is a sign-in: the password is the same.
    fixture.account("alice@example.org").await;
    let devices = browser.get("/api/v1/account/devices").await.json();
    assert_eq!(devices[0]["name"], "BOINC client");
    let hosts = browser.get("/api/v1/account/hosts").await.json();
    assert_eq!(hosts, json!([]));

    assert_eq!(
        browser
            .call(Method::DELETE, "/api/v1/sessions", Value::Null)
            .await
            .status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        browser.get("/api/v1/account").await.status,
        StatusCode::UNAUTHORIZED
    );
    let wrong = json!({"email": "alice@example.org", "password": "other"});
    let wrong = browser.post("/api/v1/sessions", wrong).await;
    assert_eq!(
        (wrong.status, wrong.json()["code"].as_str()),
        (StatusCode::FORBIDDEN, Some("wrong_password"))
    );
    let right = browser.post("/api/v1/sessions", alice()).await;
    assert_eq!(right.status, StatusCode::OK, "{}", right.text());

    // Another site's page is in nobody's name.
    browser.origin = "http://evil.example";
    assert_eq!(
        browser.get("/api/v1/account").await.status,
        StatusCode::UNAUTHORIZED
    );
    let link = browser.post("/api/v1/account/links", Value::Null).await;
    assert_eq!(link.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_link_signs_in_once() {
    let fixture = Fixture::new().await;
    let mut browser = Browser::new(&fixture);
    browser.post("/api/v1/accounts", alice()).await;
    let link = browser.post("/api/v1/account/links", Value::Null).await;
    assert_eq!(link.status, StatusCode::CREATED);
    let token = json!({"token": link.json()["token"]});
    let mut phone = Browser::new(&fixture);
    assert_eq!(
        phone.post("/api/v1/sessions", token.clone()).await.status,
        StatusCode::OK
    );
    assert_eq!(phone.get("/api/v1/account").await.json()["name"], "Alice B");
    let again = Browser::new(&fixture).post("/api/v1/sessions", token).await;
    assert_eq!(again.json()["code"], "bad_link");
}

#[tokio::test]
async fn a_devices_key_computes_and_does_nothing_else() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(60_000).await;
    let mut browser = Browser::new(&fixture);
    let account = browser.post("/api/v1/accounts", alice()).await.json();
    let made = browser
        .post("/api/v1/account/devices", json!({"name": "laptop"}))
        .await;
    assert_eq!(made.status, StatusCode::CREATED);
    let key = made.json()["key"].as_str().unwrap().to_owned();
    let with_key = async |method: Method, path: &str, body: Value| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {key}"))
            .header(header::COOKIE, format!("athome_session={key}"));
        fixture.send(request, Body::from(body.to_string())).await
    };
    for path in ["", "/hosts", "/devices"] {
        let path = format!("/api/v1/account{path}");
        let answer = with_key(Method::GET, &path, Value::Null).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let identity = with_key(Method::GET, "/api/v1/account/identity", Value::Null).await;
    assert_eq!(identity.json()["key"], account["key"]);

    // A worker that joined is attached by its own signature and the account's.
    let worker = SecretKey::from_entropy([9; 32]);
    let account_key = protocol::units::AccountId(account["key"].as_str().unwrap().parse().unwrap());
    let half = sign_half(&worker, id, account_key, worker.public(), KeyRole::Worker);
    let attach = json!({
        "run": id.to_string(),
        "worker": worker.public().to_string(),
        "signature": data_encoding::HEXLOWER.encode(&half.0),
    });
    let early = with_key(Method::POST, "/api/v1/account/workers", attach.clone()).await;
    assert_eq!(early.json()["code"], "not_joined");
    let join = protocol::command::Command::Join {
        name: "native".into(),
        device: protocol::command::Device {
            arithmetic: "scalar".into(),
            threads: 1,
            memory_mib: 1,
            tokens_per_s: 1,
        },
    };
    let join = protocol::command::SignedCommand::sign(&worker, id, 1, join);
    let run = fixture.run(id).await;
    run.command(join.checked().unwrap()).await.unwrap();
    let attached = with_key(Method::POST, "/api/v1/account/workers", attach.clone()).await;
    assert_eq!(attached.status, StatusCode::OK, "{}", attached.text());
    assert_eq!(
        run.state.read().await.bindings[&worker.public()],
        account_key
    );
    let again = with_key(Method::POST, "/api/v1/account/workers", attach.clone()).await;
    assert_eq!(again.status, StatusCode::OK, "the same again costs nothing");
    let mut forged = attach;
    forged["signature"] = json!("00".repeat(64));
    let forged = with_key(Method::POST, "/api/v1/account/workers", forged).await;
    assert_eq!(forged.status, StatusCode::FORBIDDEN);
    let shown = browser.get("/api/v1/account").await.json();
    assert_eq!(shown["workers"], json!([worker.public().to_string()]));
    // Revoked, it opens nothing.
    let path = format!("/api/v1/account/devices/{}", made.json()["id"]);
    let revoked = browser.call(Method::DELETE, &path, Value::Null).await;
    assert_eq!(revoked.status, StatusCode::NO_CONTENT);
    let identity = with_key(Method::GET, "/api/v1/account/identity", Value::Null).await;
    assert_eq!(identity.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn machines_are_shown_with_what_they_did() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(60_000).await;
    let mut browser = Browser::new(&fixture);
    browser.post("/api/v1/accounts", alice()).await;
    let mut client = HandMade::new(&fixture.account("alice@example.org").await);
    let mut app = App::new(7);
    let run = fixture.run(id).await;
    let charter = run.state.read().await.charter.clone();
    for scale in [1.0, 1e-4] {
        let reply = client.ask(&fixture).await;
        let unit = fixture.unit(&reply).await;
        let output = app.work(&unit, &run, &charter, scale);
        let answer = client.upload(&fixture, &reply, &output).await;
        assert_eq!(between(&answer, "status").as_deref(), Some("0"));
        client.reports.push((client.held.pop().unwrap(), 5, 0));
    }
    let merged = async {
        let mut length = run.length.clone();
        while run.state.read().await.rounds_merged == 0 {
            length.changed().await.unwrap();
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), merged)
        .await
        .expect("the round is merged");
    let hosts = browser.get("/api/v1/account/hosts").await.json();
    let host = &hosts[0];
    assert_eq!(host["worker"], app.worker().to_string());
    assert_eq!(host["worker_name"], "hand made");
    let [train, enrol] = host["tasks"].as_array().unwrap().as_slice() else {
        panic!("{host}");
    };
    assert_eq!(
        (&enrol["kind"], &enrol["state"]),
        (&json!("enrol"), &json!("granted"))
    );
    assert_eq!(
        (&train["kind"], &train["state"]),
        (&json!("train"), &json!("merged"))
    );
    let micro = train["credits_micro"].as_u64().unwrap();
    assert!(micro > 0);
    assert_eq!(host["earned"]["credits_micro"], micro);
    let account = browser.get("/api/v1/account").await.json();
    assert_eq!(account["earned"]["credits_micro"], micro);
    assert_eq!(
        (&account["rank"], &account["ranked"]),
        (&json!(1), &json!(1))
    );
    let cobblestones = account["earned"]["cobblestones"].as_f64().unwrap();
    assert!((cobblestones - micro as f64 / 1e6 * 2_315.0).abs() < 1e-9);
}

#[tokio::test]
async fn teams_are_made_joined_and_left() {
    let fixture = Fixture::new().await;
    let mut browser = Browser::new(&fixture);
    browser.post("/api/v1/accounts", alice()).await;
    let made = browser
        .post("/api/v1/teams", json!({"name": "Team <x>"}))
        .await;
    assert_eq!(made.status, StatusCode::CREATED);
    let id = made.json()["id"].clone();
    let taken = browser
        .post("/api/v1/teams", json!({"name": "team <X>"}))
        .await;
    assert_eq!(taken.json()["code"], "name_taken");
    let mut bob = Browser::new(&fixture);
    let account = json!({"email": "bob@example.org", "password": "secret99", "name": "Bob"});
    bob.post("/api/v1/accounts", account).await;
    let join = json!({"id": id});
    let joined = bob.call(Method::PUT, "/api/v1/account/team", join).await;
    assert_eq!(joined.status, StatusCode::NO_CONTENT);
    assert_eq!(
        bob.get("/api/v1/account").await.json()["team"]["members"],
        2
    );
    let nowhere = bob
        .call(Method::PUT, "/api/v1/account/team", json!({"id": u64::MAX}))
        .await;
    assert_eq!(nowhere.status, StatusCode::NOT_FOUND);
    bob.call(Method::DELETE, "/api/v1/account/team", Value::Null)
        .await;
    let teams = bob.get("/api/v1/teams").await.json();
    assert_eq!(teams[0]["members"], 1);
    assert_eq!(
        teams[0]["founder"],
        Value::Null,
        "she did not agree to be shown"
    );
    let team = id.as_u64().unwrap();
    let counted = async || {
        let team = fixture.door().store.team(team).await.unwrap().unwrap();
        (team.members, team.shown_members.len())
    };
    // A team of one would tell what she earned.
    assert_eq!(counted().await, (1, 0));
    let consent = json!({"shows_statistics": true});
    let consented = browser
        .call(Method::PUT, "/api/v1/account/statistics", consent)
        .await;
    assert_eq!(consented.status, StatusCode::NO_CONTENT);
    let teams = bob.get("/api/v1/teams").await.json();
    assert_eq!(teams[0]["founder"], "Alice B");
    assert_eq!(counted().await, (1, 1));
}

#[tokio::test]
async fn a_hub_without_a_release_has_no_door() {
    let folder = tempfile::tempdir().unwrap();
    let config = crate::Config {
        folder: folder.path().to_owned(),
        ..crate::Config::default()
    };
    let shutdown = tokio_util::sync::CancellationToken::new();
    let service = crate::Service::open(config, crate::Ground::machine(), shutdown)
        .await
        .unwrap();
    let router = service.router();
    for path in [
        "/api/v1/boinc",
        "/api/v1/account",
        "/boinc/files/00",
        "/stats/user.gz",
        "/lookup_account.php",
    ] {
        let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let request = Request::get(path).extension(axum::extract::ConnectInfo(peer));
        let answer =
            tower::ServiceExt::oneshot(router.clone(), request.body(Body::empty()).unwrap());
        assert_eq!(
            answer.await.unwrap().status(),
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
    assert!(!folder.path().join("boinc.sqlite").exists());
}

#[tokio::test]
async fn a_persons_own_key_is_linked_and_signs_in() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(60_000).await;
    let mut browser = Browser::new(&fixture);
    let account = browser.post("/api/v1/accounts", alice()).await.json();
    let own = SecretKey::from_entropy([5; 32]);
    let own_id = protocol::units::AccountId(own.public());
    let held = account["hub_key"].as_str().unwrap().parse().unwrap();
    let half = sign_half(&own, id, own_id, held, KeyRole::Session);
    let link = json!({
        "run": "for hosts",
        "key": own.public().to_string(),
        "signature": data_encoding::HEXLOWER.encode(&half.0),
    });
    let early = browser.post("/api/v1/account/key", link.clone()).await;
    assert_eq!(early.json()["code"], "no_machine");
    let mut client = HandMade::new(&fixture.account("alice@example.org").await);
    let reply = client.ask(&fixture).await;
    let run = fixture.run(id).await;
    let charter = run.state.read().await.charter.clone();
    let output = App::new(7).work(&fixture.unit(&reply).await, &run, &charter, 1.0);
    client.upload(&fixture, &reply, &output).await;
    let mut forged = link.clone();
    forged["signature"] = json!("00".repeat(64));
    let forged = browser.post("/api/v1/account/key", forged).await;
    assert_eq!(forged.json()["code"], "signature");
    let linked = browser.post("/api/v1/account/key", link.clone()).await;
    assert_eq!(linked.status, StatusCode::OK, "{}", linked.text());
    assert_eq!(run.state.read().await.bindings[&held], own_id);
    let shown = browser.get("/api/v1/account").await.json();
    assert_eq!(shown["key"], own.public().to_string());
    assert_eq!(shown["is_key_held_by_hub"], false);

    let sign = |time_ms: u64| {
        let hub = fixture.hub().key.public();
        let signature = protocol::identity::sign_in(&own, hub, time_ms);
        json!({
            "key": own.public().to_string(),
            "time_ms": time_ms,
            "signature": data_encoding::HEXLOWER.encode(&signature.0),
        })
    };
    let now_ms = fixture.hub().clock.now_ms();
    let mut elsewhere = Browser::new(&fixture);
    let signed_in = elsewhere.post("/api/v1/sessions", sign(now_ms)).await;
    assert_eq!(signed_in.status, StatusCode::OK, "{}", signed_in.text());
    assert_eq!(signed_in.json()["name"], "Alice B");
    let old = elsewhere
        .post("/api/v1/sessions", sign(now_ms - 600_000))
        .await;
    assert_eq!(old.json()["code"], "wrong_key");
    // Nobody else's account is linked with it.
    let mut bob = Browser::new(&fixture);
    let account = json!({"email": "bob@example.org", "password": "secret99", "name": "Bob"});
    bob.post("/api/v1/accounts", account).await;
    assert_eq!(
        bob.post("/api/v1/account/key", link).await.json()["code"],
        "taken"
    );
}
