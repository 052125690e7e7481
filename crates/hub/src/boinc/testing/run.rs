//! A tiny run that takes BOINC hosts, and an application of it that tests play by hand: it makes up an update of a plausible
//! size instead of training.

use data::{
    shard::{self, DocumentBounds, Header, Shard, Split},
    tokenizer::Tokenizer,
};
use engine::update::codec;
use protocol::{
    Hash, PublicKey, SecretKey,
    api::CreateRun,
    boinc::{Evaluation, Output, Unit, UnitTask},
    charter::{
        Baselines, Charter, Codec, Data, Income, Inner, Model, Outer, RoundRules, ShardReference,
    },
    command::{Command, Commitment, Device, SignedCommand},
    identity::{KeyRole, sign_half},
    units::{BlobReference, RunId, WorkerId},
    update::{self, UpdateHeader},
};

use super::{Fixture, all_between, between};
use crate::run::Run;

const SHARD_TOKENS: u32 = 512;
const SEQUENCE: u32 = 8;

impl Fixture {
    /// Opens a run that takes BOINC hosts.
    pub(crate) async fn create_run(&self, window_ms: u64) -> RunId {
        let tokenizer = Tokenizer::train(["a few words"].into_iter(), 257).unwrap();
        let hub = self.hub();
        let tokenizer_blob = hub.blobs.put(tokenizer.to_bytes().to_vec()).await.unwrap();
        let mut shards = Vec::new();
        for (seed, split) in [
            (1, Split::Training),
            (2, Split::Training),
            (3, Split::HeldOut),
        ] {
            let bytes = shard::encode(&shard_of(&tokenizer, seed, split)).unwrap();
            shards.push(ShardReference {
                blob: hub.blobs.put(bytes).await.unwrap(),
                tokens: u64::from(SHARD_TOKENS),
                text_bytes: u64::from(SHARD_TOKENS) - 1,
            });
        }
        let held_out = shards.split_off(2);
        let charter = charter(&tokenizer, tokenizer_blob, (shards, held_out), window_ms);
        let request = CreateRun {
            charter: charter.to_toml(),
            parameters: None,
        };
        hub.create(request).await.unwrap()
    }

    pub(crate) async fn run(&self, id: RunId) -> Run {
        self.hub().find(&id.to_string()).await.unwrap()
    }

    /// Fetches and opens the unit of a reply with all its files, as an application does.
    pub(crate) async fn unit(&self, reply: &str) -> Unit {
        let infos = all_between(reply, "file_info");
        let refs = all_between(&between(reply, "workunit").unwrap(), "file_ref");
        let mut unit = None;
        for file in refs {
            let (name, open_name) = (
                between(&file, "file_name").unwrap(),
                between(&file, "open_name").unwrap(),
            );
            let info = infos
                .iter()
                .find(|it| between(it, "name").as_ref() == Some(&name))
                .unwrap();
            let url = between(info, "url").unwrap();
            let path = url.strip_prefix("http://hub.example.org:8700").unwrap();
            let answer = self.get(path).await;
            assert_eq!(answer.status, 200, "{path}");
            let length: usize = between(info, "nbytes").unwrap().parse().unwrap();
            assert_eq!(answer.body.len(), length);
            let md5 = super::super::accounts::md5_hex(&answer.body);
            assert_eq!(between(info, "md5_cksum"), Some(md5));
            assert_eq!(Hash::of_blob(&answer.body).to_string(), name);
            if open_name == "unit" {
                assert!(!info.contains("<sticky/>"));
                let (opened, key) = Unit::open(&answer.body).unwrap();
                assert_eq!(key, self.hub().key.public());
                unit = Some(opened);
            } else {
                assert!(info.contains("<sticky/>"));
            }
        }
        unit.unwrap()
    }
}

/// What the application of a host makes of its units.
pub(crate) struct App {
    pub(crate) key: SecretKey,
    pub(crate) sequence: u64,
    /// The arithmetic class that it joins with.
    pub(crate) arithmetic: String,
    /// What it says of its speed when it joins.
    pub(crate) tokens_per_s: u32,
    /// Whether it joins before it commits, as one does whose speed has changed.
    pub(crate) joins_again: bool,
}

impl App {
    pub(crate) fn new(seed: u8) -> Self {
        Self {
            key: SecretKey::from_entropy([seed; 32]),
            sequence: 0,
            arithmetic: "scalar".to_owned(),
            tokens_per_s: 10_000_000,
            joins_again: false,
        }
    }

    pub(crate) fn worker(&self) -> WorkerId {
        WorkerId(self.key.public())
    }

    /// What joins with this key, and is the account's.
    pub(crate) fn enrolment(&mut self, unit: &Unit) -> Vec<u8> {
        let join = self.join(unit);
        let half = sign_half(
            &self.key,
            unit.run,
            unit.account,
            self.key.public(),
            KeyRole::Worker,
        );
        let output = Output {
            unit: unit.name.clone(),
            commands: vec![join],
            binding: Some(half),
            evaluation: None,
            files: vec![],
        };
        output.head()
    }

    /// The output of a unit, with an update of this scale where one is asked for.
    pub(crate) fn work(
        &mut self,
        unit: &Unit,
        run: &Run,
        charter: &Charter,
        scale: f32,
    ) -> Vec<u8> {
        if matches!(unit.task, UnitTask::Enrol { .. }) {
            return self.enrolment(unit);
        }
        let mut output = Output {
            unit: unit.name.clone(),
            commands: vec![],
            binding: None,
            evaluation: None,
            files: vec![],
        };
        let mut files = Vec::new();
        match &unit.task {
            UnitTask::Enrol { .. } => unreachable!("it was answered"),
            UnitTask::Train(training) => {
                let assignment = training.work.assignment.as_ref().unwrap();
                let worker = WorkerId(training.worker);
                let (header, file) = made_up(run, charter, worker, assignment, scale);
                let commitment = Commitment {
                    update: BlobReference::of(&file),
                    header,
                };
                output.files = vec![commitment.update];
                if training.repeated_steps.is_none() {
                    assert_eq!(worker, self.worker());
                    if self.joins_again {
                        output.commands.push(self.join(unit));
                    }
                    let commit = Command::Commit(Box::new(commitment));
                    output.commands.push(self.signed(unit, commit));
                }
                files = file;
            }
            UnitTask::Evaluate(task) => {
                output.evaluation = Some(Evaluation {
                    windows: task.windows,
                    tokens: 8,
                    loss_micronats: 8 * 5_549_076,
                });
            }
        }
        [output.head(), files].concat()
    }

    /// The file of an update that this worker would make.
    pub(crate) fn update(
        &self,
        run: &Run,
        charter: &Charter,
        assignment: &protocol::api::WorkAssignment,
        scale: f32,
    ) -> Vec<u8> {
        made_up(run, charter, self.worker(), assignment, scale).1
    }

    fn join(&mut self, unit: &Unit) -> SignedCommand {
        let join = Command::Join {
            name: "hand made".into(),
            device: Device {
                arithmetic: self.arithmetic.clone(),
                threads: 1,
                memory_mib: 1,
                tokens_per_s: self.tokens_per_s,
            },
        };
        self.signed(unit, join)
    }

    fn signed(&mut self, unit: &Unit, command: Command) -> SignedCommand {
        self.sequence += 1;
        SignedCommand::sign(&self.key, unit.run, self.sequence, command)
    }
}

fn made_up(
    run: &Run,
    charter: &Charter,
    worker: WorkerId,
    assignment: &protocol::api::WorkAssignment,
    scale: f32,
) -> (UpdateHeader, Vec<u8>) {
    let lengths = run.arithmetic.config.layout().lengths();
    let count: usize = lengths.iter().sum();
    // No two payloads are the same.
    let seed = u32::from(worker.0.0[0]) + 1_000 * assignment.round as u32;
    let values: Vec<f32> = (0..count as u32)
        .map(|at| (at + seed).wrapping_mul(2_654_435_761) % 1_009)
        .map(|it| scale * (it as f32 - 504.0))
        .collect();
    let settings = engine::charter::update_settings(&charter.outer);
    let payload = codec::encode(&lengths, &settings, &values).unwrap();
    let steps = 100;
    let header = UpdateHeader {
        run: run.id,
        worker,
        round: assignment.round,
        slot: assignment.slot,
        base_round: assignment.base_round,
        base: assignment.base_hash.parse().unwrap(),
        steps,
        head_start_steps: 0,
        tokens: u64::from(steps) * charter.tokens_per_step(),
        loss_micronats: 5_000_000,
        carried_before: Hash::default(),
        carried_after: Hash([2; 32]),
        carried_if_refused: Hash([3; 32]),
        steps_root: Hash([4; 32]),
        payload: Hash::of_blob(&payload),
        inner_state: None,
    };
    let file = update::seal(&header, &payload);
    (header, file)
}

fn charter(
    tokenizer: &Tokenizer,
    tokenizer_blob: BlobReference,
    (training, held_out): (Vec<ShardReference>, Vec<ShardReference>),
    window_ms: u64,
) -> Charter {
    Charter {
        name: "for hosts".to_owned(),
        description: String::new(),
        seed: 1,
        hub: PublicKey([0; 32]),
        addresses: Vec::new(),
        succession: Vec::new(),
        model: Model {
            vocab_size: tokenizer.vocabulary_size(),
            hidden_size: 32,
            intermediate_size: 32,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            num_key_value_heads: 1,
            max_position_embeddings: SEQUENCE,
            rms_norm_epsilon_nano: 10_000,
            rope_theta: 10_000,
            tie_word_embeddings: true,
        },
        data: Data {
            name: "noise".to_owned(),
            tokenizer: tokenizer_blob,
            training,
            held_out,
            held_out_tokens_max: 64,
            baselines: Baselines::default(),
        },
        inner: Inner {
            batch_rows: 64,
            sequence: SEQUENCE,
            learning_rate_peak_nano: 1_000_000,
            warmup_tokens: 100,
            tokens_max: 1 << 40,
            final_rate_ppm: 100_000,
            beta1_ppm: 900_000,
            beta2_ppm: 990_000,
            epsilon_pico: 10_000,
            weight_decay_ppm: 0,
            clip_norm_ppm: 1_000_000,
            carry_inner_state: false,
        },
        outer: Outer {
            codec: Codec::Sparse {
                chunk: 128,
                kept: 12,
                error_decay_q16: 62_259,
            },
            rate_q16: 65_536,
            denominator_floor_q16: 32_768,
            momentum_q16: 0,
            delta_kept: 48,
            norm_ratio_max_q16: 20 << 16,
        },
        round: RoundRules {
            window_ms,
            reveal_ms: window_ms.min(30_000),
            steps_min: 1,
            steps_max: 1_000,
            quorum: 1,
            slots_max: 8,
            weight_cap_q16: 65_536,
            shards_per_assignment: 1,
            checkpoint_every: 2,
            leaf_steps: 4,
            warm_start_tokens: 0,
            speed_ratio_max_q16: 2 << 16,
            boinc_unit_ms: window_ms / 2,
        },
        income: Income::EveryoneWhoMadeIt,
    }
}

fn shard_of(tokenizer: &Tokenizer, seed: u32, split: Split) -> Shard {
    let end = tokenizer.end_of_text();
    let mut tokens: Vec<u32> = (1..SHARD_TOKENS)
        .map(|at| (at * seed).wrapping_mul(2_654_435_761) % tokenizer.vocabulary_size())
        .map(|it| if it == end { (it + 1) % 257 } else { it })
        .collect();
    tokens.push(end);
    Shard {
        header: Header {
            tokenizer_hash: tokenizer.hash(),
            vocabulary_size: tokenizer.vocabulary_size(),
            end_of_text: end,
            split,
            source: "noise".to_owned(),
            licence: "CC0-1.0".to_owned(),
            owner: "nobody".to_owned(),
            documents: vec![DocumentBounds {
                first_token: 0,
                tokens: SHARD_TOKENS,
                text_bytes: u64::from(SHARD_TOKENS) - 1,
                text_hash: Hash::default(),
                title: "noise".to_owned(),
                metadata: std::collections::BTreeMap::new(),
            }],
        },
        tokens,
    }
}
