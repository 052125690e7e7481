//! `hub_workers`: workers that hold a connection each and poll every ten seconds, and what that costs the hub.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::{task::JoinSet, time::Instant};

use tests::connection::Connection;

use super::{Target, crowd, p99_ms, processor_seconds, resident_bytes};

/// The rhythm of a worker's polls.
const RHYTHM: Duration = Duration::from_secs(10);
/// Polls of each worker that are measured, after one that is not.
const POLLS: u32 = 3;
/// A poll that is answered later counts as none.
const ANSWER_MAX: Duration = Duration::from_secs(2);

pub(super) async fn measure(target: &Target, count: usize) -> Result<()> {
    let workers = crowd::join(target, count).await?;
    println!("{count} workers joined");
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for (index, worker) in workers.into_iter().enumerate() {
        let (hub, run) = (target.hub, target.run);
        tasks.spawn(async move {
            // Polls are spread over the rhythm, as those of strangers are.
            let offset = RHYTHM.mul_f64(index as f64 / count as f64);
            tokio::time::sleep_until(begun + offset).await;
            let mut connection = Connection::open(hub).await?;
            let poll = worker.poll(run, 0, 0);
            connection.must(&poll).await?;
            let mut taken = Vec::new();
            for number in 1..=POLLS {
                tokio::time::sleep_until(begun + offset + RHYTHM * number).await;
                let asked = Instant::now();
                connection.must(&poll).await?;
                taken.push(asked.elapsed().as_secs_f64());
            }
            anyhow::Ok(taken)
        });
    }
    tokio::time::sleep_until(begun + RHYTHM).await;
    let (from, used) = (Instant::now(), processor_seconds(target.process)?);
    let mut seconds = Vec::new();
    let mut in_time = 0;
    let mut failures = 0;
    let mut resident = 0;
    while let Some(taken) = tasks.join_next().await {
        let Ok(taken) = taken? else {
            failures += 1;
            continue;
        };
        in_time += usize::from(taken.iter().all(|it| *it <= ANSWER_MAX.as_secs_f64()));
        resident = resident.max(if seconds.len() % 3_000 == 0 {
            resident_bytes(target.process)?
        } else {
            0
        });
        seconds.extend(taken);
    }
    resident = resident.max(resident_bytes(target.process)?);
    let busy = (processor_seconds(target.process)? - used) / from.elapsed().as_secs_f64();
    ensure!(
        failures * 100 < count,
        "{failures} workers lost their connection"
    );
    println!("figure hub_workers {in_time} workers");
    println!("figure hub_workers_p99_ms {} ms", p99_ms(&mut seconds));
    println!("figure hub_workers_core_share {busy} ratio");
    println!("figure hub_rss_mb {} MB", resident as f64 / 1e6);
    Ok(())
}
