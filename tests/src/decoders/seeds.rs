//! Bytes that our own encoders write: where mutation begins.

use std::{collections::BTreeMap, io::Write};

use data::{
    shard::{DocumentBounds, Header, Shard, Split},
    tokenizer::Tokenizer,
};
use engine::{
    checkpoint::to_safetensors,
    initial_parameters,
    update::{
        carried::CarriedState, codec, delta::Delta, hash::parameters_hash, inner_start, leaves,
        outer::OuterState, steps::StepLeaf,
    },
};
use network::decoders;
use protocol::{
    Hash, SecretKey,
    api::{
        self,
        mirrors::{MirrorProof, RunHead},
    },
    boinc,
    charter::{
        Baselines, Charter, Codec, Data, Income, Inner, Model, Outer, RoundRules, ShardReference,
    },
    command::{Command, Commitment, Device, SignedCommand},
    equivocation::Equivocation,
    event::{Checkpoint, Event, ModelState},
    identity::{Binding, KeyRole, sign_half},
    log::{Entry, Head},
    peers::{PeerAddress, PeersQuestion, SignedPeersQuestion},
    succession::{Sealing, Succession},
    units::{AccountId, BlobReference, WorkerId},
    update::{self, UpdateHeader},
};

use super::{LENGTHS, delta_settings, small_model, update_settings};

fn key(seed: u8) -> SecretKey {
    SecretKey::from_entropy([seed; 32])
}

fn blob(seed: u8) -> BlobReference {
    BlobReference {
        hash: Hash([seed; 32]),
        bytes: 1_000 * u64::from(seed),
    }
}

/// A charter of a model with a few thousand parameters.
pub(super) fn charter() -> Charter {
    let shard = |seed, tokens| ShardReference {
        blob: blob(seed),
        tokens,
        text_bytes: tokens * 3,
    };
    Charter {
        name: "sample".into(),
        description: "for mutations".into(),
        seed: 1,
        hub: key(1).public(),
        addresses: vec!["http://127.0.0.1:7700".into()],
        succession: vec![key(2).public()],
        model: Model {
            vocab_size: 64,
            hidden_size: 16,
            intermediate_size: 32,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            max_position_embeddings: 32,
            rms_norm_epsilon_nano: 10_000,
            rope_theta: 10_000,
            tie_word_embeddings: true,
        },
        data: Data {
            name: "sample".into(),
            tokenizer: blob(9),
            training: vec![shard(2, 1_000), shard(3, 3_000)],
            held_out: vec![shard(4, 500)],
            held_out_tokens_max: 256,
            baselines: Baselines {
                unigram_micronats: 4_000_000,
                bigram_micronats: 3_000_000,
                trigram_micronats: 2_500_000,
            },
        },
        inner: Inner {
            batch_rows: 4,
            sequence: 32,
            learning_rate_peak_nano: 3_000_000,
            warmup_tokens: 10_000,
            tokens_max: 1_000_000,
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
            window_ms: 1_000,
            reveal_ms: 1_000,
            steps_min: 1,
            steps_max: 100,
            quorum: 1,
            slots_max: 64,
            weight_cap_q16: 65_536,
            shards_per_assignment: 2,
            checkpoint_every: 10,
            leaf_steps: 5,
            warm_start_tokens: 0,
            speed_ratio_max_q16: 2 << 16,
            boinc_unit_ms: 0,
        },
        income: Income::EveryoneWhoMadeIt,
    }
}

fn join(seed: u8) -> SignedCommand {
    let device = Device {
        arithmetic: "x86-64 avx2".into(),
        threads: 2,
        memory_mib: 100,
        tokens_per_s: 1_000,
    };
    let name = "a worker".into();
    SignedCommand::sign(
        &key(seed),
        charter().id(),
        5,
        Command::Join { name, device },
    )
}

fn leave(seed: u8) -> SignedCommand {
    let reason = "going to sleep".into();
    SignedCommand::sign(&key(seed), charter().id(), 6, Command::Leave { reason })
}

fn header() -> UpdateHeader {
    UpdateHeader {
        run: charter().id(),
        worker: WorkerId(key(5).public()),
        round: 3,
        slot: 1,
        base_round: 2,
        base: Hash([7; 32]),
        steps: 20,
        head_start_steps: 0,
        tokens: 2_560,
        loss_micronats: 3_000_000,
        carried_before: Hash([8; 32]),
        carried_after: Hash([9; 32]),
        carried_if_refused: Hash([10; 32]),
        steps_root: Hash([11; 32]),
        payload: Hash([13; 32]),
        inner_state: Some(blob(12)),
    }
}

/// A short log: creation, a join, a binding, a leave.
fn log() -> Vec<Entry> {
    let (charter, hub) = (charter(), key(1));
    let run = charter.id();
    let parameters = initial_parameters(&small_model(), charter.seed);
    let model = ModelState {
        round: 0,
        parameters: Hash(parameters_hash(&parameters)),
        outer: Hash([2; 32]),
    };
    let checkpoint = Checkpoint {
        parameters: blob(3),
        outer: blob(4),
    };
    let binding = Binding::sign(run, &key(6), &key(5), KeyRole::Worker);
    let events = [
        Event::RunCreated {
            charter: Box::new(charter),
            model,
            checkpoint,
        },
        Event::WorkerJoined { command: join(5) },
        Event::IdentityBound { binding },
        Event::WorkerLeft { command: leave(5) },
    ];
    let mut head = Head::empty();
    let mut entries = Vec::new();
    for (time_ms, event) in (1_000..).zip(events) {
        let entry = head.next(&hub, run, time_ms, event);
        head.advance(run, &hub.public(), &entry)
            .expect("what was sealed continues the chain");
        entries.push(entry);
    }
    entries
}

pub(super) fn log_entries() -> Vec<Vec<u8>> {
    log().iter().map(Entry::to_bytes).collect()
}

pub(super) fn log_pages() -> Vec<Vec<u8>> {
    let mut page = Vec::new();
    for entry in log() {
        let bytes = entry.to_bytes();
        page.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        page.extend_from_slice(&bytes);
    }
    vec![page]
}

pub(super) fn commands() -> Vec<Vec<u8>> {
    let commitment = Command::Commit(Box::new(Commitment {
        update: blob(7),
        header: header(),
    }));
    let commit = SignedCommand::sign(&key(5), charter().id(), 7, commitment);
    [join(5), leave(5), commit]
        .iter()
        .map(SignedCommand::to_bytes)
        .collect()
}

pub(super) fn bindings() -> Vec<Vec<u8>> {
    let binding = |role| Binding::sign(charter().id(), &key(6), &key(5), role);
    [KeyRole::Worker, KeyRole::Recovery]
        .map(|it| protocol::canonical::encode(&binding(it)))
        .into()
}

fn succession() -> Succession {
    let (sealing, head) = (Sealing::of(&charter()), Head::empty());
    let address = "http://127.0.0.1:7800";
    Succession::sign(&key(2), &sealing, &head, key(3).public(), address)
}

pub(super) fn successions() -> Vec<Vec<u8>> {
    vec![succession().to_bytes()]
}

pub(super) fn equivocations() -> Vec<Vec<u8>> {
    let entries = log();
    let event = Event::RoundEmpty { round: 1 };
    let other = Head::empty().next(&key(1), charter().id(), 9_000, event);
    let proof = Equivocation::find(key(1).public(), &entries[0], &other)
        .expect("two first entries exclude each other");
    vec![proof.to_bytes()]
}

pub(super) fn peers_questions() -> Vec<Vec<u8>> {
    let question = |address| PeersQuestion {
        run: charter().id(),
        worker: WorkerId(key(5).public()),
        blob: Hash([2; 32]),
        address,
        served: vec![key(7).public()],
        failed: vec![key(8).public(), key(9).public()],
    };
    let address = PeerAddress {
        endpoint: key(6).public(),
        addresses: ["192.168.1.7:4433", "[2001:db8::7]:4433"]
            .map(|it| it.parse().expect("an address"))
            .into(),
        relay: Some("https://relay.example".into()),
    };
    [None, Some(address)]
        .map(|it| SignedPeersQuestion::sign(&key(5), question(it)).to_bytes())
        .into()
}

/// The hash, then size, offset and patience as variable-length numbers.
pub(super) fn peer_questions() -> Vec<Vec<u8>> {
    let numbers: [&[u8]; 2] = [&[0x80, 0x80, 0x40, 0x80, 0x80, 3, 0xe8, 7], &[1, 0, 0]];
    numbers.map(|it| [[7; 32].as_slice(), it].concat()).into()
}

/// What is checked of a blob at once.
pub(super) const GROUP_BYTES: u64 = 16 << 10;

/// A blob of three groups, the last of which is short.
pub(super) fn window_content() -> Vec<u8> {
    (0..40_000_u32)
        .map(|it| (it * 7 + it / 251) as u8)
        .collect()
}

pub(super) fn peer_windows() -> Vec<Vec<u8>> {
    let content = window_content();
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(&content).expect("room for it");
    let blob = BlobReference::of(&content);
    let window = |group: u64| {
        let encoded = decoders::encode_window(&file, blob, group * GROUP_BYTES);
        let numbers = [(blob.bytes - 1).to_le_bytes(), group.to_le_bytes()].concat();
        [numbers, encoded.expect("the file is the blob")].concat()
    };
    (0..3).map(window).collect()
}

pub(super) fn header_texts() -> Vec<Vec<u8>> {
    let proof = MirrorProof::sign(&key(2), charter().id(), &Head::empty());
    let signature = key(5).sign(api::UPLOAD_DOMAIN, &[3; 32]);
    let hex: String = signature.0.iter().map(|it| format!("{it:02x}")).collect();
    let authorisation = format!("{}:{hex}", key(5).public());
    vec![proof.to_text().into_bytes(), authorisation.into_bytes()]
}

pub(super) fn run_heads() -> Vec<Vec<u8>> {
    let statement = succession().to_bytes();
    let statement: String = statement.iter().map(|it| format!("{it:02x}")).collect();
    let head = |successions: Vec<String>| RunHead {
        run: charter().id().to_string(),
        role: "mirror".into(),
        key: key(3).public().to_string(),
        process: "0".repeat(32),
        hub: key(1).public().to_string(),
        hub_address: None,
        generation: successions.len() as u64,
        successions,
        length: 40,
        hash: Hash([5; 32]).to_string(),
        current_ms: 1_000,
        blobs_missing: 0,
        entries_set_aside: 0,
        equivocations: vec![],
        stopped: None,
    };
    [vec![], vec![statement]]
        .map(|it| serde_json::to_vec(&head(it)).expect("a head has a JSON form"))
        .into()
}

pub(super) fn leaves() -> Vec<Vec<u8>> {
    let leaf = |number: u8| StepLeaf {
        step: u64::from(number),
        parameters: [number; 32],
        first_moment: [number + 1; 32],
        second_moment: [number + 2; 32],
        samples: [number + 3; 32],
        loss_bits: 1.5_f32.to_bits(),
        gradient_norm_bits: u32::from(number),
    };
    [vec![], vec![leaf(5), leaf(10)]]
        .map(|it| leaves::to_bytes(&it))
        .into()
}

pub(super) fn charters() -> Vec<Vec<u8>> {
    vec![charter().to_toml().into_bytes()]
}

/// Values of all sizes, most of them small.
fn values(count: usize) -> Vec<f32> {
    (0..count)
        .map(|index| {
            let sign = if index % 3 == 0 { -1.0 } else { 1.0 };
            sign * 2f32.powi(-((index % 23) as i32)) * 0.01
        })
        .collect()
}

pub(super) fn updates() -> Vec<Vec<u8>> {
    let values = values(LENGTHS.iter().sum());
    update_settings()
        .iter()
        .map(|settings| {
            let payload = codec::encode(&LENGTHS, settings, &values).expect("the values are fine");
            update::seal(&header(), &payload)
        })
        .collect()
}

pub(super) fn deltas() -> Vec<Vec<u8>> {
    delta_settings()
        .iter()
        .map(|settings| {
            let mut residual: Vec<i32> = values(LENGTHS.iter().sum())
                .iter()
                .map(|it| (it * (1 << 30) as f32) as i32)
                .collect();
            Delta::take(&LENGTHS, settings, &mut residual).encode()
        })
        .collect()
}

pub(super) fn outer_states() -> Vec<Vec<u8>> {
    let state = |parameters, momentum| OuterState::new(parameters, momentum).to_bytes();
    vec![state(7, false), state(300, true)]
}

pub(super) fn carried_states() -> Vec<Vec<u8>> {
    let state = |parameters, moments| {
        let mut state = CarriedState::new(parameters, moments);
        state.step = 40;
        state.error = values(parameters);
        state.to_bytes()
    };
    vec![state(7, true), state(300, false), state(300, true)]
}

pub(super) fn inner_states() -> Vec<Vec<u8>> {
    let squares: Vec<f32> = values(300).iter().map(|it| it * it).collect();
    vec![
        inner_start::to_bytes(3, &values(7), &squares[..7]),
        inner_start::to_bytes(40, &values(300), &squares),
    ]
}

pub(super) fn checkpoints() -> Vec<Vec<u8>> {
    let config = small_model();
    let metadata = BTreeMap::from([("athome.round".to_owned(), "3".to_owned())]);
    vec![to_safetensors(
        &config,
        &initial_parameters(&config, 1),
        &metadata,
    )]
}

pub(super) fn model_configs() -> Vec<Vec<u8>> {
    vec![small_model().to_json().into_bytes()]
}

pub(super) fn data_shards() -> Vec<Vec<u8>> {
    let document = |first_token| DocumentBounds {
        first_token,
        tokens: 3,
        text_bytes: 8,
        text_hash: Hash([first_token as u8; 32]),
        title: "a speech".into(),
        metadata: BTreeMap::from([("year".into(), "1862".into())]),
    };
    let shard = |vocabulary_size| Shard {
        header: Header {
            tokenizer_hash: Hash([1; 32]),
            vocabulary_size,
            end_of_text: 0,
            split: Split::Training,
            source: "speeches".into(),
            licence: "CC0-1.0".into(),
            owner: "nobody".into(),
            documents: vec![document(0), document(3)],
        },
        tokens: vec![5, 6, 0, 7, 8, 0],
    };
    [512, 70_000]
        .iter()
        .map(|it| data::shard::encode(&shard(*it)).expect("the shard is well-formed"))
        .collect()
}

pub(super) fn tokenizers() -> Vec<Vec<u8>> {
    let texts = [
        "The state of the union is strong.",
        "The union of the states.",
    ];
    let tokenizer = Tokenizer::train(texts.into_iter(), 300).expect("there are words to merge");
    vec![tokenizer.to_bytes().to_vec()]
}

pub(super) fn api_answers() -> Vec<Vec<u8>> {
    let hash = || Hash([1; 32]).to_string();
    let work = serde_json::json!({
        "now_ms": 1_000, "log_length": 40, "finished": false,
        "model": {
            "round": 3, "parameters_hash": hash(), "checkpoint_round": 0, "checkpoint_blob": hash(), "checkpoint_bytes": 100,
            "deltas": [{"round": 1, "blob": hash(), "bytes": 10, "parameters_hash": hash()}],
        },
        "assignment": null,
        "worker": {
            "joined": true, "sequence": 5, "carried": hash(), "updates_accepted": 0, "updates_refused": 1,
            "last_refusal": "too late", "last_round": null, "tokens": 0, "credits_micro": 0,
        },
        "inner_start": {"blob": hash(), "bytes": 100},
    });
    let reply = api::CommandReply {
        log_length: 41,
        token: Some(hash()),
    };
    let error = api::ApiError {
        code: "late".into(),
        message: "too late".into(),
    };
    let info = api::HubInfo {
        version: "0.0.0".into(),
        key: hash(),
        runs: 1,
        gateway: None,
    };
    let peers = api::Peers {
        peers: vec![api::Peer {
            endpoint: hash(),
            addresses: vec!["192.168.1.7:4433".into()],
            relay: None,
        }],
    };
    [
        serde_json::to_vec(&peers),
        serde_json::to_vec(&work),
        serde_json::to_vec(&reply),
        serde_json::to_vec(&error),
        serde_json::to_vec(&info),
    ]
    .into_iter()
    .map(|it| it.expect("these have a JSON form"))
    .collect()
}

pub(super) fn event_streams() -> Vec<Vec<u8>> {
    let stream = "\u{7}: keep-alive\n\nevent: entry\nid: 41\ndata: {\"index\":41}\n\nretry: 3\r\ndata: a\rdata: b\r\n\r\n";
    vec![stream.into()]
}

/// A unit to enrol, and one to measure a model.
fn units() -> [boinc::Unit; 2] {
    let (unit, work) = (enrol_unit(), work());
    let measure = boinc::EvaluationTask {
        round: 3,
        parameters: Hash([4; 32]),
        work,
        shard: 0,
        first_window: 2,
        windows: 8,
        measure_ms: 15_000,
    };
    let measuring = boinc::Unit {
        task: boinc::UnitTask::Evaluate(Box::new(measure)),
        ..unit.clone()
    };
    [unit, measuring]
}

fn enrol_unit() -> boinc::Unit {
    boinc::Unit {
        name: "enrol_0_1_00000000".into(),
        run: charter().id(),
        account: AccountId(key(8).public()),
        task: boinc::UnitTask::Enrol {
            sequence: 0,
            with_new_key: false,
        },
        takeovers: vec![],
        files: vec![boinc::UnitFile {
            open_name: "charter".into(),
            blob: blob(3),
        }],
    }
}

fn work() -> api::Work {
    api::Work {
        now_ms: 1_000,
        log_length: 40,
        generation: 0,
        finished: false,
        model: api::WorkModel {
            round: 3,
            parameters_hash: Hash([4; 32]).to_string(),
            checkpoint_round: 2,
            checkpoint_blob: Hash([5; 32]).to_string(),
            checkpoint_bytes: 100,
            deltas: vec![],
        },
        assignment: None,
        late_rounds: vec![],
        ahead: vec![],
        worker: api::WorkWorker {
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

pub(super) fn boinc_units() -> Vec<Vec<u8>> {
    units().iter().map(|it| it.seal(&key(1))).collect()
}

pub(super) fn boinc_outputs() -> Vec<Vec<u8>> {
    let unit = enrol_unit();
    let worker = key(4);
    let half = sign_half(
        &worker,
        unit.run,
        unit.account,
        worker.public(),
        KeyRole::Worker,
    );
    let leave = Command::Leave {
        reason: "for mutations".into(),
    };
    let enrolled = boinc::Output {
        unit: unit.name,
        commands: vec![SignedCommand::sign(&worker, unit.run, 1, leave)],
        binding: Some(half),
        evaluation: None,
        files: vec![blob(5), blob(6)],
    };
    let measured = boinc::Output {
        commands: vec![],
        binding: None,
        evaluation: Some(boinc::Evaluation {
            windows: 8,
            tokens: 64,
            loss_micronats: 300_000_000,
        }),
        files: vec![],
        ..enrolled.clone()
    };
    [enrolled, measured].map(|it| it.head()).to_vec()
}
