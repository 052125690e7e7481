//! Rotary positions in Hugging Face's half-split layout: element i of a head pairs with element i + width/2.
//!
//! (a, b) → (a·cos − b·sin, b·cos + a·sin) with angle = position · θ^(−2i/width); the backward turns the other way.
//! Angles are rounded to f32 as transformers does, so exported logits agree at long contexts too.

/// Cosines and sines of every position: `positions × width/2` each.
pub(crate) struct Rotary {
    half: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Rotary {
    /// Tables for `positions` positions of heads of width `head_size`, base `theta`.
    pub(crate) fn new(positions: usize, head_size: usize, theta: f32) -> Self {
        let half = head_size / 2;
        let frequency = |index: usize| {
            let exponent = (2 * index) as f32 / head_size as f32;
            1.0 / f64::from(theta).powf(f64::from(exponent)) as f32
        };
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let angle = |position: usize, index: usize| f64::from(position as f32 * frequencies[index]);
        let table = |map: fn(f64) -> f64| {
            (0..positions * half)
                .map(|at| map(angle(at / half, at % half)) as f32)
                .collect::<Vec<_>>()
        };
        Rotary {
            half,
            cosines: table(f64::cos),
            sines: table(f64::sin),
        }
    }

    /// Turns one head at `position` in place.
    #[inline(always)]
    pub(crate) fn turn(&self, head: &mut [f32], position: usize) {
        self.rotate(head, position, 1.0);
    }

    /// Turns one head's gradient back in place: the transpose of [`Rotary::turn`].
    #[inline(always)]
    pub(crate) fn turn_back(&self, head: &mut [f32], position: usize) {
        self.rotate(head, position, -1.0);
    }

    #[inline(always)]
    fn rotate(&self, head: &mut [f32], position: usize, direction: f32) {
        let start = position * self.half;
        let cosines = &self.cosines[start..start + self.half];
        let sines = &self.sines[start..start + self.half];
        let (low, high) = head.split_at_mut(self.half);
        let high = &mut high[..self.half];
        for index in 0..self.half {
            let (cosine, sine) = (cosines[index], direction * sines[index]);
            let (a, b) = (low[index], high[index]);
            low[index] = a * cosine - b * sine;
            high[index] = b * cosine + a * sine;
        }
    }
}
