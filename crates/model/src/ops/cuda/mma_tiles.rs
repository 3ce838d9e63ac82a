//! What the kernels of [`super::mma_attention`] and [`super::mma_attention_backward`] are made of: tiles in shared memory and the
//! instruction `mma.m16n8k8` of the matrix units (CUDA's PTX ISA, "Warp-level matrix instructions"), with factors in TF32 and sums
//! in `f32`.
//!
//! An instruction is one warp's: lane `4·g + t` holds of its sum `[16, 8]` rows `g` and `g + 8`, columns `2·t` and `2·t + 1`; of the
//! left factor `[16, 8]` the same rows, columns `t` and `t + 4`; of the right factor `[8, 8]` rows `t` and `t + 4`, column `g`. The order
//! of the inner index is free as long as both factors agree on it. So a lane reads four neighbours at once, and sums become left
//! factors where they are, without an exchange between lanes.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::sums::WARP;
use super::tiles::{SIDE, Tiles};

/// A number with ten bits behind the point, as the matrix units take it.
pub type Tf32 = cubecl::tf32;

/// Numbers that are read at once.
pub const CHUNK: usize = 4;
/// Columns of an instruction's sum, and length of its inner index.
pub const EIGHT: usize = 8;

/// Four neighbours of a row of a tile.
pub type Chunk = Vector<Tf32, Const<4>>;
/// What a lane holds of a left factor (4 numbers) or of a right one (2).
pub type Factor = Array<Vector<Tf32, Const<1>>>;
/// What a lane holds of a sum: of row `g`, and of row `g + 8`, two columns.
pub type Square = Array<Vector<f32, Const<2>>>;

/// How heads are read and cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cut {
    /// Queries and keys of a tile, and numbers of a head.
    pub tiles: Tiles,
    /// Numbers that memory can give at once: 4 or 1.
    pub vector: usize,
    /// Threads of a block.
    pub threads: usize,
}

impl Cut {
    /// Columns of a tile: the head's and zeros, so that 32 always stand beside each other.
    pub fn width(&self) -> usize {
        width(&self.tiles)
    }

    /// From row to row of a tile. Whether the lanes of a warp read the rows of [`row_of`] along the inner index or across it, no two
    /// that read at the same time meet in a bank.
    pub fn line(&self) -> usize {
        line(&self.tiles)
    }

    /// Chunks that each thread reads of `height` rows.
    pub fn turns(&self, height: usize) -> usize {
        (height * self.width() / CHUNK).div_ceil(self.threads)
    }
}

fn width(tiles: &Tiles) -> usize {
    tiles.size.next_multiple_of(2 * SIDE)
}

fn line(tiles: &Tiles) -> usize {
    width(tiles) + CHUNK
}

/// Bytes of `rows` rows in shared memory.
pub fn tile_bytes(tiles: &Tiles, rows: usize) -> usize {
    4 * rows * line(tiles)
}

/// The first of a warp's sixteen rows in a tile that begins with row `first`; `count` for warps that the tile has no rows for.
#[cube]
pub fn first_of_warp(first: usize, count: usize, #[comptime] height: usize) -> usize {
    let place = (UNIT_POS_X / WARP) as usize * SIDE;
    select(place < height, first + place, count)
}

/// Where a head's rows lie in memory.
#[derive(CubeType, Clone, Copy)]
pub struct Rows {
    /// The first number of its first row, which exists.
    pub start: usize,
    /// From row to row.
    pub stride: usize,
    /// Rows.
    pub count: usize,
}

/// Numbers `column..column + 4` of a row; zeros where there is no such row and beyond the head. Memory is read in any case, so that
/// reads need not wait for each other.
#[cube]
pub fn read_chunk<N: Size>(
    x: &Array<Vector<f32, N>>,
    rows: Rows,
    row: usize,
    column: usize,
    #[comptime] cut: Cut,
) -> Vector<f32, Const<4>> {
    let size = comptime!(cut.tiles.size);
    let at = rows.start + row * rows.stride + column;
    let mut values = Vector::<f32, Const<4>>::new(f32::new(0.0));
    if comptime!(cut.vector == CHUNK) {
        let present = row < rows.count && column < size;
        let read: Vector<f32, Const<4>> = Vector::cast_from(x[select(present, at, rows.start) / CHUNK]);
        #[unroll]
        for i in 0..CHUNK {
            values[i] = select(present, read[i], f32::new(0.0));
        }
    } else {
        #[unroll]
        for i in 0..CHUNK {
            let present = row < rows.count && column + i < size;
            values[i] = select(present, x[select(present, at + i, rows.start)][0], f32::new(0.0));
        }
    }
    values
}

/// A thread's chunks of `height` rows of a head, `first` and those after it, from memory.
#[cube]
fn fetch_tile<N: Size>(
    x: &Array<Vector<f32, N>>,
    rows: Rows,
    first: usize,
    #[comptime] height: usize,
    #[comptime] cut: Cut,
) -> Array<Vector<f32, Const<4>>> {
    let (chunks, turns) = comptime!((cut.width() / CHUNK, cut.turns(height)));
    let mut fetched = Array::<Vector<f32, Const<4>>>::new(turns);
    #[unroll]
    for turn in 0..turns {
        let place = comptime!(turn * cut.threads) + UNIT_POS_X as usize;
        fetched[turn] = read_chunk(x, rows, first + place / chunks, place % chunks * CHUNK, cut);
    }
    fetched
}

/// The chunks of [`fetch_tile`] into shared memory, rounded.
#[cube]
fn store_tile(
    fetched: &Array<Vector<f32, Const<4>>>,
    tile: &mut SharedMemory<Chunk>,
    #[comptime] height: usize,
    #[comptime] cut: Cut,
) {
    let (chunks, line) = comptime!((cut.width() / CHUNK, cut.line() / CHUNK));
    #[unroll]
    for turn in 0..comptime!(cut.turns(height)) {
        let place = comptime!(turn * cut.threads) + UNIT_POS_X as usize;
        if comptime!((turn + 1) * cut.threads <= height * chunks) || place < comptime!(height * chunks) {
            tile[place / chunks * line + place % chunks] = Vector::cast_from(fetched[turn]);
        }
    }
}

/// The same rows of two heads into shared memory. All reads are on their way before the block waits for those who still use the
/// tiles of before; the caller waits for the new ones, and may write to shared memory of its own meanwhile.
#[cube]
pub fn next_tiles<N: Size>(
    a: &Array<Vector<f32, N>>,
    a_rows: Rows,
    a_tile: &mut SharedMemory<Chunk>,
    b: &Array<Vector<f32, N>>,
    b_rows: Rows,
    b_tile: &mut SharedMemory<Chunk>,
    first: usize,
    #[comptime] height: usize,
    #[comptime] cut: Cut,
) {
    let of_a = fetch_tile(a, a_rows, first, height, cut);
    let of_b = fetch_tile(b, b_rows, first, height, cut);
    sync_cube();
    store_tile(&of_a, a_tile, height, cut);
    store_tile(&of_b, b_tile, height, cut);
}

/// A lane's parts of sixteen rows of a head, `first` and those after it, as left factors along the head.
#[cube]
pub fn row_factors<N: Size>(
    x: &Array<Vector<f32, N>>,
    rows: Rows,
    first: usize,
    #[comptime] cut: Cut,
) -> Sequence<Factor> {
    let lane = (UNIT_POS_X % WARP) as usize;
    let upper = first + lane / 4;
    let lower = upper + EIGHT;
    let mut factors = Sequence::<Factor>::new();
    #[unroll]
    for block in 0..comptime!(cut.width() / SIDE) {
        let column = comptime!(block * SIDE) + lane % 4 * CHUNK;
        let above: Chunk = Vector::cast_from(read_chunk(x, rows, upper, column, cut));
        let below: Chunk = Vector::cast_from(read_chunk(x, rows, lower, column, cut));
        #[unroll]
        for half in 0..2usize {
            let mut factor = Factor::new(4usize);
            factor[0] = Vector::new(above[comptime!(2 * half)]);
            factor[1] = Vector::new(below[comptime!(2 * half)]);
            factor[2] = Vector::new(above[comptime!(2 * half + 1)]);
            factor[3] = Vector::new(below[comptime!(2 * half + 1)]);
            factors.push(factor);
        }
    }
    factors
}

/// Which of sixteen rows of a tile stands in column `column` of a sum: of the first of two sums the even rows, of the second the odd
/// ones, in an order that keeps lanes apart, see [`Cut::line`].
#[cube]
pub fn row_of(column: usize, #[comptime] sum: usize) -> usize {
    let (near, far, second) = (column / 2 % 2, column / 4, column % 2);
    2 * near + 12 * far + 4 * second - 8 * far * second + sum
}

/// Zeros.
#[cube]
pub fn no_sums(#[comptime] count: usize) -> Sequence<Square> {
    let mut sums = Sequence::<Square>::new();
    #[unroll]
    for _ in 0..count {
        let mut sum = Square::new(2usize);
        sum[0] = Vector::new(f32::new(0.0));
        sum[1] = Vector::new(f32::new(0.0));
        sums.push(sum);
    }
    sums
}

#[cube]
fn right_factor(first: Tf32, second: Tf32) -> Factor {
    let mut factor = Factor::new(2usize);
    factor[0] = Vector::new(first);
    factor[1] = Vector::new(second);
    factor
}

/// Sums along the head of `factors` and sixteen rows of a tile, `first` and those after it: two squares `[16, 8]`, with the columns of
/// [`row_of`], in `sums` from `place` on.
#[cube]
pub fn multiply_rows(
    factors: &Sequence<Factor>,
    tile: &SharedMemory<Chunk>,
    first: usize,
    sums: &mut Sequence<Square>,
    #[comptime] place: usize,
    #[comptime] cut: Cut,
) {
    let definition = cmma::MmaDefinition::<Tf32, Tf32, f32>::new(SIDE, EIGHT, EIGHT);
    let line = comptime!(cut.line() / CHUNK);
    let lane = (UNIT_POS_X % WARP) as usize;
    let even = (first + row_of(lane / 4, 0usize)) * line + lane % 4;
    #[unroll]
    for block in 0..comptime!(cut.width() / SIDE) {
        // Two independent sums in turn: an instruction need not wait for the one before it.
        let from = even + comptime!(block * SIDE / CHUNK);
        let of_even = tile[from];
        let of_odd = tile[from + line];
        #[unroll]
        for half in 0..2usize {
            let left = factors.index(comptime!(2 * block + half));
            let (a, b) = comptime!((2 * half, 2 * half + 1));
            definition.execute_inplace(left, &right_factor(of_even[a], of_even[b]), sums.index_mut(place));
            definition.execute_inplace(left, &right_factor(of_odd[a], of_odd[b]), sums.index_mut(comptime!(place + 1)));
        }
    }
}

/// A sum as a left factor: its columns become the inner index, in the order that [`add_rows`] expects.
#[cube]
pub fn left_factor(sum: &Square) -> Factor {
    let mut factor = Factor::new(4usize);
    #[unroll]
    for column in 0..2usize {
        factor[comptime!(2 * column)] = Vector::cast_from(Vector::<f32, Const<1>>::new(sum[0][column]));
        factor[comptime!(2 * column + 1)] = Vector::cast_from(Vector::<f32, Const<1>>::new(sum[1][column]));
    }
    factor
}

/// Adds to `sums`, squares beside each other along the head, a left factor over eight rows of a tile times these rows: those of
/// [`row_of`] with `sum` among the sixteen from `first` on. Where the columns of the squares stand is what [`write_rows`] knows.
#[cube]
pub fn add_rows(
    left: &Factor,
    tile: &SharedMemory<Chunk>,
    first: usize,
    sums: &mut Sequence<Square>,
    #[comptime] sum: usize,
    #[comptime] cut: Cut,
) {
    let definition = cmma::MmaDefinition::<Tf32, Tf32, f32>::new(SIDE, EIGHT, EIGHT);
    let line = comptime!(cut.line() / CHUNK);
    let lane = (UNIT_POS_X % WARP) as usize;
    let column = lane % 4 * 2;
    let upper = (first + row_of(column, sum)) * line + lane / 4;
    let lower = (first + row_of(column + 1, sum)) * line + lane / 4;
    #[unroll]
    for block in 0..comptime!(cut.width() / (2 * SIDE)) {
        let above = tile[upper + comptime!(block * EIGHT)];
        let below = tile[lower + comptime!(block * EIGHT)];
        #[unroll]
        for i in 0..CHUNK {
            let right = right_factor(above[i], below[i]);
            definition.execute_inplace(left, &right, sums.index_mut(comptime!(CHUNK * block + i)));
        }
    }
}

/// Multiplies the rows of squares beside each other: row `g` by `upper`, row `g + 8` by `lower`.
#[cube]
pub fn scale_rows(sums: &mut Sequence<Square>, upper: f32, lower: f32, #[comptime] cut: Cut) {
    #[unroll]
    for i in 0..comptime!(cut.width() / EIGHT) {
        let sum = sums.index_mut(i);
        sum[0] = sum[0] * Vector::new(upper);
        sum[1] = sum[1] * Vector::new(lower);
    }
}

/// The sums of [`add_rows`] as sixteen rows of a head, from row `first` on, as far as there are such.
#[cube]
pub fn write_rows(sums: &Sequence<Square>, out: &mut Array<f32>, rows: Rows, first: usize, #[comptime] cut: Cut) {
    let size = comptime!(cut.tiles.size);
    let lane = (UNIT_POS_X % WARP) as usize;
    #[unroll]
    for half in 0..2usize {
        let row = first + lane / 4 + comptime!(half * EIGHT);
        if row < rows.count {
            let to = rows.start + row * rows.stride;
            #[unroll]
            for block in 0..comptime!(cut.width() / (2 * SIDE)) {
                #[unroll]
                for place in 0..EIGHT {
                    let column = comptime!(block * 2 * SIDE + place) + lane % 4 * EIGHT;
                    if column < size {
                        let sum = sums.index(comptime!(CHUNK * block + place % CHUNK));
                        out[to + column] = sum[half][comptime!(place / CHUNK)];
                    }
                }
            }
        }
    }
}
