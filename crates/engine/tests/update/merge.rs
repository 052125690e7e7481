//! The merge.
