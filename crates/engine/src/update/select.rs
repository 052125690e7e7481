//! Which values of a chunk are kept: the largest, among equals the first.

/// Finds the positions of the `kept` largest of `magnitudes`, in rising order; ties go to the lower position and zeros
/// are never kept. `scratch` is overwritten. The magnitudes are at most [`super::chunks::CHUNK_MAX`].
pub(super) fn largest(
    magnitudes: &[u32],
    kept: usize,
    scratch: &mut Vec<u32>,
    positions: &mut Vec<u16>,
) {
    positions.clear();
    scratch.clear();
    scratch.extend(
        magnitudes
            .iter()
            .copied()
            .filter(|&magnitude| magnitude != 0),
    );
    let (threshold, mut ties) = if scratch.len() <= kept {
        (0, 0)
    } else if kept == 0 {
        return;
    } else {
        let (above, &mut threshold, _) = scratch.select_nth_unstable_by(kept - 1, |a, b| b.cmp(a));
        let larger = above
            .iter()
            .filter(|&&magnitude| magnitude > threshold)
            .count();
        (threshold, kept - larger)
    };
    for (position, &magnitude) in magnitudes.iter().enumerate() {
        if magnitude > threshold {
            positions.push(position as u16);
        } else if magnitude == threshold && ties > 0 {
            positions.push(position as u16);
            ties -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_largest_and_the_first_of_equals() {
        let check = |magnitudes: &[u32], kept, expected: &[u16]| {
            let mut positions = vec![9];
            largest(magnitudes, kept, &mut vec![7], &mut positions);
            assert_eq!(positions, expected);
        };
        check(&[], 3, &[]);
        check(&[5, 1, 5, 5], 0, &[]);
        check(&[5, 1, 5, 5], 2, &[0, 2]);
        check(&[0, 0, 1, 0], 3, &[2]);
        check(&[3, 3, 4, 3], 2, &[0, 2]);
        check(&[1, 2, 3], 3, &[0, 1, 2]);
        check(&[1, 0, 3, 2], 2, &[2, 3]);
    }
}
