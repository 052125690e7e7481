use protocol::{
    SecretKey,
    equivocation::Equivocation,
    event::{Evaluation, Event},
};
use rustix::fs::{FlockOperation, flock};

use super::*;
use crate::{
    ground::Ground,
    store::{Projected, Store, tests::created},
};

async fn read(folder: &Path) -> Vec<StoredEntry> {
    let archive = Archive::open(folder).await.unwrap();
    let [(run, name)]: [_; 1] = archive.runs().await.unwrap().try_into().unwrap();
    assert_eq!(name, "one");
    assert!(archive.database_problems().await.unwrap().is_empty());
    let entries = archive.entries(run, 0).await.unwrap();
    assert_eq!(archive.length(run).await.unwrap(), entries.len() as u64);
    assert!(archive.entries(run, 1).await.unwrap().is_empty());
    entries
}

fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|it| it.unwrap())
        .map(|it| (it.path(), it.metadata().unwrap().len()))
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn a_closed_folder_is_read_and_left_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (entry, state) = created(&SecretKey::from_entropy([1; 32]), "one");
    let store = Store::open(folder.path(), &Ground::machine())
        .await
        .unwrap();
    store.create(&entry, &state).await.unwrap();
    store.close().await;
    let before = files(folder.path());
    let expected = StoredEntry {
        position: 0,
        kind: "run_created".to_owned(),
        bytes: entry.to_bytes(),
    };
    assert_eq!(read(folder.path()).await, [expected]);
    assert_eq!(files(folder.path()), before);
}

#[tokio::test]
async fn what_a_killed_hub_left_is_read_with_its_write_ahead_log() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (entry, state) = created(&SecretKey::from_entropy([1; 32]), "one");
    let store = Store::open(folder.path(), &Ground::machine())
        .await
        .unwrap();
    store.create(&entry, &state).await.unwrap();
    // As the disk stands when the power goes.
    for (path, _) in files(folder.path()) {
        let name = path.file_name().unwrap();
        if name != "hub.sqlite-shm" {
            fs::copy(&path, copy.path().join(name)).unwrap();
        }
    }
    let left = fs::metadata(copy.path().join("hub.sqlite-wal")).unwrap();
    assert!(left.len() > 0, "nothing is left to be read");
    assert_eq!(read(copy.path()).await[0].bytes, entry.to_bytes());
    store.close().await;
}

#[tokio::test]
async fn a_hub_at_work_and_an_empty_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = Archive::open(folder.path()).await.unwrap_err().to_string();
    assert!(refused.contains("no hub's folder"), "{refused}");
    Store::open(folder.path(), &Ground::machine())
        .await
        .unwrap()
        .close()
        .await;
    let lock = File::create(folder.path().join(crate::LOCK)).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let refused = Archive::open(folder.path()).await.unwrap_err().to_string();
    assert!(refused.contains("a hub works in"), "{refused}");
    drop(lock);
    assert!(Archive::open(folder.path()).await.is_ok());
}

#[tokio::test]
async fn what_is_beside_the_log_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let key = SecretKey::from_entropy([1; 32]);
    let (entry, mut state) = created(&key, "one");
    let store = Store::open(folder.path(), &Ground::machine())
        .await
        .unwrap();
    store.create(&entry, &state).await.unwrap();
    let first = state.clone();
    let [next, other] = [5_000_000, 6_000_000].map(|loss_micronats| {
        let evaluation = Evaluation {
            loss_micronats,
            tokens: 10,
            microbits_per_byte: 3_000_000,
        };
        let event = Event::ModelEvaluated {
            round: 0,
            evaluation,
        };
        state.head.next(&key, state.run, 2_000, event)
    });
    state.apply(&next).unwrap();
    let written = [(next.clone(), Projected::default())];
    store.append(&written).await.unwrap();
    assert_eq!(store.rewind(state.run, 1, 3_000).await.unwrap(), first);
    assert_eq!(store.replay(state.run).await.unwrap(), first);
    let proof = Equivocation::find(key.public(), &next, &other).unwrap();
    assert!(
        store
            .keep_equivocation(state.run, &proof, 4_000)
            .await
            .unwrap()
    );
    store.close().await;

    let archive = Archive::open(folder.path()).await.unwrap();
    let rows = archive.set_aside(state.run, None).await.unwrap();
    let [row]: [_; 1] = rows.try_into().unwrap();
    assert_eq!((row.position, row.bytes), (1, next.to_bytes()));
    let more = archive.set_aside(state.run, Some(row.row)).await.unwrap();
    assert!(more.is_empty());
    let expected = StoredProof {
        id: proof.id().0.to_vec(),
        bytes: proof.to_bytes(),
    };
    assert_eq!(archive.proofs(state.run).await.unwrap(), [expected]);

    assert!(archive.key().unwrap().is_none());
    fs::write(archive.key_path(), key.to_secret_text().as_bytes()).unwrap();
    assert_eq!(archive.key().unwrap(), Some(key.public()));
    fs::write(archive.key_path(), "no key").unwrap();
    assert!(archive.key().is_err());
}
