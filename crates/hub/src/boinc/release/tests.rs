use super::*;

const LINUX: &str = "x86_64-pc-linux-gnu";

struct Place {
    folder: tempfile::TempDir,
    key: SigningKey,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("built"), "the program").unwrap();
        Self {
            folder,
            key: SigningKey::generate().unwrap(),
        }
    }

    fn release(&self) -> PathBuf {
        self.folder.path().join("release")
    }

    fn sign(&self, version_num: u32, platform: &str) -> Result<ReleaseFile> {
        self.sign_with(&self.key, version_num, platform)
    }

    fn sign_with(&self, key: &SigningKey, version_num: u32, platform: &str) -> Result<ReleaseFile> {
        let program = Program {
            app: "athome",
            version_num,
            platform,
            plan_class: "",
            file: &self.folder.path().join("built"),
        };
        let by = Signing {
            key,
            previous: None,
        };
        sign(&self.release(), by, program)
    }
}

#[test]
fn what_was_signed_reads_and_every_change_of_it_is_refused() {
    let place = Place::new();
    let file = place.sign(101, LINUX).unwrap();
    assert_eq!(file.name, "athome_101_x86_64-pc-linux-gnu");
    assert_eq!(file.md5, "e9221b876bf1e70aa3b06fbd6914f57b");
    place.sign(101, "windows_x86_64").unwrap();
    let release = Release::read(&place.release()).unwrap();
    assert_eq!(release.code_sign_key, place.key.public_text());
    assert_eq!(release.platforms.len(), 2);
    assert_eq!(
        release.platforms[1].files[0].name,
        "athome_101_windows_x86_64.exe"
    );

    let program = place.release().join(&file.name);
    for content in ["", "the prograM", "the program and more"] {
        fs::write(&program, content).unwrap();
        let error = Release::read(&place.release()).unwrap_err();
        assert!(format!("{error:#}").contains(&file.name), "{error:#}");
    }
    fs::remove_file(&program).unwrap();
    assert!(Release::read(&place.release()).is_err());
    fs::write(&program, "the program").unwrap();
    Release::read(&place.release()).unwrap();
}

#[test]
fn a_published_name_never_gets_another_content() {
    let place = Place::new();
    place.sign(101, LINUX).unwrap();
    let before = Release::read(&place.release()).unwrap();
    fs::write(place.folder.path().join("built"), "another program").unwrap();
    let another = SigningKey::generate().unwrap();
    for (refused, expected) in [
        (place.sign(101, LINUX), "needs a higher version"),
        (place.sign(102, "i686-pc-linux-gnu"), "new folder"),
        (
            place.sign_with(&another, 101, "i686-pc-linux-gnu"),
            "another key",
        ),
        (place.sign(101, "../escape"), "can't be the name"),
        (place.sign(0, LINUX), "a version is"),
    ] {
        let error = format!("{:#}", refused.unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(Release::read(&place.release()).unwrap(), before);
}

#[test]
fn a_list_that_does_not_hold_is_refused() {
    let place = Place::new();
    place.sign(101, LINUX).unwrap();
    let release = Release::read(&place.release()).unwrap();
    let path = place.release().join(LIST_NAME);
    let refused = |change: fn(&mut Release)| {
        let mut changed = release.clone();
        change(&mut changed);
        fs::write(&path, serde_json::to_string(&changed).unwrap()).unwrap();
        Release::read(&place.release()).is_err()
    };
    assert!(!refused(|_| {}));
    assert!(refused(|it| it.platforms.clear()));
    assert!(refused(
        |it| it.platforms[0].files[0].name = "../built".into()
    ));
    assert!(refused(|it| it.platforms[0].files[0].main_program = false));
    assert!(refused(|it| it.platforms[0].files[0].md5 = "0".repeat(32)));
    assert!(refused(|it| it.platforms[0].files[0].blake3 = Hash([0; 32])));
    assert!(refused(|it| it.platforms.push(it.platforms[0].clone())));
    assert!(refused(
        |it| it.platforms[0].files[0].file_signature = ".\n".into()
    ));
    assert!(refused(
        |it| it.code_sign_key = SigningKey::generate().unwrap().public_text()
    ));
    for text in ["", "{}", "[]", "\u{0}"] {
        fs::write(&path, text).unwrap();
        assert!(Release::read(&place.release()).is_err(), "{text}");
    }
    fs::remove_file(&path).unwrap();
    let error = format!("{:#}", Release::read(&place.release()).unwrap_err());
    assert!(error.contains("is not there"), "{error}");
}

#[test]
fn a_release_may_carry_clients_over_from_the_key_before() {
    let place = Place::new();
    let before = SigningKey::generate().unwrap();
    let program = Program {
        app: "athome",
        version_num: 102,
        platform: LINUX,
        plan_class: "",
        file: &place.folder.path().join("built"),
    };
    let by = Signing {
        key: &place.key,
        previous: Some(&before),
    };
    sign(&place.release(), by, program).unwrap();
    let release = Release::read(&place.release()).unwrap();
    assert!(release.code_sign_key_signature.is_some());
    // A further platform keeps it.
    place.sign(102, "i686-pc-linux-gnu").unwrap();
    assert_eq!(
        Release::read(&place.release())
            .unwrap()
            .code_sign_key_signature,
        release.code_sign_key_signature
    );
}
