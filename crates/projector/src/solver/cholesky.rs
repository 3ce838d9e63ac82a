//! The Cholesky factor of a symmetric matrix in plain `f64`: column panel by column panel, so that what is read again and
//! again stays in the cache. Each entry is one dot product in a fixed order, so the bits depend neither on the panels nor
//! on the threads.

use std::ops::Range;

use rayon::prelude::*;

use super::lanes::{add_dots, dot, rest_of_dot};

/// Columns of the factor that are computed together; a multiple of the running sums of a dot product.
const PANEL: usize = 32;

/// Rows that are computed together.
const TILE: usize = 4;

/// Entries of a dot product at once: those of a panel's rows stay in the cache.
const DEPTH: usize = 512;

/// The lower factor `L` of `C + λI = LLᵀ`, row by row.
pub(super) struct Cholesky {
    size: usize,
    lower: Vec<f64>,
}

impl Cholesky {
    /// None where the matrix is not positive definite in this precision.
    pub(super) fn of(matrix: &[f64], size: usize, ridge: f64) -> Option<Self> {
        let mut lower = vec![0.0; size * size];
        for start in (0..size).step_by(PANEL) {
            let end = size.min(start + PANEL);
            let (panel, below) = lower[start * size..].split_at_mut((end - start) * size);
            for i in start..end {
                let (above, rest) = panel.split_at_mut((i - start) * size);
                let row = &mut rest[..size];
                fill_row(row, above, &matrix[i * size..], start..i);
                let square = matrix[i * size + i] + ridge - dot(&row[..i], &row[..i]);
                if !(square > 0.0 && square.is_finite()) {
                    return None;
                }
                row[i] = square.sqrt();
            }
            let panel = &*panel;
            below.par_chunks_mut(TILE * size).enumerate().for_each(|(tile, rows)| {
                let matrix = &matrix[(end + tile * TILE) * size..];
                match rows.len() == TILE * size {
                    true => fill_tile(rows, panel, matrix, start..end),
                    false => {
                        for (row, matrix) in rows.chunks_exact_mut(size).zip(matrix.chunks_exact(size)) {
                            fill_row(row, panel, matrix, start..end);
                        }
                    }
                }
            });
        }
        Some(Self { size, lower })
    }

    /// `x` of `LLᵀ x = right`.
    pub(super) fn solve(&self, right: &[f64]) -> Vec<f64> {
        let n = self.size;
        let mut x = right.to_vec();
        for i in 0..n {
            let row = &self.lower[i * n..i * n + i + 1];
            x[i] = (x[i] - dot(&row[..i], &x[..i])) / row[i];
        }
        for i in (0..n).rev() {
            let row = &self.lower[i * n..i * n + i + 1];
            x[i] /= row[i];
            let value = x[i];
            for (x, l) in x[..i].iter_mut().zip(row) {
                *x -= l * value;
            }
        }
        x
    }
}

/// Columns `columns` of a row of the factor, given the factor's rows from `columns.start` on and the matrix's row.
fn fill_row(row: &mut [f64], factor: &[f64], matrix: &[f64], columns: Range<usize>) {
    let size = row.len();
    for (other, j) in factor.chunks_exact(size).zip(columns) {
        row[j] = (matrix[j] - dot(&row[..j], &other[..j])) / other[j];
    }
}

/// The same of [`TILE`] rows at once.
fn fill_tile(rows: &mut [f64], factor: &[f64], matrix: &[f64], columns: Range<usize>) {
    let (size, start) = (rows.len() / TILE, columns.start);
    // The columns before the panel are complete: their part of every dot product does not depend on the panel's order.
    let mut sums = [[[0.0; 8]; TILE]; PANEL];
    for from in (0..start).step_by(DEPTH) {
        let part = from..start.min(from + DEPTH);
        let tile = [0, 1, 2, 3].map(|row| &rows[row * size..][part.clone()]);
        for (other, sums) in factor.chunks_exact(size).zip(&mut sums) {
            add_dots(tile, &other[part.clone()], sums);
        }
    }
    for (place, (row, matrix)) in rows.chunks_exact_mut(size).zip(matrix.chunks_exact(size)).enumerate() {
        for ((other, sums), j) in factor.chunks_exact(size).zip(&sums).zip(columns.clone()) {
            row[j] = (matrix[j] - rest_of_dot(sums[place], &row[start..j], &other[start..j])) / other[j];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_and_panels_have_the_bits_of_rows_one_by_one() {
        for size in [1, 31, 32, 33, 100, 131, 600] {
            let entry = |i: usize, j: usize| ((i * 37 + j * 37 + i * j) % 101) as f64 / 101.0;
            let mut matrix: Vec<f64> = (0..size * size).map(|at| entry(at / size, at % size)).collect();
            for i in 0..size {
                matrix[i * size + i] += size as f64;
            }
            let factor = Cholesky::of(&matrix, size, 0.5).unwrap();
            let mut plain = vec![0.0f64; size * size];
            for i in 0..size {
                let (above, rest) = plain.split_at_mut(i * size);
                let row = &mut rest[..size];
                fill_row(row, above, &matrix[i * size..], 0..i);
                row[i] = (matrix[i * size + i] + 0.5 - dot(&row[..i], &row[..i])).sqrt();
            }
            assert!(factor.lower.iter().zip(&plain).all(|(a, b)| a.to_bits() == b.to_bits()), "size {size}");
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_has_no_factor() {
        assert!(Cholesky::of(&[1.0, 2.0, 2.0, 1.0], 2, 0.0).is_none());
    }
}
