//! Who is believed to keep the run.

use std::sync::Arc;

use network::disk::RealDisk;

use super::*;
use crate::testing::{Host, Hosts, replaceable, takeovers};

const A: &str = "http://a";
const B: &str = "http://b";

struct Stage {
    hosts: Hosts,
    client: HubClient,
    takeovers: Takeovers,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let hosts = Hosts::default();
        let folder = tempfile::tempdir().unwrap();
        let client = hosts.client(A);
        let takeovers = open(&folder, &client);
        Self {
            hosts,
            client,
            takeovers,
            folder,
        }
    }

    /// What an answer from an address that speaks of so many takeovers leads to.
    #[track_caller]
    fn check(&mut self, address: &str, said: u64, expected: Result<bool, &str>) {
        let address = Arc::from(address);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        match (
            runtime.block_on(self.takeovers.examine(&address, said)),
            expected,
        ) {
            (Ok(is_news), Ok(expected)) => assert_eq!(is_news, expected),
            (Err(problem), Err(part)) => assert!(problem.contains(part), "{problem}"),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }
}

fn open(folder: &tempfile::TempDir, client: &HubClient) -> Takeovers {
    let file = folder.path().join("run").join("takeovers");
    Takeovers::open(Arc::new(RealDisk), file, &replaceable(), client.clone())
}

#[test]
fn a_takeover_is_believed_with_its_signature_and_remembered() {
    let mut stage = Stage::new();
    stage.check(A, 0, Ok(false));
    assert!(stage.hosts.lock().asked.is_empty(), "nothing to ask for");
    let first = takeovers(&[(10, B)]);
    stage.hosts.set("b", Host::hub(&first));
    stage.check(B, 1, Ok(true));
    stage.check(B, 1, Ok(false));
    stage.check(A, 0, Err("is the hub no longer"));
    // The next process needs nobody to tell it.
    let client = stage.hosts.client(A);
    stage.takeovers = open(&stage.folder, &client);
    assert_eq!(stage.takeovers.generation(), 1);
    assert_eq!(client.addresses().len(), 2);
    stage.check(A, 0, Err("is the hub no longer"));
}

#[test]
fn nobody_is_believed_without_one() {
    let mut stage = Stage::new();
    stage.hosts.set("a", Host::hub(&[]));
    stage.check(A, 1, Err("speaks of 1 takeovers of the run and proves 0"));
    stage.check("http://nobody", 1, Err("does not say who keeps the run"));
    // Key 12 is not the charter's.
    stage.hosts.set("a", Host::hub(&takeovers_by_a_stranger()));
    stage.check(A, 1, Err("no succession key of the run names"));
    assert_eq!(stage.takeovers.generation(), 0);
    assert_eq!(stage.client.addresses().len(), 1);
}

fn takeovers_by_a_stranger() -> Vec<Succession> {
    takeovers_unchecked(12)
}

fn takeovers_unchecked(by: u8) -> Vec<Succession> {
    let begun = Sealing::of(&replaceable());
    let (head, key) = (protocol::log::Head::empty(), crate::testing::key(by));
    vec![Succession::sign(&key, &begun, &head, key.public(), B)]
}

#[test]
fn of_two_takeovers_the_one_of_the_earlier_key_counts() {
    let mut stage = Stage::new();
    stage.hosts.set("b", Host::hub(&takeovers(&[(11, B)])));
    stage.check(B, 1, Ok(true));
    stage
        .hosts
        .set("c", Host::hub(&takeovers(&[(10, "http://c")])));
    stage.check("http://c", 1, Ok(true));
    stage.check(
        B,
        1,
        Err("another takeover of the run than the one that counts"),
    );
    // The same key for the same generation: people decide, the worker stays.
    stage
        .hosts
        .set("d", Host::hub(&takeovers(&[(10, "http://d")])));
    stage.check("http://d", 1, Err("its people must decide"));
    // A further takeover decides.
    let second = takeovers(&[(11, B), (11, B)]);
    stage.hosts.set("b", Host::hub(&second));
    stage.check(B, 2, Ok(true));
}

#[test]
fn a_damaged_file_is_asked_for_again() {
    let mut stage = Stage::new();
    stage.hosts.set("b", Host::hub(&takeovers(&[(10, B)])));
    stage.check(B, 1, Ok(true));
    let file = stage.folder.path().join("run").join("takeovers");
    let bytes = std::fs::read(&file).unwrap();
    for broken in [&bytes[1..], &bytes[..bytes.len() - 1], b"noise"] {
        std::fs::write(&file, broken).unwrap();
        assert_eq!(open(&stage.folder, &stage.client).generation(), 0);
    }
}
