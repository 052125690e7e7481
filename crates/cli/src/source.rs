//! Where a run is read by who checks it: the folder of a hub that does not run, or the address of a hub or mirror.

use std::{
    collections::HashSet,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use engine::replay::verify::Blobs;
use hub::Archive;
use network::{BlobCache, ClientError, HubClient};
use protocol::{Hash, api::LOG_PAGE_MAX, log::Entry, units::BlobReference, units::RunId};
use tokio::runtime::Handle;

use crate::places::Places;

/// Most disk for blobs that checks download.
const CACHE_BYTES_MAX: u64 = 16 << 30;

/// One run at one place. Its calls block: it lives on a thread for that.
pub(crate) struct Source {
    place: Place,
    run: RunId,
    name: String,
    length: u64,
    /// Blobs that were read.
    read: HashSet<Hash>,
    runtime: Handle,
}

/// Files of a folder that nobody asked for.
#[derive(Debug, Default)]
pub(crate) struct Others {
    /// Blobs by name.
    pub(crate) blobs: Vec<(Hash, PathBuf)>,
    /// How many files have names that are no hashes.
    pub(crate) files: u64,
}

/// A folder or an address.
enum Place {
    Folder(Archive),
    Hub { client: HubClient, cache: BlobCache },
}

impl Source {
    /// Opens a folder or address, and the run of this name or id there; if none is named, the only one.
    pub(crate) async fn open(
        place: &str,
        run: Option<&str>,
        places: &Places,
    ) -> anyhow::Result<Self> {
        let place = if place.contains("://") {
            Place::Hub {
                client: HubClient::new(place)?,
                cache: BlobCache::open(&places.cache(), CACHE_BYTES_MAX)?,
            }
        } else {
            Place::Folder(Archive::open(Path::new(place)).await?)
        };
        let runs: Vec<(RunId, String)> = match &place {
            Place::Folder(archive) => archive.runs().await?,
            Place::Hub { client, .. } => client
                .runs()
                .await?
                .into_iter()
                .map(|it| Ok((it.id.parse()?, it.name)))
                .collect::<anyhow::Result<_>>()?,
        };
        let (run, name) = chosen(runs, run)?;
        let length = match &place {
            Place::Folder(archive) => archive.length(run).await?,
            Place::Hub { client, .. } => {
                let charter = client.charter(run).await?;
                client.add_addresses(charter.addresses.iter().map(String::as_str));
                client.log_entries(run, 0, 1).await?.length
            }
        };
        Ok(Self {
            place,
            run,
            name,
            length,
            read: HashSet::new(),
            runtime: Handle::current(),
        })
    }

    /// The run.
    pub(crate) fn run(&self) -> RunId {
        self.run
    }

    /// Its name, as the place says.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Entries of its log.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The next entries from a position on; none at the end. An entry that does not read ends the page, with what is wrong
    /// with it.
    pub(crate) fn entries(&mut self, from: u64) -> anyhow::Result<(Vec<Entry>, Option<String>)> {
        let runtime = self.runtime.clone();
        match &self.place {
            Place::Folder(archive) => {
                let stored = runtime.block_on(archive.entries(self.run, from))?;
                let mut entries = Vec::with_capacity(stored.len());
                for (row, next) in stored.into_iter().zip(from..) {
                    let read = Entry::from_bytes(&row.bytes).map_err(|error| error.to_string());
                    let checked = read.and_then(|entry| {
                        let name = entry.event.name();
                        if row.position != next {
                            Err(format!("the next row is that of entry {}", row.position))
                        } else if row.kind != name {
                            Err(format!("it is a {name}, but its row says {}", row.kind))
                        } else {
                            Ok(entry)
                        }
                    });
                    match checked {
                        Ok(entry) => entries.push(entry),
                        Err(problem) => return Ok((entries, Some(problem))),
                    }
                }
                Ok((entries, None))
            }
            Place::Hub { client, .. } => {
                let page = runtime.block_on(client.log_entries(self.run, from, LOG_PAGE_MAX));
                match page {
                    Ok(page) => Ok((page.entries, None)),
                    // One by one, to find the one that does not read.
                    Err(ClientError::Malformed { .. }) => {
                        match runtime.block_on(client.log_entries(self.run, from, 1)) {
                            Ok(page) => Ok((page.entries, None)),
                            Err(ClientError::Malformed { problem, .. }) => {
                                Ok((Vec::new(), Some(problem)))
                            }
                            Err(error) => Err(error.into()),
                        }
                    }
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// What is wrong with the database as such, in a folder.
    pub(crate) fn database_problems(&self) -> anyhow::Result<Vec<String>> {
        match &self.place {
            Place::Folder(archive) => self.runtime.clone().block_on(archive.database_problems()),
            Place::Hub { .. } => Ok(Vec::new()),
        }
    }

    /// The folder, if the source is one.
    pub(crate) fn archive(&self) -> Option<&Archive> {
        match &self.place {
            Place::Folder(archive) => Some(archive),
            Place::Hub { .. } => None,
        }
    }

    /// Waits for what an archive reads.
    pub(crate) fn wait<T>(&self, reading: impl Future<Output = T>) -> T {
        self.runtime.block_on(reading)
    }

    /// Where the log stands, for people.
    pub(crate) fn log_place(&self) -> String {
        match &self.place {
            Place::Folder(archive) => archive.database().display().to_string(),
            Place::Hub { client, .. } => client.address().to_owned(),
        }
    }

    /// Where a blob stands, for people.
    pub(crate) fn blob_place(&self, hash: &Hash) -> String {
        match &self.place {
            Place::Folder(archive) => archive.blob_path(hash).display().to_string(),
            Place::Hub { client, .. } => format!("{}, blob {hash}", client.address()),
        }
    }

    /// What lies in a folder beside the blobs that were asked for so far.
    pub(crate) fn others(&self) -> anyhow::Result<Others> {
        let mut others = Others::default();
        let Place::Folder(archive) = &self.place else {
            return Ok(others);
        };
        for (hash, path) in archive.blobs()? {
            match hash {
                Some(hash) if self.read.contains(&hash) => {}
                Some(hash) => others.blobs.push((hash, path)),
                None => others.files += 1,
            }
        }
        others.blobs.sort();
        Ok(others)
    }
}

impl Blobs for Source {
    fn read(&mut self, blob: &BlobReference) -> Result<Option<Vec<u8>>, String> {
        self.read.insert(blob.hash);
        match &self.place {
            Place::Folder(archive) => read_file(&archive.blob_path(&blob.hash), blob.bytes),
            Place::Hub { client, cache } => {
                let fetched = self
                    .runtime
                    .block_on(client.download(cache, *blob, None, |_| {}));
                match fetched {
                    Ok(()) => cache.get(&blob.hash).map_err(|error| error.to_string()),
                    Err(error) if is_absent(&error) => Ok(None),
                    Err(error) => Err(format!("{:#}", anyhow::Error::from(error))),
                }
            }
        }
    }
}

/// Whether the hub lacks the blob, or gives it to nobody yet.
fn is_absent(error: &network::blobs::TransferError) -> bool {
    let network::blobs::TransferError::Client { source, .. } = error else {
        return false;
    };
    matches!(source, ClientError::Refused { status: 404, .. })
        || source.refusal_code() == Some("private")
}

/// The bytes of a file, if it is as long as it should be: a longer one is not read.
pub(crate) fn read_file(path: &Path, bytes: u64) -> Result<Option<Vec<u8>>, String> {
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let found = file.metadata().map_err(|error| error.to_string())?.len();
    if found != bytes {
        return Err(format!("it has {found} bytes instead of {bytes}"));
    }
    let mut read = Vec::with_capacity(usize::try_from(bytes).map_err(|error| error.to_string())?);
    file.read_to_end(&mut read)
        .map_err(|error| error.to_string())?;
    Ok(Some(read))
}

/// The run of this name or id, or the only one.
fn chosen(runs: Vec<(RunId, String)>, wanted: Option<&str>) -> anyhow::Result<(RunId, String)> {
    let names: Vec<&str> = runs.iter().map(|(_, name)| name.as_str()).collect();
    let names = names.join(", ");
    let Some(wanted) = wanted else {
        ensure!(
            runs.len() < 2,
            "there are several runs here: name one of {names} with --run"
        );
        return runs.into_iter().next().context("there is no run here");
    };
    let found = runs
        .into_iter()
        .find(|(id, name)| name == wanted || id.to_string() == wanted);
    match found {
        Some(run) => Ok(run),
        None => bail!("there is no run {wanted} here, but {names}"),
    }
}
