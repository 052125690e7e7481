//! The commitment to a round's inner steps: a Merkle tree with one leaf every few steps.
//!
//! A leaf names the worker's whole state after a step, so an auditor who repeats the steps between two leaves from the
//! revealed state of the first can tell whether the second is right, and two auditors who disagree can bisect
//! (training reference, 1.5). Hashing costs one pass over parameters and moments for each leaf.
//!
//! Inner nodes hash their two children; an odd node moves up unchanged; the root also hashes the number of leaves, so
//! no two lists of leaves have one root. Leaves, nodes and roots have BLAKE3 contexts of their own.

use serde::{Deserialize, Serialize};

/// The most leaves of a tree: more than any round has steps.
pub const LEAVES_MAX: u32 = 1 << 20;

const LEAF_CONTEXT: &str = "athome 1 inner step";
const NODE_CONTEXT: &str = "athome 1 inner steps: node";
const ROOT_CONTEXT: &str = "athome 1 inner steps: root";

/// A worker's state after one inner step, by hashes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StepLeaf {
    /// The step in the round: 1 after the first.
    pub step: u64,
    /// [`super::hash::parameters_hash`] of the parameters after it.
    pub parameters: [u8; 32],
    /// [`super::hash::moment_hash`] of m after it.
    pub first_moment: [u8; 32],
    /// [`super::hash::moment_hash`] of v after it.
    pub second_moment: [u8; 32],
    /// [`super::hash::samples_hash`] of its samples.
    pub samples: [u8; 32],
    /// The bits of its loss, `f32`.
    pub loss_bits: u32,
    /// The bits of its gradient's norm before clipping, `f32`.
    pub gradient_norm_bits: u32,
}

impl StepLeaf {
    /// The leaf's hash: its fields in order, integers little endian.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(LEAF_CONTEXT);
        hasher.update(&self.step.to_le_bytes());
        for hash in [
            &self.parameters,
            &self.first_moment,
            &self.second_moment,
            &self.samples,
        ] {
            hasher.update(hash);
        }
        hasher.update(&self.loss_bits.to_le_bytes());
        hasher.update(&self.gradient_norm_bits.to_le_bytes());
        hasher.finalize().into()
    }
}

/// The tree over the leaves of one round, leaves first.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct StepTree {
    leaves: Vec<[u8; 32]>,
}

/// That a leaf is in a tree.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StepProof {
    /// The leaf's place, from 0.
    pub index: u32,
    /// The number of leaves.
    pub leaves: u32,
    /// The neighbours on the way up, where there are any.
    pub neighbours: Vec<[u8; 32]>,
}

impl StepTree {
    /// A tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the state after another step. Panics beyond [`LEAVES_MAX`].
    pub fn push(&mut self, leaf: &StepLeaf) {
        assert!(
            self.leaves.len() < LEAVES_MAX as usize,
            "a round has fewer steps"
        );
        self.leaves.push(leaf.hash());
    }

    /// The number of leaves.
    pub fn len(&self) -> usize {
        self.leaves.len()
    }

    /// Whether there are no leaves.
    pub fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    /// The root that an update commits to; that of no leaves is the hash of the number 0.
    pub fn root(&self) -> [u8; 32] {
        let mut level = self.leaves.clone();
        while level.len() > 1 {
            level = parents(&level);
        }
        root_hash(self.leaves.len() as u32, level.first())
    }

    /// The proof for leaf `index`; `None` if there is no such leaf.
    pub fn proof(&self, index: u32) -> Option<StepProof> {
        self.leaves.get(index as usize)?;
        let mut neighbours = Vec::new();
        let (mut level, mut place) = (self.leaves.clone(), index as usize);
        while level.len() > 1 {
            neighbours.extend(level.get(place ^ 1));
            level = parents(&level);
            place /= 2;
        }
        Some(StepProof {
            index,
            leaves: self.leaves.len() as u32,
            neighbours,
        })
    }
}

impl StepProof {
    /// Whether `leaf` is leaf [`Self::index`] of the tree with this `root`. False for anything malformed.
    pub fn verify(&self, leaf: &StepLeaf, root: &[u8; 32]) -> bool {
        if self.index >= self.leaves || self.leaves > LEAVES_MAX {
            return false;
        }
        let mut hash = leaf.hash();
        let (mut place, mut width) = (self.index, self.leaves);
        let mut neighbours = self.neighbours.iter();
        while width > 1 {
            if place ^ 1 < width {
                let Some(neighbour) = neighbours.next() else {
                    return false;
                };
                hash = if place % 2 == 0 {
                    node_hash(&hash, neighbour)
                } else {
                    node_hash(neighbour, &hash)
                };
            }
            (place, width) = (place / 2, width.div_ceil(2));
        }
        neighbours.next().is_none() && root_hash(self.leaves, Some(&hash)) == *root
    }
}

fn parents(level: &[[u8; 32]]) -> Vec<[u8; 32]> {
    let parent = |pair: &[[u8; 32]]| match pair {
        [left, right] => node_hash(left, right),
        [odd] => *odd,
        _ => unreachable!("chunks of two"),
    };
    level.chunks(2).map(parent).collect()
}

fn node_hash(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    blake3::Hasher::new_derive_key(NODE_CONTEXT)
        .update(left)
        .update(right)
        .finalize()
        .into()
}

fn root_hash(leaves: u32, top: Option<&[u8; 32]>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
    hasher.update(&leaves.to_le_bytes());
    hasher.update(top.map_or(&[], |top| &top[..]));
    hasher.finalize().into()
}
