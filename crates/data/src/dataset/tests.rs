use std::collections::BTreeMap;

use super::*;
use crate::import::Document;

/// A text of its own for every number.
fn text(number: usize) -> String {
    let words = [
        "peace", "commerce", "the", "Congress", "of", "nation", "labor", "and",
    ];
    (0..60)
        .map(|index| words[(number * 7 + index * index) % words.len()].to_owned() + " ")
        .chain([format!("No. {number}.")])
        .collect()
}

fn document(number: usize) -> Document {
    Document {
        text: text(number),
        title: format!("Letter {number}"),
        source: "letters".to_owned(),
        licence: "CC0-1.0".to_owned(),
        owner: if number < 8 { "Ada" } else { "Grace" }.to_owned(),
        metadata: BTreeMap::from([("year".to_owned(), (1800 + number).to_string())]),
    }
}

/// Ten documents and a copy of the third.
fn documents() -> Vec<Document> {
    let mut documents: Vec<Document> = (0..10).map(document).collect();
    documents.insert(5, documents[2].clone());
    documents
}

fn settings() -> BuildSettings {
    BuildSettings {
        name: "letters".to_owned(),
        vocabulary_size: 280,
        held_out_every: 5,
        shard_tokens_max: 500,
        baseline_context: 16,
    }
}

fn silent(_: &str, _: u64, _: u64) {}

/// A dataset in a folder that is gone with it.
fn built() -> (tempfile::TempDir, PathBuf, Manifest) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("letters");
    let manifest = build(documents(), &settings(), &out, &mut silent).unwrap();
    (dir, out, manifest)
}

/// All files below a folder, with their bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_built_dataset_opens() {
    let (dir, out, manifest) = built();
    let dataset = open(&out).unwrap();
    assert_eq!(dataset.manifest, manifest);
    assert_eq!(dataset.manifest_hash, Hash::of_blob(&manifest.to_bytes()));
    assert_eq!(dataset.dir(), out);
    // Nothing but manifest, tokenizer and shards, and nothing beside the folder.
    assert_eq!(files(dir.path()).len(), 2 + manifest.shards.len());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn split_and_provenance_are_by_document() {
    let (_dir, out, manifest) = built();
    let dataset = open(&out).unwrap();
    assert_eq!(manifest.documents, 10);
    assert_eq!(manifest.duplicates_removed, 1);
    assert_eq!(manifest.held_out_documents, 2);
    assert_eq!(manifest.owners, ["Ada", "Grace"]);

    let mut titles: BTreeMap<Split, Vec<String>> = BTreeMap::new();
    for entry in &manifest.shards {
        let shard = dataset.shard(entry).unwrap();
        assert!(shard.tokens.len() <= 500);
        for bounds in &shard.header.documents {
            let number = bounds.metadata["year"].parse::<usize>().unwrap() - 1800;
            let tokens = shard.document_tokens(bounds);
            let decoded = dataset.tokenizer.decode(tokens);
            assert_eq!(decoded, text(number));
            assert_eq!(bounds.text_hash, Hash::of_blob(decoded.as_bytes()));
            assert_eq!(shard.header.owner, document(number).owner);
            titles
                .entry(entry.split)
                .or_default()
                .push(bounds.title.clone());
        }
    }
    // The copy does not count: positions 4 and 9 of the distinct documents are held out.
    assert_eq!(titles[&Split::HeldOut], ["Letter 4", "Letter 9"]);
    assert_eq!(titles[&Split::Training].len(), 8);
    for (split, tokens) in [
        (Split::Training, manifest.training_tokens),
        (Split::HeldOut, manifest.held_out_tokens),
    ] {
        assert_eq!(dataset.tokens(split).unwrap().len() as u64, tokens);
    }
}

#[test]
fn building_again_gives_the_same_bytes() {
    let (_first, out, _) = built();
    let (_second, again, _) = built();
    let names = |dir: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        let relative =
            |(path, bytes): (PathBuf, Vec<u8>)| (path.strip_prefix(dir).unwrap().to_owned(), bytes);
        files(dir).into_iter().map(relative).collect()
    };
    assert_eq!(names(&out), names(&again));
}

#[test]
fn golden_manifest() {
    let (_dir, _, manifest) = built();
    let text = String::from_utf8(manifest.to_bytes()).unwrap();
    expect_test::expect![[r#"
        {
          "format_version": 1,
          "name": "letters",
          "tokenizer_hash": "074515271f491dd396b1947ab3d56892037e1c277cfc0cf24c62ae9e3a8a7b4e",
          "vocabulary_size": 280,
          "sources": [
            "letters"
          ],
          "licences": [
            "CC0-1.0"
          ],
          "owners": [
            "Ada",
            "Grace"
          ],
          "documents": 10,
          "duplicates_removed": 1,
          "held_out_documents": 2,
          "held_out_every": 5,
          "training_tokens": 1287,
          "training_bytes": 2988,
          "held_out_tokens": 420,
          "held_out_bytes": 732,
          "shards": [
            {
              "hash": "e673207ac42e71462929fe168badfa1f50369d082b6d30b5ef9ff87d75a7131b",
              "bytes": 1124,
              "split": "training",
              "tokens": 441,
              "text_bytes": 1068,
              "documents": 3,
              "source": "letters",
              "licence": "CC0-1.0",
              "owner": "Ada"
            },
            {
              "hash": "3a18d7446394da00d7fd6f38b9fc16efc4fb5895cf83876295aa448fc51445fb",
              "bytes": 904,
              "split": "training",
              "tokens": 359,
              "text_bytes": 717,
              "documents": 2,
              "source": "letters",
              "licence": "CC0-1.0",
              "owner": "Ada"
            },
            {
              "hash": "5251d591b5f36b7ee9dbbdf3595a0769ad9e42b2a74dac2125e9785ef1a2ee65",
              "bytes": 996,
              "split": "training",
              "tokens": 405,
              "text_bytes": 792,
              "documents": 2,
              "source": "letters",
              "licence": "CC0-1.0",
              "owner": "Ada"
            },
            {
              "hash": "4c9061abd4f27b29d8232bf43b8e24df72a7284860e2f4313a9890a162ba9131",
              "bytes": 293,
              "split": "training",
              "tokens": 82,
              "text_bytes": 411,
              "documents": 1,
              "source": "letters",
              "licence": "CC0-1.0",
              "owner": "Grace"
            },
            {
              "hash": "b79ba8e9ba51dae622a47057051d4e61ea2e355edfb9b68ed26c0ca7ff5fe3b5",
              "bytes": 594,
              "split": "held_out",
              "tokens": 233,
              "text_bytes": 351,
              "documents": 1,
              "source": "letters",
              "licence": "CC0-1.0",
              "owner": "Ada"
            },
            {
              "hash": "090faa6c0469474160ae7b545b39890dcafeba985fbc7932d79de6482962e34b",
              "bytes": 504,
              "split": "held_out",
              "tokens": 187,
              "text_bytes": 381,
              "documents": 1,
              "source": "letters",
              "licence": "CC0-1.0",
              "owner": "Grace"
            }
          ],
          "baselines": {
            "context": 16,
            "predicted_tokens": 416,
            "counted_tokens": 1287,
            "unigram_micro_nats": 2936488,
            "bigram_micro_nats": 927369,
            "trigram_micro_nats": 1177382
          }
        }
    "#]]
    .assert_eq(&text);
    assert_eq!(Manifest::from_bytes(text.as_bytes()).unwrap(), manifest);
}

#[test]
fn baselines_are_those_of_the_tokens() {
    let (_dir, out, manifest) = built();
    let dataset = open(&out).unwrap();
    let baselines = manifest.baselines.unwrap();
    let held_out = dataset.tokens(Split::HeldOut).unwrap();
    let windows = crate::held_out::windows(&held_out, 16, usize::MAX);
    assert_eq!(baselines.predicted_tokens, windows.len() as u64 * 16);
    let training = dataset.tokens(Split::Training).unwrap();
    let ngram = crate::baseline::Ngram::train(&training, manifest.vocabulary_size);
    let trigram = ngram.nats_per_token(3, &held_out, 16, usize::MAX).unwrap();
    assert_eq!(baselines.trigram_micro_nats, (trigram * 1e6).round() as u64);
    assert!(baselines.bigram_micro_nats < baselines.unigram_micro_nats);
    let bits = manifest.bits_per_byte(trigram) * manifest.held_out_bytes as f64;
    let nats = trigram * manifest.held_out_tokens as f64;
    assert!((bits * std::f64::consts::LN_2 - nats).abs() < 1e-6);
}

#[test]
fn too_short_for_a_window_has_no_baselines() {
    let dir = tempfile::tempdir().unwrap();
    let settings = BuildSettings {
        baseline_context: 1_000_000,
        ..settings()
    };
    let manifest = build(documents(), &settings, &dir.path().join("d"), &mut silent).unwrap();
    assert_eq!(manifest.baselines, None);
}

#[test]
fn failures_leave_nothing() {
    let check = |documents: Vec<Document>, settings: BuildSettings, expected: &str| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("letters");
        let error = build(documents, &settings, &out, &mut silent).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{error}");
    };
    check(vec![], settings(), "0 distinct documents are too few");
    check(
        documents()[..4].to_vec(),
        settings(),
        "4 distinct documents are too few",
    );
    check(
        vec![document(1); 9],
        settings(),
        "1 distinct documents are too few",
    );
    let mut bad = documents();
    bad[6].text = "\n".to_owned();
    check(bad, settings(), "document 6 (Letter 5) cannot be used");
    check(documents(), BuildSettings::default(), "the setting name");
    check(
        documents(),
        BuildSettings {
            held_out_every: 1,
            ..settings()
        },
        "held_out_every",
    );
    check(
        documents(),
        BuildSettings {
            shard_tokens_max: 0,
            ..settings()
        },
        "shard_tokens_max",
    );
    check(
        documents(),
        BuildSettings {
            baseline_context: 0,
            ..settings()
        },
        "baseline_context",
    );
    check(
        documents(),
        BuildSettings {
            vocabulary_size: 100,
            ..settings()
        },
        "tokenizer",
    );
}

#[test]
fn a_failure_half_way_leaves_nothing() {
    // Something takes the manifest's place while the shards are being written.
    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join(".letters.partial");
    let mut shards_seen = 0;
    let mut interfere = |phase: &str, done, _| {
        if phase == "measure baselines" && done == 0 {
            shards_seen = fs::read_dir(partial.join("shards")).unwrap().count();
            fs::create_dir(partial.join("dataset.json")).unwrap();
        }
    };
    let error = build(
        documents(),
        &settings(),
        &dir.path().join("letters"),
        &mut interfere,
    )
    .expect_err("the manifest cannot be written");
    assert!(
        matches!(error, DatasetError::File { doing: "write", .. }),
        "{error}"
    );
    assert!(shards_seen > 0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_abandoned_build_leaves_nothing() {
    for phase in ["check documents", "train tokenizer", "encode"] {
        let dir = tempfile::tempdir().unwrap();
        let abandon = Abandon::default();
        let mut was_there = false;
        let mut at_phase = |now: &str, _, _| {
            if now == phase && !was_there {
                was_there = dir.path().join(".letters.partial/lock").exists();
                assert!(abandon.now());
                assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{phase}");
            }
        };
        let out = dir.path().join("letters");
        let error = build_unless(documents(), &settings(), &out, &abandon, &mut at_phase);
        assert!(matches!(error, Err(DatasetError::Abandoned)), "{error:?}");
        assert!(was_there);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{phase}");
    }
}

#[test]
fn a_build_that_is_over_or_not_begun_can_be_abandoned_too() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("letters");
    let abandon = Abandon::default();
    build_unless(documents(), &settings(), &out, &abandon, &mut silent).unwrap();
    assert!(!abandon.now());
    assert!(open(&out).is_ok());

    let abandon = Abandon::default();
    assert!(abandon.now());
    let other = dir.path().join("other");
    let error = build_unless(documents(), &settings(), &other, &abandon, &mut silent);
    assert!(matches!(error, Err(DatasetError::Abandoned)), "{error:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_panic_half_way_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("letters");
    let caught = std::panic::catch_unwind(|| {
        build(documents(), &settings(), &out, &mut |phase, done, _| {
            assert!(phase != "encode" || done == 0, "stop here");
        })
    });
    assert!(caught.is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_a_killed_build_left_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join(".letters.partial");
    fs::create_dir_all(partial.join("shards")).unwrap();
    for name in ["lock", "tokenizer.json", "shards/0000"] {
        fs::write(partial.join(name), b"half").unwrap();
    }
    let out = dir.path().join("letters");
    let manifest = build(documents(), &settings(), &out, &mut silent).unwrap();
    open(&out).unwrap();
    assert_eq!(files(dir.path()).len(), 2 + manifest.shards.len());
}

#[test]
fn one_builder_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("letters");
    let mut second = None;
    build(documents(), &settings(), &out, &mut |phase, _, _| {
        if phase == "measure baselines" && second.is_none() {
            second = Some(build(documents(), &settings(), &out, &mut silent));
        }
    })
    .unwrap();
    assert!(matches!(second, Some(Err(DatasetError::Busy(_)))));
    open(&out).unwrap();
}

#[test]
fn a_taken_place_is_left_alone() {
    let (_dir, out, _) = built();
    let before = files(&out);
    let again = build(documents(), &settings(), &out, &mut silent);
    assert!(matches!(again, Err(DatasetError::Exists(path)) if path == out));
    assert_eq!(files(&out), before);
}

/// The dataset does not open after `damage`, and says why.
fn check_refused(damage: impl FnOnce(&Path, &Manifest), expected: &str) {
    let (_dir, out, manifest) = built();
    damage(&out, &manifest);
    let error = open(&out).expect_err(expected);
    let chain = match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    assert!(chain.contains(expected), "{chain}");
}

fn shard_file(out: &Path, manifest: &Manifest) -> PathBuf {
    out.join("shards").join(manifest.shards[0].hash.to_string())
}

#[test]
fn changed_files_are_refused() {
    let flip = |path: PathBuf| {
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    check_refused(
        |out, m| flip(shard_file(out, m)),
        "a data shard has the hash",
    );
    check_refused(
        |out, _| flip(out.join("tokenizer.json")),
        "the tokenizer has the hash",
    );
    check_refused(|out, _| flip(out.join("dataset.json")), "malformed");
    check_refused(
        |out, m| fs::remove_file(shard_file(out, m)).unwrap(),
        "cannot read",
    );
    check_refused(
        |out, _| fs::remove_file(out.join("dataset.json")).unwrap(),
        "cannot read",
    );
    let lengthen = |path: PathBuf| {
        let mut bytes = fs::read(&path).unwrap();
        bytes.push(0);
        fs::write(path, bytes).unwrap();
    };
    check_refused(|out, m| lengthen(shard_file(out, m)), "has more than");
    let swap = |out: &Path, m: &Manifest| {
        let second = out.join("shards").join(m.shards[1].hash.to_string());
        fs::copy(second, shard_file(out, m)).unwrap();
    };
    check_refused(swap, "");
}

#[test]
fn changed_manifests_are_refused() {
    let check = |change: fn(&mut Manifest), expected: &str| {
        check_refused(
            |out, manifest| {
                let mut manifest = manifest.clone();
                change(&mut manifest);
                fs::write(out.join("dataset.json"), manifest.to_bytes()).unwrap();
            },
            expected,
        );
    };
    check(|m| m.format_version = 2, "format version 2");
    check(
        |m| m.tokenizer_hash = Hash([0; 32]),
        "the tokenizer has the hash",
    );
    check(|m| m.vocabulary_size += 1, "another vocabulary size");
    check(
        |m| m.vocabulary_size = 0,
        "vocabulary size is out of bounds",
    );
    check(|m| m.shards[0].hash = Hash([0; 32]), "cannot read");
    check(|m| m.shards[1].hash = m.shards[0].hash, "listed twice");
    check(|m| m.training_tokens += 1, "do not add up");
    check(|m| m.shards[0].documents += 1, "do not add up");
    check(|m| m.documents = u64::MAX, "do not add up");
    check(|m| m.licences.clear(), "sources, licences or owners");
    check(|m| m.name.clear(), "the name is empty");
    check(
        |m| {
            m.shards[0].tokens += 1;
            m.training_tokens += 1;
        },
        "differs from its manifest entry in its tokens",
    );
    check(
        |m| {
            for shard in &mut m.shards {
                shard.licence = "MIT".to_owned();
            }
            m.licences = vec!["MIT".to_owned()];
        },
        "differs from its manifest entry in its licence",
    );
    check(
        |m| m.shards[0].bytes += 1,
        "differs from its manifest entry in its length",
    );
    check(|m| m.shards[0].bytes -= 1, "has more than");
}

#[test]
fn hostile_manifests_are_survived() {
    let (_dir, _, manifest) = built();
    let bytes = manifest.to_bytes();
    let mut state = 1_u64;
    for position in 0..bytes.len() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let mut damaged = bytes.clone();
        damaged[position] = (state >> 56) as u8;
        if let Ok(read) = Manifest::from_bytes(&damaged) {
            assert_eq!(Manifest::from_bytes(&read.to_bytes()).unwrap(), read);
        }
    }
    for deep in [&b"["[..], b"{\"shards\":"] {
        assert!(Manifest::from_bytes(&deep.repeat(100_000)).is_err());
    }
    assert!(matches!(
        Manifest::from_bytes(&vec![b' '; MANIFEST_BYTES_MAX + 1]),
        Err(DatasetError::TooLarge { .. })
    ));
}
