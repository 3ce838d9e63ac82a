//! Products without matrix units: of the rows of short sequences, and in exact `f32`.
//!
//! With a few rows the time is that of reading the weight once, so the work is cut into many blocks of threads: each takes
//! [`COLUMNS`] columns and a part of the sum over `k`, and writes its part of the result, `[parts, rows, columns]`;
//! [`super::finish`] adds the parts in their order.
//!
//! Sums and products are in `f32` by fused multiply-adds, and the rows are not rounded, whatever the weight's type. How `k`
//! is cut depends on the weight's size alone, and within a part the order is that of `k`: so a row's bits do not depend on
//! how many rows there are.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::matrix::{Gpu, Matrix};
use super::weight::Weight;

/// Most rows of a block.
const MOST_ROWS: usize = 64;

/// Columns of a block: 16 threads with 4 of them each.
const COLUMNS: usize = 64;
/// Length of the stretches of `k` that pass through a block's shared memory.
const DEPTH: usize = 32;
/// 16 across the columns, 8 across the rows.
const THREADS: u32 = 128;
/// A line of shared memory; one more than is used, so that threads that walk down a column meet no bank twice.
const LINE: usize = COLUMNS + 1;

/// So many blocks keep a large GPU busy.
const WANTED_BLOCKS: usize = 512;
/// Shorter parts of the sum cost more to add than they save.
const SHORTEST_PART: usize = 64;

#[cube(launch_unchecked)]
fn skinny_kernel<E: Float, N: Size>(
    x: &Array<f32>,
    weight: &Array<Vector<E, N>>,
    out: &mut Array<f32>,
    rows: usize,
    inner: usize,
    columns: usize,
    x_stride: usize,
    weight_stride: usize,
    part: usize,
    #[comptime] tile: usize,
    #[comptime] along_columns: bool,
    #[comptime] width: usize,
    #[define(E)] _dtype: StorageType,
) {
    let each = comptime!(tile / 8);
    let x_line = comptime!(tile + 1);
    let thread = UNIT_POS_X as usize;
    let (across, down) = (thread % 16, thread / 16);
    let first_row = CUBE_POS_X as usize * tile;
    let first_column = CUBE_POS_Y as usize * COLUMNS;
    let first = CUBE_POS_Z as usize * part;
    let end = min(first + part, inner);
    let mut xs = SharedMemory::<f32>::new(comptime!(DEPTH * (tile + 1)));
    let mut ws = SharedMemory::<f32>::new(comptime!(DEPTH * LINE));
    let mut sums = Array::<f32>::new(comptime!(each * 4));
    #[unroll]
    for i in 0..comptime!(each * 4) {
        sums[i] = f32::new(0.0);
    }
    let mut from = first;
    while from < end {
        #[unroll]
        for turn in 0..comptime!(tile * DEPTH / THREADS as usize) {
            let place = turn * THREADS as usize + thread;
            let (row, k) = (place / DEPTH, place % DEPTH);
            let mut value = f32::new(0.0);
            if first_row + row < rows && from + k < end {
                value = x[(first_row + row) * x_stride + from + k];
            }
            xs[k * x_line + row] = value;
        }
        #[unroll]
        for turn in 0..comptime!(COLUMNS * DEPTH / width / THREADS as usize) {
            let place = turn * THREADS as usize + thread;
            if comptime!(along_columns) {
                let per_line = comptime!(COLUMNS / width);
                let (k, column) = (place / per_line, place % per_line * width);
                let mut values = Vector::<E, N>::new(E::new(0.0));
                if from + k < end && first_column + column < columns {
                    values = weight[((from + k) * weight_stride + first_column + column) / width];
                }
                #[unroll]
                for i in 0..width {
                    ws[k * LINE + column + i] = f32::cast_from(values[i]);
                }
            } else {
                let per_line = comptime!(DEPTH / width);
                let (column, k) = (place / per_line, place % per_line * width);
                let mut values = Vector::<E, N>::new(E::new(0.0));
                if from + k < end && first_column + column < columns {
                    values = weight[((first_column + column) * weight_stride + from + k) / width];
                }
                #[unroll]
                for i in 0..width {
                    ws[(k + i) * LINE + column] = f32::cast_from(values[i]);
                }
            }
        }
        sync_cube();
        for k in 0..DEPTH {
            #[unroll]
            for j in 0..4usize {
                let w = ws[k * LINE + across + 16 * j];
                #[unroll]
                for i in 0..each {
                    let place = comptime!(i * 4 + j);
                    sums[place] = fma(xs[k * x_line + down * each + i], w, sums[place]);
                }
            }
        }
        sync_cube();
        from += DEPTH;
    }
    let to = CUBE_POS_Z as usize * rows;
    #[unroll]
    for i in 0..each {
        let row = first_row + down * each + i;
        #[unroll]
        for j in 0..4usize {
            let column = first_column + across + 16 * j;
            if row < rows && column < columns {
                out[(to + row) * columns + column] = sums[comptime!(i * 4 + j)];
            }
        }
    }
}

/// Lengths of the parts that a sum over `inner` is cut into, for `columns` results a row, and how many there are.
fn parts(inner: usize, columns: usize) -> (usize, usize) {
    let wanted = WANTED_BLOCKS.div_ceil(columns.div_ceil(COLUMNS)).max(1);
    let part = inner.div_ceil(wanted).max(SHORTEST_PART).next_multiple_of(DEPTH);
    (part, inner.div_ceil(part))
}

/// `x·weight` in parts, and how many: `[parts · rows, columns]`; one alone where it is not to be `cut`.
pub fn product(x: &Matrix, weight: &Weight, cut: bool) -> (Matrix, usize) {
    let (inner, columns) = (weight.inner, weight.columns);
    let (part, count) = if cut { parts(inner, columns) } else { (inner, 1) };
    let out = x.empty(count * x.rows, columns);
    let tile = x.rows.next_power_of_two().clamp(8, MOST_ROWS);
    let width = weight.vector();
    // SAFETY: rows, columns and the length of the sum are those of the matrices; vectors of a weight do not cross its lines.
    unsafe {
        skinny_kernel::launch_unchecked::<Gpu>(
            x.client(),
            CubeCount::Static(x.rows.div_ceil(tile) as u32, columns.div_ceil(COLUMNS) as u32, count as u32),
            CubeDim::new_1d(THREADS),
            width,
            x.argument(),
            weight.argument(),
            out.argument(),
            x.rows,
            inner,
            columns,
            x.stride,
            weight.stride,
            part,
            tile,
            weight.along_columns,
            width,
            weight.dtype().into(),
        );
    }
    (out, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_sum_once() {
        for inner in [1, 31, 32, 64, 65, 768, 3072, 11008] {
            for columns in [1, 64, 768, 2304, 50_000] {
                let (part, count) = parts(inner, columns);
                assert!(part.is_multiple_of(DEPTH) && part >= SHORTEST_PART, "{inner} {columns}: {part}");
                assert!((count - 1) * part < inner && inner <= count * part, "{inner} {columns}: {count} of {part}");
            }
        }
    }
}
