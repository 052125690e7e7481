//! `athome run log`.

use clap::Args;
use protocol::api::LOG_PAGE_MAX;

use super::{
    Context,
    events::{Follower, Lines},
};

/// Read a run's log: everything that happened to it, in order.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome run log speeches\n  athome run log speeches --from 100 --follow\n  athome run log speeches --json | grep round_merged\n\nTimes are UTC."
)]
pub(super) struct Log {
    /// Name or id
    #[arg(value_name = "RUN")]
    run: String,
    /// Position of the first entry
    #[arg(long, default_value_t = 0, value_name = "INDEX")]
    from: u64,
    /// Go on with new entries as they come
    #[arg(long)]
    follow: bool,
}

impl Log {
    pub(super) async fn execute(self, context: &Context<'_>) -> anyhow::Result<()> {
        tokio::select! {
            outcome = self.read(context) => outcome,
            () = context.shutdown.cancelled() => Ok(()),
        }
    }

    async fn read(self, context: &Context<'_>) -> anyhow::Result<()> {
        let (id, _summary) = context.run(&self.run).await?;
        let charter = context.client.charter(id).await?;
        let mut next = self.from;
        let mut lines = Lines::default();
        loop {
            let page = context.client.log_page(id, next, LOG_PAGE_MAX).await?;
            let Some(last) = page.entries.last() else {
                break;
            };
            next = last.index + 1;
            for entry in &page.entries {
                context.output.event(entry, || lines.line(entry))?;
            }
        }
        if !self.follow {
            return Ok(());
        }
        let mut follower = Follower::new(context.client.clone(), &charter, next.checked_sub(1));
        loop {
            let entry = follower.next().await?;
            context.output.event(&entry, || lines.line(&entry))?;
        }
    }
}
