//! Strangers who mean harm, against a real hub beside one honest worker: each is refused with a reason, and the honest
//! worker's updates go on being merged.
//!
//! Attackers come from addresses of loopback of their own, as strangers would.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use engine::update::codec;
use protocol::{
    Hash, SecretKey,
    api::ApiError,
    charter::Charter,
    command::Command,
    units::{BlobReference, RunId, WorkerId},
    update::{self, UpdateHeader},
};
use tests::{
    network::{Network, Start},
    stranger::{Stranger, even_payload, refused},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

/// The hub's settings: small limits, so that the test reaches them.
const SETTINGS: &str = "\
new_workers_per_hour_per_address = 40
connections_per_address_max = 60
header_timeout_s = 2
";
/// Longest wait for a round to open, close or be merged.
const ROUND_MAX: Duration = Duration::from_secs(90);
/// What the hub's memory may grow by under all of this.
const GROWTH_BYTES_MAX: u64 = 200 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn harm_is_refused_and_the_honest_go_on() -> Result<()> {
    let folder = Network::fresh_folder("hostile")?;
    let settings = folder.join("hub.toml");
    std::fs::write(&settings, SETTINGS)?;
    let hub = Start {
        arguments: vec!["--config".into(), settings.to_string_lossy().into_owned()],
        ..Start::default()
    };
    let mut network = Network::start_in(folder, hub).await?;
    let run = network.open_small_run().await?;
    network.start_worker(run, "honest", "1.0")?;
    network.joined(run, 1).await?;
    // The warm start is over then: every update is one file.
    merged(&mut network, run, 3).await?;
    let before = network.hub_resident_bytes()?;

    presence_is_not_stolen(&network, run)
        .await
        .context("presence")?;
    old_commands_change_nothing(&network, run)
        .await
        .context("old commands")?;
    a_crowd_is_admitted_slowly(&network, run)
        .await
        .context("crowd")?;
    bodies_without_end_are_cut(&network, run)
        .await
        .context("bodies")?;
    slow_connections_are_let_go(&network)
        .await
        .context("slow connections")?;
    slow_bodies_hold_no_places(&network, run)
        .await
        .context("slow bodies")?;
    a_part_elsewhere_is_told_its_place(&network)
        .await
        .context("parts")?;
    bad_commitments_are_refused(&network, run)
        .await
        .context("commitments")?;
    bad_updates_are_refused(&network, run)
        .await
        .context("updates")?;

    merged(&mut network, run, 2).await?;
    let growth = network.hub_resident_bytes()?.saturating_sub(before);
    ensure!(growth < GROWTH_BYTES_MAX, "the hub grew by {growth} bytes");
    network.finish().await
}

/// Waits for so many merges that hold an update.
async fn merged(network: &mut Network, run: RunId, rounds: u32) -> Result<()> {
    let mut left = rounds;
    network
        .watch(run, ROUND_MAX, "merged round", |entry| {
            left -= u32::from(entry.kind == "round_merged");
            (left == 0).then_some(())
        })
        .await
}

/// Being present takes the token of one's own join.
async fn presence_is_not_stolen(network: &Network, run: RunId) -> Result<()> {
    let mut stranger = Stranger::new(network, run, 51)?;
    let join = stranger.join();
    let reply = stranger.client.command(&join).await?;
    let token = reply.token.context("a join earns a token")?;
    ensure!(stranger.poll(Some(&token)).await?.worker.joined);
    ensure!(stranger.is_present().await?, "a poll with the token counts");

    // Whoever read the join in the log and sends it again learns nothing.
    let again = stranger.client.command(&join).await?;
    ensure!(again.token.is_none(), "a copied join earned a token");
    let mut victim = Stranger::new(network, run, 52)?;
    victim.send_join().await?;
    for shown in [None, Some("nonsense"), Some(token.as_str())] {
        ensure!(
            !victim.poll(shown).await?.worker.joined,
            "{shown:?} counted"
        );
    }
    ensure!(!victim.is_present().await?, "a stranger's poll counted");
    // Joining again costs the log nothing and gives the same token.
    let renewed = stranger.send_join().await?;
    ensure!(renewed.token == Some(token), "another token");
    ensure!(renewed.log_length >= again.log_length);
    for mut it in [stranger, victim] {
        it.leave().await?;
    }
    Ok(())
}

/// Commands that come again, late, or in another order.
async fn old_commands_change_nothing(network: &Network, run: RunId) -> Result<()> {
    let mut stranger = Stranger::new(network, run, 53)?;
    let join = stranger.join();
    let reason = "going".to_owned();
    let leave = stranger.sign(Command::Leave { reason });
    let later = stranger.join();
    let client = &stranger.client;
    client.command(&join).await?;
    client.command(&leave).await?;
    let length = client.command(&leave).await?.log_length;
    for old in [&join, &join] {
        refused(client.command(old).await, "replayed")?;
    }
    client.command(&later).await?;
    refused(client.command(&leave).await, "replayed")?;
    let entries = client.log_entries(run, 0, 1_000).await?.entries;
    let ours = entries.iter().filter(|it| {
        let text = serde_json::to_string(&it.event).unwrap_or_default();
        text.contains(&stranger.id().to_string())
    });
    ensure!(ours.count() >= 3, "join, leave, join at {length}");
    Ok(())
}

/// A million identities: each address brings in so many an hour, and the log grows by no more.
async fn a_crowd_is_admitted_slowly(network: &Network, run: RunId) -> Result<()> {
    let http = from("127.0.0.3")?;
    let url = format!("{}/api/v1/runs/{run}/commands", network.hub_url());
    let (mut admitted, mut refusals) = (0, 0);
    for seed in 100..=160 {
        let mut stranger = Stranger::new(network, run, seed)?;
        let answer = http.post(&url).body(stranger.join().to_bytes());
        let answer = answer.send().await?;
        if answer.status().is_success() {
            admitted += 1;
        } else {
            let error: ApiError = answer.json().await?;
            ensure!(error.code == "too_many", "{error:?}");
            ensure!(error.message.contains("new workers"), "{error:?}");
            refusals += 1;
        }
    }
    ensure!((admitted, refusals) == (40, 21), "{admitted} were admitted");
    Ok(())
}

/// Ten gigabytes, announced or not, and what claims to inflate.
async fn bodies_without_end_are_cut(network: &Network, run: RunId) -> Result<()> {
    let http = from("127.0.0.2")?;
    let url = format!("{}/api/v1/runs/{run}/commands", network.hub_url());
    let chunk = vec![0_u8; 1 << 20];
    let endless = futures_util::stream::iter(
        (0..10_240).map(move |_| Ok::<_, std::io::Error>(chunk.clone())),
    );
    let body = reqwest::Body::wrap_stream(endless);
    // Whoever goes on sending may find the line cut instead of an answer.
    if let Ok(answer) = http.post(&url).body(body).send().await {
        ensure!(answer.status() == 413, "streamed: {}", answer.status());
    }
    let (answer, _) = raw(
        network.hub_address(),
        &format!("POST /api/v1/runs/{run}/commands HTTP/1.1\r\nhost: x\r\ncontent-length: 10737418240\r\n\r\n"),
    )
    .await?;
    ensure!(answer.starts_with("HTTP/1.1 413"), "announced: {answer}");
    let bomb = http
        .post(&url)
        .header("content-encoding", "gzip")
        .body(vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0]);
    let answer = bomb.send().await?;
    ensure!(answer.status() == 400, "gzip: {}", answer.status());
    Ok(())
}

/// Connections that say little, and too many of them.
async fn slow_connections_are_let_go(network: &Network) -> Result<()> {
    let address = network.hub_address();
    let begun = Instant::now();
    let mut held = Vec::new();
    let mut refusals = 0;
    for index in 0..80 {
        let mut stream = connect(address).await?;
        if index < 60 {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: ").await?;
            held.push(stream);
            continue;
        }
        let mut answer = String::new();
        // The hub may have closed before it read that nothing came.
        if stream.read_to_string(&mut answer).await.is_ok() && answer.starts_with("HTTP/1.1 503") {
            refusals += 1;
        }
    }
    ensure!(refusals >= 10, "only {refusals} of 20 were refused");
    // Everyone else is served meanwhile.
    network.client()?.hub_info().await?;
    for mut stream in held {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    let seconds = begun.elapsed().as_secs();
    ensure!(seconds < 20, "they were held for {seconds} s");
    Ok(())
}

/// More addresses than the hub has places, each with bodies that don't come.
async fn slow_bodies_hold_no_places(network: &Network, run: RunId) -> Result<()> {
    let head = format!(
        "POST /api/v1/runs/{run}/commands HTTP/1.1\r\nhost: x\r\ncontent-length: 4000\r\n\r\nx"
    );
    let mut held = Vec::new();
    for address in 20..32 {
        for _ in 0..55 {
            let socket = TcpSocket::new_v4()?;
            socket.bind(format!("127.0.0.{address}:0").parse()?)?;
            let mut stream = socket.connect(network.hub_address()).await?;
            stream.write_all(head.as_bytes()).await?;
            held.push(stream);
        }
    }
    // What they sent is there, and they hold up nobody.
    for _ in 0..20 {
        network.client()?.runs().await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut answer = String::new();
    held[0].read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    Ok(())
}

/// Whoever goes on in the wrong place, after a lost answer, learns the right one.
async fn a_part_elsewhere_is_told_its_place(network: &Network) -> Result<()> {
    let (first, second) = ([1; 40], [2; 60]);
    let hash = Hash::of_blob(&[&first[..], &second[..]].concat());
    let url = format!("{}/api/v1/uploads/{hash}", network.hub_url());
    let part = async |offset: &str, bytes: Vec<u8>| {
        let part = reqwest::Client::new().patch(&url).body(bytes);
        let part = part.header("x-athome-bytes", "100");
        part.header("x-athome-offset", offset).send().await
    };
    ensure!(part("0", first.to_vec()).await?.status() == 200);
    let answer = part("0", first.to_vec()).await?;
    ensure!(answer.status() == 409, "{}", answer.status());
    let place = answer.headers().get("x-athome-offset").cloned();
    ensure!(place.is_some_and(|it| it == "40"), "it is not told where");
    let error: ApiError = answer.json().await?;
    ensure!(error.code == "wrong_offset", "{error:?}");
    ensure!(part("40", second.to_vec()).await?.status() == 201);
    Ok(())
}

/// Commitments that can't be kept.
async fn bad_commitments_are_refused(network: &Network, run: RunId) -> Result<()> {
    let mut stranger = Stranger::new(network, run, 54)?;
    let charter = stranger.client.charter(run).await?;
    stranger.send_join().await?;
    let (work, assignment) = stranger.assigned(false).await?;
    let fits = stranger.header(&charter, &work, &assignment)?;
    let update = BlobReference {
        hash: Hash([70; 32]),
        bytes: 1_000,
    };
    let stale = UpdateHeader {
        base: Hash([71; 32]),
        ..fits.clone()
    };
    refused(stranger.commit(update, stale).await, "wrong_base")?;
    // A model that was the newest once, by its true name.
    let rounds = stranger.client.rounds(run, None, 100).await?;
    let old = rounds.iter().find_map(|it| {
        let hash = it.parameters_hash.clone()?;
        (it.round < assignment.base_round).then_some((it.round, hash))
    });
    let (base_round, base) = old.context("there is no older model")?;
    let old = UpdateHeader {
        base_round,
        base: base.parse()?,
        ..fits.clone()
    };
    refused(stranger.commit(update, old).await, "wrong_base")?;
    let other_slot = UpdateHeader {
        slot: assignment.slot + 1,
        ..fits.clone()
    };
    refused(stranger.commit(update, other_slot).await, "not_assigned")?;
    let boast = UpdateHeader {
        steps: 1_000_000,
        tokens: 1_000_000 * charter.tokens_per_step(),
        ..fits.clone()
    };
    refused(stranger.commit(update, boast).await, "claim")?;
    let huge = BlobReference {
        bytes: 10 << 30,
        ..update
    };
    refused(stranger.commit(huge, fits.clone()).await, "claim")?;
    let foreign: Hash = work.model.checkpoint_blob.parse()?;
    let foreign = BlobReference {
        hash: foreign,
        bytes: work.model.checkpoint_bytes,
    };
    refused(stranger.commit(foreign, fits.clone()).await, "known_blob")?;
    // Three gigabytes are below what any charter allows, and above what this one does: nothing of it is taken.
    let long = BlobReference {
        bytes: 3 << 30,
        ..update
    };
    stranger.commit(long, fits).await?;
    let signature = stranger
        .key
        .sign(protocol::api::UPLOAD_DOMAIN, &long.hash.0);
    let answer = reqwest::Client::new()
        .patch(format!(
            "{}/api/v1/uploads/{}",
            network.hub_url(),
            long.hash
        ))
        .header("x-athome-offset", "0")
        .header(
            "x-athome-upload",
            format!("{}:{}", stranger.id(), hex(&signature.0)),
        )
        .body(vec![0; 1_000]);
    let answer = answer.send().await?;
    ensure!(answer.status() == 403, "{}", answer.status());
    let error: ApiError = answer.json().await?;
    ensure!(error.message.contains("that long"), "{error:?}");
    Ok(())
}

/// Updates that keep their commitments and are none.
async fn bad_updates_are_refused(network: &Network, run: RunId) -> Result<()> {
    let of_500 = |charter: &Charter| {
        let settings = engine::charter::update_settings(&charter.outer);
        codec::encode(&[500], &settings, &[0.01; 500])
    };
    let noise = |_: &UpdateHeader, _: &Charter| Ok(vec![0xA5; 3_000]);
    let wrong_shape =
        |header: &UpdateHeader, charter: &Charter| Ok(update::seal(header, &of_500(charter)?));
    let of_another = |header: &UpdateHeader, charter: &Charter| {
        let header = UpdateHeader {
            worker: WorkerId(SecretKey::from_entropy([99; 32]).public()),
            ..header.clone()
        };
        Ok(update::seal(&header, &of_500(charter)?))
    };
    let cut = |header: &UpdateHeader, charter: &Charter| {
        let payload = even_payload(charter, 0.01)?;
        Ok(update::seal(header, &payload[..payload.len() / 2]))
    };
    // What the header names is somebody else's, perhaps seen before; what comes is another payload.
    let swapped = |header: &UpdateHeader, charter: &Charter| {
        Ok(update::seal(header, &even_payload(charter, 0.01)?))
    };
    type Make<'a> = &'a dyn Fn(&UpdateHeader, &Charter) -> Result<Vec<u8>>;
    let cases: [(u8, &str, Make<'_>); 5] = [
        (61, "not an update", &noise),
        (62, "not this model's", &wrong_shape),
        (63, "header", &of_another),
        (64, "the update's content was refused", &cut),
        (65, "not the one that its header names", &swapped),
    ];
    let mut strangers = Vec::new();
    for (seed, _, _) in &cases {
        let mut stranger = Stranger::new(network, run, *seed)?;
        stranger.send_join().await?;
        strangers.push(stranger);
    }
    let charter = strangers[0].client.charter(run).await?;
    for (stranger, (_, expected, make)) in strangers.iter_mut().zip(&cases) {
        let (work, assignment) = stranger.assigned(false).await?;
        let header = stranger.header(&charter, &work, &assignment)?;
        let file = make(&header, &charter)?;
        stranger
            .commit(BlobReference::of(&file), header)
            .await
            .with_context(|| format!("committing to {expected:?}"))?;
        stranger.upload(&file).await?;
        let reason = stranger.reason().await?;
        ensure!(
            reason.contains(expected),
            "{expected:?} is not in {reason:?}"
        );
    }
    Ok(())
}

/// A client from another address.
fn from(address: &str) -> Result<reqwest::Client> {
    let address: IpAddr = address.parse()?;
    Ok(reqwest::Client::builder().local_address(address).build()?)
}

/// A connection from another address.
async fn connect(hub: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.2:0".parse()?)?;
    Ok(socket.connect(hub).await?)
}

/// Sends bytes; what comes back until the hub closes or half a second passes without a byte.
async fn raw(hub: SocketAddr, bytes: &str) -> Result<(String, Duration)> {
    let mut stream = connect(hub).await?;
    let begun = Instant::now();
    stream.write_all(bytes.as_bytes()).await?;
    let mut answer = vec![0; 4_096];
    let length = stream.read(&mut answer).await?;
    answer.truncate(length);
    Ok((
        String::from_utf8_lossy(&answer).into_owned(),
        begun.elapsed(),
    ))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}
