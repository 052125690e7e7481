//! From text to what a run trains on: importers, the tokenizer, data shards, the held-out split and the losses to beat.
//!
//! The way through: [`import`] reads documents with their provenance, [`dataset::build`] removes duplicates, splits by document,
//! trains a [`tokenizer`], cuts [`shard`]s and measures [`baseline`]s; [`dataset::open`] reads the result back and trusts none of it.
//!
//! Everything is a function of its input: no clock, no entropy, no network.
//! The same documents and settings give the same bytes, so the same hashes, on every machine.

pub mod import;

pub mod tokenizer;

pub mod shard;

pub mod held_out;

pub mod baseline;

pub mod dataset;
