//! What strangers may add to a log, and how often.

use protocol::{SecretKey, command::Device, event::Event, identity::KeyRole};

use super::*;
use crate::store::tests::created;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn key(seed: u8) -> SecretKey {
    SecretKey::from_entropy([seed; 32])
}

struct Hub {
    key: SecretKey,
    state: State,
    admission: Admission,
}

impl Hub {
    fn new(config: &Config) -> Self {
        let key = key(1);
        let (_, state) = created(&key, "one");
        let admission = Admission::new(config);
        Self {
            key,
            state,
            admission,
        }
    }

    fn command(&self, worker: &SecretKey, sequence: u64, command: Command) -> SignedCommand {
        SignedCommand::sign(worker, self.state.run, sequence, command)
    }

    fn admits(&self, command: &SignedCommand, client: IpAddr) -> bool {
        let asker = &mut client.into();
        self.admission.admit(&self.state, command, asker).is_ok()
    }

    /// Admits a command and, if it was, folds it.
    fn send(&mut self, worker: &SecretKey, sequence: u64, command: Command) -> bool {
        let command = self.command(worker, sequence, command);
        let is_admitted = self.admits(&command, HERE);
        if is_admitted {
            let event = match command.command {
                Command::Join { .. } => Event::WorkerJoined { command },
                Command::Leave { .. } => Event::WorkerLeft { command },
                Command::Commit(_) => unreachable!("nobody commits here"),
            };
            let entry = self
                .state
                .head
                .next(&self.key, self.state.run, 2_000, event);
            self.state.apply_decided(&entry).unwrap();
        }
        is_admitted
    }

    fn bind(&mut self, account: &SecretKey, key: &SecretKey) -> Result<(), String> {
        let binding = Binding::sign(self.state.run, account, key, KeyRole::Session);
        let admitted = self
            .admission
            .admit_binding(&self.state, &binding, &mut HERE.into());
        admitted.map_err(|failure| failure.code().to_owned())?;
        let event = Event::IdentityBound { binding };
        let entry = self
            .state
            .head
            .next(&self.key, self.state.run, 2_000, event);
        // What was bound before is decided on as nothing to do.
        let _ = self.state.apply_decided(&entry);
        Ok(())
    }
}

fn join(threads: u32) -> Command {
    let device = Device {
        arithmetic: "none".into(),
        threads,
        memory_mib: 1,
        tokens_per_s: 1,
    };
    let name = "a worker".into();
    Command::Join { name, device }
}

fn leave() -> Command {
    let reason = String::new();
    Command::Leave { reason }
}

#[test]
fn who_comes_from_many_addresses_keeps_nobody_else_out() {
    let hub = Hub::new(&Config {
        new_workers_per_hour: 8,
        new_workers_per_hour_per_address: 4,
        ..Config::default()
    });
    let address = |last: u8| IpAddr::from([192, 0, 2, last]);
    let admit = |seed: u8, client: IpAddr| {
        let command = hub.command(&key(seed), 1, join(1));
        hub.admits(&command, client)
    };
    // Two addresses take all that come in an hour.
    let crowd = (10..20).filter(|seed| admit(*seed, address(seed % 2)));
    assert_eq!(crowd.count(), 8);
    assert!(!admit(20, address(0)));
    // Two more come from where nobody came before, one from each address.
    assert!(admit(21, address(9)));
    assert!(!admit(22, address(9)));
    assert!(admit(23, address(8)));
    assert!(!admit(24, address(7)));
}

#[test]
fn an_address_is_told_so_much_of_the_log_in_a_minute() {
    let hub = Hub::new(&Config::default());
    let other = IpAddr::from([192, 0, 2, 1]);
    for _ in 0..100 {
        assert!(hub.admission.check_page(HERE, 1_000).is_ok());
    }
    assert!(hub.admission.check_page(HERE, 1_000).is_err());
    assert!(hub.admission.check_page(other, 1_000).is_ok());
}

#[test]
fn a_worker_comes_and_goes_so_often_an_hour() {
    let mut hub = Hub::new(&Config {
        moves_per_hour_per_worker: 3,
        ..Config::default()
    });
    let (one, other) = (key(2), key(3));
    assert!(
        hub.send(&one, 1, join(1)),
        "a newcomer has a limit of its own"
    );
    assert!(hub.send(&one, 2, leave()));
    assert!(hub.send(&one, 3, join(1)));
    assert!(hub.send(&one, 4, join(2)));
    for sequence in 5..10 {
        let again = hub.command(&one, sequence, join(2));
        assert!(hub.admits(&again, HERE), "what changes nothing is free");
    }
    assert!(!hub.send(&one, 10, leave()));
    assert!(!hub.send(&one, 10, join(3)));
    assert!(hub.send(&other, 1, join(1)));
    assert!(hub.send(&other, 2, leave()));
}

#[test]
fn keys_are_bound_for_workers_and_few_of_them() {
    let mut hub = Hub::new(&Config {
        bindings_per_hour_per_account: 2,
        bindings_per_hour_per_address: 3,
        ..Config::default()
    });
    let (worker, account) = (key(2), key(4));
    assert_eq!(hub.bind(&account, &worker), Err("not_joined".into()));
    assert!(hub.send(&worker, 1, join(1)));
    assert_eq!(hub.bind(&account, &worker), Ok(()));
    assert_eq!(
        hub.bind(&account, &worker),
        Ok(()),
        "the same again is free"
    );
    assert_eq!(hub.bind(&account, &key(5)), Err("not_joined".into()));
    assert_eq!(hub.bind(&worker, &key(5)), Ok(()));
    assert_eq!(hub.bind(&worker, &key(6)), Ok(()));
    assert_eq!(hub.bind(&worker, &key(7)), Err("too_many".into()));
    // Another account from here is one too many for the address.
    let other = key(8);
    assert!(hub.send(&other, 1, join(1)));
    assert_eq!(hub.bind(&other, &key(9)), Err("too_many".into()));
    // A binding that the account did not sign is never asked for.
    let mut forged = Binding::sign(hub.state.run, &account, &key(10), KeyRole::Session);
    forged.account = AccountId(other.public());
    assert!(forged.checked().is_err());
}

#[test]
fn what_is_tried_again_is_counted_once_and_keeps_nobody_else_out() {
    let mut hub = Hub::new(&Config {
        bindings_per_hour_per_account: 2,
        bindings_per_hour_per_address: 4,
        ..Config::default()
    });
    let (one, other) = (key(2), key(3));
    assert!(hub.send(&one, 1, join(1)) && hub.send(&other, 1, join(1)));
    let binding = |account: &SecretKey, seed: u8| {
        Binding::sign(hub.state.run, account, &key(seed), KeyRole::Session)
    };
    let admits = |binding: &Binding, asker: &mut Asker| {
        let admitted = hub.admission.admit_binding(&hub.state, binding, asker);
        admitted.is_ok()
    };
    // The run takes the first one at a later moment: it asks again.
    let (first, mut asker) = (binding(&one, 10), HERE.into());
    assert!((0..100).all(|_| admits(&first, &mut asker)));
    assert!(admits(&binding(&one, 11), &mut HERE.into()));
    // One over the account's share asks in vain, and takes nothing of what others at its address have.
    let (third, mut asker) = (binding(&one, 12), HERE.into());
    assert!((0..100).all(|_| !admits(&third, &mut asker)));
    assert!(admits(&binding(&other, 13), &mut HERE.into()));
    assert!(admits(&binding(&other, 14), &mut HERE.into()));
    // A command is counted once too, and by its number.
    let mut asker = HERE.into();
    let admits = |sequence: u64, asker: &mut Asker| {
        let command = hub.command(&one, sequence, join(1));
        hub.admission.admit(&hub.state, &command, asker).is_ok()
    };
    assert!((0..1_000).all(|_| admits(2, &mut asker)));
    assert!(!(3..1_000).all(|it| admits(it, &mut asker)));
    // Of whom nobody knows an address any more, the account's share alone is asked for.
    let (third, mut nowhere) = (binding(&key(4), 2), Asker::default());
    let admitted = hub
        .admission
        .admit_binding(&hub.state, &third, &mut nowhere);
    assert!(admitted.is_ok());
    assert!(
        hub.admission
            .admit_binding(&hub.state, &third, &mut HERE.into())
            .is_err()
    );
}
