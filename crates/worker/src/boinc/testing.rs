//! A project's folder and slots as a BOINC client makes them, with a tiny run in it.
//!
//! Also part of the tests of the whole program, so it uses what every crate sees.

use std::{
    fs,
    path::{Path, PathBuf},
};

use data::shard::{self, DocumentBounds, Header, Shard, Split};
use protocol::{
    Hash, PublicKey, SecretKey,
    api::{Work, WorkAssignment, WorkModel, WorkWorker},
    boinc::{OUTPUT_NAME, Output, TrainingTask, UNIT_NAME, Unit, UnitFile, UnitTask},
    canonical,
    charter::{
        Baselines, Charter, Codec, Data, Income, Inner, Model, Outer, RoundRules, ShardReference,
    },
    units::{AccountId, BlobReference},
};

const VOCABULARY: u32 = 32;
const SHARD_TOKENS: u32 = 2_000;
/// Far beyond any test.
const LATER_MS: u64 = 1 << 45;

/// A run and the folder of its project.
pub(crate) struct Project {
    place: tempfile::TempDir,
    pub(crate) hub: SecretKey,
    pub(crate) charter: Charter,
    checkpoint: Vec<u8>,
    parameters: Hash,
    shards: Vec<Vec<u8>>,
}

impl Project {
    /// A run of a model this wide, with so many rows a batch; it may be taken over by `key(9)`.
    pub(crate) fn new(hidden_size: u32, batch_rows: u32, steps: (u32, u32)) -> Self {
        let hub = key(7);
        let shards: Vec<Vec<u8>> = [
            (1, Split::Training),
            (5, Split::Training),
            (3, Split::HeldOut),
        ]
        .map(|(step, split)| shard_bytes(step, split))
        .into();
        let charter = charter(hub.public(), (hidden_size, batch_rows), steps, &shards);
        charter.check().unwrap();
        engine::charter::check(&charter).unwrap();
        let config = engine::charter::model_config(&charter.model);
        let parameters = engine::initial_parameters(&config, charter.seed);
        let place = tempfile::tempdir().unwrap();
        fs::create_dir_all(place.path().join("projects/hub")).unwrap();
        Self {
            hub,
            checkpoint: engine::checkpoint::to_safetensors(
                &config,
                &parameters,
                &Default::default(),
            ),
            parameters: Hash(engine::update::hash::parameters_hash(&parameters)),
            charter,
            shards,
            place,
        }
    }

    /// The project's folder.
    pub(crate) fn folder(&self) -> PathBuf {
        self.place.path().join("projects/hub")
    }

    /// The worker that this computer is, once it has made a key.
    pub(crate) fn worker(&self) -> SecretKey {
        let text = fs::read_to_string(self.folder().join("athome/worker.key")).unwrap();
        SecretKey::from_text(&text).unwrap()
    }

    /// A slot with a unit, and the output's file behind its name.
    pub(crate) fn give(&self, name: &str, task: UnitTask) -> PathBuf {
        self.give_from(&self.hub, name, task, &[])
    }

    /// The same from another hub, with statements of takeovers.
    pub(crate) fn give_from(
        &self,
        hub: &SecretKey,
        name: &str,
        task: UnitTask,
        takeovers: &[String],
    ) -> PathBuf {
        let charter = canonical::encode(&self.charter);
        let mut files = vec![("charter".to_owned(), charter)];
        let blobs = self.shards.iter().chain([&self.checkpoint]);
        files.extend(blobs.map(|it| (Hash::of_blob(it).to_string(), it.clone())));
        let unit = Unit {
            name: name.to_owned(),
            run: self.charter.id(),
            account: AccountId(key(8).public()),
            task,
            takeovers: takeovers.to_vec(),
            files: files
                .iter()
                .map(|(open_name, bytes)| UnitFile {
                    open_name: open_name.clone(),
                    blob: BlobReference::of(bytes),
                })
                .collect(),
        };
        let slot = self.place.path().join("slots").join(name);
        fs::create_dir_all(&slot).unwrap();
        let client = std::process::id();
        let init = format!(
            "<app_init_data>\n<wu_cpu_time>1000</wu_cpu_time>\n<client_pid>{client}</client_pid>\n<ncpus>1</ncpus>\n</app_init_data>\n"
        );
        fs::write(slot.join("init_data.xml"), init).unwrap();
        files.push((UNIT_NAME.to_owned(), unit.seal(hub)));
        for (open_name, bytes) in &files {
            let file = format!("{open_name}_of_{name}");
            fs::write(self.folder().join(&file), bytes).unwrap();
            link(&slot, open_name, &file);
        }
        link(&slot, OUTPUT_NAME, &format!("{name}_0_r0"));
        slot
    }

    /// What a hub says to the worker about the first round.
    pub(crate) fn first_round(&self, worker: PublicKey) -> UnitTask {
        UnitTask::Train(Box::new(TrainingTask {
            worker,
            work: self.work(),
            train_ms: 3_600_000,
            until_ms: LATER_MS,
            repeated_steps: None,
        }))
    }

    /// A hub's answer to a poll.
    pub(crate) fn work(&self) -> Work {
        let parameters = self.parameters.to_string();
        Work {
            now_ms: 1_000,
            log_length: 40,
            generation: 0,
            finished: false,
            model: WorkModel {
                round: 0,
                parameters_hash: parameters.clone(),
                checkpoint_round: 0,
                checkpoint_blob: Hash::of_blob(&self.checkpoint).to_string(),
                checkpoint_bytes: self.checkpoint.len() as u64,
                deltas: vec![],
            },
            assignment: Some(WorkAssignment {
                round: 1,
                slot: 0,
                seed: Hash([6; 32]).to_string(),
                slots: 1,
                tokens_before: 0,
                base_round: 0,
                base_hash: parameters,
                deadline_ms: LATER_MS,
                committed: false,
                publish_inner_state: false,
            }),
            late_rounds: vec![],
            ahead: vec![],
            worker: WorkWorker {
                joined: true,
                sequence: 5,
                carried: None,
                updates_accepted: 0,
                updates_refused: 0,
                last_refusal: None,
                last_round: None,
                tokens: 0,
                credits_micro: 0,
            },
            inner_start: None,
        }
    }

    /// The file that goes back from a slot.
    pub(crate) fn output_file(&self, name: &str) -> PathBuf {
        self.folder().join(format!("{name}_0_r0"))
    }

    /// What goes back from a slot: the head, and the files.
    pub(crate) fn output(&self, name: &str) -> (Output, Vec<u8>) {
        let bytes = fs::read(self.output_file(name)).unwrap();
        let (output, length) = Output::read_head(&bytes).unwrap();
        assert_eq!(output.unit, name);
        (output, bytes[length..].to_vec())
    }
}

/// A key of tests.
pub(crate) fn key(byte: u8) -> SecretKey {
    SecretKey::from_entropy([byte; 32])
}

fn link(slot: &Path, open_name: &str, file: &str) {
    let text = format!("<soft_link>../../projects/hub/{file}</soft_link>\n");
    fs::write(slot.join(open_name), text).unwrap();
}

/// A text that a small model learns soon: each token follows from the one before.
fn shard_bytes(step: u32, split: Split) -> Vec<u8> {
    let mut tokens: Vec<u32> = (0..SHARD_TOKENS)
        .map(|at| 1 + (at * step + at / 97) % (VOCABULARY - 1))
        .collect();
    tokens[SHARD_TOKENS as usize - 1] = 0;
    let document = DocumentBounds {
        first_token: 0,
        tokens: SHARD_TOKENS,
        text_bytes: u64::from(SHARD_TOKENS),
        text_hash: Hash([1; 32]),
        title: "counting".into(),
        metadata: Default::default(),
    };
    let header = Header {
        tokenizer_hash: Hash([9; 32]),
        vocabulary_size: VOCABULARY,
        end_of_text: 0,
        split,
        source: "tests".into(),
        licence: "CC0-1.0".into(),
        owner: "nobody".into(),
        documents: vec![document],
    };
    shard::encode(&Shard { header, tokens }).unwrap()
}

fn charter(
    hub: PublicKey,
    (hidden_size, batch_rows): (u32, u32),
    (steps_min, steps_max): (u32, u32),
    shards: &[Vec<u8>],
) -> Charter {
    let reference = |bytes: &Vec<u8>| ShardReference {
        blob: BlobReference::of(bytes),
        tokens: u64::from(SHARD_TOKENS),
        text_bytes: u64::from(SHARD_TOKENS),
    };
    Charter {
        name: "tiny".into(),
        description: String::new(),
        seed: 1,
        hub,
        addresses: vec![],
        succession: vec![key(9).public()],
        model: Model {
            vocab_size: VOCABULARY,
            hidden_size,
            intermediate_size: 2 * hidden_size,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            max_position_embeddings: 64,
            rms_norm_epsilon_nano: 10_000,
            rope_theta: 10_000,
            tie_word_embeddings: true,
        },
        data: Data {
            name: "counting".into(),
            tokenizer: BlobReference {
                hash: Hash([9; 32]),
                bytes: 1_000,
            },
            training: shards[..2].iter().map(reference).collect(),
            held_out: shards[2..].iter().map(reference).collect(),
            held_out_tokens_max: 256,
            baselines: Baselines::default(),
        },
        inner: Inner {
            batch_rows,
            sequence: 64,
            learning_rate_peak_nano: 3_000_000,
            warmup_tokens: 100,
            tokens_max: 1_000_000_000,
            final_rate_ppm: 100_000,
            beta1_ppm: 900_000,
            beta2_ppm: 990_000,
            epsilon_pico: 10_000,
            weight_decay_ppm: 100_000,
            clip_norm_ppm: 1_000_000,
            carry_inner_state: true,
        },
        outer: Outer {
            codec: Codec::Sparse {
                chunk: 1024,
                kept: 128,
                error_decay_q16: 62_259,
            },
            rate_q16: 65_536,
            denominator_floor_q16: 32_768,
            momentum_q16: 0,
            delta_kept: 512,
            norm_ratio_max_q16: 20 << 16,
        },
        round: RoundRules {
            window_ms: 60_000,
            reveal_ms: 1_000,
            steps_min,
            steps_max,
            quorum: 1,
            slots_max: 8,
            weight_cap_q16: 65_536,
            shards_per_assignment: 2,
            checkpoint_every: 10,
            leaf_steps: 4,
            warm_start_tokens: 0,
            speed_ratio_max_q16: 2 << 16,
            boinc_unit_ms: 30_000,
        },
        income: Income::EveryoneWhoMadeIt,
    }
}
