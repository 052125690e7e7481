use super::*;
use crate::boinc::testing::{Fixture, between};

#[test]
fn hashes_are_boincs() {
    let hash = password_hash("Alice@example.org", "secret99");
    assert_eq!(hash, "b072d86a239e8e8d786d5886b4955b16");
    assert_eq!(
        md5_hex(b"alice@example.org"),
        "fbf7c6aec1d4280b7c2704c1c0478bd6"
    );
    // Clients lower ASCII alone.
    assert_eq!(
        password_hash(" \u{dc}B@example.org ", "x"),
        md5_hex("x\u{dc}b@example.org".as_bytes())
    );
}

#[test]
fn addresses_and_names_are_checked() {
    let check = |text: &str, expected: Option<&str>| {
        assert_eq!(normal_email(text).as_deref(), expected, "{text}");
    };
    check(" Alice@Example.org ", Some("alice@example.org"));
    check("a@localhost", Some("a@localhost"));
    for bad in [
        "",
        "alice",
        "@example.org",
        "a b@example.org",
        "a@b",
        "<a@b.c>",
        "a@b.c\n<x>",
    ] {
        check(bad, None);
    }
    assert_eq!(normal_email(&format!("{}@b.c", "a".repeat(300))), None);
    assert_eq!(normal_name(" Alice B "), Some("Alice B".into()));
    for bad in [
        "a\u{1b}[2J",
        "Evil\u{ffff}",
        "a\u{fffe}b",
        "gnp.\u{202e}exe",
        "\u{feff}",
        "a\u{200b}",
    ] {
        assert_eq!(normal_name(bad), None, "{bad:?}");
    }
    assert_eq!(normal_name(&"x".repeat(65)), None);
}

#[tokio::test]
async fn an_account_is_made_and_found_as_clients_do_it() {
    let fixture = Fixture::new().await;
    let first = fixture.account("alice@example.org").await;
    assert!(first.starts_with("d_") && first.len() < 255);
    // The same again gives the same account, by another key.
    let again = fixture.account("Alice@Example.org").await;
    assert_ne!(first, again);
    let door = fixture.door();
    let of = async |key: &str| {
        door.account_of_device(key, 1)
            .await
            .unwrap()
            .map(|it| it.id)
    };
    assert_eq!(of(&first).await, of(&again).await);
    assert!(of(&first).await.is_some());
    assert_eq!(of("d_wrong").await, None);
    assert_eq!(of("").await, None);

    let path = |page: &str, email: &str, password: &str| {
        let hash = password_hash(email, password);
        format!("/{page}.php?email_addr={email}&passwd_hash={hash}&user_name=B")
    };
    let check = async |path: &str, expected: Option<&str>| {
        let answer = fixture.get(path).await;
        assert_eq!(answer.status, 200);
        let number = between(&answer.text(), "error_num");
        assert_eq!(number.as_deref(), expected, "{path}: {}", answer.text());
    };
    check(
        &path("lookup_account", "alice@example.org", "secret99"),
        None,
    )
    .await;
    // Whether there is an account is told to nobody who has not its password.
    let wrong = fixture
        .get(&path("lookup_account", "alice@example.org", "other"))
        .await;
    let unknown = fixture
        .get(&path("lookup_account", "bob@example.org", "other"))
        .await;
    assert_eq!(between(&wrong.text(), "error_num").as_deref(), Some("-206"));
    assert_eq!(wrong.text(), unknown.text());
    check(
        "/lookup_account.php?email_addr=alice@example.org",
        Some("-136"),
    )
    .await;
    check(
        "/lookup_account.php?email_addr=bob@example.org",
        Some("-136"),
    )
    .await;
    check("/lookup_account.php", Some("-136")).await;
    check(
        &path("create_account", "alice@example.org", "other"),
        Some("-137"),
    )
    .await;
    check(&path("create_account", "nobody", "secret99"), Some("-205")).await;
    check(
        "/create_account.php?email_addr=c@example.org&passwd_hash=abc&user_name=C",
        Some("-206"),
    )
    .await;
    let hash = password_hash("c@example.org", "secret99");
    check(
        &format!("/create_account.php?email_addr=c@example.org&passwd_hash={hash}"),
        Some("-188"),
    )
    .await;
}

#[tokio::test]
async fn nothing_that_opens_an_account_is_kept_as_it_is() {
    let fixture = Fixture::new().await;
    let key = fixture.account("alice@example.org").await;
    let hash = password_hash("alice@example.org", "secret99");
    fixture.service.close().await;
    let folder = fixture.hub().config.folder.clone();
    for name in ["boinc.sqlite", "boinc.sqlite-wal"] {
        let Ok(bytes) = std::fs::read(folder.join(name)) else {
            continue;
        };
        let is_in = |secret: &str| {
            bytes
                .windows(secret.len())
                .any(|it| it == secret.as_bytes())
        };
        assert!(!is_in(&key) && !is_in(&hash) && !is_in("secret99"));
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(folder.join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{name} is the hub's alone");
    }
}

#[tokio::test]
async fn passwords_are_tried_only_so_often() {
    let fixture = Fixture::new().await;
    fixture.account("alice@example.org").await;
    let door = fixture.door();
    let client = IpAddr::from([192, 0, 2, 9]);
    let mut refused = 0;
    for number in 0..40 {
        let guess = password_hash("alice@example.org", &number.to_string());
        let tried = door.sign_in("alice@example.org", &guess, client).await;
        refused += u32::from(matches!(tried, Err(AccountError::TooMany)));
    }
    assert!(refused > 0);
}
