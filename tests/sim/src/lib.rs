//! The simulator: the production hub, store and workers on one thread in virtual time, with only socket, disk, clock and
//! training step replaced. The same seed gives the same log.
//!
//! What is left out: TCP, TLS and HTTP framing, the hub's limits by address and its slow-body checks, peers, the real
//! training step, processes and their signals. Tests of the whole system have those.

pub mod chance;
pub mod check;
pub mod disk;
pub mod liar;
pub mod machine;
pub mod network;
pub mod nodes;
pub mod profile;
pub mod run;
pub mod simulation;
mod stall;

pub use check::Outcome;
pub use profile::Profile;
pub use simulation::{
    Simulation, hush_planned_panics, in_simulated_world, simulate, simulate_and_tell,
};
