//! The same model comes out however little memory there is; what is gone or too large is named.

use engine::{initial_parameters, update::codec};
use protocol::{
    SecretKey,
    charter::Charter,
    units::{BlobReference, MicroCredits, RunId, WorkerId},
    update::UpdateHeader,
};

use super::*;
use crate::{ground::Ground, store::tests::created};

const UPDATES: u32 = 5;

struct Fixture {
    _folder: tempfile::TempDir,
    arithmetic: Arc<Arithmetic>,
    blobs: Blobs,
    model: Model,
    updates: Vec<BlobReference>,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (_, state) = created(&SecretKey::from_entropy([1; 32]), "one");
        let arithmetic = Arc::new(Arithmetic::new(&state.charter).unwrap());
        let blobs = Blobs::open(folder.path(), &Ground::machine()).unwrap();
        let parameters = initial_parameters(&arithmetic.config, 1);
        let model = arithmetic.first_model(parameters);
        let mut updates = Vec::new();
        for slot in 0..UPDATES {
            let file = update(&arithmetic, &state.charter, slot, 1e-4);
            updates.push(blobs.put(file).await.unwrap());
        }
        Self {
            _folder: folder,
            arithmetic,
            blobs,
            model,
            updates,
        }
    }

    fn parts(&self) -> Vec<Part> {
        let part = |(slot, update): (u32, &BlobReference)| Part {
            merged: MergedUpdate {
                slot,
                of_round: 1,
                worker: worker(),
                update: *update,
                tokens: 16,
                weight: 10 + u64::from(slot),
                credits: MicroCredits(1),
            },
            standing: 0,
            decoded: None,
        };
        (0..).zip(&self.updates).map(part).collect()
    }

    async fn merge(&self, parts: Vec<Part>, bytes_max: usize) -> Merged {
        let round = Round {
            number: 1,
            rate_q16: 60_000,
            is_logged: false,
        };
        let merged = self
            .arithmetic
            .merge(&self.model, round, parts, &self.blobs, bytes_max);
        merged.await.unwrap()
    }

    async fn merge_whole(&self, parts: Vec<Part>, bytes_max: usize) -> Merge {
        match self.merge(parts, bytes_max).await {
            Merged::Whole(merge) => merge,
            Merged::Refused(refused) => panic!("refused: {refused:?}"),
            Merged::Lost(lost) => panic!("lost: {lost:?}"),
        }
    }
}

fn worker() -> WorkerId {
    WorkerId(SecretKey::from_entropy([2; 32]).public())
}

fn update(arithmetic: &Arithmetic, charter: &Charter, slot: u32, scale: f32) -> Vec<u8> {
    let lengths = arithmetic.config.layout().lengths();
    let values: Vec<f32> = (0..lengths.iter().sum())
        .map(|at: usize| {
            let seed = (at as u32)
                .wrapping_mul(2_654_435_761)
                .rotate_left(slot * 5);
            scale * ((seed % 1_009) as f32 - 504.0)
        })
        .collect();
    let settings = engine::charter::update_settings(&charter.outer);
    let payload = codec::encode(&lengths, &settings, &values).unwrap();
    let header = UpdateHeader {
        run: RunId::default(),
        worker: worker(),
        round: 1,
        slot,
        base_round: 0,
        base: Hash::default(),
        steps: 1,
        head_start_steps: 0,
        tokens: 16,
        loss_micronats: 1,
        carried_before: Hash::default(),
        carried_after: Hash::default(),
        carried_if_refused: Hash::default(),
        steps_root: Hash::default(),
        payload: Hash::of_blob(&payload),
        inner_state: None,
    };
    update::seal(&header, &payload)
}

#[tokio::test]
async fn memory_changes_nothing() {
    let fixture = Fixture::new().await;
    let whole = fixture.merge_whole(fixture.parts(), usize::MAX).await;
    assert_ne!(whole.model.state, fixture.model.state);
    for bytes_max in [0, 1, 300, 1_000, 5_000] {
        let merged = fixture.merge_whole(fixture.parts(), bytes_max).await;
        assert_eq!(merged.model.state, whole.model.state, "{bytes_max} bytes");
        assert!(merged.delta == whole.delta);
    }
    // Some came decoded, some did not.
    let mut parts = fixture.parts();
    for part in parts.iter_mut().step_by(2) {
        let bytes = fixture.blobs.read(&part.merged.update).await.unwrap();
        let decoded = fixture.arithmetic.decode(&bytes.unwrap()).unwrap();
        part.decoded = Some(Arc::new(decoded));
    }
    let merged = fixture.merge_whole(parts, 500).await;
    assert_eq!(merged.model.state, whole.model.state);
}

#[tokio::test]
async fn what_is_gone_and_what_is_too_large_is_named() {
    let mut fixture = Fixture::new().await;
    let (_, state) = created(&SecretKey::from_entropy([1; 32]), "one");
    let huge = update(&fixture.arithmetic, &state.charter, 1, 1e-2);
    fixture.updates[1] = fixture.blobs.put(huge).await.unwrap();
    match fixture.merge(fixture.parts(), 300).await {
        Merged::Refused(refused) => assert!(
            matches!(&refused[..], [(hash, RefusalReason::Norm(_))] if *hash == fixture.updates[1].hash),
            "{refused:?}"
        ),
        Merged::Whole(_) | Merged::Lost(_) => panic!("it was not refused"),
    }
    let damaged = fixture
        ._folder
        .path()
        .join("blobs")
        .join(fixture.updates[3].hash.to_string());
    std::fs::write(&damaged, b"something else").unwrap();
    fixture.updates[4] = BlobReference::of(b"never here");
    match fixture.merge(fixture.parts(), 300).await {
        Merged::Lost(lost) => assert_eq!(lost, [3, 4].map(|it| fixture.updates[it].hash)),
        Merged::Whole(_) | Merged::Refused(_) => panic!("nothing is lost"),
    }
    assert!(!damaged.exists(), "its worker can send it again");
}
