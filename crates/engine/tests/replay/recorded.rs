//! A run made without waiting: the production state machine decides, the engine merges, and every update is a real file.
//!
//! What the updates say is drawn, not trained: nothing that is checked afterwards depends on it.

use std::collections::BTreeMap;

use engine::{
    ModelConfig, initial_parameters,
    replay::{Rules, RunModel, copies::Compared, proportion::Measured, verify::Blobs},
    update::{codec, decoded::DecodedUpdate, merge::Weighted},
};
use protocol::{
    Hash, SecretKey,
    charter::{
        Baselines, Charter, Codec, Data, Income, Inner, Model, Outer, RoundRules, ShardReference,
    },
    command::{Command, Commitment, Device, SignedCommand},
    event::{Checkpoint, Event, MergedUpdate, RefusalReason},
    log::{Entry, Head},
    state::{
        SlotProgress, State,
        decide::{Request, decide, fresh, round_to_merge},
    },
    units::{BlobReference, WorkerId},
    update::{self, UpdateHeader},
};

/// How large a run is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Width of the model; its vocabulary is 16 times that.
    pub(crate) width: u32,
    /// Layers.
    pub(crate) layers: u32,
    /// Workers, all of them in every round.
    pub(crate) workers: u8,
    /// Merges.
    pub(crate) rounds: u64,
    /// Merges between two stored models.
    pub(crate) checkpoint_every: u32,
}

/// What one worker's update is to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As it should be.
    Honest,
    /// Its bytes are none of the codec's.
    Garbage,
    /// Far larger than the others.
    Huge,
    /// Far smaller than the others.
    Tiny,
    /// Committed to in the next round: the first worker's of this one, with every fourth value made anew.
    LateCopy,
    /// Committed to in the next round, and one's own.
    Late,
    /// As it should be, and lost by the hub once it is accepted.
    Lost,
}

/// A run's log and blobs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorded {
    /// Entries in order.
    pub(crate) entries: Vec<Entry>,
    /// Bytes by hash.
    pub(crate) blobs: BTreeMap<Hash, Vec<u8>>,
}

impl Blobs for Recorded {
    fn read(&mut self, blob: &BlobReference) -> Result<Option<Vec<u8>>, String> {
        Ok(self.blobs.get(&blob.hash).cloned())
    }
}

/// The hub's key.
pub(crate) fn hub_key() -> SecretKey {
    SecretKey::from_entropy([1; 32])
}

/// The id of the worker of this number.
pub(crate) fn worker(number: u8) -> WorkerId {
    WorkerId(worker_key(number).public())
}

fn worker_key(number: u8) -> SecretKey {
    SecretKey::from_entropy([number + 10; 32])
}

/// Makes a run; `kind` says of each round and worker what its update is like.
pub(crate) fn record(size: Size, kind: impl FnMut(u64, u8) -> Kind) -> Recorded {
    record_of(Recorder::create(size), size, kind)
}

/// As [`record`], by a hub that looks for no copies.
pub(crate) fn record_blindly(size: Size, kind: impl FnMut(u64, u8) -> Kind) -> Recorded {
    let mut hub = Recorder::create(size);
    hub.is_blind = true;
    record_of(hub, size, kind)
}

fn record_of(mut hub: Recorder, size: Size, mut kind: impl FnMut(u64, u8) -> Kind) -> Recorded {
    for number in 0..size.workers {
        hub.join(number);
    }
    while hub.state.rounds_merged < size.rounds {
        hub.clock(size);
        hub.commit_all(&mut kind);
        hub.clock(size);
        hub.judge_all();
        hub.merge(size);
    }
    hub.recorded
}

/// The hub of such a run.
struct Recorder {
    key: SecretKey,
    workers: Vec<SecretKey>,
    now_ms: u64,
    state: State,
    rules: Rules,
    model: RunModel,
    /// Updates that the hub is going to lose.
    to_lose: Vec<Hash>,
    /// Checked updates by round and slot of the merge.
    decoded: BTreeMap<Hash, DecodedUpdate>,
    recorded: Recorded,
    /// Commitments that are sent when the next round is open.
    put_off: Vec<(u8, Commitment)>,
    /// Whether it merges copies.
    is_blind: bool,
}

impl Recorder {
    fn create(size: Size) -> Self {
        let key = hub_key();
        let charter = charter(size, &key);
        let rules = Rules::new(&charter).expect("a charter within the limits");
        let config: &ModelConfig = rules.config();
        let model = rules.first_model(initial_parameters(config, charter.seed));
        let mut recorded = Recorded::default();
        let checkpoint = store(&rules, &model, &charter, &mut recorded);
        let event = Event::RunCreated {
            charter: Box::new(charter.clone()),
            model: model.state,
            checkpoint,
        };
        let entry = Head::empty().next(&key, charter.id(), 1_000, event);
        let state = State::create(&entry).expect("a valid first entry");
        recorded.entries.push(entry);
        Self {
            key,
            workers: (0..size.workers).map(worker_key).collect(),
            now_ms: 1_000,
            state,
            rules,
            model,
            to_lose: Vec::new(),
            decoded: BTreeMap::new(),
            recorded,
            put_off: Vec::new(),
            is_blind: false,
        }
    }

    fn ask(&mut self, request: &Request) {
        let events = decide(&self.state, request, self.now_ms).expect("what may happen");
        for event in events {
            let head = self.state.head;
            let entry = head.next(&self.key, self.state.run, self.now_ms, event);
            self.state.apply(&entry).expect("what was decided");
            self.recorded.entries.push(entry);
        }
    }

    fn command(&mut self, number: u8, command: Command) {
        let key = &self.workers[usize::from(number)];
        let record = self.state.workers.get(&WorkerId(key.public()));
        let sequence = record.map_or(1, |it| it.sequence + 1);
        let signed = SignedCommand::sign(key, self.state.run, sequence, command);
        self.ask(&Request::Worker(Box::new(signed.checked().unwrap())));
    }

    fn join(&mut self, number: u8) {
        let join = Command::Join {
            name: format!("worker {number}"),
            device: Device {
                arithmetic: "portable".to_owned(),
                threads: 1,
                memory_mib: 1,
                tokens_per_s: 1_000_000,
            },
        };
        self.command(number, join);
    }

    /// Some time passes: enough for a step, not enough for the window.
    fn clock(&mut self, size: Size) {
        self.now_ms += 1_000;
        let is_there = |number: &u8| self.put_off.iter().all(|it| it.0 != *number);
        let mut present: Vec<WorkerId> = (0..size.workers).filter(is_there).map(worker).collect();
        present.sort_unstable();
        self.ask(&Request::Clock { present });
        self.now_ms += 1_000;
    }

    fn commit_all(&mut self, kind: &mut impl FnMut(u64, u8) -> Kind) {
        for (number, commitment) in std::mem::take(&mut self.put_off) {
            self.command(number, Command::Commit(Box::new(commitment)));
        }
        for number in 0..self.workers.len() as u8 {
            let worker = WorkerId(self.workers[usize::from(number)].public());
            let Some(round) = &self.state.training else {
                return;
            };
            let (round, base, slot) = match round.slot_of(&worker) {
                Some((slot, part)) if part.progress == SlotProgress::Assigned => {
                    (round.round, round.base, slot)
                }
                Some(_) | None => continue,
            };
            let carried = self.state.workers[&worker].carried;
            let kind = kind(round, number);
            let payload = self.payload(round, number, kind);
            let header = UpdateHeader {
                run: self.state.run,
                worker,
                round,
                slot,
                base_round: base.round,
                base: base.parameters,
                steps: 1,
                head_start_steps: 0,
                tokens: self.state.charter.tokens_per_step(),
                loss_micronats: 4_000_000,
                carried_before: carried.unwrap_or(fresh()),
                carried_after: Hash::of_blob(&[1, number, round as u8]),
                carried_if_refused: Hash::of_blob(&[2, number, round as u8]),
                steps_root: Hash::of_blob(&[3, number, round as u8]),
                payload: Hash::of_blob(&payload),
                inner_state: None,
            };
            let file = update::seal(&header, &payload);
            let update = BlobReference::of(&file);
            if kind == Kind::Lost {
                self.to_lose.push(update.hash);
            }
            self.recorded.blobs.insert(update.hash, file);
            let commitment = Commitment { update, header };
            if matches!(kind, Kind::Late | Kind::LateCopy) {
                self.put_off.push((number, commitment));
            } else {
                self.command(number, Command::Commit(Box::new(commitment)));
            }
        }
    }

    fn payload(&self, round: u64, number: u8, kind: Kind) -> Vec<u8> {
        let scale = match kind {
            Kind::Garbage => return [vec![7; 100], vec![round as u8, number]].concat(),
            Kind::Honest | Kind::Lost | Kind::Late | Kind::LateCopy => 1e-5,
            Kind::Huge => 1e-2,
            Kind::Tiny => 1e-8,
        };
        let count = self.rules.parameters();
        let mut values = values(round * 256 + u64::from(number), count, scale);
        if kind == Kind::LateCopy {
            let original = self::values(round * 256, count, scale);
            let kept = (0..).zip(values.iter_mut().zip(&original));
            for (_, (value, original)) in kept.filter(|(at, _)| at % 4 != 0) {
                *value = *original;
            }
        }
        let settings = engine::charter::update_settings(&self.state.charter.outer);
        codec::encode(self.rules.lengths(), &settings, &values).expect("finite values")
    }

    fn judge_all(&mut self) {
        let Some(round) = &self.state.revealing else {
            return;
        };
        let waiting = round.slots().iter().filter_map(|it| match &it.progress {
            SlotProgress::Committed(commitment) => Some((**commitment).clone()),
            _ => None,
        });
        for commitment in waiting.collect::<Vec<_>>() {
            let update = commitment.update.hash;
            let judged = self
                .rules
                .judge(&self.recorded.blobs[&update], &commitment.header);
            let verdict = judged.map(|decoded| {
                self.decoded.insert(update, decoded);
            });
            self.ask(&Request::Judged { update, verdict });
        }
    }

    fn refuse(&mut self, size: Size, refused: Vec<(Hash, RefusalReason)>) {
        for (update, reason) in refused {
            self.ask(&Request::Judged {
                update,
                verdict: Err(reason),
            });
        }
        self.merge(size);
    }

    fn merge(&mut self, size: Size) {
        for update in std::mem::take(&mut self.to_lose) {
            self.recorded.blobs.remove(&update);
            let verdict = Err(RefusalReason::Lost);
            self.ask(&Request::Judged { update, verdict });
        }
        let Some(round) = round_to_merge(&self.state) else {
            return;
        };
        let (number, rate_q16) = (round.round, round.rate_q16(&self.state.charter));
        let updates = round.merged_updates(&self.state.charter);
        let late = self.state.late_updates(round);
        let copies = late.late.iter().filter_map(|(_, shown)| {
            let hash = shown.update.hash;
            let compared = Compared::of(&hash, &self.decoded[&hash]);
            let mut earlier = late.shown.iter().filter(|it| shown.may_be_copy_of(it));
            let reason = earlier.find_map(|it| {
                let (_, payload) = update::open(&self.recorded.blobs[&it.update.hash]).ok()?;
                compared.copied(&self.rules.decode(payload).ok()?, &it.update.hash)
            });
            Some((hash, reason?))
        });
        let copies: Vec<(Hash, RefusalReason)> = copies.collect();
        if !copies.is_empty() && !self.is_blind {
            return self.refuse(size, copies);
        }
        let standing = |it: &MergedUpdate| self.state.workers[&it.worker].tokens;
        let measured: Vec<Measured> = updates
            .iter()
            .map(|it| Measured {
                norm: self.decoded[&it.update.hash].norm(),
                tokens: it.tokens,
                standing: standing(it),
            })
            .collect();
        let outliers: Vec<(Hash, RefusalReason)> = self
            .rules
            .outliers(&measured)
            .into_iter()
            .map(|(place, reason)| (updates[place].update.hash, reason))
            .collect();
        if !outliers.is_empty() {
            return self.refuse(size, outliers);
        }
        let weighted: Vec<Weighted<'_>> = updates
            .iter()
            .map(|it| Weighted {
                update: &self.decoded[&it.update.hash],
                weight: it.weight,
                standing: standing(it),
            })
            .collect();
        let merged = self
            .rules
            .merge(&mut self.model, number, rate_q16, &weighted)
            .expect("updates of one model");
        self.decoded.clear();
        let delta = BlobReference::of(&merged.delta_bytes);
        self.recorded.blobs.insert(delta.hash, merged.delta_bytes);
        self.ask(&Request::Merged {
            round: number,
            delta,
            model: self.model.state,
        });
        if self
            .state
            .rounds_merged
            .is_multiple_of(u64::from(size.checkpoint_every))
        {
            let charter = &self.state.charter;
            let checkpoint = store(&self.rules, &self.model, charter, &mut self.recorded);
            self.ask(&Request::Stored {
                round: number,
                checkpoint,
            });
        }
    }
}

fn store(
    rules: &Rules,
    model: &RunModel,
    charter: &Charter,
    recorded: &mut Recorded,
) -> Checkpoint {
    let stored = rules.store(model, charter.id());
    let mut keep = |bytes: Vec<u8>| {
        let blob = BlobReference::of(&bytes);
        recorded.blobs.insert(blob.hash, bytes);
        blob
    };
    Checkpoint {
        parameters: keep(stored.parameters),
        outer: keep(stored.outer),
    }
}

/// Nearly normal values from a counter: the sum of eight bytes.
fn values(seed: u64, count: usize, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut value = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let bytes = state.to_le_bytes();
        let sum: u64 = bytes.iter().map(|&byte| u64::from(byte)).sum();
        (sum as f32 - 1020.0) * scale
    };
    (0..count).map(|_| value()).collect()
}

fn charter(size: Size, key: &SecretKey) -> Charter {
    let shard = |seed: u8| ShardReference {
        blob: BlobReference {
            hash: Hash([seed; 32]),
            bytes: 4_000,
        },
        tokens: 2_000,
        text_bytes: 2_000,
    };
    let charter = Charter {
        name: "recorded".to_owned(),
        description: String::new(),
        seed: 1,
        hub: key.public(),
        addresses: vec![],
        succession: vec![],
        model: Model {
            vocab_size: size.width * 16,
            hidden_size: size.width,
            intermediate_size: size.width * 3,
            num_hidden_layers: size.layers,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            max_position_embeddings: 16,
            rms_norm_epsilon_nano: 10_000,
            rope_theta: 10_000,
            tie_word_embeddings: true,
        },
        data: Data {
            name: "none".to_owned(),
            tokenizer: shard(9).blob,
            training: vec![shard(2)],
            held_out: vec![shard(4)],
            held_out_tokens_max: 256,
            baselines: Baselines::default(),
        },
        inner: Inner {
            batch_rows: 4,
            sequence: 16,
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
                chunk: 4096,
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
            reveal_ms: 60_000,
            steps_min: 1,
            steps_max: 10,
            quorum: 1,
            slots_max: 64,
            weight_cap_q16: 65_536,
            shards_per_assignment: 1,
            checkpoint_every: size.checkpoint_every,
            leaf_steps: 4,
            warm_start_tokens: 0,
            speed_ratio_max_q16: 2 << 16,
            boinc_unit_ms: 0,
        },
        income: Income::EveryoneWhoMadeIt,
    };
    charter.check().expect("a valid charter");
    charter
}
