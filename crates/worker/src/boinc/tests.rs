//! Units from a hub's hand to the output, in one process, with real training.

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
    done(&slots[1]);
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
        done(&slot);
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
fn what_is_not_the_runs_is_refused() {
    let project = enrolled();
    let task = || UnitTask::Train(Box::new(first_round(&project)));
    let slot = project.give("t_1", task());
    let unit = project.folder().join("unit_of_t_1");
    let whole = fs::read(&unit).unwrap();
    for garbage in [
        b"".to_vec(),
        vec![0; 100],
        vec![0xff; 2 << 20],
        whole[..whole.len() - 1].to_vec(),
    ] {
        fs::write(&unit, garbage).unwrap();
        refused(&slot);
    }
    fs::write(&unit, &whole).unwrap();

    let foreign = project.give_from(&key(1), "t_2", task(), &[]);
    let refusal = refused(&foreign);
    assert!(refusal.contains("the run's hub is"), "{refusal}");

    let stranger = project.give("t_3", project.first_round(key(3).public()));
    let refusal = refused(&stranger);
    assert!(refusal.contains("for worker"), "{refusal}");

    let shards: Vec<String> = project
        .charter
        .data
        .training
        .iter()
        .map(|it| it.blob.hash.to_string())
        .collect();
    let path = |at: usize| project.folder().join(format!("{}_of_t_1", shards[at]));
    let swapped = fs::read(path(1)).unwrap();
    let own = fs::read(path(0)).unwrap();
    fs::write(path(0), swapped).unwrap();
    let refusal = refused(&slot);
    assert!(
        refusal.contains("is not the file that the unit names"),
        "{refusal}"
    );
    fs::remove_file(path(0)).unwrap();
    let refusal = refused(&slot);
    assert!(refusal.contains("training text"), "{refusal}");
    fs::write(path(0), own).unwrap();
    assert!(!project.output_file("t_1").exists());
    done(&slot);
}

#[test]
fn a_hub_that_took_over_is_followed_and_the_one_before_no_more() {
    let project = enrolled();
    let sealing = Sealing::of(&project.charter);
    let head = Head {
        length: 50,
        ..Head::empty()
    };
    let successor = key(2);
    let statement = |by: &SecretKey| {
        let signed = Succession::sign(by, &sealing, &head, successor.public(), "https://b.example");
        data_encoding::HEXLOWER.encode(&signed.to_bytes())
    };
    let forged = project.give_from(&successor, "e_2", enrol(), &[statement(&key(3))]);
    refused(&forged);
    let followed = project.give_from(&successor, "e_3", enrol(), &[statement(&key(9))]);
    done(&followed);
    let before = project.give("e_4", enrol());
    let refusal = refused(&before);
    assert!(refusal.contains("keeps the run no longer"), "{refusal}");
}

#[test]
fn one_unit_at_a_time_uses_what_is_carried() {
    let project = enrolled();
    let slot = project.give("e_2", enrol());
    let folder = Folder::open(&RealDisk, &project.folder().join("athome")).unwrap();
    let outcome = compute(&slot, |_, _| {}).unwrap();
    assert!(matches!(outcome, Outcome::Wait(60, _)), "{outcome:?}");
    drop(folder);
    done(&slot);
}

#[test]
fn a_model_that_does_not_fit_is_refused_in_words() {
    let project = project();
    let slot = project.give("e_1", enrol());
    let init = "<rsc_memory_bound>1000</rsc_memory_bound>";
    fs::write(slot.join("init_data.xml"), init).unwrap();
    let refusal = refused(&slot);
    assert!(refusal.contains("MiB of memory"), "{refusal}");
}

#[test]
fn a_full_disk_costs_no_work_while_there_is_time() {
    let project = enrolled();
    let whole = project.give("t_1", UnitTask::Train(Box::new(first_round(&project))));
    done(&whole);
    let expected = commitment(&project.output("t_1").0);
    // The model, checkpoints, both states and the output: none of them finds room at first.
    for full in [1, 4, 12] {
        let name = format!("f_{full}");
        let slot = project.give(&name, UnitTask::Train(Box::new(first_round(&project))));
        let disk = FullAtFirst::new(full);
        let outcome = compute_on(Arc::new(disk), &slot, |_, _| {}).unwrap();
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(commitment(&project.output(&name).0), expected);
    }
    let mut late = first_round(&project);
    late.train_ms = 0;
    late.until_ms = Ground::machine().clock.now_ms() - 59_000;
    let slot = project.give("f_x", UnitTask::Train(Box::new(late)));
    let disk = FullAtFirst::new(u32::MAX);
    let error = compute_on(Arc::new(disk), &slot, |_, _| {}).unwrap_err();
    assert!(crate::session::is_full(&error), "{error:#}");
}

#[test]
fn a_model_is_measured_as_the_engine_measures_it() {
    let project = enrolled();
    let work = project.work();
    let task = |shard, first_window, windows| {
        UnitTask::Evaluate(EvaluationTask {
            round: 0,
            parameters: work.model.parameters_hash.parse().unwrap(),
            work: work.clone(),
            shard,
            first_window,
            windows,
            measure_ms: 60_000,
        })
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
