//! `hub_requests_per_s`: a fixed mix of what workers ask, each connection as fast as it is answered.
//!
//! Of 100 requests: 60 polls that are answered at once, 15 signed commitments, 10 uploads of 100 kB, 15 downloads of 100 kB.
//! Every commitment is another worker's in the round that is open, every upload the bytes that one of them committed to.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use protocol::{
    api::UPLOAD_DOMAIN,
    charter::Charter,
    command::{Command, Commitment, SignedCommand},
    units::{BlobReference, RunId},
    update::UpdateHeader,
};
use tests::{connection::Connection, decoders::mutate::Chance};
use tokio::task::LocalSet;

use super::{
    Target,
    crowd::{self, Worker},
    p99_ms, resident_bytes,
    wire::{get, with_body},
};

/// Workers that commit once each.
const WORKERS: usize = 6_000;
/// Bytes of an update.
const UPDATE_BYTES: usize = 100_000;
/// How long is measured, unless the commitments run out before.
const TIME: Duration = Duration::from_secs(12);
/// Requests that warm up connections and caches.
const UNCOUNTED: usize = 500;

/// Longest wait for a worker's slot.
const SLOT_MAX: Duration = Duration::from_secs(30);

/// A commitment made in advance, and the upload that follows it.
struct Prepared {
    commit: Vec<u8>,
    upload: Vec<u8>,
}

#[derive(Default)]
struct Shared {
    prepared: VecDeque<Prepared>,
    /// Committed to, not uploaded.
    uploads: VecDeque<Vec<u8>>,
    counts: [u64; 4],
    seconds: Vec<f64>,
    seconds_of: [Vec<f64>; 4],
}

const KINDS: [&str; 4] = ["polls", "commits", "uploads", "downloads"];

pub(super) async fn measure(target: &Target, connections: usize) -> Result<()> {
    let workers = crowd::join(target, WORKERS).await?;
    println!("{WORKERS} workers joined");
    let mut door = Connection::open(target.hub).await?;
    let charter = door
        .must(&get(&format!("runs/{}/charter", target.run), ""))
        .await?;
    let charter = Charter::from_toml(&String::from_utf8(charter)?)?;
    let mut prepared = VecDeque::new();
    for (number, worker) in workers.iter().enumerate() {
        prepared.push_back(prepare(&mut door, target.run, &charter, worker, number).await?);
    }
    // The first upload is everyone's download.
    let first = prepared.pop_front().context("there are workers")?;
    door.must(&first.commit).await.context("committing")?;
    door.must(&first.upload).await.context("uploading")?;
    let info = door
        .must(&get(
            &format!("runs/{}/work?worker={}", target.run, workers[0].id),
            "",
        ))
        .await?;
    let work: protocol::api::Work = serde_json::from_slice(&info)?;
    let download = get(
        &format!("blobs/{}", work.model.checkpoint_blob),
        &format!("range: bytes=0-{}\r\n", UPDATE_BYTES - 1),
    );
    println!("{} commitments are signed", prepared.len());
    let shared = Rc::new(RefCell::new(Shared {
        prepared,
        ..Shared::default()
    }));
    let tasks = LocalSet::new();
    let begun = Rc::new(RefCell::new(None::<Instant>));
    for number in 0..connections {
        let polls: Vec<Vec<u8>> = workers
            .iter()
            .skip(number)
            .step_by(connections)
            .map(|it| it.poll(target.run, 0, 0))
            .collect();
        let (shared, begun, download) = (Rc::clone(&shared), Rc::clone(&begun), download.clone());
        let hub = target.hub;
        tasks.spawn_local(async move {
            let connection = Connection::open(hub).await?;
            ask_on(
                connection,
                &polls,
                &download,
                number as u64,
                &shared,
                &begun,
            )
            .await
        });
    }
    tasks.await;
    let shared = shared.take();
    let begun = begun.borrow().context("nothing was counted")?;
    let seconds = begun.elapsed().as_secs_f64();
    let answered: u64 = shared.counts.iter().sum();
    ensure!(answered > 1_000, "only {answered} requests were answered");
    for (kind, (count, mut seconds)) in KINDS
        .iter()
        .zip(shared.counts.iter().zip(shared.seconds_of))
    {
        println!("{count} {kind}, p99 {:.1} ms", p99_ms(&mut seconds));
    }
    let mut all = shared.seconds;
    println!(
        "figure hub_requests_per_s {} requests/s",
        answered as f64 / seconds
    );
    println!("figure hub_p99_ms {} ms", p99_ms(&mut all));
    println!("memory {} MB", resident_bytes(target.process)? / 1_000_000);
    Ok(())
}

/// Asks until the time is over.
async fn ask_on(
    mut connection: Connection,
    polls: &[Vec<u8>],
    download: &[u8],
    seed: u64,
    shared: &Rc<RefCell<Shared>>,
    begun: &Rc<RefCell<Option<Instant>>>,
) -> Result<()> {
    let mut chance = Chance::new(seed);
    let mut uncounted = UNCOUNTED / 32;
    loop {
        if uncounted == 0 && begun.borrow().is_none() {
            *begun.borrow_mut() = Some(Instant::now());
        }
        if begun.borrow().is_some_and(|it| it.elapsed() > TIME) {
            return Ok(());
        }
        uncounted = uncounted.saturating_sub(1);
        let drawn = chance.below(100);
        let poll = &polls[chance.below(polls.len() as u64) as usize];
        let (kind, request, then) = match drawn {
            0..60 => (0, poll.clone(), None),
            60..75 => {
                let next = shared.borrow_mut().prepared.pop_front();
                let Some(next) = next else {
                    return Ok(());
                };
                (1, next.commit, Some(next.upload))
            }
            75..85 => match shared.borrow_mut().uploads.pop_front() {
                Some(upload) => (2, upload, None),
                None => (0, poll.clone(), None),
            },
            _ => (3, download.to_vec(), None),
        };
        let asked = Instant::now();
        connection
            .must(&request)
            .await
            .with_context(|| format!("in {}", KINDS[kind]))?;
        let took = asked.elapsed().as_secs_f64();
        let mut shared = shared.borrow_mut();
        shared.uploads.extend(then);
        if begun.borrow().is_some() {
            shared.counts[kind] += 1;
            shared.seconds.push(took);
            shared.seconds_of[kind].push(took);
        }
    }
}

async fn prepare(
    door: &mut Connection,
    run: RunId,
    charter: &Charter,
    worker: &Worker,
    number: usize,
) -> Result<Prepared> {
    // The hub gives newcomers their slots when it next looks at the clock.
    let begun = Instant::now();
    let mut work = worker.work(door, run).await?;
    while work.assignment.is_none() && begun.elapsed() < SLOT_MAX {
        tokio::time::sleep(Duration::from_millis(100)).await;
        work = worker.work(door, run).await?;
    }
    let assignment = work.assignment.as_ref();
    let assignment = assignment.context("a worker has no slot")?;
    let mut bytes = vec![0xA5; UPDATE_BYTES];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    let update = BlobReference::of(&bytes);
    let header = UpdateHeader {
        payload: update.hash,
        ..tests::stranger::header(run, worker.id, charter, &work, assignment)?
    };
    let commitment = Command::Commit(Box::new(Commitment { update, header }));
    let command = SignedCommand::sign(&worker.key, run, 2, commitment);
    let signature = worker.key.sign(UPLOAD_DOMAIN, &update.hash.0);
    let hex: String = signature.0.iter().map(|it| format!("{it:02x}")).collect();
    let headers = format!(
        "x-athome-offset: 0\r\nx-athome-upload: {}:{hex}\r\n",
        worker.id
    );
    Ok(Prepared {
        commit: with_body(
            "POST",
            &format!("runs/{run}/commands"),
            "",
            &command.to_bytes(),
        ),
        upload: with_body(
            "PATCH",
            &format!("uploads/{}", update.hash),
            &headers,
            &bytes,
        ),
    })
}
