//! The delta.
