//! One simulation: a hub, workers, and everything that happens to them, from a seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use network::{HubClient, world};
use protocol::{charter::Charter, units::RunId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    chance::Chance,
    check::{self, Outcome},
    liar::LiarNode,
    machine,
    network::{Link, Network, Weather},
    nodes::{Death, HubNode, Surroundings, WorkerNode},
    profile::Profile,
    run::Plan,
    stall::StallWatch,
};

/// The driver looks after its nodes this often.
const LOOK: Duration = Duration::from_secs(2);
/// How long a hub that died stays away, at most.
const HUB_AWAY_MS_MAX: u64 = 30_000;
/// How long a worker whose process ended by itself, or whose machine lost power, stays away, at most.
const WORKER_AWAY_MS_MAX: u64 = 30_000;
/// How long a disk stays full, at most.
const FULL_MS_MAX: u64 = 60_000;
/// A power cut of the hub comes within so many writes to its disk.
const WRITES_TO_LIVE_MAX: u64 = 200;
/// Stack of the simulation's thread.
const STACK_BYTES: usize = 64 << 20;

/// Something that the driver does at a moment.
#[derive(Clone, Debug)]
enum Action {
    StartWorker(usize),
    WorkerDies(usize),
    StartHub,
    HubDies,
    HubDiskFull,
    HubDiskRoom,
    WorkerDiskFull,
    WorkerDiskRoom(usize),
    ClockJumps,
    Partition,
    Heal(Vec<usize>),
    Look,
}

/// A simulation under way.
pub struct Simulation {
    profile: Profile,
    /// The network.
    pub network: Network,
    /// The hub.
    pub hub: HubNode,
    /// The honest workers.
    pub workers: Vec<WorkerNode>,
    /// The others.
    pub liars: Vec<LiarNode>,
    /// The run.
    pub run: RunId,
    /// Its charter.
    pub charter: Charter,
    /// Where honest work leads.
    pub target: Arc<Vec<f32>>,
    client: HubClient,
    chance: Chance,
    agenda: BTreeMap<(Instant, u64), Action>,
    noted: u64,
    begun: Instant,
    rounds_merged: u64,
    stalls: StallWatch,
    /// Why worker processes ended by themselves.
    pub failures: BTreeMap<String, u64>,
}

/// Runs a whole simulation on a thread of its own and checks what came of it.
///
/// # Errors
/// What the production code or the driver could not do; what the checks find stands in the outcome.
pub fn simulate(seed: u64, profile: Profile) -> Result<Outcome> {
    simulate_and_tell(seed, profile, || {})
}

/// As [`simulate`]; calls `lived` between the simulation and its check.
///
/// # Errors
/// As [`simulate`].
pub fn simulate_and_tell(
    seed: u64,
    profile: Profile,
    lived: impl FnOnce() + Send + 'static,
) -> Result<Outcome> {
    in_simulated_world(seed, move || async move {
        let mut simulation = Simulation::begin(seed, profile).await?;
        simulation.live().await?;
        let wanted = simulation.profile.rounds;
        lived();
        let mut outcome = simulation.end().await?;
        if outcome.rounds_merged < wanted {
            let merged = outcome.rounds_merged;
            outcome.broken.push(format!(
                "only {merged} of {wanted} rounds were merged in all the time there was"
            ));
        }
        Ok(outcome)
    })
}

/// Keeps the panics by which simulated nodes stop themselves off the screen: they are part of the plan.
pub fn hush_planned_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str() != Some(world::ABORTED) {
            usual(panic);
        }
    }));
}

/// Runs `work` on a thread whose world is simulated.
///
/// # Errors
/// The work's; a panic in it is one.
pub fn in_simulated_world<T: Send + 'static, F: Future<Output = Result<T>>>(
    seed: u64,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<T> {
    let thread = std::thread::Builder::new()
        .name(format!("simulation {seed}"))
        .stack_size(STACK_BYTES)
        .spawn(move || {
            world::simulate_this_thread(seed);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()?;
            let tasks = tokio::task::LocalSet::new();
            runtime.block_on(tasks.run_until(work()))
        })?;
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("the simulation panicked"))?
}

impl Simulation {
    /// Starts the hub, opens the run and plans the rest.
    ///
    /// # Errors
    /// The hub's.
    pub async fn begin(seed: u64, profile: Profile) -> Result<Self> {
        let network = Network::default();
        let carrier = network.clone();
        tokio::spawn(async move { carrier.carry().await });
        let mut hub = HubNode::new("hub", network.clone(), seed)?;
        hub.start().await?;
        let plan = Plan::new(&profile, seed)?;
        let client = operator(&network, "http://localhost");
        // The operator's programs run on the hub's machine.
        hub.also_as("localhost");
        let run = plan.create(&client).await.context("creating the run")?;
        let config = engine::charter::model_config(&plan.charter.model);
        let first = engine::initial_parameters(&config, plan.charter.seed);
        let target = Arc::new(machine::target(&first, seed));
        let around = Surroundings {
            seed,
            network: network.clone(),
            weather: profile.weather.clone(),
            target: Arc::clone(&target),
            hub: hub.address(),
        };
        let mut chance = Chance::of(seed, "faults", 0);
        let liars = profile.workers * profile.liars_per_mille / 1_000;
        let honest = profile.workers - liars;
        let workers = (1..=honest)
            .map(|number| {
                let mut own = Chance::of(seed, "machine", number);
                let (fast, slow) = profile.step_ms;
                let step = Duration::from_millis(own.between(fast, slow));
                WorkerNode::new(&around, number, step)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut simulation = Self {
            network,
            hub,
            run,
            target,
            client,
            agenda: BTreeMap::new(),
            noted: 0,
            begun: Instant::now(),
            rounds_merged: 0,
            stalls: StallWatch::new(&plan.charter),
            failures: BTreeMap::new(),
            workers,
            liars: Vec::new(),
            charter: plan.charter,
            profile,
            chance: chance.clone(),
        };
        let within = simulation.profile.start_within.as_millis() as u64;
        for index in 0..simulation.workers.len() {
            let after = Duration::from_millis(chance.below(within.max(1)));
            simulation.plan(after, Action::StartWorker(index));
            simulation.plan_mean(simulation.profile.worker_dies_every, || {
                Action::WorkerDies(index)
            });
        }
        let charter = Arc::new(simulation.charter.clone());
        for number in honest + 1..=honest + liars {
            let after = Duration::from_millis(chance.below(within.max(1)));
            let liar = LiarNode::start(&around, number, run, Arc::clone(&charter), after);
            simulation.liars.push(liar);
        }
        simulation.chance = chance;
        let profile = simulation.profile.clone();
        simulation.plan_mean(profile.hub_dies_every, || Action::HubDies);
        simulation.plan_mean(profile.hub_full_every, || Action::HubDiskFull);
        simulation.plan_mean(profile.worker_full_every, || Action::WorkerDiskFull);
        simulation.plan_mean(profile.clock_jumps_every, || Action::ClockJumps);
        simulation.plan_mean(profile.partition_every, || Action::Partition);
        simulation.plan(LOOK, Action::Look);
        Ok(simulation)
    }

    /// Simulated time since the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Until enough rounds are merged or the time is up.
    ///
    /// # Errors
    /// The driver's own.
    pub async fn live(&mut self) -> Result<()> {
        self.live_until(self.profile.longest, self.profile.rounds)
            .await
    }

    /// For so much simulated time.
    ///
    /// # Errors
    /// The driver's own.
    pub async fn live_for(&mut self, time: Duration) -> Result<()> {
        self.live_until(self.elapsed() + time, u64::MAX).await
    }

    /// Until so many rounds are merged.
    ///
    /// # Errors
    /// The driver's own, and if the profile's longest time passes before that.
    pub async fn live_to_round(&mut self, rounds: u64) -> Result<()> {
        self.live_until(self.elapsed() + self.profile.longest, rounds)
            .await?;
        let merged = self.rounds_merged;
        anyhow::ensure!(
            merged >= rounds,
            "only {merged} of {rounds} rounds were merged in {} s",
            self.profile.longest.as_secs()
        );
        Ok(())
    }

    /// Rounds merged when the driver looked last.
    #[must_use]
    pub fn rounds_merged(&self) -> u64 {
        self.rounds_merged
    }

    /// Until so much simulated time has passed since the beginning, or so many rounds are merged.
    ///
    /// # Errors
    /// The driver's own.
    pub async fn live_until(&mut self, time: Duration, rounds: u64) -> Result<()> {
        while self.elapsed() < time && self.rounds_merged < rounds {
            let Some(((at, _), action)) = self.agenda.pop_first() else {
                break;
            };
            tokio::time::sleep_until(at).await;
            self.act(action).await?;
        }
        Ok(())
    }

    /// Ends all faults and workers, restarts the hub from its disk, and checks everything.
    ///
    /// # Errors
    /// The hub does not start, or does not give its log.
    pub async fn end(mut self) -> Result<Outcome> {
        let simulated = self.elapsed();
        for worker in &mut self.workers {
            worker.die(Death::Process).await;
        }
        for liar in &mut self.liars {
            liar.stop().await;
        }
        self.hub.disk.set_full(false);
        self.hub.die(Death::Process).await;
        self.hub.start().await.context("the last start")?;
        let outcome = check::check(&self, &self.client.clone(), simulated).await?;
        self.hub.die(Death::Process).await;
        Ok(outcome)
    }

    fn plan(&mut self, after: Duration, action: Action) {
        self.noted += 1;
        let at = Instant::now() + after;
        self.agenda.insert((at, self.noted), action);
    }

    /// Plans something that happens every so often.
    fn plan_mean(&mut self, every: Option<Duration>, action: impl FnOnce() -> Action) {
        if let Some(every) = every {
            let after = self.chance.below(2 * every.as_millis() as u64 + 1);
            self.plan(Duration::from_millis(after), action());
        }
    }

    fn plan_within(&mut self, milliseconds_max: u64, action: Action) {
        let after = self.chance.between(1, milliseconds_max.max(1));
        self.plan(Duration::from_millis(after), action);
    }

    async fn act(&mut self, action: Action) -> Result<()> {
        tracing::debug!(at_ms = self.elapsed().as_millis() as u64, "{action:?}");
        let profile = self.profile.clone();
        match action {
            Action::StartWorker(index) => {
                if !self.workers[index].is_running() {
                    self.workers[index].start();
                }
            }
            Action::WorkerDies(index) => {
                let death = self.draw_death(500_000);
                self.workers[index].die(death).await;
                let away = profile.worker_away_max.as_millis() as u64;
                self.plan_within(away, Action::StartWorker(index));
                self.plan_mean(profile.worker_dies_every, || Action::WorkerDies(index));
            }
            Action::StartHub => {
                if let Err(error) = self.hub.start().await {
                    tracing::info!("the hub does not start: {error:#}");
                    self.hub.die(Death::Process).await;
                    self.plan_within(HUB_AWAY_MS_MAX, Action::StartHub);
                }
            }
            Action::HubDies => {
                if self.hub.is_running() {
                    match self.draw_death(profile.hub_power_cuts) {
                        Death::Process => {
                            self.hub.die(Death::Process).await;
                            self.plan_within(HUB_AWAY_MS_MAX, Action::StartHub);
                        }
                        // The driver sees it when it looks.
                        Death::Power => {
                            let writes = self.chance.below(WRITES_TO_LIVE_MAX);
                            self.hub.disk.fail_power_after(writes);
                        }
                    }
                }
                self.plan_mean(profile.hub_dies_every, || Action::HubDies);
            }
            Action::HubDiskFull => {
                self.hub.disk.set_full(true);
                self.plan_within(FULL_MS_MAX, Action::HubDiskRoom);
            }
            Action::HubDiskRoom => {
                self.hub.disk.set_full(false);
                self.plan_mean(profile.hub_full_every, || Action::HubDiskFull);
            }
            Action::WorkerDiskFull => {
                let index = self.chance.below(self.workers.len() as u64) as usize;
                self.workers[index].disk.set_full(true);
                self.plan_within(FULL_MS_MAX, Action::WorkerDiskRoom(index));
                self.plan_mean(profile.worker_full_every, || Action::WorkerDiskFull);
            }
            Action::WorkerDiskRoom(index) => self.workers[index].disk.set_full(false),
            Action::ClockJumps => {
                self.jump_a_clock();
                self.plan_mean(profile.clock_jumps_every, || Action::ClockJumps);
            }
            Action::Partition => {
                let cut = self.cut_some_off();
                self.plan_within(profile.partition_max.as_millis() as u64, Action::Heal(cut));
                self.plan_mean(profile.partition_every, || Action::Partition);
            }
            Action::Heal(cut) => {
                for index in cut {
                    self.workers[index].is_down.store(false, Ordering::Relaxed);
                }
            }
            Action::Look => {
                self.look().await;
                self.plan(LOOK, Action::Look);
            }
        }
        Ok(())
    }

    fn draw_death(&mut self, power_cuts: u32) -> Death {
        if self.chance.happens(power_cuts) {
            Death::Power
        } else {
            Death::Process
        }
    }

    fn jump_a_clock(&mut self) {
        let most = self.profile.clock_jump_ms_max;
        let wrong_ms = self.chance.below(2 * most.unsigned_abs() + 1) as i64 - most;
        let node = self.chance.below(self.workers.len() as u64 + 1) as usize;
        match self.workers.get(node) {
            Some(worker) => worker.clock.set_wrong_by_ms(wrong_ms),
            None => self.hub.clock.set_wrong_by_ms(wrong_ms),
        }
    }

    fn cut_some_off(&mut self) -> Vec<usize> {
        let mut cut = BTreeSet::new();
        for index in 0..self.workers.len() {
            if self.chance.happens(400_000) {
                self.workers[index].is_down.store(true, Ordering::Relaxed);
                cut.insert(index);
            }
        }
        cut.into_iter().collect()
    }

    /// Restarts what ended by itself, and looks how far the run is.
    async fn look(&mut self) {
        let has_stopped = world::take_abort();
        if self.hub.is_running() && (self.hub.disk.is_dead() || has_stopped) {
            let death = match self.hub.disk.is_dead() {
                true => Death::Power,
                false => Death::Process,
            };
            self.hub.die(death).await;
            self.plan_within(HUB_AWAY_MS_MAX, Action::StartHub);
        }
        for index in 0..self.workers.len() {
            if self.workers[index].disk.is_dead() {
                self.workers[index].die(Death::Power).await;
                self.plan_within(WORKER_AWAY_MS_MAX, Action::StartWorker(index));
            }
            if let Some(failure) = self.workers[index].take_failure().await {
                tracing::debug!(worker = index + 1, "ended: {failure}");
                *self.failures.entry(failure).or_default() += 1;
                self.plan_within(WORKER_AWAY_MS_MAX, Action::StartWorker(index));
            }
        }
        let run = self.client.run("simulated").await.ok();
        let merged = run
            .as_ref()
            .map_or(self.rounds_merged, |it| it.rounds_merged);
        if merged != self.rounds_merged {
            self.rounds_merged = merged;
            let (simulated, answers) = (self.elapsed(), self.network.answers());
            tracing::info!(
                "{merged} of {} rounds merged after {} s simulated, {answers} answers",
                self.profile.rounds,
                simulated.as_secs()
            );
        }
        self.stalls
            .look(run.filter(|_| !self.hub.disk.is_full()).as_ref());
    }

    /// Rounds that stood still for longer than the rules permit.
    pub(crate) fn stalls(&self) -> &[String] {
        self.stalls.found()
    }
}

/// A client on the hub's own machine.
fn operator(network: &Network, address: &str) -> HubClient {
    let link = Link::new(
        network.clone(),
        0,
        Weather::calm(),
        Chance::new(0),
        Arc::default(),
        CancellationToken::new(),
    );
    HubClient::over(Arc::new(link), address).with_retry(network::retry::RetryPolicy::once())
}
