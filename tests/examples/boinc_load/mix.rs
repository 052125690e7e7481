//! `boinc_rpc_per_s` and `boinc_p99_ms`: the scheduler under what many hosts ask, first as fast as it answers, then at a
//! fixed rate.
//!
//! Of 100 requests 8 are first contacts, 8 upload an enrolment, 8 report it and are given a round, 8 upload a round's
//! result, 8 report that and ask for more (the hub holds those up to 15 s, as there is no other round, and gives a gap to
//! fill), 45 bring a trickle of a task that runs, 15 are a client's own between. So of every unit there is one result,
//! one report with a new task, three trickles (as the application sends) and a contact beside; and of two units one is a
//! stranger's first, which no hub has for long. Whoever is given a task fetches its signed file. Every reply is read:
//! a task of another kind, a missing acknowledgement or an upload not taken ends the bench.
//!
//! Requests of the scheduler alone are counted; results and files are load besides. The time of held requests is the hub's
//! own choice and not in the percentile.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tests::decoders::mutate::Chance;
use tokio::task::{JoinSet, LocalSet};

use super::{
    Target,
    crowd::{Answered, Crowd, KINDS, Kind},
    p99_ms, processor_seconds,
};

/// Accounts; their hosts share a key, as those do whose owner copies an account file.
const ACCOUNTS: usize = 100;
/// Hosts that compute a round, and hosts that are at each other step, when the clock begins to run.
const COMPUTING: usize = 1_000;
const READY: usize = 100;
/// Requests in progress, but for the held ones.
const TOGETHER: usize = 64;
/// Time before anything is counted, and counted time: the hub holds requests for half of that.
const BEFORE: Duration = Duration::from_secs(5);
const COUNTED: Duration = Duration::from_secs(30);
/// Requests a second of the fixed rate: about half of what a core of a rented machine answers.
const RATE: u32 = 600;
/// Requests that are late at most before the rate counts as too high.
const LATE_MAX: usize = 4_096;
/// The mix: of 100 requests.
const MIX: [(Kind, u64); 7] = [
    (Kind::First, 8),
    (Kind::Enrolment, 8),
    (Kind::Next, 8),
    (Kind::Round, 8),
    (Kind::Held, 8),
    (Kind::Trickle, 45),
    (Kind::Update, 15),
];

pub(super) async fn measure(target: &Target, crowd: Crowd, share: usize) -> Result<()> {
    let mut crowd = crowd;
    crowd.create_accounts(ACCOUNTS.div_ceil(share)).await?;
    let load = Load {
        crowd: Rc::new(crowd),
        failed: Rc::default(),
    };
    LocalSet::new()
        .run_until(async {
            load.prepare(share).await?;
            load.as_fast_as_answered(target, share).await?;
            load.at_rate(target, share).await
        })
        .await
}

/// The load, whose parts run in one thread.
#[derive(Clone)]
struct Load {
    crowd: Rc<Crowd>,
    /// Why a held request failed.
    failed: Rc<RefCell<Option<anyhow::Error>>>,
}

impl Load {
    /// Brings hosts to every step that there is.
    async fn prepare(&self, share: usize) -> Result<()> {
        let begun = Instant::now();
        let ready = READY / share;
        let plan = [
            (Kind::First, COMPUTING / share + 4 * ready),
            (Kind::Enrolment, COMPUTING / share + 3 * ready),
            (Kind::Next, COMPUTING / share + 2 * ready),
            (Kind::Round, ready),
        ];
        for (kind, count) in plan {
            let left = Rc::new(RefCell::new(count));
            self.together(|load| {
                let left = Rc::clone(&left);
                async move {
                    while *left.borrow() > 0 {
                        *left.borrow_mut() -= 1;
                        let (chosen, host) = load.crowd.choose(kind);
                        load.crowd.ask(chosen, host, Instant::now()).await?;
                    }
                    Ok(())
                }
            })
            .await?;
        }
        println!(
            "{} hosts compute a round, {} are at other steps, after {:.0} s",
            self.crowd.ready(Kind::Trickle),
            self.crowd.ready(Kind::Enrolment)
                + self.crowd.ready(Kind::Next)
                + self.crowd.ready(Kind::Held),
            begun.elapsed().as_secs_f64()
        );
        Ok(())
    }

    async fn as_fast_as_answered(&self, target: &Target, share: usize) -> Result<()> {
        let counted = COUNTED / share as u32;
        let begun = Instant::now() + BEFORE;
        let until = begun + counted;
        let seeds = Rc::new(RefCell::new(0));
        let count = async {
            tokio::time::sleep_until(begun.into()).await;
            self.crowd.begin();
            let used = processor_seconds(target.process)?;
            tokio::time::sleep_until(until.into()).await;
            let answered = self.crowd.end();
            anyhow::Ok((answered, processor_seconds(target.process)? - used))
        };
        let ask = self.together(|load| {
            *seeds.borrow_mut() += 1;
            let mut chance = Chance::new(*seeds.borrow());
            async move {
                while Instant::now() < until {
                    load.next(&mut chance, Instant::now())?.await?;
                }
                Ok(())
            }
        });
        let (counted_part, asked) = tokio::join!(count, ask);
        asked?;
        let (answered, used) = counted_part?;
        let seconds = counted.as_secs_f64();
        let of_scheduler: Vec<&Answered> = answered.iter().filter(|it| is_rpc(it.kind)).collect();
        ensure!(!of_scheduler.is_empty(), "nothing was answered");
        println!(
            "as fast as it answers, {TOGETHER} at once, hub {:.0} % of a core:",
            used / seconds * 100.0
        );
        tell(&answered);
        let rpcs = of_scheduler.len() as f64;
        let bytes: usize = of_scheduler.iter().map(|it| it.bytes).sum();
        println!("figure boinc_rpc_per_s {} requests/s", rpcs / seconds);
        println!(
            "figure boinc_all_requests_per_s {} requests/s",
            answered.len() as f64 / seconds
        );
        println!("figure boinc_rpc_bytes {} bytes", bytes as f64 / rpcs);
        Ok(())
    }

    /// Requests come when they come, however long the ones before take: their time counts from then on.
    async fn at_rate(&self, target: &Target, share: usize) -> Result<()> {
        let rate = RATE / share as u32;
        let counted = COUNTED / share as u32;
        let (begun, mut chance) = (Instant::now(), Chance::new(0));
        let mut tasks = JoinSet::new();
        let mut used = None;
        for number in 0.. {
            let due = begun + Duration::from_secs(1) * number / rate;
            if due >= begun + BEFORE && used.is_none() {
                self.crowd.begin();
                used = Some(processor_seconds(target.process)?);
            }
            if due >= begun + BEFORE + counted {
                break;
            }
            tokio::time::sleep_until(due.into()).await;
            tasks.spawn_local(self.next(&mut chance, due)?);
            while let Some(done) = tasks.try_join_next() {
                done??;
            }
            ensure!(
                tasks.len() < LATE_MAX,
                "the hub does not keep up with {rate} requests/s"
            );
        }
        let answered = self.crowd.end();
        let used = processor_seconds(target.process)? - used.unwrap_or_default();
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        println!(
            "at {rate} requests/s, hub {:.0} % of a core:",
            used / counted.as_secs_f64() * 100.0
        );
        tell(&answered);
        let timed = answered
            .iter()
            .filter(|it| is_rpc(it.kind) && it.kind != Kind::Held);
        let mut seconds: Vec<f64> = timed.map(|it| it.seconds).collect();
        ensure!(!seconds.is_empty(), "nothing was answered");
        println!("figure boinc_p99_ms {} ms", p99_ms(&mut seconds));
        println!("figure boinc_p99_at {rate} requests/s");
        Ok(())
    }

    /// The next request of the mix. One that the hub holds goes on by itself.
    fn next(
        &self,
        chance: &mut Chance,
        due: Instant,
    ) -> Result<impl Future<Output = Result<()>> + 'static + use<>> {
        if let Some(error) = self.failed.borrow_mut().take() {
            return Err(error);
        }
        let drawn = chance.below(100);
        let mut sum = 0;
        let kind = MIX.iter().find(|it| {
            sum += it.1;
            drawn < sum
        });
        let (kind, host) = self.crowd.choose(kind.expect("the mix has 100 parts").0);
        let load = self.clone();
        Ok(async move {
            if kind != Kind::Held {
                return load.crowd.ask(kind, host, due).await;
            }
            tokio::task::spawn_local(async move {
                if let Err(error) = load.crowd.ask(kind, host, due).await {
                    *load.failed.borrow_mut() = Some(error);
                }
            });
            Ok(())
        })
    }

    async fn together<F: Future<Output = Result<()>> + 'static>(
        &self,
        part: impl Fn(Self) -> F,
    ) -> Result<()> {
        let mut tasks = JoinSet::new();
        for _ in 0..TOGETHER {
            tasks.spawn_local(part(self.clone()));
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    }
}

fn is_rpc(kind: Kind) -> bool {
    !matches!(kind, Kind::Enrolment | Kind::Round)
}

fn tell(answered: &[Answered]) {
    for (kind, name) in KINDS {
        let of_kind = || answered.iter().filter(move |it| it.kind == kind);
        let mut seconds: Vec<f64> = of_kind().map(|it| it.seconds).collect();
        let bytes: usize = of_kind().map(|it| it.bytes).sum();
        let count = seconds.len();
        println!(
            "  {count} {name}, p99 {:.1} ms, {} bytes each",
            p99_ms(&mut seconds),
            bytes / count.max(1)
        );
    }
}
