//! Whether an update done again is the one that was committed to, and where they first differ.
//!
//! Between machines of one arithmetic class every bit must agree. Between others the products of matrices differ in their
//! last bits, which training amplifies: there the loss must agree within 10⁻³ nats, and what was sent must point the same
//! way (cosine at least 0.995, at least 0.9 of the places in common; training reference, 1.5).

use std::fmt;

use engine::{
    replay::Rules,
    update::{decoded::DecodedUpdate, leaves, steps::StepLeaf},
};
use protocol::{
    event::RefusalReason,
    update::{UpdateHeader, open},
};

use super::Executed;

/// Largest difference of mean losses between arithmetic classes, 10⁻⁶ nats a token.
pub const LOSS_MICRONATS_APART_MAX: u64 = 1_000;
/// Least cosine of two payloads between arithmetic classes.
pub const COSINE_MIN: f64 = 0.995;
/// Least share of places in common between arithmetic classes.
pub const OVERLAP_MIN: f64 = 0.9;

/// A part of the state after an inner step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafPart {
    /// The samples trained on.
    Samples,
    /// The batch's loss.
    Loss,
    /// The gradient's norm.
    GradientNorm,
    /// AdamW's m.
    FirstMoment,
    /// AdamW's v.
    SecondMoment,
    /// The parameters.
    Parameters,
}

/// Where an update and its repetition part.
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    /// The leaves that were shown are not those that the update commits to.
    LeavesNotCommitted,
    /// The update has another number of leaves, or leaves of other steps.
    LeafSteps,
    /// The state after this step, and all of it that differs.
    Leaf {
        /// The step, from 1.
        step: u64,
        /// What differs.
        parts: Vec<LeafPart>,
    },
    /// The root over the inner steps; without leaves nobody can say at which.
    StepsRoot,
    /// Tokens or steps.
    Claim,
    /// The mean training loss, 10⁻⁶ nats a token.
    Loss {
        /// As committed.
        committed: u64,
        /// As it comes out here.
        found: u64,
    },
    /// The published m and v.
    InnerState,
    /// The file that was revealed is none, or not the one committed to.
    Unreadable(RefusalReason),
    /// What was sent.
    Payload(PayloadDifference),
    /// What is carried out after a merge.
    CarriedAfter,
    /// What is carried out after a refusal.
    CarriedIfRefused,
}

/// How far two payloads are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PayloadDifference {
    /// The first parameter whose value differs.
    pub parameter: Option<usize>,
    /// Cosine of the angle between both.
    pub cosine: f64,
    /// Norm of what was sent over the norm of what comes out here.
    pub norm_ratio: f64,
    /// Share of the places that both send, of those that either sends.
    pub overlap: f64,
}

/// What a comparison came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// All differences, in the order of an update's making; none if every bit agrees.
    pub differences: Vec<Difference>,
    /// Whether the differences are within what another arithmetic class explains.
    pub is_alike: bool,
    /// Whether the file was there to be compared.
    pub is_payload_compared: bool,
}

impl Comparison {
    /// Whether every bit agrees.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.differences.is_empty()
    }
}

/// Compares an update that was done again with what its worker committed to, with the file that it revealed and the leaves
/// that it showed, as far as they are there.
#[must_use]
pub fn compare(
    rules: &Rules,
    committed: &UpdateHeader,
    file: Option<&[u8]>,
    shown: Option<&[StepLeaf]>,
    executed: &Executed,
) -> Comparison {
    let found = &executed.header;
    let mut differences = Vec::new();
    if committed.steps_root != found.steps_root {
        differences.extend(leaf_differences(committed, shown, &executed.leaves));
    }
    if (
        committed.tokens,
        committed.steps,
        committed.head_start_steps,
    ) != (found.tokens, found.steps, found.head_start_steps)
    {
        differences.push(Difference::Claim);
    }
    if committed.loss_micronats != found.loss_micronats {
        differences.push(Difference::Loss {
            committed: committed.loss_micronats,
            found: found.loss_micronats,
        });
    }
    if committed.inner_state != found.inner_state {
        differences.push(Difference::InnerState);
    }
    differences.extend(file.and_then(|file| payload_difference(rules, committed, file, executed)));
    if committed.carried_after != found.carried_after {
        differences.push(Difference::CarriedAfter);
    }
    if committed.carried_if_refused != found.carried_if_refused {
        differences.push(Difference::CarriedIfRefused);
    }
    let is_alike = committed.loss_micronats.abs_diff(found.loss_micronats)
        <= LOSS_MICRONATS_APART_MAX
        && differences.iter().all(Difference::is_explained);
    Comparison {
        differences,
        is_alike,
        is_payload_compared: file.is_some(),
    }
}

impl Difference {
    /// Whether another arithmetic class can bring it about.
    fn is_explained(&self) -> bool {
        match self {
            Self::LeavesNotCommitted | Self::LeafSteps | Self::Claim | Self::Unreadable(_) => false,
            Self::Leaf { parts, .. } => !parts.contains(&LeafPart::Samples),
            Self::Payload(apart) => COSINE_MIN <= apart.cosine && OVERLAP_MIN <= apart.overlap,
            // The loss has its own bound; hashes of what differs in its last bits say nothing.
            Self::StepsRoot
            | Self::Loss { .. }
            | Self::InnerState
            | Self::CarriedAfter
            | Self::CarriedIfRefused => true,
        }
    }
}

fn leaf_differences(
    committed: &UpdateHeader,
    shown: Option<&[StepLeaf]>,
    found: &[StepLeaf],
) -> Vec<Difference> {
    let Some(shown) = shown else {
        return vec![Difference::StepsRoot];
    };
    if leaves::root(shown) != committed.steps_root.0 {
        return vec![Difference::LeavesNotCommitted, Difference::StepsRoot];
    }
    let first = shown
        .iter()
        .zip(found)
        .find(|(shown, found)| shown != found);
    match first {
        Some((shown, found)) if shown.step == found.step => vec![Difference::Leaf {
            step: found.step,
            parts: parts(shown, found),
        }],
        Some(_) | None => vec![Difference::LeafSteps],
    }
}

fn parts(a: &StepLeaf, b: &StepLeaf) -> Vec<LeafPart> {
    [
        (LeafPart::Samples, a.samples == b.samples),
        (LeafPart::Loss, a.loss_bits == b.loss_bits),
        (
            LeafPart::GradientNorm,
            a.gradient_norm_bits == b.gradient_norm_bits,
        ),
        (LeafPart::FirstMoment, a.first_moment == b.first_moment),
        (LeafPart::SecondMoment, a.second_moment == b.second_moment),
        (LeafPart::Parameters, a.parameters == b.parameters),
    ]
    .into_iter()
    .filter_map(|(part, is_same)| (!is_same).then_some(part))
    .collect()
}

fn payload_difference(
    rules: &Rules,
    committed: &UpdateHeader,
    file: &[u8],
    executed: &Executed,
) -> Option<Difference> {
    let sent = match rules.judge(file, committed) {
        Ok(sent) => sent,
        Err(reason) => return Some(Difference::Unreadable(reason)),
    };
    let payload = |file| open(file).map(|(_, payload)| payload);
    if payload(file).ok() == payload(&executed.file[..]).ok() {
        return None;
    }
    let found = rules
        .judge(&executed.file, &executed.header)
        .map_err(Difference::Unreadable);
    Some(match found {
        Ok(found) => Difference::Payload(apart(&sent, &found)),
        Err(difference) => difference,
    })
}

fn apart(sent: &DecodedUpdate, found: &DecodedUpdate) -> PayloadDifference {
    let (sent, found) = (values(sent), values(found));
    let (mut dot, mut common, mut parameter) = (0.0, 0_usize, None);
    let (mut a, mut b) = (sent.iter().peekable(), found.iter().peekable());
    while let (Some(&&(left, x)), Some(&&(right, y))) = (a.peek(), b.peek()) {
        if left == right {
            dot += f64::from(x) * f64::from(y);
            common += 1;
            parameter = parameter.or((x != y).then_some(left));
            a.next();
            b.next();
        } else {
            parameter = parameter.or(Some(left.min(right)));
            if left < right {
                a.next()
            } else {
                b.next()
            };
        }
    }
    let rest = a.next().or(b.next()).map(|(at, _)| *at);
    let norm = |values: &[(usize, i32)]| -> f64 {
        let squares = values.iter().map(|(_, it)| f64::from(*it).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let (norm_sent, norm_found) = (norm(&sent), norm(&found));
    let either = sent.len() + found.len() - common;
    PayloadDifference {
        parameter: parameter.or(rest),
        cosine: dot / (norm_sent * norm_found).max(f64::MIN_POSITIVE),
        norm_ratio: norm_sent / norm_found.max(f64::MIN_POSITIVE),
        overlap: common as f64 / either.max(1) as f64,
    }
}

/// The values that an update sends which are not zero.
fn values(update: &DecodedUpdate) -> Vec<(usize, i32)> {
    let mut values = Vec::with_capacity(update.sent());
    update.for_each(|at, value| {
        if value != 0 {
            values.push((at, value));
        }
    });
    values
}

impl fmt::Display for LeafPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Samples => "samples",
            Self::Loss => "loss",
            Self::GradientNorm => "gradient norm",
            Self::FirstMoment => "first moment",
            Self::SecondMoment => "second moment",
            Self::Parameters => "parameters",
        })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeavesNotCommitted => {
                f.write_str("the leaves that were shown are not those it committed to")
            }
            Self::LeafSteps => f.write_str("it has leaves of other steps"),
            Self::Leaf { step, parts } => {
                let parts: Vec<String> = parts.iter().map(LeafPart::to_string).collect();
                write!(f, "the state after step {step}: {}", parts.join(", "))
            }
            Self::StepsRoot => f.write_str(
                "the root over its inner steps (its worker's leaves would say at which step)",
            ),
            Self::Claim => f.write_str("its steps or tokens"),
            Self::Loss { committed, found } => write!(
                f,
                "its training loss: {:.6} committed, {:.6} found",
                *committed as f64 / 1e6,
                *found as f64 / 1e6
            ),
            Self::InnerState => f.write_str("the m and v that it published"),
            Self::Unreadable(reason) => f.write_str(&reason.sentence()),
            Self::Payload(apart) => {
                let at = apart
                    .parameter
                    .map_or_else(String::new, |it| format!(" from parameter {it} on"));
                write!(
                    f,
                    "what it sent{at}: {:.3} times as large, cosine {:.4}, {:.1} % of the places in common",
                    apart.norm_ratio,
                    apart.cosine,
                    100.0 * apart.overlap
                )
            }
            Self::CarriedAfter => f.write_str("what it carries on after a merge"),
            Self::CarriedIfRefused => f.write_str("what it carries on after a refusal"),
        }
    }
}
