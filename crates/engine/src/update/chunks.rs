//! How tensors are cut into chunks: each tensor by itself, the last chunk of a tensor short.

/// The longest chunk: a position and two more bits fit in 16.
pub const CHUNK_MAX: usize = 1 << 14;

/// Tensor lengths and the chunk length that they are cut by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chunks {
    lengths: Vec<usize>,
    chunk: usize,
}

/// One chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Span {
    /// The tensor that it belongs to.
    pub tensor: usize,
    /// Where it starts in the flat vector of all parameters.
    pub start: usize,
    /// How many parameters it has, at least 1.
    pub length: usize,
}

impl Chunks {
    /// Cuts tensors of these lengths (zero allowed) into chunks of `chunk` parameters.
    ///
    /// Panics if `chunk` is zero or over [`CHUNK_MAX`], which validated settings rule out, or if the lengths' sum
    /// overflows.
    pub fn new(lengths: &[usize], chunk: u32) -> Self {
        let chunk = chunk as usize;
        assert!(
            (1..=CHUNK_MAX).contains(&chunk),
            "chunks of {chunk} parameters"
        );
        lengths
            .iter()
            .try_fold(0usize, |sum, &length| sum.checked_add(length))
            .expect("the parameters fit in memory");
        Self {
            lengths: lengths.to_vec(),
            chunk,
        }
    }

    /// The tensors' lengths.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// The length of every chunk but the last of a tensor.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// The number of parameters.
    pub fn total(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// The number of chunks.
    pub fn count(&self) -> usize {
        self.lengths
            .iter()
            .map(|length| length.div_ceil(self.chunk))
            .sum()
    }

    /// The chunks in order.
    pub fn spans(&self) -> impl Iterator<Item = Span> {
        let chunk = self.chunk;
        let starts = self.lengths.iter().scan(0, |next, &length| {
            let start = *next;
            *next += length;
            Some((start, length))
        });
        starts
            .enumerate()
            .flat_map(move |(tensor, (start, length))| {
                (0..length).step_by(chunk).map(move |offset| Span {
                    tensor,
                    start: start + offset,
                    length: chunk.min(length - offset),
                })
            })
    }
}
