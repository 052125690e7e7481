//! Every decoder of bytes that strangers send, as one plain function each: what fuzzers and the short run on stable share.
//!
//! A function panics when a decoder panics, takes more than one spelling of a value, or gives what it promises to refuse.
//! Whether bytes are accepted is of no interest here. `fuzz/` wraps each for `cargo fuzz`; `tests/fuzz.rs` runs each over
//! a corpus and some thousands of mutations. The gateway's requests are read in `gateway` itself.

pub mod mutate;
mod seeds;

use std::{net::IpAddr, sync::LazyLock};

use engine::{
    ModelConfig, checkpoint,
    update::{
        carried::CarriedState,
        codec,
        delta::Delta,
        inner_start, leaves,
        outer::OuterState,
        settings::{DeltaSettings, DenseSettings, DenseWidth, SparseSettings, UpdateSettings},
    },
};
use network::{decoders, events::Parser, log::split_entries};
use protocol::{
    Hash,
    api::{
        self,
        mirrors::{MirrorProof, RunHead},
    },
    boinc, canonical,
    charter::Charter,
    command::SignedCommand,
    equivocation::Equivocation,
    identity::Binding,
    log::{Entry, Head},
    peers::{PEER_ADDRESSES_MAX, SignedPeersQuestion},
    state::{State, decide::UPDATE_BYTES_MAX},
    succession::{Sealing, Succession},
    units::{BlobReference, RunId},
    update,
};

/// One decoder.
#[derive(Clone, Copy)]
pub struct Decoder {
    /// Its name: that of its fuzz target and of its corpus folder.
    pub name: &'static str,
    /// Reads bytes and panics on what must not be.
    pub read: fn(&[u8]),
    /// Bytes that encoders of ours write.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// The largest piece of memory that bytes of at most [`INPUT_BYTES_MAX`] may make it ask for.
    pub piece_bytes_max: usize,
}

/// Longest input of the short run.
pub const INPUT_BYTES_MAX: usize = 64 << 10;
/// What most decoders may ask for at once: room for vectors that grow by doubling.
const PIECE_BYTES_MAX: usize = 1 << 20;
/// Tensor lengths of the small model that updates are decoded for.
const LENGTHS: [usize; 3] = [5_000, 64, 300];
/// Longest charter, statement and so on that is looked at.
const BINDING_BYTES_MAX: usize = 512;

/// All of them.
pub const ALL: [Decoder; 26] = [
    decoder("log_entry", log_entry, seeds::log_entries),
    decoder("log_page", log_page, seeds::log_pages),
    decoder("command", command, seeds::commands),
    decoder("binding", binding, seeds::bindings),
    decoder("succession", succession, seeds::successions),
    decoder("equivocation", equivocation, seeds::equivocations),
    decoder("peers_question", peers_question, seeds::peers_questions),
    decoder("peer_question", peer_question, seeds::peer_questions),
    decoder("peer_window", peer_window, seeds::peer_windows),
    decoder("header_text", header_text, seeds::header_texts),
    decoder("run_head", run_head, seeds::run_heads),
    decoder("charter", charter, seeds::charters),
    decoder("update", update, seeds::updates),
    decoder("delta", delta, seeds::deltas),
    decoder("outer_state", outer_state, seeds::outer_states),
    decoder("carried_state", carried_state, seeds::carried_states),
    decoder("inner_state", inner_state, seeds::inner_states),
    decoder("leaves", leaves, seeds::leaves),
    decoder("checkpoint", checkpoint, seeds::checkpoints),
    decoder("model_config", model_config, seeds::model_configs),
    decoder("data_shard", data_shard, seeds::data_shards),
    Decoder {
        // A vocabulary becomes several tables of it.
        piece_bytes_max: 64 << 20,
        ..decoder("tokenizer", tokenizer, seeds::tokenizers)
    },
    decoder("api", api, seeds::api_answers),
    decoder("event_stream", event_stream, seeds::event_streams),
    decoder("boinc_unit", boinc_unit, seeds::boinc_units),
    decoder("boinc_output", boinc_output, seeds::boinc_outputs),
];

const fn decoder(name: &'static str, read: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Decoder {
    Decoder {
        name,
        read,
        seeds,
        piece_bytes_max: PIECE_BYTES_MAX,
    }
}

/// Reads bytes with the decoder of that name.
///
/// # Panics
/// If there is none, and as [`Decoder::read`].
pub fn read(name: &str, bytes: &[u8]) {
    let decoder = ALL.iter().find(|it| it.name == name);
    (decoder.expect("the target has a decoder").read)(bytes);
}

fn boinc_unit(bytes: &[u8]) {
    // A unit is read only after its signature holds: what is inside is looked at without one too.
    if let Ok((unit, _)) = boinc::Unit::open(bytes) {
        assert!(unit.name.len() <= boinc::NAME_BYTES_MAX);
    }
    let text = bytes.get(96..).unwrap_or_default();
    let _ = serde_json::from_slice::<boinc::Unit>(text);
}

fn boinc_output(bytes: &[u8]) {
    if let Ok((output, length)) = boinc::Output::read_head(bytes) {
        assert!(length <= boinc::Output::head_bytes_max());
        assert!(output.files.len() <= boinc::FILES_MAX);
        assert_eq!(output.head(), bytes[..length], "one spelling");
    }
}

fn log_entry(bytes: &[u8]) {
    if let Ok(entry) = Entry::from_bytes(bytes) {
        assert_eq!(entry.to_bytes(), bytes, "one spelling");
        // Whoever serves a log shows it as JSON too.
        serde_json::to_value(&entry.event).expect("events have a JSON form");
        let _ = State::create(&entry);
    }
}

/// A page as a hub sends it: decoded, chained, folded.
fn log_page(bytes: &[u8]) {
    let Ok(entries) = split_entries(bytes, api::LOG_PAGE_MAX) else {
        return;
    };
    let Some((first, rest)) = entries.split_first() else {
        return;
    };
    let Ok(mut state) = State::create(first) else {
        return;
    };
    let hub = state.charter.hub;
    let mut head = Head::empty();
    if head.advance(first.run, &hub, first).is_err() {
        return;
    }
    for entry in rest {
        if head.advance(first.run, &hub, entry).is_err() || state.apply(entry).is_err() {
            return;
        }
        assert_eq!(state.head, head, "the fold stands where the chain does");
    }
}

fn command(bytes: &[u8]) {
    if let Ok(command) = SignedCommand::from_bytes(bytes) {
        assert_eq!(command.get().to_bytes(), bytes, "one spelling");
    }
}

fn binding(bytes: &[u8]) {
    if let Ok(binding) = canonical::decode::<Binding>(bytes, BINDING_BYTES_MAX) {
        assert_eq!(canonical::encode(&binding), bytes, "one spelling");
        let _ = binding.check();
    }
}

fn succession(bytes: &[u8]) {
    if let Ok(succession) = Succession::from_bytes(bytes) {
        assert_eq!(succession.to_bytes(), bytes, "one spelling");
        let mut sealing = Sealing::of(&seeds::charter());
        let _ = sealing.replace(&succession);
    }
}

fn equivocation(bytes: &[u8]) {
    if let Ok(proof) = Equivocation::from_bytes(bytes) {
        assert_eq!(proof.to_bytes(), bytes, "one spelling");
        let _ = proof.id();
    }
}

/// What a worker asks its hub: who has a blob?
fn peers_question(bytes: &[u8]) {
    if let Ok(signed) = SignedPeersQuestion::from_bytes(bytes) {
        assert_eq!(signed.to_bytes(), bytes, "one spelling");
        for from in [IpAddr::from([127, 0, 0, 1]), IpAddr::from([203, 0, 113, 9])] {
            if let Some(address) = &signed.question.address {
                let seen = address.as_seen_from(from);
                assert!(seen.addresses.len() <= PEER_ADDRESSES_MAX);
                let _ = seen.for_asker_at(from);
            }
        }
    }
}

/// What a worker asks another.
fn peer_question(bytes: &[u8]) {
    if let Some(again) = decoders::question(bytes) {
        assert_eq!(again, bytes, "one spelling");
    }
}

/// The first eight bytes choose the size that the blob is believed to have, the next eight the window.
fn peer_window(bytes: &[u8]) {
    let Some((numbers, encoded)) = bytes.split_first_chunk::<16>() else {
        return;
    };
    let number = |at: usize| u64::from_le_bytes(numbers[at..at + 8].try_into().expect("eight"));
    static CONTENT: LazyLock<(Vec<u8>, Hash)> = LazyLock::new(|| {
        let content = seeds::window_content();
        let hash = Hash::of_blob(&content);
        (content, hash)
    });
    let (content, hash) = &*CONTENT;
    let blob = BlobReference {
        hash: *hash,
        // The log says how large a blob is, and a charter allows no larger one.
        bytes: number(0) % UPDATE_BYTES_MAX + 1,
    };
    let groups = blob.bytes.div_ceil(seeds::GROUP_BYTES);
    let offset = number(8) % groups * seeds::GROUP_BYTES;
    if let Some(window) = decoders::window(blob, offset, encoded) {
        assert_eq!(blob.bytes, content.len() as u64, "the blob has one size");
        assert!(content[offset as usize..].starts_with(&window));
    }
}

/// What stands in headers of requests: a mirror's proof, a worker's authorisation to upload.
fn header_text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Some(proof) = MirrorProof::from_text(text) {
        let again = MirrorProof::from_text(&proof.to_text());
        assert_eq!(again, Some(proof), "what was written reads");
        let _ = proof.holds(RunId::default());
    }
    if let Some((key, signature)) = api::read_upload_authorisation(text) {
        let _ = key.verify(api::UPLOAD_DOMAIN, &[0; 32], &signature);
    }
}

/// Who keeps a run, as a client of a hub or mirror reads it.
fn run_head(bytes: &[u8]) {
    if let Ok(head) = serde_json::from_slice::<RunHead>(bytes) {
        let begun = Sealing::of(&seeds::charter());
        if let Ok(sealing) = decoders::sealing(&head, &begun) {
            assert_eq!(sealing.generation(), head.generation);
        }
    }
}

fn charter(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(charter) = Charter::from_toml(text) {
        let again = Charter::from_toml(&charter.to_toml()).expect("what was written reads");
        assert_eq!(again.id(), charter.id(), "TOML keeps the id");
        if engine::charter::check(&charter).is_ok() {
            let config = engine::charter::model_config(&charter.model);
            assert_eq!(
                config.parameter_count() as u64,
                charter.model.parameter_count()
            );
        }
    }
}

fn update_settings() -> [UpdateSettings; 3] {
    let dense = |width| UpdateSettings::Dense(DenseSettings { chunk: 1024, width });
    [
        UpdateSettings::Sparse(SparseSettings {
            chunk: 1024,
            kept: 64,
        }),
        dense(DenseWidth::Sixteen),
        dense(DenseWidth::Eight),
    ]
}

fn delta_settings() -> [DeltaSettings; 2] {
    [
        DeltaSettings::Sparse(SparseSettings {
            chunk: 1024,
            kept: 128,
        }),
        DeltaSettings::Dense(DenseSettings {
            chunk: 1024,
            width: DenseWidth::Sixteen,
        }),
    ]
}

/// An update's file: envelope, header, payload.
fn update(bytes: &[u8]) {
    let Ok((header, payload)) = update::open(bytes) else {
        return;
    };
    assert_eq!(update::seal(&header, payload), bytes, "one spelling");
    for settings in update_settings() {
        if let Ok(decoded) = codec::decode(payload, &LENGTHS, &settings) {
            let mut count = 0;
            decoded.for_each(|index, _| {
                assert!(index < LENGTHS.iter().sum(), "indices lie within the model");
                count += 1;
            });
            assert!(count <= decoded.sent(), "no more values than were sent");
            decoded.norm();
        }
    }
}

fn delta(bytes: &[u8]) {
    for settings in delta_settings() {
        if let Ok(delta) = Delta::decode(bytes, &LENGTHS, &settings) {
            assert_eq!(delta.encode(), bytes, "one spelling");
            let mut parameters = vec![0.5; LENGTHS.iter().sum()];
            engine::update::delta::apply_delta(&mut parameters, &delta);
            assert!(
                parameters.iter().all(|it| it.is_finite()),
                "a delta is finite"
            );
        }
    }
}

fn outer_state(bytes: &[u8]) {
    for parameters in [0, 7, 300] {
        if let Ok(state) = OuterState::from_bytes(bytes, parameters) {
            assert_eq!(state.to_bytes(), bytes, "one spelling");
        }
    }
}

fn carried_state(bytes: &[u8]) {
    for (parameters, moments) in [(0, false), (7, true), (300, true), (300, false)] {
        if let Ok(state) = CarriedState::from_bytes(bytes, parameters, moments) {
            assert_eq!(state.to_bytes(), bytes, "one spelling");
            assert!(state.error.iter().all(|it| it.is_finite()), "no NaN");
        }
    }
}

fn inner_state(bytes: &[u8]) {
    for parameters in [0, 7, 300] {
        if let Ok((step, moments)) = inner_start::from_bytes(bytes, parameters) {
            let again = inner_start::to_bytes(step, &moments.first, &moments.second);
            assert_eq!(again, bytes, "one spelling");
            let values = moments.first.iter().chain(&moments.second);
            assert!(values.into_iter().all(|it| it.is_finite()), "no NaN");
        }
    }
}

/// What a worker shows an auditor.
fn leaves(bytes: &[u8]) {
    if let Ok(read) = leaves::from_bytes(bytes) {
        assert_eq!(leaves::to_bytes(&read), bytes, "one spelling");
        leaves::root(&read);
    }
}

/// A model small enough that its whole checkpoint is a seed.
fn small_model() -> ModelConfig {
    engine::charter::model_config(&seeds::charter().model)
}

fn checkpoint(bytes: &[u8]) {
    let config = small_model();
    if let Ok(parameters) = checkpoint::from_safetensors(bytes, &config) {
        assert_eq!(parameters.len(), config.parameter_count());
        assert!(parameters.iter().all(|it| it.is_finite()), "no NaN");
    }
}

fn model_config(bytes: &[u8]) {
    if let Ok(config) = ModelConfig::from_json(bytes) {
        config.validate().expect("what reads is valid");
        config.parameter_count();
        let again = ModelConfig::from_json(config.to_json().as_bytes());
        again.expect("what was written reads");
    }
}

fn data_shard(bytes: &[u8]) {
    if let Ok(shard) = data::shard::decode(bytes) {
        let again = data::shard::encode(&shard).expect("what was read can be written");
        assert_eq!(again, bytes, "one spelling");
    }
}

fn tokenizer(bytes: &[u8]) {
    if let Ok(tokenizer) = data::tokenizer::Tokenizer::from_bytes(bytes) {
        let text = "The state, of\u{1f30d} the union\0!";
        let ids = tokenizer.encode(text);
        assert!(ids.iter().all(|&it| it < tokenizer.vocabulary_size()));
        assert_eq!(tokenizer.decode(&ids), text, "bytes in, bytes out");
    }
}

/// What a client of a hub reads.
fn api(bytes: &[u8]) {
    fn reads<T: serde::Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) {
        if let Ok(value) = serde_json::from_slice::<T>(bytes) {
            serde_json::to_vec(&value).expect("what was read can be written");
        }
    }
    reads::<api::Work>(bytes);
    reads::<api::CommandReply>(bytes);
    reads::<api::ApiError>(bytes);
    reads::<api::HubInfo>(bytes);
    reads::<Vec<api::RunSummary>>(bytes);
    reads::<Vec<api::RoundSummary>>(bytes);
    reads::<Vec<api::WorkerSummary>>(bytes);
    reads::<Vec<api::CheckpointSummary>>(bytes);
    reads::<api::LogPage>(bytes);
    reads::<api::CreateRun>(bytes);
    reads::<api::Peers>(bytes);
}

/// The first byte says where the stream is cut: the events are the same.
fn event_stream(bytes: &[u8]) {
    let Some((&cut, stream)) = bytes.split_first() else {
        return;
    };
    let whole = Parser::new(4_096).push(stream);
    let (first, second) = stream.split_at(usize::from(cut).min(stream.len()));
    let mut parser = Parser::new(4_096);
    let in_two = parser.push(first).and_then(|mut events| {
        events.extend(parser.push(second)?);
        Ok(events)
    });
    assert_eq!(whole.is_ok(), in_two.is_ok());
    if let (Ok(whole), Ok(in_two)) = (whole, in_two) {
        assert_eq!(whole, in_two, "cuts change nothing");
    }
}
