//! Following over real HTTP: what is served, swapped, refused, and kept while the hub is away.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use engine::{checkpoint::to_safetensors, initial_parameters};
use network::retry::RetryPolicy;
use protocol::{
    PublicKey, SecretKey,
    api::{BaselineLosses, LossPoint, mirrors::RunHead},
    charter::{
        Baselines, Codec, Data, Income, Inner, Model as Shape, Outer, RoundRules, ShardReference,
    },
    log::Head,
    succession::{Sealing, Succession},
};
use tempfile::TempDir;

use super::*;
use crate::testing::tiny_model;

/// What the hub of a test says; changed while it is being asked.
#[derive(Clone, Default)]
struct Story {
    away: bool,
    /// Takeovers of the one run, and entries of its log.
    head: (Vec<Succession>, u64),
    runs: Vec<RunSummary>,
    charters: BTreeMap<String, String>,
    checkpoints: BTreeMap<String, Vec<CheckpointSummary>>,
    blobs: BTreeMap<String, Vec<u8>>,
}

type Told = State<Arc<Mutex<Story>>>;

/// A hub on loopback that tells the story, and a follower of it.
struct Stage {
    story: Arc<Mutex<Story>>,
    follower: Follower,
    charter: Charter,
    _folder: TempDir,
}

impl Stage {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Charter)) -> Self {
        let (story, address) = tell(Story::default()).await;
        let folder = tempfile::tempdir().expect("a folder");
        let client = HubClient::new(&address)
            .expect("an address")
            .with_retry(RetryPolicy::once());
        let follower = Follower {
            client,
            cache: BlobCache::open(folder.path(), 1 << 30).expect("a cache"),
            catalogue: Arc::default(),
            hub_reached: Arc::default(),
            checkpoints_kept: 2,
            poll: Duration::from_millis(100),
            runs: BTreeMap::new(),
            returned: None,
        };
        let mut charter = charter();
        change(&mut charter);
        let mut stage = Self {
            story,
            follower,
            charter,
            _folder: folder,
        };
        stage.open_run();
        stage
    }

    fn story(&self) -> MutexGuard<'_, Story> {
        self.story.lock().expect("no handler panics")
    }

    fn id(&self) -> RunId {
        self.charter.id()
    }

    fn open_run(&mut self) {
        let tokenizer = tiny_model("m").tokenizer.to_bytes().to_vec();
        let (id, charter) = (self.id().to_string(), self.charter.clone());
        let mut story = self.story();
        story.charters.insert(id.clone(), charter.to_toml());
        story
            .blobs
            .insert(charter.data.tokenizer.hash.to_string(), tokenizer);
        story.runs.push(summary(&id, &charter.name));
    }

    /// Publishes a checkpoint with the parameters of this seed; `change` may spoil what is said of it.
    fn publish(
        &self,
        round: u64,
        seed: u64,
        change: impl FnOnce(&mut CheckpointSummary, &mut Vec<u8>),
    ) {
        let config = engine::charter::model_config(&self.charter.model);
        let parameters = initial_parameters(&config, seed);
        let mut bytes = to_safetensors(&config, &parameters, &BTreeMap::new());
        let mut checkpoint = CheckpointSummary {
            round,
            time_ms: 1_000 * round,
            blob: Hash::of_blob(&bytes).to_string(),
            bytes: bytes.len() as u64,
            parameters_hash: Hash(parameters_hash(&parameters)).to_string(),
            held_out_loss: None,
            prompt: None,
            sample: None,
            event: 0,
        };
        change(&mut checkpoint, &mut bytes);
        let mut story = self.story();
        story.blobs.insert(checkpoint.blob.clone(), bytes);
        story
            .checkpoints
            .entry(self.id().to_string())
            .or_default()
            .insert(0, checkpoint);
        story.runs[0].checkpoint_round = round;
    }

    fn rounds(&self) -> Vec<u64> {
        self.follower
            .catalogue
            .of_run(self.id())
            .iter()
            .map(|model| model.round)
            .collect()
    }
}

/// Serves a story at an address of its own.
async fn tell(story: Story) -> (Arc<Mutex<Story>>, String) {
    let story = Arc::new(Mutex::new(story));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("its address"));
    let router = Router::new()
        .route("/api/v1/runs", get(runs))
        .route("/api/v1/runs/{run}", get(run))
        .route("/api/v1/runs/{run}/head", get(head))
        .route("/api/v1/runs/{run}/charter", get(charter_text))
        .route("/api/v1/runs/{run}/checkpoints", get(checkpoints))
        .route("/api/v1/blobs/{hash}", get(blob))
        .with_state(Arc::clone(&story));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (story, address)
}

async fn run(State(story): Told, Path(run): Path<String>) -> Result<Json<RunSummary>, StatusCode> {
    let story = story.lock().expect("no handler panics");
    if story.away {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    let found = story.runs.iter().find(|it| it.id == run);
    found.cloned().map(Json).ok_or(StatusCode::NOT_FOUND)
}

async fn head(State(story): Told, Path(run): Path<String>) -> Result<Json<RunHead>, StatusCode> {
    let story = story.lock().expect("no handler panics");
    if story.away {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    let (statements, length) = story.head.clone();
    let hexadecimal = |bytes: Vec<u8>| bytes.iter().map(|it| format!("{it:02x}")).collect();
    Ok(Json(RunHead {
        run,
        role: "hub".to_owned(),
        key: String::new(),
        process: String::new(),
        hub: String::new(),
        hub_address: None,
        generation: statements.len() as u64,
        successions: statements
            .iter()
            .map(|it| hexadecimal(it.to_bytes()))
            .collect(),
        length,
        hash: String::new(),
        current_ms: 0,
        blobs_missing: 0,
        entries_set_aside: 0,
        equivocations: Vec::new(),
        stopped: None,
    }))
}

async fn runs(State(story): Told) -> Result<Json<Vec<RunSummary>>, StatusCode> {
    let story = story.lock().expect("no handler panics");
    if story.away {
        Err(StatusCode::SERVICE_UNAVAILABLE)
    } else {
        Ok(Json(story.runs.clone()))
    }
}

async fn charter_text(State(story): Told, Path(run): Path<String>) -> Result<String, StatusCode> {
    let story = story.lock().expect("no handler panics");
    story
        .charters
        .get(&run)
        .cloned()
        .ok_or(StatusCode::NOT_FOUND)
}

async fn checkpoints(State(story): Told, Path(run): Path<String>) -> Json<Vec<CheckpointSummary>> {
    let story = story.lock().expect("no handler panics");
    Json(story.checkpoints.get(&run).cloned().unwrap_or_default())
}

async fn blob(State(story): Told, Path(hash): Path<String>) -> Result<Vec<u8>, StatusCode> {
    let story = story.lock().expect("no handler panics");
    story.blobs.get(&hash).cloned().ok_or(StatusCode::NOT_FOUND)
}

fn summary(id: &str, name: &str) -> RunSummary {
    RunSummary {
        id: id.to_owned(),
        name: name.to_owned(),
        description: String::new(),
        phase: "training".to_owned(),
        created_ms: 1,
        log_length: 1,
        round: 1,
        deadline_ms: None,
        rounds_merged: 0,
        tokens: 0,
        tokens_max: 1_000,
        tokens_per_s: 0.0,
        parameters: 0,
        workers_present: 0,
        workers: 0,
        evaluation: None,
        baselines: BaselineLosses {
            unigram: 0.0,
            bigram: 0.0,
            trigram: 0.0,
        },
        checkpoint_round: 0,
        credits_micro: 0,
    }
}

fn charter() -> Charter {
    let model = tiny_model("m");
    let tokenizer = model.tokenizer.to_bytes();
    let shard = ShardReference {
        blob: BlobReference {
            hash: Hash([7; 32]),
            bytes: 10,
        },
        tokens: 1_000,
        text_bytes: 2_000,
    };
    Charter {
        name: "speeches".to_owned(),
        description: String::new(),
        seed: 1,
        hub: PublicKey([0; 32]),
        addresses: Vec::new(),
        succession: Vec::new(),
        model: Shape {
            vocab_size: model.tokenizer.vocabulary_size(),
            hidden_size: 16,
            intermediate_size: 32,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            max_position_embeddings: 32,
            rms_norm_epsilon_nano: 10_000,
            rope_theta: 10_000,
            tie_word_embeddings: true,
        },
        data: Data {
            name: "d".to_owned(),
            tokenizer: BlobReference::of(tokenizer),
            training: vec![shard],
            held_out: vec![shard],
            held_out_tokens_max: 100,
            baselines: Baselines::default(),
        },
        inner: Inner {
            batch_rows: 1,
            sequence: 32,
            learning_rate_peak_nano: 1,
            warmup_tokens: 0,
            tokens_max: 1_000,
            final_rate_ppm: 0,
            beta1_ppm: 900_000,
            beta2_ppm: 990_000,
            epsilon_pico: 1,
            weight_decay_ppm: 0,
            clip_norm_ppm: 1,
            carry_inner_state: true,
        },
        outer: Outer {
            codec: Codec::Sparse {
                chunk: 4096,
                kept: 128,
                error_decay_q16: 62_259,
            },
            rate_q16: 65_536,
            denominator_floor_q16: 32_768,
            momentum_q16: 0,
            delta_kept: 512,
            norm_ratio_max_q16: 65_536,
        },
        round: RoundRules {
            window_ms: 1_000,
            reveal_ms: 1_000,
            steps_min: 1,
            steps_max: 1,
            quorum: 1,
            slots_max: 1,
            weight_cap_q16: 65_536,
            shards_per_assignment: 1,
            checkpoint_every: 1,
            leaf_steps: 1,
            warm_start_tokens: 0,
            speed_ratio_max_q16: 65_536,
            boinc_unit_ms: 0,
        },
        income: Income::EveryoneWhoMadeIt,
    }
}

#[tokio::test]
async fn newer_checkpoints_take_over_and_so_many_older_ones_stay() {
    let mut stage = Stage::new().await;
    assert!(
        stage.follower.look().await.is_err(),
        "there is no checkpoint yet"
    );
    for (round, expected) in [(0, vec![0]), (5, vec![5, 0]), (10, vec![10, 5])] {
        stage.publish(round, round, |_, _| {});
        stage.follower.look().await.expect("a look");
        assert_eq!(stage.rounds(), expected);
    }
    let found = stage
        .follower
        .catalogue
        .find("speeches")
        .expect("the newest");
    assert_eq!(
        (found.round, found.stored_ms, found.context()),
        (10, 10_000, 32)
    );
}

#[tokio::test]
async fn a_late_evaluation_reaches_its_checkpoint() {
    let mut stage = Stage::new().await;
    stage.publish(5, 1, |_, _| {});
    stage.follower.look().await.expect("a look");
    assert_eq!(
        stage
            .follower
            .catalogue
            .find("speeches")
            .and_then(|it| it.bits_per_byte),
        None
    );
    {
        let mut story = stage.story();
        let id = stage.id().to_string();
        story.checkpoints.get_mut(&id).expect("it was published")[0].held_out_loss =
            Some(std::f64::consts::LN_2);
        story.runs[0].evaluation = Some(LossPoint {
            round: 6,
            tokens: 0,
            time_ms: 0,
            training_loss: None,
            held_out_loss: Some(0.5),
            bits_per_byte: Some(0.1),
            event: 0,
        });
    }
    stage.follower.look().await.expect("a look");
    // ln 2 nats a token are one bit a token, and a token stands for two bytes of the held-out text.
    assert_eq!(
        stage
            .follower
            .catalogue
            .find("speeches@5")
            .and_then(|it| it.bits_per_byte),
        Some(0.5)
    );
}

#[tokio::test]
async fn a_hub_that_is_away_takes_nothing_away() {
    let mut stage = Stage::new().await;
    stage.publish(5, 1, |_, _| {});
    stage.follower.look().await.expect("a look");
    assert!(stage.follower.hub_reached.load(Ordering::Relaxed));
    stage.story().away = true;
    assert!(stage.follower.look().await.is_err());
    assert!(!stage.follower.hub_reached.load(Ordering::Relaxed));
    assert_eq!(stage.rounds(), [5]);
    stage.story().away = false;
    stage.story().runs.clear();
    stage.follower.look().await.expect("a look");
    assert_eq!(
        stage.rounds(),
        [0; 0],
        "the hub is there and has no such run"
    );
}

#[tokio::test]
async fn what_does_not_hash_to_its_name_is_not_served() {
    let mut stage = Stage::new().await;
    stage.publish(5, 1, |_, _| {});
    stage.follower.look().await.expect("a look");
    let refused = async |stage: &mut Stage, expected: &str| {
        let error = stage.follower.look().await.expect_err(expected);
        assert!(format!("{error:#}").contains(expected), "{error:#}");
        assert_eq!(stage.rounds(), [5]);
        stage
            .story()
            .checkpoints
            .get_mut(&charter().id().to_string())
            .expect("it was published")
            .remove(0);
    };
    stage.publish(6, 2, |_, bytes| bytes[200] ^= 1);
    refused(&mut stage, "are not those of its hash").await;
    stage.publish(7, 3, |checkpoint, _| {
        checkpoint.parameters_hash = Hash([9; 32]).to_string()
    });
    refused(&mut stage, "are not those of the round's hash").await;
    stage.publish(8, 4, |checkpoint, _| checkpoint.bytes = 1 << 40);
    refused(&mut stage, "its model at most").await;
    stage.publish(9, 5, |checkpoint, bytes| {
        *bytes = b"not a checkpoint".to_vec();
        checkpoint.blob = Hash::of_blob(bytes).to_string();
        checkpoint.bytes = bytes.len() as u64;
    });
    refused(&mut stage, "safetensors").await;
}

/// A stage whose charter names a mirror, with the mirror's story: a copy of the hub's.
async fn mirrored() -> (Stage, Arc<Mutex<Story>>, String) {
    let (mirror, address) = tell(Story::default()).await;
    let stage = Stage::with(|charter| {
        charter.addresses = vec![address.clone()];
        charter.succession = vec![succession_key().public()];
    })
    .await;
    stage.story().head.1 = 50;
    stage.publish(5, 1, |_, _| {});
    *mirror.lock().expect("no handler panics") = stage.story().clone();
    (stage, mirror, address)
}

fn succession_key() -> SecretKey {
    SecretKey::from_entropy([7; 32])
}

#[tokio::test]
async fn a_dead_hub_is_left_for_its_mirror() {
    let (mut stage, mirror, _) = mirrored().await;
    stage.follower.look().await.expect("a look");
    stage.story().away = true;
    mirror.lock().expect("no handler panics").away = true;
    assert!(stage.follower.look().await.is_err());
    assert_eq!(stage.rounds(), [5], "nobody answers, and it is served");
    mirror.lock().expect("no handler panics").away = false;
    stage.publish(9, 2, |_, _| {});
    let copy = stage.story().clone();
    *mirror.lock().expect("no handler panics") = Story {
        away: false,
        ..copy
    };
    leave_who_is_away(&stage);
    stage.follower.look().await.expect("a look at the mirror");
    assert_eq!(stage.rounds(), [9, 5]);
    assert!(stage.follower.hub_reached.load(Ordering::Relaxed));
}

/// A hub that answers that it is away (and no proxy in front of one) is not left by itself: it may be back in a second.
fn leave_who_is_away(stage: &Stage) {
    let named = stage.follower.client.address().to_owned();
    stage.follower.client.leave_address(&named);
    for known in stage.follower.runs.values() {
        known.place.client.leave_address(&named);
    }
}

#[tokio::test]
async fn a_hub_that_was_replaced_is_not_followed() {
    let (mut stage, mirror, address) = mirrored().await;
    stage.follower.look().await.expect("a look");
    let id = stage.id();
    let at = |stage: &Stage| stage.follower.runs[&id].place.client.current_address();
    assert_eq!(&*at(&stage), stage.follower.client.address());

    // The mirror takes over from an older copy; the old hub goes on and does not know.
    let begun = Sealing::of(&stage.charter);
    let (key, head) = (succession_key(), Head::empty());
    let taken = Succession::sign(&key, &begun, &head, key.public(), &address);
    mirror.lock().expect("no handler panics").head = (vec![taken], 40);
    stage.story().head.1 = 70;
    compare_again(&mut stage);
    stage.publish(6, 3, |_, _| {});
    stage.follower.look().await.expect("a look");
    assert_eq!(*at(&stage), *address);
    assert_eq!(stage.rounds(), [5], "the old hub's round 6 is none");

    // With only the old hub there, nothing is taken over.
    mirror.lock().expect("no handler panics").away = true;
    compare_again(&mut stage);
    let error = stage.follower.look().await.expect_err("only the old hub");
    assert!(format!("{error:#}").contains("were replaced"), "{error:#}");
    assert_eq!(stage.rounds(), [5]);
}

#[tokio::test]
async fn of_logs_with_the_same_hub_the_longer_is_followed() {
    let (mut stage, mirror, address) = mirrored().await;
    stage.follower.look().await.expect("a look");
    mirror.lock().expect("no handler panics").head.1 = 51;
    let id = stage.id();
    for (here, there, expected) in [(50, 51, true), (52, 51, false), (52, 52, false)] {
        stage.story().head.1 = here;
        mirror.lock().expect("no handler panics").head.1 = there;
        compare_again(&mut stage);
        stage.follower.look().await.expect("a look");
        let place = &stage.follower.runs[&id].place;
        assert_eq!(*place.client.current_address() == *address, expected);
    }
}

/// As if time had passed.
fn compare_again(stage: &mut Stage) {
    for known in stage.follower.runs.values_mut() {
        known.place.compare_again();
    }
}
