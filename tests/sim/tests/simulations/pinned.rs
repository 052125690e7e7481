//! Seeds that failed once.

use sim::{Outcome, Profile, simulate};
