//! Where things lie on this machine when nobody says otherwise.

use std::path::PathBuf;

use anyhow::Context;

/// The folder of this user's hub, worker, gateway and datasets.
pub(crate) struct Places {
    home: PathBuf,
}

impl Places {
    /// `home`, or `.athome` in the user's home folder.
    pub(crate) fn new(home: Option<PathBuf>) -> anyhow::Result<Self> {
        let home = match home {
            Some(home) => home,
            None => std::env::home_dir()
                .context("this user has no home folder; name one with --home or ATHOME_HOME")?
                .join(".athome"),
        };
        Ok(Self { home })
    }

    /// The hub's folder.
    pub(crate) fn hub(&self) -> PathBuf {
        self.home.join("hub")
    }

    /// The worker's folder.
    pub(crate) fn worker(&self) -> PathBuf {
        self.home.join("worker")
    }

    /// The key of this user's account.
    pub(crate) fn account_key(&self) -> PathBuf {
        self.home.join("account.key")
    }

    /// The gateway's cache.
    pub(crate) fn gateway(&self) -> PathBuf {
        self.home.join("gateway")
    }

    /// Blobs that commands download.
    pub(crate) fn cache(&self) -> PathBuf {
        self.home.join("cache")
    }

    /// Datasets.
    pub(crate) fn data(&self) -> PathBuf {
        self.home.join("data")
    }
}
