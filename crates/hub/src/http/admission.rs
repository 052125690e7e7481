//! How fast the log may grow by what strangers send: new workers, and commands of each.

use std::{net::IpAddr, num::NonZeroU32};

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota};
use network::server::share_of;
use protocol::{
    command::{Command, SignedCommand},
    units::WorkerId,
};

use super::errors::Failure;
use crate::{config::Config, run::Run};

/// Counts what is admitted.
pub(crate) struct Admission {
    newcomers: DefaultDirectRateLimiter,
    newcomers_of_address: DefaultKeyedRateLimiter<IpAddr>,
    commands_of_worker: DefaultKeyedRateLimiter<WorkerId>,
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
            newcomers_of_address: DefaultKeyedRateLimiter::keyed(per_hour(
                config.new_workers_per_hour_per_address,
            )),
            commands_of_worker: DefaultKeyedRateLimiter::keyed(Quota::per_minute(
                commands.unwrap_or(NonZeroU32::MIN),
            )),
            uploads_of_worker: DefaultKeyedRateLimiter::keyed(Quota::per_hour(
                uploads.unwrap_or(NonZeroU32::MIN),
            )),
        }
    }

    /// Refuses one newcomer, or one command of a worker, too many. The command's signature holds.
    pub(super) async fn check(
        &self,
        run: &Run,
        command: &SignedCommand,
        client: IpAddr,
    ) -> Result<(), Failure> {
        let is_known = run.state.read().await.workers.contains_key(&command.worker);
        if is_known {
            return self
                .commands_of_worker
                .check_key(&command.worker)
                .map_err(|_| {
                    Failure::too_many(
                        "this worker sends more commands than the hub takes in a minute",
                    )
                });
        }
        // Whoever never joined is refused by the rules, which costs the log nothing.
        if !matches!(command.command, Command::Join { .. }) {
            return Ok(());
        }
        self.newcomers_of_address
            .check_key(&share_of(client))
            .map_err(|_| {
                Failure::too_many(
                    "as many new workers came from this address as the hub takes in an hour; try again later",
                )
            })?;
        self.newcomers.check().map_err(|_| {
            Failure::too_many(
                "as many new workers came as the hub takes in an hour; try again later",
            )
        })
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
        self.newcomers_of_address.retain_recent();
        self.newcomers_of_address.shrink_to_fit();
        self.commands_of_worker.retain_recent();
        self.commands_of_worker.shrink_to_fit();
        self.uploads_of_worker.retain_recent();
        self.uploads_of_worker.shrink_to_fit();
    }
}
