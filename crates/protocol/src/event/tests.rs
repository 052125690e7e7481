//! Golden bytes of every event: a change of any of these is a change of the protocol.

use super::*;
use crate::{
    SecretKey, canonical,
    charter::tests::sample_charter,
    command::{Command, Commitment, Device},
    identity::KeyRole,
    units::RunId,
    update::tests::sample_header,
};

fn worker() -> WorkerId {
    WorkerId(SecretKey::from_entropy([2; 32]).public())
}

fn command(command: Command) -> SignedCommand {
    SignedCommand::sign(
        &SecretKey::from_entropy([2; 32]),
        RunId(Hash([1; 32])),
        1,
        command,
    )
}

fn blob() -> BlobReference {
    BlobReference::of(b"blob")
}

fn model() -> ModelState {
    ModelState {
        round: 1,
        parameters: Hash([3; 32]),
        outer: Hash([4; 32]),
    }
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        parameters: blob(),
        outer: blob(),
    }
}

/// One of each, in the order of the declaration.
fn samples() -> Vec<Event> {
    vec![
        Event::RunCreated {
            charter: Box::new(sample_charter()),
            model: model(),
            checkpoint: checkpoint(),
        },
        Event::WorkerJoined {
            command: command(Command::Join {
                name: "worker".into(),
                device: Device {
                    arithmetic: "portable".into(),
                    threads: 1,
                    memory_mib: 2,
                    tokens_per_s: 3,
                },
            }),
        },
        Event::WorkerLeft {
            command: command(Command::Leave {
                reason: "sleep".into(),
            }),
        },
        Event::IdentityBound {
            binding: Binding::sign(
                RunId(Hash([1; 32])),
                &SecretKey::from_entropy([5; 32]),
                &SecretKey::from_entropy([6; 32]),
                KeyRole::Payout,
            ),
        },
        Event::RoundOpened {
            round: 1,
            base: model(),
            seed: Hash([7; 32]),
            tokens_before: 8,
            deadline_ms: 9,
            assignments: vec![worker()],
        },
        Event::SlotAdded {
            round: 1,
            slot: 1,
            worker: worker(),
        },
        Event::UpdateCommitted {
            command: command(Command::Commit(Box::new(Commitment {
                update: blob(),
                header: sample_header(),
            }))),
        },
        Event::RoundExtended {
            round: 1,
            deadline_ms: 9,
        },
        Event::CommitmentsClosed {
            round: 1,
            reveal_deadline_ms: 10,
        },
        Event::UpdateAccepted {
            round: 1,
            slot: 2,
            worker: worker(),
            weight: 11,
        },
        Event::UpdateRefused {
            round: 1,
            slot: 2,
            worker: worker(),
            reason: RefusalReason::Payload("short".into()),
        },
        Event::UpdateDeferred {
            round: 1,
            slot: 2,
            worker: worker(),
        },
        Event::RoundMerged {
            round: 1,
            rate_q16: 65_536,
            updates: vec![MergedUpdate {
                slot: 0,
                of_round: 1,
                worker: worker(),
                update: blob(),
                tokens: 12,
                weight: 13,
                credits: MicroCredits(14),
            }],
            delta: blob(),
            model: model(),
        },
        Event::RoundEmpty { round: 1 },
        Event::CheckpointPublished {
            round: 1,
            checkpoint: checkpoint(),
        },
        Event::ModelEvaluated {
            round: 1,
            evaluation: Evaluation {
                loss_micronats: 15,
                tokens: 16,
                microbits_per_byte: 17,
            },
        },
        Event::SampleDrawn {
            round: 1,
            prompt: "We".into(),
            text: " the people".into(),
        },
        Event::RunFinished { round: 1 },
    ]
}

#[test]
fn golden_bytes_of_every_event() {
    let lines: Vec<String> = samples()
        .iter()
        .map(|it| {
            let bytes = canonical::encode(it);
            let shown = if bytes.len() <= 48 {
                data_encoding::HEXLOWER.encode(&bytes)
            } else {
                Hash::of_blob(&bytes).to_string()
            };
            format!("{} {} {shown}", it.name(), bytes.len())
        })
        .collect();
    expect_test::expect![[r#"
        run_created 457 efe1dba0ceeafc583aee0382fae5b110b49a9b38a701893eb365b1f0391fd067
        worker_joined 150 6f2241d0c9517672c8d4b2bb9b3d361d6bd6e15980e07ffa256d65cb6f3a92e7
        worker_left 137 c7eb9ca10000adb3c1afe39a817170f5efe8607109c7b9b9c2342141d9c33528
        identity_bound 226 fc6949362984b66b18279383a1250b6501c26804f09c71e67d8f21cca172d3a5
        round_opened 134 55b0aa0d999401f66f7c0cc51c1f66c195acd6143c2c3507bcdecec4eb61a496
        slot_added 35 0501018139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394
        update_committed 432 6e0c192c6333372a03d82d04ceed01279a658506c230ffa997f6c684ca0122cb
        round_extended 3 070109
        commitments_closed 3 08010a
        update_accepted 36 0901028139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b3940b
        update_refused 42 0a01028139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394020573686f7274
        update_deferred 35 0b01028139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394
        round_merged 174 2af3c34d9fb97af7ac5eb626c4ff4ba06453a6d0d18e2451be7d4cb797009d7d
        round_empty 2 0d01
        checkpoint_published 68 55750b5f24adc7f4f9d8b6f84b5c08025be323468491b4ef18e0fa532218c721
        model_evaluated 5 0f010f1011
        sample_drawn 17 10010257650b207468652070656f706c65
        run_finished 2 1101"#]].assert_eq(&lines.join("\n"));
}

#[test]
fn every_event_round_trips_and_has_its_own_tag() {
    for (tag, event) in samples().into_iter().enumerate() {
        let bytes = canonical::encode(&event);
        assert_eq!(usize::from(bytes[0]), tag);
        assert_eq!(canonical::decode(&bytes, 1 << 16), Ok(event));
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut seed = Hash::of_blob(b"fuzz");
    for _ in 0..5_000 {
        seed = Hash::of_blob(&seed.0);
        let _ = canonical::decode::<Event>(&seed.0[..usize::from(seed.0[0] % 33)], 64);
    }
    for event in samples() {
        let bytes = canonical::encode(&event);
        for length in 0..bytes.len() {
            assert!(canonical::decode::<Event>(&bytes[..length], 1 << 16).is_err());
        }
    }
}
