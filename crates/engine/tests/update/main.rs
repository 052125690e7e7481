//! The update codecs, the merge and the delta, from outside.

mod codec;
mod delta;
mod merge;
mod random;
mod refusals;
mod state;
