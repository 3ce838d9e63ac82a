//! Rotary positions: each pair of a head's numbers is turned by an angle that grows with the position.
//!
//! As in `transformers`' `rotate_half`: the pairs of a head of size `s` are elements `i` and `i + s/2`.

use rayon::prelude::*;

/// Rows handled by one task.
const ROWS_PER_TASK: usize = 16;

/// Turns the heads of `x [rows, width]` in place; row `r` by the angles of `positions[r]`, or back by them where `inverse`.
/// `cos` and `sin` are `[positions, head_size/2]`.
///
/// `(a, b) ← (a·cos − b·sin, b·cos + a·sin)`; the inverse, which is also the gradient, has the other sign of `sin`.
pub fn turn(
    x: &mut [f32],
    width: usize,
    head_size: usize,
    positions: &[usize],
    cos: &[f32],
    sin: &[f32],
    inverse: bool,
) {
    let half = head_size / 2;
    x.par_chunks_mut(ROWS_PER_TASK * width).zip(positions.par_chunks(ROWS_PER_TASK)).for_each(|(rows, positions)| {
        for (row, position) in rows.chunks_exact_mut(width).zip(positions) {
            let (cos, sin) = (&cos[position * half..][..half], &sin[position * half..][..half]);
            for head in row.chunks_exact_mut(head_size) {
                let (first, second) = head.split_at_mut(half);
                for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    let s = if inverse { -s } else { *s };
                    (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_there_and_back_is_nothing() {
        let (head_size, positions) = (4, [2usize, 0]);
        let angles = [[0.0f32, 0.0], [0.5, 0.1], [1.0, 0.2]];
        let cos: Vec<f32> = angles.iter().flatten().map(|angle| angle.cos()).collect();
        let sin: Vec<f32> = angles.iter().flatten().map(|angle| angle.sin()).collect();
        let start: Vec<f32> = (0..16).map(|i| i as f32 - 7.5).collect();
        let mut x = start.clone();
        turn(&mut x, 8, head_size, &positions, &cos, &sin, false);
        // The first pair of the first head is elements 0 and 2, turned by one radian.
        let want = start[0] * 1.0f32.cos() - start[2] * 1.0f32.sin();
        assert!((x[0] - want).abs() < 1e-6);
        assert_eq!(x[8..], start[8..], "position 0 is not turned");
        turn(&mut x, 8, head_size, &positions, &cos, &sin, true);
        for (a, b) in x.iter().zip(&start) {
            assert!((a - b).abs() < 1e-5);
        }
    }
}
