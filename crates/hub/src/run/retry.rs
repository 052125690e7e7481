//! When something that failed is tried again: soon, then ever later, so that what fails every time costs next to nothing.

use std::time::Duration;

use tokio::time::Instant;

/// Wait after the first failure in a row.
const FIRST: Duration = Duration::from_secs(2);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(60);

/// The failures in a row of one thing, and when it is due again.
#[derive(Debug, Default)]
pub(super) struct Retry {
    failures: u32,
    after: Option<Instant>,
}

impl Retry {
    /// It failed: it is due again after twice the last wait.
    pub(super) fn failed(&mut self) {
        let wait = FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures += 1;
        self.after = Some(Instant::now() + wait.min(LONGEST));
    }

    /// When it may be tried again; none for at once.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.after
    }

    /// It is tried again now.
    pub(super) fn begin(&mut self) {
        self.after = None;
    }

    /// Whether it may be tried now.
    pub(super) fn is_due(&self) -> bool {
        self.after.is_none_or(|it| it <= Instant::now())
    }

    /// Whether it failed the last time, and may be tried again now.
    pub(super) fn is_due_again(&self) -> bool {
        self.after.is_some() && self.is_due()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_grow_and_have_an_end() {
        let mut retry = Retry::default();
        assert!(retry.is_due() && !retry.is_due_again());
        for seconds in [2, 4, 8, 16, 32, 60, 60] {
            retry.failed();
            assert!(!retry.is_due());
            tokio::time::advance(Duration::from_secs(seconds - 1)).await;
            assert!(!retry.is_due(), "{seconds} s");
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(retry.is_due_again(), "{seconds} s");
        }
        retry = Retry::default();
        retry.failed();
        tokio::time::advance(FIRST).await;
        assert!(retry.is_due());
    }
}
