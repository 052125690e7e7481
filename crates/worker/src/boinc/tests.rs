//! Units from a hub's hand to the output, in one process, with real training.

mod refused;

use std::{fs, path::Path, sync::Arc, time::Duration};

use network::disk::{Disk, RealDisk};
use protocol::{
    SecretKey,
    boinc::{EvaluationTask, Output, TrainingTask, UnitTask},
    command::{Command, Commitment},
    identity::Binding,
    log::Head,
    succession::{Sealing, Succession},
    units::BlobReference,
    update,
};

use super::{
    child::{Job, Outcome},
    reins::{Order, Reins, Told},
    slot::Slot,
    testing::{Project, key},
    *,
};
use crate::{Ground, folder::Folder, machine::tests::FullAtFirst};

const STEPS: u32 = 6;

fn project() -> Project {
    Project::new(32, 4, (2, STEPS))
}

/// Does the unit of a slot; `hear` may give orders on what is told.
fn compute(slot: &Path, hear: impl FnMut(&Told, &Reins)) -> Result<Outcome> {
    compute_on(Arc::new(RealDisk), slot, hear)
}

fn compute_on(
    disk: Arc<dyn Disk>,
    slot: &Path,
    mut hear: impl FnMut(&Told, &Reins),
) -> Result<Outcome> {
    let slot = Slot::open(slot)?;
    let ground = Ground {
        disk,
        ..Ground::machine()
    };
    // A checkpoint is due after every step.
    let reins = Reins::new(Duration::ZERO);
    Job {
        slot: &slot,
        ground: &ground,
        threads: 1,
        reins: &reins,
        tell: &mut |told| hear(&told, &reins),
        full_again: Duration::from_millis(1),
    }
    .run()
}

fn done(slot: &Path) {
    assert_eq!(compute(slot, |_, _| {}).unwrap(), Outcome::Done);
}

fn refused(slot: &Path) -> String {
    format!("{:#}", compute(slot, |_, _| {}).unwrap_err())
}

fn enrol() -> UnitTask {
    UnitTask::Enrol {
        sequence: 0,
        with_new_key: false,
    }
}

/// A project whose computer has a key.
fn enrolled() -> Project {
    let project = project();
    done(&project.give("e_1", enrol()));
    project
}

fn first_round(project: &Project) -> TrainingTask {
    match project.first_round(project.worker().public()) {
        UnitTask::Train(task) => *task,
        UnitTask::Enrol { .. } | UnitTask::Evaluate(_) => unreachable!("a round to train"),
    }
}

fn commitment(output: &Output) -> Commitment {
    match &output.commands.last().unwrap().command {
        Command::Commit(commitment) => (**commitment).clone(),
        other => panic!("no commitment: {other:?}"),
    }
}

/// Does a unit to its end; how often its state was kept: after each step but the last.
fn checkpoints(slot: &Path) -> u32 {
    let mut kept = 0;
    let outcome = compute(slot, |told, _| kept += u32::from(*told == Told::Checkpoint));
    assert_eq!(outcome.unwrap(), Outcome::Done);
    kept
}

/// Ends a unit in the middle of its steps; its state is then in the slot.
fn pause_after(slot: &Path, steps: u32) {
    let mut kept = 0;
    let outcome = compute(slot, |told, reins| {
        kept += u32::from(*told == Told::Checkpoint);
        if kept == steps {
            reins.follow(Order::Quit);
        }
    });
    assert_eq!(outcome.unwrap(), Outcome::Paused);
    assert!(slot.join("round").exists());
}

#[test]
fn a_host_enrols_with_a_key_that_it_keeps() {
    let project = project();
    done(&project.give("e_1", enrol()));
    let (output, files) = project.output("e_1");
    assert!(files.is_empty());
    let worker = project.worker();
    let [join] = &output.commands[..] else {
        panic!("one command");
    };
    join.check().unwrap();
    assert_eq!((join.worker.0, join.sequence), (worker.public(), 1));
    let Command::Join { name, device } = &join.command else {
        panic!("a join");
    };
    assert_eq!(*name, format!("boinc-{}", worker.public().short()));
    assert!(device.tokens_per_s > 0 && device.threads == 1);
    let account = key(8);
    let whole = Binding::sign(
        project.charter.id(),
        &account,
        &worker,
        protocol::identity::KeyRole::Worker,
    );
    assert_eq!(output.binding, Some(whole.key_signature));

    done(&project.give("e_2", enrol()));
    assert_eq!(project.worker().public(), worker.public());
    let renewed = UnitTask::Enrol {
        sequence: 7,
        with_new_key: true,
    };
    let slot = project.give("e_3", renewed);
    done(&slot);
    let another = project.worker().public();
    assert_ne!(another, worker.public());
    let (output, _) = project.output("e_3");
    assert_eq!(output.commands[0].sequence, 8);
    // Started once more, the unit does not make a third one.
    fs::remove_file(project.output_file("e_3")).unwrap();
    done(&slot);
    assert_eq!(project.worker().public(), another);
}

#[test]
fn a_round_that_was_ended_twice_gives_the_same_bits() {
    let projects = [enrolled(), enrolled()];
    let text = projects[0].worker().to_secret_text();
    // One worker on two computers, so that samples and signatures are the same.
    fs::write(projects[1].folder().join("athome/worker.key"), text).unwrap();
    let slots = [0, 1]
        .map(|it| projects[it].give("t_1", UnitTask::Train(Box::new(first_round(&projects[it])))));
    done(&slots[0]);
    pause_after(&slots[1], 2);
    pause_after(&slots[1], 3);
    // What was done before is not done again: one step is left.
    assert_eq!(checkpoints(&slots[1]), 0);
    let outputs = [0, 1].map(|it| projects[it].output("t_1"));
    let expected = commitment(&outputs[0].0);
    assert_eq!(expected.header.steps, STEPS);
    assert_eq!(commitment(&outputs[1].0), expected);
    assert_eq!(outputs[1].1, outputs[0].1);

    let (output, file) = &outputs[0];
    assert_eq!(output.files, [expected.update]);
    assert_eq!(BlobReference::of(file), expected.update);
    let (header, _) = update::open(file).unwrap();
    assert_eq!(header, expected.header);
    for command in &output.commands {
        command.check().unwrap();
    }
    let sequences: Vec<u64> = output.commands.iter().map(|it| it.sequence).collect();
    assert!(
        sequences
            .iter()
            .zip(6..)
            .all(|(found, expected)| *found == expected)
    );

    // Both go on from what the log then says is carried.
    let mut second = first_round(&projects[0]);
    second.work.worker.carried = Some(expected.header.carried_after.to_string());
    second.work.worker.sequence = 9;
    let assignment = second.work.assignment.as_mut().unwrap();
    assignment.round = 2;
    for project in &projects {
        done(&project.give("t_2", UnitTask::Train(Box::new(second.clone()))));
    }
    let headers = projects
        .each_ref()
        .map(|it| commitment(&it.output("t_2").0).header);
    assert_eq!(headers[0].carried_before, expected.header.carried_after);
    assert_eq!(headers[0], headers[1]);
}

#[test]
fn a_damaged_checkpoint_costs_its_steps_and_nothing_else() {
    let project = enrolled();
    let slot = project.give("t_1", UnitTask::Train(Box::new(first_round(&project))));
    pause_after(&slot, 3);
    let whole = fs::read(slot.join("round")).unwrap();
    done(&slot);
    let expected = commitment(&project.output("t_1").0);
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&whole[..whole.len() / 2], &whole[..40], b"", &flipped] {
        fs::write(slot.join("round"), damaged).unwrap();
        fs::remove_file(project.output_file("t_1")).unwrap();
        assert_eq!(checkpoints(&slot), STEPS - 1);
        assert_eq!(commitment(&project.output("t_1").0), expected);
    }
}

#[test]
fn an_output_that_is_there_is_not_made_again() {
    let project = enrolled();
    let slot = project.give("t_1", UnitTask::Train(Box::new(first_round(&project))));
    done(&slot);
    let before = fs::read(project.output_file("t_1")).unwrap();
    let mut told = 0;
    compute(&slot, |_, _| told += 1).unwrap();
    assert_eq!(told, 0);
    // Half of one is.
    fs::write(project.output_file("t_1"), &before[..before.len() - 1]).unwrap();
    done(&slot);
    assert_eq!(commitment(&project.output("t_1").0).header.steps, STEPS);
}

#[test]
fn a_host_whose_project_was_reset_joins_anew() {
    let project = enrolled();
    let before = project.worker();
    let task = UnitTask::Train(Box::new(first_round(&project)));
    fs::remove_dir_all(project.folder().join("athome")).unwrap();
    done(&project.give("t_1", task));
    let worker = project.worker().public();
    assert_ne!(worker, before.public());
    let (output, files) = project.output("t_1");
    assert!(files.is_empty());
    let [join] = &output.commands[..] else {
        panic!("one command");
    };
    join.check().unwrap();
    assert_eq!((join.worker.0, join.sequence), (worker, 1));
    assert!(matches!(join.command, Command::Join { .. }));
    assert!(output.binding.is_some());
}

#[test]
fn a_round_done_again_by_another_host_is_the_same_to_the_bit() {
    let (project, another) = (enrolled(), enrolled());
    let task = first_round(&project);
    done(&project.give("t_1", UnitTask::Train(Box::new(task.clone()))));
    let (output, file) = project.output("t_1");
    let steps = commitment(&output).header.steps;
    let repeated = |steps| {
        let task = TrainingTask {
            // Neither bounds what is done again.
            train_ms: 0,
            until_ms: 0,
            repeated_steps: Some(steps),
            ..task.clone()
        };
        UnitTask::Train(Box::new(task))
    };
    let slot = another.give("r_1", repeated(steps));
    pause_after(&slot, 2);
    done(&slot);
    let (answer, again) = another.output("r_1");
    assert!(answer.commands.is_empty() && answer.binding.is_none());
    assert_eq!(answer.files, output.files);
    assert_eq!(again, file);
    done(&another.give("r_2", repeated(steps - 1)));
    assert_ne!(another.output("r_2").1, file);
    // Nothing of it stays in the host's own folder.
    let runs = another.folder().join("athome/runs");
    let run = runs.join(another.charter.id().to_string());
    assert!(!run.join("carried").exists() && !run.join("model").exists());
}

#[test]
fn too_few_steps_commit_to_nothing() {
    let project = enrolled();
    let mut late = first_round(&project);
    late.until_ms = 1_000;
    done(&project.give("t_1", UnitTask::Train(Box::new(late))));
    let (output, files) = project.output("t_1");
    assert!(output.commands.is_empty() && files.is_empty());
    // Without time to train the fewest steps are taken all the same: late, they count.
    let mut short = first_round(&project);
    short.train_ms = 0;
    done(&project.give("t_2", UnitTask::Train(Box::new(short))));
    assert_eq!(commitment(&project.output("t_2").0).header.steps, 2);
}

#[test]
fn a_model_is_measured_as_the_engine_measures_it() {
    let project = enrolled();
    let work = project.work();
    let task = |shard, first_window, windows| {
        UnitTask::Evaluate(Box::new(EvaluationTask {
            round: 0,
            parameters: work.model.parameters_hash.parse().unwrap(),
            work: work.clone(),
            shard,
            first_window,
            windows,
            measure_ms: 60_000,
        }))
    };
    let measure = |name: &str, first, windows| {
        done(&project.give(name, task(0, first, windows)));
        project.output(name).0.evaluation.unwrap()
    };
    let whole = measure("v_1", 0, 20);
    assert_eq!((whole.windows, whole.tokens), (20, 20 * 64));
    let mean = whole.loss_micronats as f64 / 1e6 / whole.tokens as f64;
    // A model that knows nothing yet: the logarithm of the vocabulary.
    assert!((mean - f64::from(32_u32).ln()).abs() < 0.3, "{mean}");
    let parts = [measure("v_2", 0, 7), measure("v_3", 7, 13)];
    let sum = parts[0].loss_micronats + parts[1].loss_micronats;
    assert!(sum.abs_diff(whole.loss_micronats) <= 1);
    // What lies beyond the text is left out.
    assert_eq!(measure("v_4", 30, 20).windows, 1);
    refused(&project.give("v_5", task(0, 40, 20)));
    refused(&project.give("v_6", task(1, 0, 20)));
}

#[test]
fn arguments_are_few() {
    let parse = |text: &str| {
        let all: Vec<String> = text.split(' ').map(str::to_owned).collect();
        Arguments::parse(&all)
    };
    assert_eq!(parse("").unwrap().threads, None);
    assert_eq!(parse("--nthreads 3").unwrap().threads, Some(3));
    for text in ["--nthreads", "--nthreads 0", "--nthreads x", "compute"] {
        assert!(parse(text).is_err(), "{text}");
    }
}
