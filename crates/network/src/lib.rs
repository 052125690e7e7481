//! The client of the hub's API: typed calls, the log and its events, content-addressed blobs, from peers or from the hub.
//! And [`server`]: the connections that strangers may open to a hub or gateway.
//!
//! Nothing that a hub sends is believed for being sent: bodies have limits, a charter must hash to its run's id, log
//! entries must continue a signed chain, and blobs must hash to their names. Calls that can be repeated safely are
//! repeated a few times; what then still fails is the caller's to wait for.

pub mod blobs;
pub mod client;
pub mod decoders;
pub mod disk;
pub mod events;
pub mod log;
pub mod peers;
pub mod retry;
pub mod server;
pub mod source;
pub mod text;
pub mod world;

pub use blobs::{BlobCache, UploadAuthorisation};
pub use client::{ClientError, HubClient, accounts};
pub use source::Source;
