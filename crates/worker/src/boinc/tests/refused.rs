//! Units that are not done, and what stands in the way of those that are.

use network::disk::RealDisk;

use super::*;

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
    let folder = Folder::open_if_free(&RealDisk, &project.folder().join("athome"))
        .unwrap()
        .unwrap();
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
    let needed = engine::charter::worker_memory_bytes(&project.charter);
    let bound = |bytes: u64| format!("<rsc_memory_bound>{bytes}.0</rsc_memory_bound>");
    fs::write(slot.join("init_data.xml"), bound(needed - 1)).unwrap();
    refused(&slot);
    fs::write(slot.join("init_data.xml"), bound(needed)).unwrap();
    done(&slot);
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
