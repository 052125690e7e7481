//! How fast the log may grow by what strangers send: new workers, commands of each, and bindings.

use std::{collections::HashSet, net::IpAddr, num::NonZeroU32};

use axum::http::StatusCode;
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota};
use network::server::share_of;
use protocol::{
    command::{Command, SignedCommand},
    identity::{Binding, CheckedBinding},
    state::State,
    units::{AccountId, WorkerId},
};

use super::errors::Failure;
use crate::{config::Config, run::Run};

/// One part in so many of the newcomers of an hour may come beside them, one from each address.
const FIRST_SHARE: u32 = 4;
/// Entries of the log that are told to an address as JSON in a minute; as canonical bytes so many times more.
const ENTRIES_PER_MINUTE: NonZeroU32 = NonZeroU32::new(100_000).expect("it is more than none");
/// See [`ENTRIES_PER_MINUTE`].
pub(super) const BINARY_IS_CHEAPER: usize = 8;

/// Who asks for a command or a binding to be taken. Kept between tries of the same, no part of it is counted twice.
#[derive(Debug, Default)]
pub(crate) struct Asker {
    /// `None` where nobody knows any more from where it came: nothing is counted for an address then.
    pub(crate) address: Option<IpAddr>,
    counted: HashSet<Counted>,
}

/// What was counted of one try: a command by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Counted {
    Command(u64),
    Move(u64),
    NewcomerOfAddress,
    FirstOfAddress,
    Newcomer,
    BindingOfAccount,
    BindingOfAddress,
}

impl From<IpAddr> for Asker {
    fn from(address: IpAddr) -> Self {
        Self {
            address: Some(address),
            ..Self::default()
        }
    }
}

impl Asker {
    /// Whether a part is counted, now or before.
    fn counts(&mut self, part: Counted, count: impl FnOnce() -> bool) -> bool {
        if self.counted.contains(&part) {
            return true;
        }
        let is_counted = count();
        if is_counted {
            self.counted.insert(part);
        }
        is_counted
    }

    /// The same for a part of the address's share.
    fn counts_for_address(
        &mut self,
        part: Counted,
        shares: &DefaultKeyedRateLimiter<IpAddr>,
    ) -> bool {
        match self.address {
            Some(address) => self.counts(part, || shares.check_key(&share_of(address)).is_ok()),
            None => true,
        }
    }
}

/// Counts what is admitted.
pub(crate) struct Admission {
    newcomers: DefaultDirectRateLimiter,
    /// A part beside those, for addresses of which nobody came lately: who comes from many addresses keeps none of these out.
    first_newcomers: DefaultDirectRateLimiter,
    first_of_address: DefaultKeyedRateLimiter<IpAddr>,
    /// Entries of the log, which cost a processor to tell.
    entries_of_address: DefaultKeyedRateLimiter<IpAddr>,
    newcomers_of_address: DefaultKeyedRateLimiter<IpAddr>,
    commands_of_worker: DefaultKeyedRateLimiter<WorkerId>,
    /// Joining with another name or device, and leaving.
    moves_of_worker: DefaultKeyedRateLimiter<WorkerId>,
    bindings_of_account: DefaultKeyedRateLimiter<AccountId>,
    bindings_of_address: DefaultKeyedRateLimiter<IpAddr>,
    /// In KiB.
    uploads_of_worker: DefaultKeyedRateLimiter<WorkerId>,
}

impl Admission {
    pub(crate) fn new(config: &Config) -> Self {
        let per_hour = |count| Quota::per_hour(NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN));
        let uploads = NonZeroU32::new(config.upload_mib_per_hour_per_worker.saturating_mul(1024));
        let commands = NonZeroU32::new(config.commands_per_minute_per_worker);
        Self {
            newcomers: DefaultDirectRateLimiter::direct(per_hour(config.new_workers_per_hour)),
            first_newcomers: DefaultDirectRateLimiter::direct(per_hour(
                (config.new_workers_per_hour / FIRST_SHARE).max(1),
            )),
            first_of_address: DefaultKeyedRateLimiter::keyed(per_hour(1)),
            entries_of_address: DefaultKeyedRateLimiter::keyed(Quota::per_minute(
                ENTRIES_PER_MINUTE,
            )),
            newcomers_of_address: DefaultKeyedRateLimiter::keyed(per_hour(
                config.new_workers_per_hour_per_address,
            )),
            commands_of_worker: DefaultKeyedRateLimiter::keyed(Quota::per_minute(
                commands.unwrap_or(NonZeroU32::MIN),
            )),
            moves_of_worker: DefaultKeyedRateLimiter::keyed(per_hour(
                config.moves_per_hour_per_worker,
            )),
            bindings_of_account: DefaultKeyedRateLimiter::keyed(per_hour(
                config.bindings_per_hour_per_account,
            )),
            bindings_of_address: DefaultKeyedRateLimiter::keyed(per_hour(
                config.bindings_per_hour_per_address,
            )),
            uploads_of_worker: DefaultKeyedRateLimiter::keyed(Quota::per_hour(
                uploads.unwrap_or(NonZeroU32::MIN),
            )),
        }
    }

    /// Refuses one newcomer, or one command of a worker, too many. The command's signature holds.
    pub(crate) async fn check(
        &self,
        run: &Run,
        command: &SignedCommand,
        asker: &mut Asker,
    ) -> Result<(), Failure> {
        let state = run.state.read().await;
        self.admit(&state, command, asker)
    }

    pub(crate) fn admit(
        &self,
        state: &State,
        command: &SignedCommand,
        asker: &mut Asker,
    ) -> Result<(), Failure> {
        if state.workers.contains_key(&command.worker) {
            let share_of = |shares: &DefaultKeyedRateLimiter<WorkerId>| {
                shares.check_key(&command.worker).is_ok()
            };
            let number = command.sequence;
            if !asker.counts(Counted::Command(number), || {
                share_of(&self.commands_of_worker)
            }) {
                return Err(Failure::too_many(
                    "this worker sends more commands than the hub takes in a minute",
                ));
            }
            if is_move(state, command)
                && !asker.counts(Counted::Move(number), || share_of(&self.moves_of_worker))
            {
                return Err(Failure::too_many(
                    "this worker joined and left as often as the hub takes in an hour; try again later",
                ));
            }
            return Ok(());
        }
        // Whoever never joined is refused by the rules, which costs the log nothing.
        if !matches!(command.command, Command::Join { .. }) {
            return Ok(());
        }
        if !asker.counts_for_address(Counted::NewcomerOfAddress, &self.newcomers_of_address) {
            return Err(Failure::too_many(
                "as many new workers came from this address as the hub takes in an hour; try again later",
            ));
        }
        let is_first = asker.address.is_some()
            && asker.counts_for_address(Counted::FirstOfAddress, &self.first_of_address);
        let has_room =
            || self.newcomers.check().is_ok() || (is_first && self.first_newcomers.check().is_ok());
        if asker.counts(Counted::Newcomer, has_room) {
            return Ok(());
        }
        Err(Failure::too_many(
            "as many new workers came as the hub takes in an hour; try again later",
        ))
    }

    /// Refuses an address more of the log than the hub tells in a minute.
    pub(super) fn check_page(&self, client: IpAddr, entries: usize) -> Result<(), Failure> {
        let entries = u32::try_from(entries).unwrap_or(u32::MAX);
        let entries = NonZeroU32::new(entries).unwrap_or(NonZeroU32::MIN);
        let told = self
            .entries_of_address
            .check_key_n(&share_of(client), entries);
        match told {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Failure::too_many(
                "this address asks for more of the log than the hub tells in a minute; log.bin costs less",
            )),
        }
    }

    /// Refuses a binding of which nothing is known, or one too many: each is an entry of the log for ever.
    pub(crate) async fn check_binding(
        &self,
        run: &Run,
        binding: &CheckedBinding,
        asker: &mut Asker,
    ) -> Result<(), Failure> {
        let state = run.state.read().await;
        self.admit_binding(&state, binding.get(), asker)
    }

    /// Refuses to let an account's held key act for its person's own key, where no machine is bound to the held one.
    pub(crate) async fn check_link(
        &self,
        run: &Run,
        binding: &CheckedBinding,
        asker: &mut Asker,
    ) -> Result<(), Failure> {
        let (binding, state) = (binding.get(), run.state.read().await);
        if state.bindings.get(&binding.key) == Some(&binding.account) {
            return Ok(());
        }
        let held = AccountId(binding.key);
        if !state.bindings.values().any(|it| *it == held) {
            return Err(Failure::new(
                StatusCode::CONFLICT,
                "no_machine",
                "no machine of the account has joined the run yet",
            ));
        }
        self.count_binding(binding, asker)
    }

    fn admit_binding(
        &self,
        state: &State,
        binding: &Binding,
        asker: &mut Asker,
    ) -> Result<(), Failure> {
        // The same again costs the log nothing.
        if state.bindings.get(&binding.key) == Some(&binding.account) {
            return Ok(());
        }
        let joined = |key| {
            state
                .workers
                .get(&WorkerId(key))
                .is_some_and(|it| it.joined)
        };
        if !joined(binding.key) && !joined(binding.account.0) {
            return Err(Failure::new(
                StatusCode::FORBIDDEN,
                "not_joined",
                "neither the key nor the account is a worker's that has joined the run",
            ));
        }
        self.count_binding(binding, asker)
    }

    fn count_binding(&self, binding: &Binding, asker: &mut Asker) -> Result<(), Failure> {
        // The account first: one over its share takes nothing from others at its address.
        let of_account = || self.bindings_of_account.check_key(&binding.account).is_ok();
        if !asker.counts(Counted::BindingOfAccount, of_account) {
            return Err(Failure::too_many(
                "as many keys were bound to this account as the hub takes in an hour; try again later",
            ));
        }
        if !asker.counts_for_address(Counted::BindingOfAddress, &self.bindings_of_address) {
            return Err(Failure::too_many(
                "as many keys were bound from this address as the hub takes in an hour; try again later",
            ));
        }
        Ok(())
    }

    /// Refuses bytes beyond what one worker may upload in an hour.
    pub(super) fn check_upload(&self, worker: &WorkerId, bytes: usize) -> Result<(), Failure> {
        let kib = NonZeroU32::new(bytes.div_ceil(1024) as u32).unwrap_or(NonZeroU32::MIN);
        match self.uploads_of_worker.check_key_n(worker, kib) {
            Ok(Ok(())) => Ok(()),
            _ => Err(Failure::too_many(
                "this worker uploaded as much as the hub takes of one in an hour; try again later",
            )),
        }
    }

    /// Forgets whom nothing is held against any more.
    pub(super) fn forget(&self) {
        self.first_of_address.retain_recent();
        self.first_of_address.shrink_to_fit();
        self.entries_of_address.retain_recent();
        self.entries_of_address.shrink_to_fit();
        self.newcomers_of_address.retain_recent();
        self.newcomers_of_address.shrink_to_fit();
        self.commands_of_worker.retain_recent();
        self.commands_of_worker.shrink_to_fit();
        self.moves_of_worker.retain_recent();
        self.moves_of_worker.shrink_to_fit();
        self.bindings_of_account.retain_recent();
        self.bindings_of_account.shrink_to_fit();
        self.bindings_of_address.retain_recent();
        self.bindings_of_address.shrink_to_fit();
        self.uploads_of_worker.retain_recent();
        self.uploads_of_worker.shrink_to_fit();
    }
}

/// Whether the log gets an entry of a worker that comes, changes or goes; the same join again costs it nothing.
fn is_move(state: &State, command: &SignedCommand) -> bool {
    let Some(record) = state.workers.get(&command.worker) else {
        return false;
    };
    if command.sequence <= record.sequence {
        return false;
    }
    match &command.command {
        Command::Join { name, device } => {
            !record.joined || record.name != *name || record.device != *device
        }
        Command::Leave { .. } => record.joined,
        Command::Commit(_) => false,
    }
}

#[cfg(test)]
mod tests;
