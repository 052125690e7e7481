//! What checking a run costs over reading and merging alone, on one core.

use anyhow::Result;

use super::{merge, report::Figure};

/// Runs the engine's own bench, whose documentation says what is counted, and passes its lines on.
pub(super) fn measure() -> Result<Vec<Figure>> {
    merge::measure_example("verify_speed")
}
