//! The process that computes: opens the unit, does what it says, and writes what goes back.

use std::{io::Write, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use protocol::{
    boinc::{Output, UNIT_NAME, UnitTask},
    command::{Command, Device, SignedCommand},
    identity::{KeyRole, sign_half},
};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::{
    Arguments, evaluate,
    output::{self, Recent},
    reins::{EXIT_PAUSED, Reins, Told},
    slot::Slot,
    train,
    unit::Given,
};
use crate::{
    Ground,
    folder::Folder,
    machine::{self, Machine},
    session::be_nice,
};

/// Lowest priority: the machine is its owner's.
const NICENESS: i32 = 19;
/// Wait before the next try while another task of the project computes on this machine.
const BUSY_WAIT_S: u64 = 60;
/// How often a full disk is tried again.
const FULL_AGAIN: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;

/// How computing ended, errors aside.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    /// The output is written.
    Done,
    /// The state is kept.
    Paused,
    /// Nothing can be done now.
    Wait(u64, String),
}

/// What computing a unit needs.
pub(crate) struct Job<'a> {
    pub(crate) slot: &'a Slot,
    pub(crate) ground: &'a Ground,
    pub(crate) threads: usize,
    pub(crate) reins: &'a Reins,
    pub(crate) tell: &'a mut dyn FnMut(Told),
    /// How often a full disk is tried again.
    pub(crate) full_again: Duration,
}

pub(super) fn main(parent: &str, arguments: &[String]) -> Result<ExitCode> {
    die_with(parent)?;
    be_nice(NICENESS);
    let arguments = Arguments::parse(arguments)?;
    let slot = Slot::open(std::path::Path::new("."))?;
    let reins = Arc::new(Reins::new(slot.init.checkpoint_period()));
    let followed = Arc::clone(&reins);
    std::thread::spawn(move || {
        followed.follow_all(std::io::stdin().lock());
        // Whoever gave the orders is gone.
        std::process::exit(1);
    });
    let mut tell = |it: Told| {
        let mut output = std::io::stdout().lock();
        // Nobody reads only when this process is about to be ended.
        let _ = writeln!(output, "{}", it.line()).and_then(|()| output.flush());
    };
    let outcome = Job {
        slot: &slot,
        ground: &Ground::machine(),
        threads: slot.init.threads(arguments.threads),
        reins: &reins,
        tell: &mut tell,
        full_again: FULL_AGAIN,
    }
    .run()?;
    Ok(match outcome {
        Outcome::Done => ExitCode::SUCCESS,
        Outcome::Paused => ExitCode::from(EXIT_PAUSED),
        Outcome::Wait(seconds, reason) => {
            tell(Told::Wait(seconds, reason));
            ExitCode::from(EXIT_PAUSED)
        }
    })
}

/// A process that computes for nobody must not stay behind, stopped or not.
fn die_with(parent: &str) -> Result<()> {
    let parent: i32 = parent.parse().context("the parent's process number")?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("following the parent's end")?;
    ensure!(
        getppid() == Pid::from_raw(parent),
        "the parent process is gone"
    );
    Ok(())
}

impl Job<'_> {
    /// Does the unit in the slot.
    ///
    /// # Errors
    /// A unit that is not the run's, files that are not the unit's, the disk.
    pub(crate) fn run(&mut self) -> Result<Outcome> {
        let disk = Arc::clone(&self.ground.disk);
        let project = self.slot.project(UNIT_NAME)?;
        let Some(mut folder) = Folder::open_if_free(&*disk, &project.join("athome"))? else {
            let reason = "another task of this project computes on this computer";
            return Ok(Outcome::Wait(BUSY_WAIT_S, reason.into()));
        };
        let given = Given::open(self.slot, &folder, &*disk)?;
        tracing::info!(unit = %given.unit.name, "unit opened");
        if output::is_whole(self.slot, &given.unit)? {
            return Ok(Outcome::Done);
        }
        ensure_memory(
            machine::memory_bytes(&given.charter),
            self.slot.init.memory_max,
        )?;
        match given.unit.task.clone() {
            UnitTask::Enrol {
                sequence,
                with_new_key,
            } => {
                if with_new_key {
                    folder.replace_key(&*disk, &given.unit.name)?;
                }
                self.enrol(&given, &folder, sequence)
            }
            UnitTask::Train(task) => train::train(self, &given, &folder, &task),
            UnitTask::Evaluate(task) => evaluate::evaluate(self, &given, &folder, &task),
        }
    }

    pub(super) fn machine(&self, given: &Given<'_>) -> Machine {
        let trainer = (self.ground.trainer)(&given.charter, self.threads);
        Machine::new(Arc::clone(&given.charter), trainer)
    }

    /// Measures this machine and asks to take part.
    pub(super) fn enrol(
        &mut self,
        given: &Given<'_>,
        folder: &Folder,
        sequence: u64,
    ) -> Result<Outcome> {
        let mut machine = self.machine(given);
        let measured = machine.measure()?;
        if self.reins.must_quit() {
            return Ok(Outcome::Paused);
        }
        let run = given.unit.run;
        let join = self.join(given, folder, &machine, sequence + 1, measured.tokens_per_s);
        let binding = sign_half(
            folder.key(),
            run,
            given.unit.account,
            folder.key().public(),
            KeyRole::Worker,
        );
        let output = Output {
            unit: given.unit.name.clone(),
            commands: vec![join],
            binding: Some(binding),
            evaluation: None,
            files: vec![],
        };
        output::write(&*self.ground.disk, self.slot, folder, &output, &[])?;
        let recent = Recent {
            tokens_per_s: measured.tokens_per_s,
            ..Recent::read(&*self.ground.disk, folder, run)
        };
        recent.write(&*self.ground.disk, folder, run);
        (self.tell)(Told::Fraction(1.0));
        Ok(Outcome::Done)
    }

    /// The command that tells what this machine is.
    pub(super) fn join(
        &self,
        given: &Given<'_>,
        folder: &Folder,
        machine: &Machine,
        sequence: u64,
        tokens_per_s: u32,
    ) -> SignedCommand {
        let device = Device {
            arithmetic: machine.arithmetic(),
            threads: u32::try_from(self.threads).unwrap_or(u32::MAX),
            memory_mib: u32::try_from(machine::memory_bytes(&given.charter).div_ceil(MIB))
                .unwrap_or(u32::MAX),
            tokens_per_s,
        };
        // The log is public, and a volunteer's host name is nobody's business.
        let name = format!("boinc-{}", folder.key().public().short());
        let command = Command::Join { name, device };
        SignedCommand::sign(folder.key(), given.unit.run, sequence, command)
    }

    /// Time without what was spent stopped.
    pub(super) fn active(&self) -> Duration {
        self.reins.active()
    }
}

/// A model that does not fit is refused before anything is computed: the client would end the task in the middle.
fn ensure_memory(needed: u64, allowed: Option<u64>) -> Result<()> {
    let Some(allowed) = allowed else {
        return Ok(());
    };
    ensure!(
        needed <= allowed,
        "training this run's model takes {} MiB of memory; this computer's settings and the task allow {}",
        needed.div_ceil(MIB),
        allowed / MIB
    );
    Ok(())
}
