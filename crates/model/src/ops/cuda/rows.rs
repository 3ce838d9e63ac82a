//! Rows and heads that are copied: the last positions of equally long sequences, embeddings that fill many positions, and values
//! for each of a group's queries.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::matrix::{Gpu, Matrix, ROW_THREADS, stretches};
use crate::kernels::attention::Heads;

/// Rows `first`, `first + step` and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progression {
    /// The first row.
    pub first: usize,
    /// From one to the next, at least 1.
    pub step: usize,
}

impl Progression {
    /// Ascending indices that are equally far apart; `None` for others.
    pub fn of(indices: &[usize]) -> Option<Self> {
        let &first = indices.first()?;
        let step = indices.get(1).map_or(1, |second| second.saturating_sub(first));
        let fits = step > 0 && indices.iter().enumerate().all(|(i, index)| *index == first + i * step);
        fits.then_some(Self { first, step })
    }
}

#[cube(launch_unchecked)]
fn gather_kernel(x: &Array<f32>, out: &mut Array<f32>, stride: usize, columns: usize, first: usize, step: usize) {
    let row = CUBE_POS_X as usize;
    let column = (CUBE_POS_Y * ROW_THREADS + UNIT_POS_X) as usize;
    if column >= columns {
        terminate!();
    }
    out[row * columns + column] = x[(first + row * step) * stride + column];
}

#[cube(launch_unchecked)]
fn scatter_kernel(
    x: &Array<f32>,
    out: &mut Array<f32>,
    stride: usize,
    columns: usize,
    first: usize,
    step: usize,
    count: usize,
) {
    let row = CUBE_POS_X as usize;
    let column = (CUBE_POS_Y * ROW_THREADS + UNIT_POS_X) as usize;
    if column >= columns {
        terminate!();
    }
    let mut value = f32::new(0.0);
    if row >= first {
        let index = (row - first) / step;
        if index < count && first + index * step == row {
            value = x[index * stride + column];
        }
    }
    out[row * columns + column] = value;
}

#[cube(launch_unchecked)]
fn repeat_rows_kernel(
    x: &Array<f32>,
    positions: &Array<f32>,
    out: &mut Array<f32>,
    stride: usize,
    position_stride: usize,
    columns: usize,
    each: usize,
    #[comptime] learnt: bool,
) {
    let row = CUBE_POS_X as usize;
    let column = (CUBE_POS_Y * ROW_THREADS + UNIT_POS_X) as usize;
    if column >= columns {
        terminate!();
    }
    let mut value = x[row / each * stride + column];
    if comptime!(learnt) {
        value += positions[row % each * position_stride + column];
    }
    out[row * columns + column] = value;
}

#[cube(launch_unchecked)]
fn sum_rows_kernel(x: &Array<f32>, out: &mut Array<f32>, stride: usize, columns: usize, each: usize) {
    let row = CUBE_POS_X as usize;
    let column = (CUBE_POS_Y * ROW_THREADS + UNIT_POS_X) as usize;
    if column >= columns {
        terminate!();
    }
    let mut from = row * each * stride + column;
    let mut sum = f32::new(0.0);
    for _ in 0..each {
        sum += x[from];
        from += stride;
    }
    out[row * columns + column] = sum;
}

#[cube(launch_unchecked)]
fn repeat_kernel(v: &Array<f32>, out: &mut Array<f32>, stride: usize, columns: usize, group: usize, size: usize) {
    let row = CUBE_POS_X as usize;
    let column = (CUBE_POS_Y * ROW_THREADS + UNIT_POS_X) as usize;
    if column >= columns {
        terminate!();
    }
    let head = column / size;
    out[row * columns + column] = v[row * stride + head / group * size + column % size];
}

#[cube(launch_unchecked)]
fn repeat_backward_kernel(
    grad: &Array<f32>,
    out: &mut Array<f32>,
    stride: usize,
    columns: usize,
    group: usize,
    size: usize,
) {
    let row = CUBE_POS_X as usize;
    let column = (CUBE_POS_Y * ROW_THREADS + UNIT_POS_X) as usize;
    if column >= columns {
        terminate!();
    }
    let mut from = row * stride + column / size * group * size + column % size;
    let mut sum = f32::new(0.0);
    for _ in 0..group {
        sum += grad[from];
        from += size;
    }
    out[row * columns + column] = sum;
}

/// `count` rows of `x`.
pub fn gather(x: &Matrix, from: Progression, count: usize) -> Matrix {
    let out = x.empty(count, x.columns);
    let (blocks, threads) = stretches(count, x.columns);
    // SAFETY: the rows are rows of `x`.
    unsafe {
        gather_kernel::launch_unchecked::<Gpu>(
            x.client(),
            blocks,
            threads,
            x.argument(),
            out.argument(),
            x.stride,
            x.columns,
            from.first,
            from.step,
        );
    }
    out
}

/// `rows` rows of zeros but for those of `x`.
pub fn scatter(x: &Matrix, to: Progression, rows: usize) -> Matrix {
    let out = x.empty(rows, x.columns);
    let (blocks, threads) = stretches(rows, x.columns);
    // SAFETY: the kernel asks for rows of `x` alone.
    unsafe {
        scatter_kernel::launch_unchecked::<Gpu>(
            x.client(),
            blocks,
            threads,
            x.argument(),
            out.argument(),
            x.stride,
            x.columns,
            to.first,
            to.step,
            x.rows,
        );
    }
    out
}

/// Each row `each` times, plus the rows of `positions` from the first on.
pub fn repeat_rows(x: &Matrix, positions: Option<&Matrix>, each: usize) -> Matrix {
    let out = x.empty(x.rows * each, x.columns);
    let (blocks, threads) = stretches(out.rows, x.columns);
    let table = positions.unwrap_or(x);
    // SAFETY: `positions` has at least `each` rows, of the same columns.
    unsafe {
        repeat_rows_kernel::launch_unchecked::<Gpu>(
            x.client(),
            blocks,
            threads,
            x.argument(),
            table.argument(),
            out.argument(),
            x.stride,
            table.stride,
            x.columns,
            each,
            positions.is_some(),
        );
    }
    out
}

/// The sums of `each` rows that follow each other, in their order.
pub fn sum_rows(x: &Matrix, each: usize) -> Matrix {
    let out = x.empty(x.rows / each, x.columns);
    let (blocks, threads) = stretches(out.rows, x.columns);
    // SAFETY: `x` has `each` rows for every row of the result.
    unsafe {
        sum_rows_kernel::launch_unchecked::<Gpu>(
            x.client(),
            blocks,
            threads,
            x.argument(),
            out.argument(),
            x.stride,
            x.columns,
            each,
        );
    }
    out
}

/// Values for each query head.
pub fn repeat(v: &Matrix, heads: Heads) -> Matrix {
    let out = v.empty(v.rows, heads.width());
    let (blocks, threads) = stretches(v.rows, out.columns);
    // SAFETY: `v` has the columns of the key heads.
    unsafe {
        repeat_kernel::launch_unchecked::<Gpu>(
            v.client(),
            blocks,
            threads,
            v.argument(),
            out.argument(),
            v.stride,
            out.columns,
            heads.group(),
            heads.head_size,
        );
    }
    out
}

/// The gradient of [`repeat`]: the sum over a group's heads, in their order.
pub fn repeat_backward(grad: &Matrix, heads: Heads) -> Matrix {
    let out = grad.empty(grad.rows, heads.kv_width());
    let (blocks, threads) = stretches(grad.rows, out.columns);
    // SAFETY: `grad` has the columns of the query heads.
    unsafe {
        repeat_backward_kernel::launch_unchecked::<Gpu>(
            grad.client(),
            blocks,
            threads,
            grad.argument(),
            out.argument(),
            grad.stride,
            out.columns,
            heads.group(),
            heads.head_size,
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_rows_of_equal_sequences_are_equally_far_apart() {
        assert_eq!(Progression::of(&[4, 9, 14]), Some(Progression { first: 4, step: 5 }));
        assert_eq!(Progression::of(&[6]), Some(Progression { first: 6, step: 1 }));
        for other in [&[][..], &[3, 3], &[5, 2], &[0, 1, 3]] {
            assert_eq!(Progression::of(other), None, "{other:?}");
        }
    }
}
