//! The log survives a restart, and nothing is kept of what was not written whole.

use protocol::{
    Hash, SecretKey,
    charter::Charter,
    command::{Command, Device, SignedCommand},
    event::{Checkpoint, Event, MergedUpdate, ModelState},
    log::{Entry, Head},
    state::State,
    units::{BlobReference, MicroCredits, WorkerId},
};

use super::*;

pub(crate) fn created(key: &SecretKey, name: &str) -> (Entry, State) {
    let charter: Charter = Charter::from_toml(
        &CHARTER
            .replace("NAME", name)
            .replace("HUB", &key.public().to_string()),
    )
    .unwrap();
    let event = Event::RunCreated {
        model: ModelState {
            round: 0,
            parameters: Hash([1; 32]),
            outer: Hash([2; 32]),
        },
        checkpoint: Checkpoint {
            parameters: BlobReference::of(b"p"),
            outer: BlobReference::of(b"o"),
        },
        charter: Box::new(charter.clone()),
    };
    let entry = Head::empty().next(key, charter.id(), 1_000, event);
    let state = State::create(&entry).unwrap();
    (entry, state)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_in_the_database_when_it_is_closed() {
    for _ in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        let (entry, state) = created(&SecretKey::from_entropy([1; 32]), "one");
        let store = Store::open(folder.path(), &Ground::machine())
            .await
            .unwrap();
        store.create(&entry, &state).await.unwrap();
        // Every connection is open: they end at the same time.
        let readers: Vec<_> = (0..64)
            .map(|_| {
                let (store, run) = (store.clone(), state.run);
                tokio::spawn(async move { store.entries(run, 0, 10).await.unwrap().len() })
            })
            .collect();
        for reader in readers {
            assert_eq!(reader.await.unwrap(), 1);
        }
        store.close().await;
        let left = folder.path().join(DATABASE).with_extension("sqlite-wal");
        let bytes = std::fs::metadata(left).map_or(0, |it| it.len());
        assert_eq!(bytes, 0, "the write-ahead log was left");
    }
}

#[tokio::test]
async fn a_log_is_replayed_to_the_same_state() {
    let folder = tempfile::tempdir().unwrap();
    let key = SecretKey::from_entropy([1; 32]);
    let (entry, mut state) = created(&key, "one");
    let store = Store::open(folder.path(), &Ground::machine())
        .await
        .unwrap();
    store.create(&entry, &state).await.unwrap();
    let evaluated = Event::ModelEvaluated {
        round: 0,
        evaluation: protocol::event::Evaluation {
            loss_micronats: 5_000_000,
            tokens: 10,
            microbits_per_byte: 3_000_000,
        },
    };
    let next = state.head.next(&key, state.run, 2_000, evaluated);
    state.apply(&next).unwrap();
    store
        .append(&[(next.clone(), Projected::default())])
        .await
        .unwrap();
    store.close().await;
    let store = Store::open(folder.path(), &Ground::machine())
        .await
        .unwrap();
    assert_eq!(store.runs().await.unwrap(), [state.run]);
    assert_eq!(store.replay(state.run).await.unwrap(), state);
    assert_eq!(store.replay(state.run).await.unwrap(), state);
    let losses = store.losses(state.run).await.unwrap();
    assert_eq!(losses.len(), 1);
    assert_eq!(losses[0].held_out_loss, Some(5.0));
    assert_eq!(losses[0].event, 1);
}

#[tokio::test]
async fn entries_are_written_all_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let key = SecretKey::from_entropy([1; 32]);
    let (entry, state) = created(&key, "one");
    let store = Store::open(folder.path(), &Ground::machine())
        .await
        .unwrap();
    store.create(&entry, &state).await.unwrap();
    let next = state
        .head
        .next(&key, state.run, 2_000, Event::RoundEmpty { round: 1 });
    // The same position twice: the second breaks the batch.
    let twice = [
        (next.clone(), Projected::default()),
        (next, Projected::default()),
    ];
    assert!(store.append(&twice).await.is_err());
    assert_eq!(store.entries(state.run, 0, 10).await.unwrap().len(), 1);
    // What is written after the failure is on the disk, not in a transaction that the failure left open.
    store.append(&twice[..1]).await.unwrap();
    let other = Store::open(folder.path(), &Ground::machine())
        .await
        .unwrap();
    assert_eq!(other.entries(state.run, 0, 10).await.unwrap().len(), 2);
}

/// Three workers in a round, one of them with a late update beside its own.
#[tokio::test]
async fn what_is_folded_together_is_folded_for_each() {
    let folder = tempfile::tempdir().unwrap();
    let key = SecretKey::from_entropy([1; 32]);
    let (entry, mut state) = created(&key, "one");
    let store = Store::open(folder.path(), &Ground::machine())
        .await
        .unwrap();
    store.create(&entry, &state).await.unwrap();
    let keys = [2, 3, 4].map(|it| SecretKey::from_entropy([it; 32]));
    let workers = keys.each_ref().map(|it| WorkerId(it.public()));
    let mut events: Vec<Event> = keys
        .iter()
        .map(|it| Event::WorkerJoined {
            command: SignedCommand::sign(it, state.run, 1, join()),
        })
        .collect();
    events.push(Event::RoundOpened {
        round: 1,
        base: state.model,
        seed: Hash::default(),
        tokens_before: 0,
        deadline_ms: 9_000,
        assignments: workers.to_vec(),
    });
    events.push(Event::SlotAdded {
        round: 1,
        slot: 3,
        worker: workers[0],
    });
    let parts = [(0, 10), (2, 30), (3, 40)].map(|(slot, tokens)| MergedUpdate {
        slot,
        of_round: 1,
        worker: workers[slot as usize % 3],
        update: BlobReference::of(&[slot as u8]),
        tokens,
        weight: tokens,
        credits: MicroCredits(100 * tokens),
    });
    events.extend(parts.iter().map(|it| Event::UpdateAccepted {
        round: 1,
        slot: it.slot,
        worker: it.worker,
        weight: it.weight,
    }));
    let mut head = state.head;
    let mut seal = |events: Vec<Event>| -> Vec<(Entry, Projected)> {
        events
            .into_iter()
            .map(|event| {
                let entry = head.next(&key, state.run, 2_000, event);
                head.advance(state.run, &key.public(), &entry).unwrap();
                (entry, Projected::default())
            })
            .collect()
    };
    store.append(&seal(events)).await.unwrap();
    let states = async || -> Vec<(String, Option<i64>)> {
        sqlx::query_as("SELECT state, weight FROM contribution ORDER BY slot")
            .fetch_all(&store.pool)
            .await
            .unwrap()
    };
    let accepted = |weight| ("accepted".to_owned(), Some(weight));
    assert_eq!(
        states().await,
        [
            accepted(10),
            ("assigned".to_owned(), None),
            accepted(30),
            accepted(40)
        ]
    );
    state.model.round = 1;
    let merged = seal(vec![Event::RoundMerged {
        round: 1,
        rate_q16: 1,
        updates: parts.to_vec(),
        delta: BlobReference::of(b"d"),
        model: state.model,
    }]);
    store.append(&merged).await.unwrap();
    let merged = |weight| ("merged".to_owned(), Some(weight));
    assert_eq!(
        states().await,
        [
            merged(10),
            ("lost".to_owned(), None),
            merged(30),
            merged(40)
        ]
    );
    let credits: Vec<(i64, i64, i64, Option<i64>)> = sqlx::query_as(
        "SELECT tokens, credits_micro, updates_accepted, last_round FROM worker ORDER BY event",
    )
    .fetch_all(&store.pool)
    .await
    .unwrap();
    assert_eq!(
        credits,
        [
            (50, 5_000, 2, Some(1)),
            (0, 0, 0, None),
            (30, 3_000, 1, Some(1))
        ]
    );
    assert_eq!(store.entries(state.run, 0, 100).await.unwrap().len(), 10);
}

fn join() -> Command {
    Command::Join {
        name: "one".to_owned(),
        device: Device {
            arithmetic: "portable".to_owned(),
            threads: 1,
            memory_mib: 1,
            tokens_per_s: 1,
        },
    }
}

#[tokio::test]
async fn a_name_is_taken_once() {
    let folder = tempfile::tempdir().unwrap();
    let (entry, state) = created(&SecretKey::from_entropy([1; 32]), "one");
    let (other, other_state) = created(&SecretKey::from_entropy([2; 32]), "one");
    let store = Store::open(folder.path(), &Ground::machine())
        .await
        .unwrap();
    store.create(&entry, &state).await.unwrap();
    assert!(store.create(&other, &other_state).await.is_err());
    assert_eq!(store.runs().await.unwrap(), [state.run]);
}

const CHARTER: &str = r#"
name = "NAME"
description = ""
seed = 1
hub = "HUB"
addresses = []
succession = []
income = "everyone_who_made_it"

[model]
vocab_size = 64
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 16
rms_norm_epsilon_nano = 10000
rope_theta = 10000
tie_word_embeddings = true

[data]
name = "d"
held_out_tokens_max = 100
[data.tokenizer]
hash = "0000000000000000000000000000000000000000000000000000000000000001"
bytes = 1
[[data.training]]
tokens = 100
text_bytes = 100
[data.training.blob]
hash = "0000000000000000000000000000000000000000000000000000000000000002"
bytes = 1
[[data.held_out]]
tokens = 100
text_bytes = 100
[data.held_out.blob]
hash = "0000000000000000000000000000000000000000000000000000000000000003"
bytes = 1
[data.baselines]
unigram_micronats = 1
bigram_micronats = 1
trigram_micronats = 1

[inner]
batch_rows = 1
sequence = 16
learning_rate_peak_nano = 1000
warmup_tokens = 0
tokens_max = 100
final_rate_ppm = 0
beta1_ppm = 900000
beta2_ppm = 990000
epsilon_pico = 1
weight_decay_ppm = 0
clip_norm_ppm = 1000000
carry_inner_state = true

[outer]
rate_q16 = 65536
denominator_floor_q16 = 32768
momentum_q16 = 0
delta_kept = 512
norm_ratio_max_q16 = 1310720
[outer.codec.sparse]
chunk = 4096
kept = 128
error_decay_q16 = 62259

[round]
window_ms = 1000
reveal_ms = 1000
steps_min = 1
steps_max = 10
quorum = 1
slots_max = 4
weight_cap_q16 = 65536
shards_per_assignment = 1
checkpoint_every = 1
leaf_steps = 1
speed_ratio_max_q16 = 131072
"#;
