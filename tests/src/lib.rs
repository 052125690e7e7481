//! What the whole-system tests share: a network of real processes, and an auditor that believes none of them.
//!
//! The tests use the `athome` binary, HTTP, and the crates that any stranger would use to check a run:
//! `protocol`, `network` and `engine`. They never reach into a role's crate.

pub mod audit;
#[cfg(target_os = "linux")]
pub mod boinc;
pub mod charters;
pub mod connection;
pub mod decoders;
pub mod disk;
#[cfg(target_os = "linux")]
pub mod link;
pub mod network;
pub mod places;
pub mod process;
pub mod relay;
pub mod stranger;
