//! The worker: joins a run, trains its slot of each round, commits, uploads, and follows the model.
//!
//! [`run`] is the whole of it. It holds a machine's share of a run and nothing else: what counts is decided by the hub's
//! log, what may be spent by the owner's [`Config`]. A worker that is stopped, cut off or refused loses at most the round
//! in hand; its key and what it carries between rounds stay in its folder.

pub mod audit;
#[cfg(target_os = "linux")]
pub mod boinc;

mod config;
mod ground;
mod leaves;
mod status;

mod carried;
mod folder;
mod kept_model;
mod machine;
mod margin;
mod model;
mod plausible;
mod poll;
mod quota;
mod session;
mod shards;
mod takeovers;

#[cfg(test)]
mod testing;

pub use config::Config;
pub use ground::{Ground, MakeTrainer, Steps};
pub use session::{run, run_on};
pub use status::{Activity, Plan, Status, Summary};
