//! Further hub processes: mirrors of the hub, and hubs after it.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use protocol::{api::mirrors::RunHead, units::RunId};

use super::{Network, free_addresses, ready};
use crate::process::Process;

/// A mirror, and how to start it again.
pub(super) struct Mirror {
    pub(super) process: Option<Process>,
    address: SocketAddr,
    arguments: Vec<String>,
}

impl Network {
    /// Finds an address for a mirror that is started later; charters can name it now.
    ///
    /// # Errors
    /// If there is none.
    pub fn plan_mirror(&mut self, name: &str) -> Result<String> {
        let [address, _] = free_addresses()?;
        let mirror = Mirror {
            process: None,
            address,
            arguments: Vec::new(),
        };
        self.mirrors.insert(name.to_owned(), mirror);
        self.mirror_url(name)
    }

    /// Starts a planned mirror with these arguments in a folder of its own, again after [`Self::kill_mirror`].
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn start_mirror(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        let (folder, log) = (
            self.path(name),
            self.folder.join(format!("mirror-{name}.log")),
        );
        let mirror = self.mirrors.get_mut(name).context("no such mirror")?;
        ensure!(mirror.process.is_none(), "the mirror {name} runs already");
        let listen = mirror.address.to_string();
        mirror.arguments = ["hub", "--folder", &folder, "--listen", &listen]
            .iter()
            .chain(arguments)
            .map(|it| (*it).to_owned())
            .collect();
        let mut process = Process::athome(&mirror.arguments, &log)?;
        ready(&format!("http://{listen}/api/v1/hub"), &mut process).await?;
        mirror.process = Some(process);
        Ok(())
    }

    /// Ends a mirror as a power cut would.
    ///
    /// # Errors
    /// If it was not running.
    pub fn kill_mirror(&mut self, name: &str) -> Result<()> {
        let mirror = self.mirrors.get_mut(name).context("no such mirror")?;
        mirror.process.take().context("it does not run")?.kill()
    }

    /// A mirror's address as a URL.
    ///
    /// # Errors
    /// If there is no such mirror.
    pub fn mirror_url(&self, name: &str) -> Result<String> {
        let mirror = self.mirrors.get(name).context("no such mirror")?;
        Ok(format!("http://{}", mirror.address))
    }

    /// A mirror's address.
    ///
    /// # Errors
    /// If there is no such mirror.
    pub fn mirror_address(&self, name: &str) -> Result<SocketAddr> {
        Ok(self.mirrors.get(name).context("no such mirror")?.address)
    }

    /// From now on questions go to this mirror; to the hub for `None`.
    pub fn ask(&mut self, mirror: Option<&str>) {
        self.asked = mirror.map(str::to_owned);
    }

    /// Where a process's copy of a run stands.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn head_at(&self, url: &str, run: RunId) -> Result<RunHead> {
        let client = network::HubClient::new(url)?;
        Ok(client.head(run).await?)
    }
}
