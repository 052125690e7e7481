//! What a hub stands on: its machine's clock, disk and database files, or the simulator's.

use std::{path::Path, sync::Arc};

use network::{
    client::Transport,
    disk::{Disk, RealDisk},
    world::Clock,
};
use object_store::{ObjectStore, local::LocalFileSystem};

/// The ground under a hub. Clones are the same ground.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The wall clock.
    pub clock: Clock,
    /// Where keys and unfinished uploads lie, and the folder of whole blobs.
    pub disk: Arc<dyn Disk>,
    /// Reads and writes whole blobs on that disk; `None` for the machine's.
    pub objects: Option<Arc<dyn ObjectStore>>,
    /// The name by which SQLite knows that disk; `None` for the machine's.
    pub database: Option<String>,
    /// What carries calls to other hubs; `None` for the machine's network (and for none in the simulator).
    pub transport: Option<Arc<dyn Transport>>,
}

impl Ground {
    /// The machine itself.
    #[must_use]
    pub fn machine() -> Self {
        Self {
            clock: Clock::system(),
            disk: Arc::new(RealDisk),
            objects: None,
            database: None,
            transport: None,
        }
    }

    /// The store of whole blobs in a folder.
    pub(crate) fn objects(&self, folder: &Path) -> object_store::Result<Arc<dyn ObjectStore>> {
        match &self.objects {
            Some(objects) => Ok(Arc::clone(objects)),
            None => Ok(Arc::new(LocalFileSystem::new_with_prefix(folder)?)),
        }
    }
}
