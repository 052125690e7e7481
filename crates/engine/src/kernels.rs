//! The arithmetic: each file is one operation with its forward and its backward, formulas above the code.
//!
//! Reductions use sixteen lanes and a fixed tree, so a result's bits depend on the shape alone.

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod cross_entropy;
pub(crate) mod embedding;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod rotary;
pub(crate) mod swiglu;
pub(crate) mod vector;

#[cfg(test)]
mod tests;
