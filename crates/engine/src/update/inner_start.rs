//! The optimiser's m and v as a run's warm start publishes them: what a worker without carried state starts from.
//!
//! Short runs converge better if weights **and** moments of a first phase go to every worker (engine reference,
//! section 6). Magic `AHim`, version 1, steps behind the moments (`u64`), number of parameters (`u64`), m, v; little
//! endian. One byte string exists for each value, so a hash of the bytes is a hash of the value.

use thiserror::Error;

use super::carried::Moments;
use super::hash::for_each_block;

const MAGIC: &[u8; 4] = b"AHim";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 21;

/// Why the bytes of published moments were refused.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum InnerStartError {
    /// Not published moments, or of an unknown version.
    #[error("not an inner state of version {VERSION}")]
    WrongFormat,
    /// Of another model.
    #[error("the inner state is of {found} parameters, the model has {expected}")]
    WrongShape {
        /// Parameters of the model.
        expected: u64,
        /// Parameters that the bytes claim.
        found: u64,
    },
    /// Too few or too many bytes.
    #[error("{found} bytes instead of {expected}")]
    WrongLength {
        /// Bytes that such a state has.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A NaN or an infinity.
    #[error("value {index} is not finite")]
    NotFinite {
        /// Its place in m and v laid end to end.
        index: usize,
    },
    /// A second moment below zero, whose root AdamW would take.
    #[error("second moment {index} is negative")]
    NegativeSecondMoment {
        /// The parameter.
        index: usize,
    },
}

/// The bytes of m and v after `step` inner steps. Panics if they differ in length.
pub fn to_bytes(step: u64, first: &[f32], second: &[f32]) -> Vec<u8> {
    assert_eq!(
        first.len(),
        second.len(),
        "one m and one v for each parameter"
    );
    let mut bytes = Vec::with_capacity(bytes_of(first.len()));
    bytes.extend_from_slice(MAGIC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&step.to_le_bytes());
    bytes.extend_from_slice(&(first.len() as u64).to_le_bytes());
    for vector in [first, second] {
        for_each_block(vector.iter().map(|value| value.to_le_bytes()), |block| {
            bytes.extend_from_slice(block)
        });
    }
    bytes
}

/// The length of the moments of a model with this many `parameters`.
pub fn bytes_of(parameters: usize) -> usize {
    parameters.saturating_mul(8).saturating_add(HEADER_BYTES)
}

/// Reads the moments of a model with this many `parameters`, and the steps behind them. Allocates only once the length
/// is right.
///
/// # Errors
/// [`InnerStartError`].
pub fn from_bytes(bytes: &[u8], parameters: usize) -> Result<(u64, Moments), InnerStartError> {
    let (header, body) = bytes
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or(InnerStartError::WrongFormat)?;
    if header[..4] != *MAGIC || header[4] != VERSION {
        return Err(InnerStartError::WrongFormat);
    }
    let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    let (step, found) = (word(5), word(13));
    if found != parameters as u64 {
        return Err(InnerStartError::WrongShape {
            expected: parameters as u64,
            found,
        });
    }
    let expected = bytes_of(parameters);
    if bytes.len() != expected {
        return Err(InnerStartError::WrongLength {
            expected,
            found: bytes.len(),
        });
    }
    let values = body.as_chunks().0.iter().copied().map(f32::from_le_bytes);
    if let Some(index) = values.clone().position(|value| !value.is_finite()) {
        return Err(InnerStartError::NotFinite { index });
    }
    let first: Vec<f32> = values.clone().take(parameters).collect();
    let second: Vec<f32> = values.skip(parameters).collect();
    if let Some(index) = second.iter().position(|&value| value < 0.0) {
        return Err(InnerStartError::NegativeSecondMoment { index });
    }
    Ok((step, Moments { first, second }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_back() {
        let bytes = to_bytes(258, &[1.0, -2.0], &[0.5, 0.0]);
        let expected = [
            &b"AHim\x01"[..],
            &[2, 1, 0, 0, 0, 0, 0, 0],
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0],
            &[0, 0, 0, 0x3f, 0, 0, 0, 0],
        ];
        assert_eq!(bytes, expected.concat());
        let moments = Moments {
            first: vec![1.0, -2.0],
            second: vec![0.5, 0.0],
        };
        assert_eq!(from_bytes(&bytes, 2), Ok((258, moments)));
    }

    #[test]
    fn everything_else_is_refused() {
        let bytes = to_bytes(1, &[1.0, 2.0], &[3.0, 4.0]);
        assert_eq!(
            from_bytes(&bytes, 3),
            Err(InnerStartError::WrongShape {
                expected: 3,
                found: 2
            })
        );
        for length in 0..bytes.len() {
            assert!(from_bytes(&bytes[..length], 2).is_err(), "{length} bytes");
        }
        let long = [&bytes[..], &[0]].concat();
        assert_eq!(
            from_bytes(&long, 2),
            Err(InnerStartError::WrongLength {
                expected: 37,
                found: 38
            })
        );
        assert_eq!(from_bytes(b"AHcs", 2), Err(InnerStartError::WrongFormat));
        let infinite = to_bytes(1, &[1.0, f32::INFINITY], &[3.0, 4.0]);
        assert_eq!(
            from_bytes(&infinite, 2),
            Err(InnerStartError::NotFinite { index: 1 })
        );
        let negative = to_bytes(1, &[1.0, 2.0], &[3.0, -4.0]);
        assert_eq!(
            from_bytes(&negative, 2),
            Err(InnerStartError::NegativeSecondMoment { index: 1 })
        );
    }
}
