//! The folder of results that are not whole or not settled: which may lie there, how much of it is whose.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use tokio::fs;

use crate::boinc::{
    Busy, Turn,
    store::{DoorStore, Unit, UnitState},
};

/// One account's results may take one part in so many of the room of all.
const ACCOUNT_SHARE: u64 = 8;

/// The folder.
pub(in crate::boinc) struct Uploads {
    pub(super) folder: PathBuf,
    busy: Busy<String>,
    held: Mutex<Held>,
}

/// Bytes that lie there.
#[derive(Default)]
struct Held {
    all: u64,
    of_accounts: HashMap<u64, u64>,
}

impl Uploads {
    /// Opens the folder, and removes from it what nobody waits for any more.
    pub(in crate::boinc) async fn open(folder: &Path, store: &DoorStore) -> Result<Self> {
        let opened = Self {
            folder: folder.to_owned(),
            busy: Busy::default(),
            held: Mutex::default(),
        };
        let read = async {
            fs::create_dir_all(folder).await?;
            opened.clean(store).await?;
            let mut files = fs::read_dir(folder).await?;
            while let Some(file) = files.next_entry().await? {
                let unit = store.unit(&file.file_name().to_string_lossy()).await?;
                if let Some(unit) = unit {
                    opened.add(unit.account, file.metadata().await?.len());
                }
            }
            Ok(())
        };
        let read: Result<()> = read.await;
        read.with_context(|| format!("can't use the folder {}", folder.display()))?;
        Ok(opened)
    }

    /// Where a unit's result lies.
    pub(in crate::boinc) fn path(&self, unit: &Unit) -> PathBuf {
        self.folder.join(&unit.name)
    }

    /// The right to change a unit's result, unless somebody has it.
    pub(super) fn begin(&self, unit: &str) -> Option<Turn<String>> {
        self.busy.begin(unit.to_owned())
    }

    pub(super) async fn length(&self, unit: &str) -> io::Result<u64> {
        match fs::metadata(self.folder.join(unit)).await {
            Ok(found) => Ok(found.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Removes a unit's result; whoever calls it has the right to change it, or settles it.
    pub(in crate::boinc) async fn remove(&self, unit: &str, account: u64) -> io::Result<()> {
        let length = self.length(unit).await?;
        match fs::remove_file(self.folder.join(unit)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.free(account, length);
        Ok(())
    }

    /// Removes what came of units of an account that are over. Whoever is writing one of them removes it at the end.
    pub(in crate::boinc) async fn give_up(&self, units: &[String], account: u64) -> io::Result<()> {
        for unit in units {
            if let Some(_turn) = self.begin(unit) {
                self.remove(unit, account).await?;
            }
        }
        Ok(())
    }

    /// Removes files of units that are over: what a hub that ended left, and the odd one that was just being written.
    pub(in crate::boinc) async fn clean(&self, store: &DoorStore) -> Result<()> {
        let mut files = fs::read_dir(&self.folder).await?;
        while let Some(file) = files.next_entry().await? {
            let name = file.file_name().to_string_lossy().into_owned();
            let Some(_turn) = self.begin(&name) else {
                continue;
            };
            match store.unit(&name).await? {
                Some(unit) if is_expected(&unit) => {}
                Some(unit) => self.remove(&unit.name, unit.account).await?,
                None => fs::remove_file(file.path()).await?,
            }
        }
        Ok(())
    }

    /// Takes room for bytes of a unit's result; a sentence for the client if there is none. A single result of the
    /// account has room always, as far as all together do.
    pub(super) fn take(
        &self,
        unit: &Unit,
        bytes: u64,
        all_bytes_max: u64,
    ) -> Result<(), &'static str> {
        let account_bytes_max = (all_bytes_max / ACCOUNT_SHARE).max(unit.upload_bytes_max);
        let mut held = self.held();
        let of_account = held.of_accounts.get(&unit.account).copied().unwrap_or(0);
        if held.all + bytes > all_bytes_max {
            return Err("the hub has no room for results now; try again later");
        }
        if of_account + bytes > account_bytes_max {
            return Err("this account's unfinished results fill its room; try again later");
        }
        held.all += bytes;
        held.of_accounts.insert(unit.account, of_account + bytes);
        Ok(())
    }

    fn add(&self, account: u64, bytes: u64) {
        let mut held = self.held();
        held.all += bytes;
        *held.of_accounts.entry(account).or_default() += bytes;
    }

    pub(super) fn free(&self, account: u64, bytes: u64) {
        let mut held = self.held();
        held.all = held.all.saturating_sub(bytes);
        let of_account = held.of_accounts.get(&account).copied().unwrap_or(0);
        match of_account.saturating_sub(bytes) {
            0 => held.of_accounts.remove(&account),
            left => held.of_accounts.insert(account, left),
        };
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // A panic between two sums leaves a number that is off by one part of a file.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a unit's result may lie here: it is on its way, or whole and not settled.
fn is_expected(unit: &Unit) -> bool {
    matches!(unit.state, UnitState::Sent | UnitState::Uploaded)
}

#[cfg(test)]
mod tests {
    use protocol::{Hash, units::RunId};

    use super::*;
    use crate::boinc::{
        store::{Host, NewUnit, tests::store},
        testing::Fixture,
    };

    fn unit(account: u64, name: &str) -> NewUnit {
        NewUnit {
            name: name.to_owned(),
            host: 1,
            account,
            run: RunId(Hash([9; 32])),
            kind: "train",
            round: Some(1),
            worker: None,
            sealed: name.as_bytes().to_vec(),
            upload_bytes_max: 100,
            expected_ms: 10,
            sent_ms: 1,
            deadline_ms: 2,
        }
    }

    #[tokio::test]
    async fn one_account_takes_an_eighth_of_the_room_or_one_result() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let uploads = Uploads::open(&folder.path().join("u"), &store).await;
        let uploads = uploads.unwrap();
        let takes = |account: u64, bytes: u64, all: u64| {
            let taken = uploads.take(&unit(account, "a").noted(), bytes, all);
            taken.map_err(|it| it.split(' ').next().unwrap())
        };
        assert_eq!(takes(1, 100, 400), Ok(()));
        assert_eq!(takes(1, 1, 400), Err("this"));
        assert_eq!(takes(1, 60, 1_280), Ok(()));
        assert_eq!(takes(1, 1, 1_280), Err("this"));
        assert_eq!(takes(2, 100, 300), Ok(()));
        assert_eq!(takes(3, 50, 300), Err("the"));
        uploads.free(1, 160);
        assert_eq!(takes(3, 50, 300), Ok(()));
        uploads.free(2, 100);
        uploads.free(3, 50);
        let held = uploads.held();
        assert_eq!((held.all, held.of_accounts.len()), (0, 0));
    }

    #[tokio::test]
    async fn what_a_hub_left_behind_is_counted_or_removed() {
        let fixture = Fixture::new().await;
        fixture.account("alice@example.org").await;
        let host = Host {
            account: 1,
            ..Host::default()
        };
        let store = &fixture.door().store;
        store.add_host(host).await.unwrap();
        let folder = fixture.door().uploads.folder.clone();
        for name in ["sent", "lost", "stranger"] {
            std::fs::write(folder.join(name), [0; 7]).unwrap();
            if name != "stranger" {
                store.add_unit(unit(1, name)).await.unwrap();
            }
        }
        let state = UnitState::Lost;
        store
            .give_up(vec!["lost".into()], state, "x")
            .await
            .unwrap();
        let fixture = fixture.restarted().await;
        let uploads = &fixture.door().uploads;
        let left = std::fs::read_dir(&folder).unwrap();
        let left: Vec<_> = left.map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["sent"]);
        assert_eq!(uploads.held().all, 7);
        let names = vec!["sent".to_owned()];
        let door = fixture.door();
        door.give_up(1, names, UnitState::Aborted, "x")
            .await
            .unwrap();
        assert_eq!(uploads.held().all, 0);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }
}
