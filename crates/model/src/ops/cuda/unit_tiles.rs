//! Tiles in shared memory that the matrix units multiply, in TF32 with sums in `f32`: what the kernels of
//! [`super::unit_attention`] are made of. A block has eight warps; a warp takes every eighth square of 16×16 results.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::sums::WARP;
use super::tiles::SIDE;

/// A number with ten bits behind the point, as the matrix units take it.
pub type Tf32 = cubecl::tf32;

/// Threads of a block, [`SIDE`]×[`SIDE`].
pub const THREADS: usize = SIDE * SIDE;
/// Warps of a block.
pub const WARPS: usize = THREADS / WARP as usize;
/// Length of an instruction's sum.
const DEPTH: usize = 8;

/// From line to line of a tile with `width` columns: lines that follow each other begin in other banks.
pub fn line(width: usize) -> usize {
    width + 4
}

/// Rows `first..first + count` of a head into shared memory, rounded; zeros beyond row `end` and beyond the head's columns.
#[cube]
pub fn load_rounded(
    x: &Array<f32>,
    tile: &mut SharedMemory<Tf32>,
    start: usize,
    stride: usize,
    first: usize,
    end: usize,
    #[comptime] count: usize,
    #[comptime] size: usize,
    #[comptime] width: usize,
) {
    let mut place = UNIT_POS_X as usize;
    while place < comptime!(count * width) {
        let (row, column) = (place / width, place % width);
        let mut value = f32::new(0.0);
        if first + row < end && column < size {
            value = x[start + (first + row) * stride + column];
        }
        tile[row * comptime!(line(width)) + column] = Tf32::cast_from(value);
        place += THREADS;
    }
}

/// How many squares of `[rows, columns]` a warp has at most.
pub fn squares(rows: usize, columns: usize) -> usize {
    (rows / SIDE * (columns / SIDE)).div_ceil(WARPS)
}

/// Zeros for [`add_product`].
#[cube]
pub fn no_sums(#[comptime] rows: usize, #[comptime] columns: usize) -> Sequence<cmma::Matrix<f32>> {
    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(squares(rows, columns)) {
        sums.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            SIDE,
            SIDE,
            DEPTH,
            cmma::MatrixLayout::Undefined,
            f32::new(0.0),
        ));
    }
    sums
}

/// Adds `a·b` to `sums`, or `a·bᵀ` with `turned`: `a [rows, inner]`, the result `[rows, columns]`.
#[cube]
pub fn add_product(
    a: &SharedMemory<Tf32>,
    b: &SharedMemory<Tf32>,
    sums: &Sequence<cmma::Matrix<f32>>,
    #[comptime] rows: usize,
    #[comptime] columns: usize,
    #[comptime] inner: usize,
    #[comptime] turned: bool,
) {
    let a_line = comptime!(line(inner));
    let b_line = comptime!(if turned { line(inner) } else { line(columns) });
    let layout = comptime!(if turned { cmma::MatrixLayout::ColMajor } else { cmma::MatrixLayout::RowMajor });
    let down = comptime!(rows / SIDE);
    let all = comptime!(rows / SIDE * (columns / SIDE));
    let warp = (UNIT_POS_X / WARP) as usize;
    #[unroll]
    for turn in 0..comptime!(squares(rows, columns)) {
        let square = warp + turn * WARPS;
        if square < all {
            let (row, column) = (square % down * SIDE, square / down * SIDE);
            #[unroll]
            for step in 0..comptime!(inner / DEPTH) {
                let k = comptime!(step * DEPTH);
                let left = unsafe {
                    cmma::Matrix::<Tf32>::uninitialized(
                        cmma::MatrixIdent::A,
                        SIDE,
                        SIDE,
                        DEPTH,
                        cmma::MatrixLayout::RowMajor,
                    )
                };
                let right =
                    unsafe { cmma::Matrix::<Tf32>::uninitialized(cmma::MatrixIdent::B, SIDE, SIDE, DEPTH, layout) };
                let mut at = k * b_line + column;
                if comptime!(turned) {
                    at = column * b_line + k;
                }
                let from = row * a_line + k;
                cmma::load(&left, &a.slice(from, from + SIDE), a_line as u32);
                cmma::load(&right, &b.slice(at, at + SIDE), b_line as u32);
                let sum = sums.index(turn);
                cmma::execute::<Tf32, Tf32, f32, f32>(&left, &right, sum, sum);
            }
        }
    }
}

/// Writes `sums [rows, columns]` to shared memory with lines of `to_line` numbers.
#[cube]
pub fn store_sums(
    sums: &Sequence<cmma::Matrix<f32>>,
    to: &mut SharedMemory<f32>,
    #[comptime] rows: usize,
    #[comptime] columns: usize,
    #[comptime] to_line: usize,
) {
    let down = comptime!(rows / SIDE);
    let all = comptime!(rows / SIDE * (columns / SIDE));
    let warp = (UNIT_POS_X / WARP) as usize;
    #[unroll]
    for turn in 0..comptime!(squares(rows, columns)) {
        let square = warp + turn * WARPS;
        if square < all {
            let at = square % down * SIDE * to_line + square / down * SIDE;
            cmma::store(
                &mut to.slice_mut(at, at + SIDE),
                sums.index(turn),
                to_line as u32,
                cmma::MatrixLayout::RowMajor,
            );
        }
    }
}

/// Rows `first..` of a head from shared memory to `out`, as far as they are before row `end`.
#[cube]
pub fn write_rows(
    tile: &SharedMemory<f32>,
    out: &mut Array<f32>,
    start: usize,
    stride: usize,
    first: usize,
    end: usize,
    #[comptime] count: usize,
    #[comptime] size: usize,
    #[comptime] tile_line: usize,
) {
    let mut place = UNIT_POS_X as usize;
    while place < comptime!(count * size) {
        let (row, column) = (place / size, place % size);
        if first + row < end {
            out[start + (first + row) * stride + column] = tile[row * tile_line + column];
        }
        place += THREADS;
    }
}
