//! A unit and its files, each believed only after its check.

use std::{fs, io::Read, path::Path, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use network::disk::Disk;
use protocol::{
    api::Work,
    boinc::{UNIT_BYTES_MAX, UNIT_NAME, Unit},
    canonical,
    charter::{CHARTER_BYTES_MAX, Charter},
    succession::{Choice, GENERATIONS_MAX, Sealing, Succession, choose},
    units::BlobReference,
};

use super::slot::Slot;
use crate::{folder::Folder, kept_model::KeptModel, machine::Machine, model::Target, takeovers};

/// Name by which the charter is opened.
const CHARTER_NAME: &str = "charter";

/// A unit whose signature, charter and takeovers hold.
#[derive(Debug)]
pub(crate) struct Given<'a> {
    slot: &'a Slot,
    pub(crate) unit: Unit,
    pub(crate) charter: Arc<Charter>,
}

impl<'a> Given<'a> {
    /// Opens the unit in the slot.
    ///
    /// # Errors
    /// It is not of the hub that keeps the run, or its charter is not the run's.
    pub(crate) fn open(slot: &'a Slot, folder: &Folder, disk: &dyn Disk) -> Result<Self> {
        let path = slot.resolve(UNIT_NAME)?;
        let bytes = read_at_most(&path, UNIT_BYTES_MAX as u64)?;
        let (unit, signer) = Unit::open(&bytes).context("the unit can't be believed")?;
        let charter = read_charter(slot, &unit)?;
        ensure!(
            charter.id() == unit.run,
            "the unit is of run {}, its charter makes run {}",
            unit.run.short(),
            charter.id().short()
        );
        engine::charter::check(&charter)?;
        let begun = Sealing::of(&charter);
        let sealing = sealing(&begun, &unit.takeovers)?;
        ensure!(
            sealing.hub() == signer,
            "the unit is signed by {}, and the run's hub is {}",
            signer.short(),
            sealing.hub().short()
        );
        remember(disk, folder, &unit, &begun, &sealing)?;
        Ok(Self {
            slot,
            unit,
            charter: Arc::new(charter),
        })
    }

    /// Whether a file came with the unit.
    pub(crate) fn lists(&self, blob: &BlobReference) -> bool {
        self.unit.files.iter().any(|it| it.blob == *blob)
    }

    /// A file that came with the unit.
    ///
    /// # Errors
    /// It did not come, or is not what its name says.
    pub(crate) fn read(&self, what: &str, blob: &BlobReference) -> Result<Vec<u8>> {
        let listed = self.unit.files.iter().find(|it| it.blob == *blob);
        let name = &listed
            .with_context(|| format!("{what} ({}) did not come with the unit", blob.hash.short()))?
            .open_name;
        read_file(self.slot, name, blob).with_context(|| what.to_owned())
    }

    /// Brings the machine to the model that the hub's answer names: from the one that was kept, or from the checkpoint.
    ///
    /// # Errors
    /// The unit's files do not lead there.
    pub(crate) fn build_model(
        &self,
        machine: &mut Machine,
        work: &Work,
        kept: &KeptModel,
    ) -> Result<()> {
        let target = Target::of(work)?;
        if let Err(error) = machine.restore_model(kept) {
            tracing::warn!("the model of the last time: {error:#}");
        }
        let was_kept = machine.held();
        if let Err(error) = self.follow(machine, &target) {
            if was_kept.is_none() {
                return Err(error);
            }
            tracing::warn!("the model of the last time leads nowhere: {error:#}");
            machine.forget_model();
            self.follow(machine, &target)?;
        }
        if was_kept != machine.held()
            && let Err(error) = machine.keep_model(work.log_length, kept)
        {
            tracing::warn!("the model is not kept for the next time: {error:#}");
        }
        Ok(())
    }

    fn follow(&self, machine: &mut Machine, target: &Target) -> Result<()> {
        let route = target.route(machine.held(), None, |it| self.lists(it));
        if let Some((round, blob)) = route.checkpoint {
            machine.load_checkpoint(round, &self.read("the checkpoint", &blob)?)?;
        }
        for delta in &route.deltas {
            let bytes = self.read("a delta", &delta.blob)?;
            machine.apply_delta(delta.round, &bytes, delta.after)?;
        }
        ensure!(
            machine.held() == Some(target.model),
            "the unit's files do not give the model that it names"
        );
        Ok(())
    }
}

fn read_charter(slot: &Slot, unit: &Unit) -> Result<Charter> {
    let listed = unit.files.iter().find(|it| it.open_name == CHARTER_NAME);
    let blob = listed.context("the unit comes without a charter")?.blob;
    let bytes = read_file(slot, CHARTER_NAME, &blob).context("the charter")?;
    let charter: Charter = canonical::decode(&bytes, CHARTER_BYTES_MAX).context("the charter")?;
    charter.check()?;
    Ok(charter)
}

/// Who keeps the run by these statements.
fn sealing(begun: &Sealing, texts: &[String]) -> Result<Sealing> {
    ensure!(
        texts.len() as u64 <= GENERATIONS_MAX,
        "the unit tells of {} takeovers",
        texts.len()
    );
    let statement = |text: &String| {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes())?;
        anyhow::Ok(Succession::from_bytes(&bytes)?)
    };
    let statements: Vec<Succession> = texts
        .iter()
        .map(statement)
        .collect::<Result<_>>()
        .context("a takeover of the run")?;
    begun.with(&statements).context("a takeover of the run")
}

/// Refuses a hub that was replaced as far as this host knows, and remembers what is new.
fn remember(
    disk: &dyn Disk,
    folder: &Folder,
    unit: &Unit,
    begun: &Sealing,
    told: &Sealing,
) -> Result<()> {
    let file = folder.takeovers(unit.run);
    let known = takeovers::read(disk, &file, begun).unwrap_or_else(|error| {
        tracing::warn!("what was known of takeovers is lost: {error:#}");
        begun.clone()
    });
    match choose(&known, told) {
        Choice::Same => Ok(()),
        Choice::Second => takeovers::keep(disk, &file, told),
        Choice::First | Choice::Undecided => bail!(
            "the unit is of a hub that keeps the run no longer: {} takeovers are known, it tells of {}",
            known.generation(),
            told.generation()
        ),
    }
}

fn read_file(slot: &Slot, name: &str, blob: &BlobReference) -> Result<Vec<u8>> {
    // The client names files of the slot; nothing else is opened.
    ensure!(
        !name.is_empty() && name.bytes().all(|it| it.is_ascii_alphanumeric()),
        "the unit names a file {name:?}"
    );
    let path = slot.resolve(name)?;
    let bytes = read_at_most(&path, blob.bytes)?;
    let found = BlobReference::of(&bytes);
    ensure!(
        found == *blob,
        "{} is not the file that the unit names: {} bytes of hash {}, expected {} of {}",
        path.display(),
        found.bytes,
        found.hash.short(),
        blob.bytes,
        blob.hash.short()
    );
    Ok(bytes)
}

fn read_at_most(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let reading = || format!("reading {}", path.display());
    let mut bytes = Vec::new();
    let file = fs::File::open(path).with_context(reading)?;
    let length = file.metadata().with_context(reading)?.len();
    ensure!(
        length <= bytes_max,
        "{} has {length} bytes, more than {bytes_max}",
        path.display()
    );
    file.take(bytes_max)
        .read_to_end(&mut bytes)
        .with_context(reading)?;
    Ok(bytes)
}
