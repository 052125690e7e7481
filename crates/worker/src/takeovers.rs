//! Who keeps the run, as far as this worker has proof: the statements that succession keys of the charter signed.
//!
//! A hub can be replaced (`protocol::succession`). Whoever answers then says how often that happened; this module believes
//! it only with the statements, keeps them from one start to the next, and has the client show them, so that a hub that was
//! replaced and does not know learns of it. Nobody leads a worker to another hub without such a signature, and nobody who
//! was replaced holds it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use network::{ClientError, HubClient, disk::Disk, retry::RetryPolicy};
use protocol::{
    api::mirrors::RunHead,
    canonical,
    charter::Charter,
    succession::{Choice, GENERATIONS_MAX, SUCCESSION_BYTES_MAX, Sealing, Succession, choose},
};

/// Longest file of statements.
const FILE_BYTES_MAX: usize = GENERATIONS_MAX as usize * SUCCESSION_BYTES_MAX;

/// What a worker knows of its run's takeovers.
#[derive(Debug)]
pub(crate) struct Takeovers {
    client: HubClient,
    sealing: Sealing,
    disk: Arc<dyn Disk>,
    file: PathBuf,
    /// The address whose statements were compared last, and agreed.
    agreed: Option<Arc<str>>,
}

impl Takeovers {
    /// Takes over what an earlier process kept in `file`, and has `client` show it.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        file: PathBuf,
        charter: &Charter,
        client: HubClient,
    ) -> Self {
        let begun = Sealing::of(charter);
        let sealing = match read(&*disk, &file, &begun) {
            Ok(sealing) => sealing,
            Err(error) => {
                tracing::warn!("what was known of takeovers is asked for again: {error:#}");
                begun
            }
        };
        let takeovers = Self {
            client,
            sealing,
            disk,
            file,
            agreed: None,
        };
        takeovers.tell_client();
        takeovers
    }

    /// Takeovers that are proven.
    pub(crate) fn generation(&self) -> u64 {
        self.sealing.generation()
    }

    /// Whether an answer from `address` that speaks of so many takeovers is the run's hub's, as far as can be known; what it
    /// proves is adopted. True if that was news.
    ///
    /// # Errors
    /// Why the answer is not followed, for the owner.
    pub(crate) async fn examine(&mut self, address: &Arc<str>, said: u64) -> Result<bool, String> {
        let proven = self.generation();
        if said < proven {
            return Err(format!(
                "{address} is the hub no longer: it knows {said} of {proven} takeovers of the run"
            ));
        }
        // Without a takeover there is one hub, and nothing to compare.
        if said == proven && (proven == 0 || self.agreed.as_ref() == Some(address)) {
            return Ok(false);
        }
        let (_, is_news) = self.compare(address).await?;
        if self.generation() != said {
            return Err(format!(
                "{address} speaks of {said} takeovers of the run and proves {}",
                self.generation()
            ));
        }
        self.agreed = Some(Arc::clone(address));
        Ok(is_news)
    }

    /// Asks a mirror who keeps the run, and has the client go there if that is news; what the mirror said.
    ///
    /// # Errors
    /// Why it is of no use.
    pub(crate) async fn ask_mirror(&mut self, address: &Arc<str>) -> Result<RunHead, String> {
        let (head, is_news) = self.compare(address).await?;
        if is_news && let Some(newest) = self.sealing.newest() {
            self.client.prefer_address(&newest.address);
        }
        Ok(head)
    }

    async fn compare(&mut self, address: &Arc<str>) -> Result<(RunHead, bool), String> {
        let alone = self.client.at(address).map_err(|error| error.to_string())?;
        let told = alone
            .with_retry(RetryPolicy::once())
            .head_and_sealing(&self.sealing)
            .await;
        let (head, sealing) = told.map_err(|error| match error {
            ClientError::Malformed { problem, .. } => {
                format!("{address} names a hub that no succession key of the run names: {problem}")
            }
            error => format!("{address} does not say who keeps the run: {error}"),
        })?;
        match choose(&self.sealing, &sealing) {
            Choice::Same => Ok((head, false)),
            Choice::Second => {
                self.adopt(sealing);
                Ok((head, true))
            }
            Choice::First => Err(format!(
                "{address} follows another takeover of the run than the one that counts"
            )),
            Choice::Undecided => Err(format!(
                "{address} follows another takeover of the run, signed by the same key: its people must decide by a further one"
            )),
        }
    }

    fn adopt(&mut self, sealing: Sealing) {
        self.sealing = sealing;
        self.tell_client();
        if let Err(error) = self.keep() {
            tracing::warn!("the next start must ask again who keeps the run: {error:#}");
        }
        if let Some(newest) = self.sealing.newest() {
            tracing::warn!(
                generation = newest.generation,
                "the run has a new hub at {}",
                newest.address
            );
        }
    }

    fn tell_client(&self) {
        if let Some(newest) = self.sealing.newest() {
            self.client.show_succession(newest);
            self.client.add_addresses([newest.address.as_str()]);
        }
    }

    fn keep(&self) -> Result<()> {
        keep(&*self.disk, &self.file, &self.sealing)
    }
}

/// Keeps statements for the next start.
pub(crate) fn keep(disk: &dyn Disk, file: &Path, sealing: &Sealing) -> Result<()> {
    let bytes = canonical::encode(&sealing.successions());
    let fresh = file.with_extension("new");
    let folder = file.parent().unwrap_or(Path::new("."));
    disk.make_folder(folder)
        .and_then(|()| disk.write(&fresh, &mut |into| into.write_all(&bytes)))
        .and_then(|()| disk.sync(&fresh))
        .and_then(|()| disk.rename(&fresh, file))
        .with_context(|| format!("writing {}", file.display()))
}

/// The kept statements, checked again.
pub(crate) fn read(disk: &dyn Disk, file: &Path, begun: &Sealing) -> Result<Sealing> {
    let bytes = match disk.read_start(file, FILE_BYTES_MAX as u64) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(begun.clone()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    let statements: Vec<Succession> = canonical::decode(&bytes, FILE_BYTES_MAX)
        .with_context(|| format!("reading {}", file.display()))?;
    Ok(begun.with(&statements)?)
}

#[cfg(test)]
mod tests;
