//! What strangers must agree on: identities, units, the charter, the run log and its state machine, messages.
//!
//! Everything here is pure: no clock, no entropy, no socket, no file.
//! Time and seed are arguments; every decoder has a limit; every format has a golden-bytes test.

pub mod canonical;
pub mod hash;
pub mod key;
pub mod units;

pub mod charter;
pub mod command;
pub mod equivocation;
pub mod event;
pub mod identity;
pub mod log;
pub mod peers;
pub mod sampling;
pub mod schedule;
pub mod state;
pub mod succession;
pub mod update;

pub mod api;
pub mod boinc;

pub use hash::Hash;
pub use key::{PublicKey, SecretKey, Signature};
