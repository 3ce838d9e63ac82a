//! The rows of a product: rounded, in pairs, and cut into blocks that lie by columns.

use std::ops::Range;

use rayon::prelude::*;

use super::super::blocks::Blocks;
use super::super::dispatch::multiversion;
use super::super::matmul::Job;
use super::super::tile::MOST_ROWS;
use super::dot;

/// Numbers that are rounded at once, in the nearest cache.
const RUN: usize = 128;
/// More rows than these are rounded by all threads.
const ALONE: usize = 32;

/// Rows in blocks, each with a row of words for each pair of inner indices: one word for each of the block's rows.
pub struct Left {
    /// How the rows are cut.
    pub blocks: Blocks,
    pairs: usize,
    words: Vec<u32>,
}

impl Left {
    /// Those of `job`.
    pub fn new(job: &Job<'_>) -> Self {
        let Job { found, a, m, inner, .. } = *job;
        let (blocks, pairs) = (Blocks::of(m, MOST_ROWS), inner.div_ceil(2));
        let mut words = vec![0; m * pairs];
        let mut parts = Vec::with_capacity(blocks.count);
        let mut rest = words.as_mut_slice();
        for block in 0..blocks.count {
            let rows = blocks.range(block);
            let (part, tail) = rest.split_at_mut(rows.len() * pairs);
            parts.push((rows, part));
            rest = tail;
        }
        let fill = |(rows, part): (Range<usize>, &mut [u32])| {
            pack(found, &a[rows.start * inner..rows.end * inner], inner, rows.len(), part);
        };
        if job.threads > 1 && m > ALONE {
            parts.into_par_iter().for_each(fill);
        } else {
            parts.into_iter().for_each(fill);
        }
        Self { blocks, pairs, words }
    }

    /// The words of a block of `rows`, for the pairs of `stretch`.
    pub fn words(&self, rows: &Range<usize>, stretch: &Range<usize>) -> &[u32] {
        &self.words[rows.start * self.pairs + stretch.start * rows.len()..][..stretch.len() * rows.len()]
    }
}

multiversion! {
    fn pack(a: &[f32], inner: usize, rows: usize, to: &mut [u32]) => pack_body
}

#[inline(always)]
fn pack_body(a: &[f32], inner: usize, rows: usize, to: &mut [u32]) {
    let mut words = [0; RUN / 2];
    for (run, to) in to.chunks_mut(rows * RUN / 2).enumerate() {
        for (i, row) in a.chunks_exact(inner).enumerate() {
            let numbers = &row[run * RUN..((run + 1) * RUN).min(inner)];
            let (two, last) = numbers.as_chunks::<2>();
            for (word, two) in words.iter_mut().zip(two) {
                *word = dot::pair(two[0], two[1]);
            }
            if let [last] = last {
                words[two.len()] = dot::pair(*last, 0.0);
            }
            for (to, word) in to[i..].iter_mut().step_by(rows).zip(&words) {
                *to = *word;
            }
        }
    }
}
