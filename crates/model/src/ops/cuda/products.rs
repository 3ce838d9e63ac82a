//! Matrix products of many rows on the GPU's matrix units, with the factors rounded as asked for and the sums in `f32`.
//!
//! Each number of a result is one accumulator of one warp, to which the same instruction adds eight (TF32) or sixteen (bf16, f16)
//! products at a time, in the order of `k`. That order is the same for every size of the tiles and every number of rows, so a
//! row's bits do not depend on how many rows there are, and tiles may be chosen by the number of rows.

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::cubecl::tf32;
use numalign_config::Arithmetic;

use super::matrix::{Gpu, Matrix};
use super::sums::WARP;
use super::weight::Weight;

/// Rows and columns of an instruction.
const SIDE: usize = 16;
/// Length of the stretches of `k` that pass through a block's shared memory.
const DEPTH: usize = 32;
/// Warps of a block: [`WARP_ROWS`] of them beside each other along the rows.
const WARPS: usize = 8;
const WARP_ROWS: usize = 4;
const THREADS: usize = WARPS * WARP as usize;
/// With fewer blocks than this, smaller tiles are taken: a large GPU has as many multiprocessors.
const WANTED_BLOCKS: usize = 132;

/// How a product is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    /// Rows and columns of a block's tile.
    tile: usize,
    /// Length of an instruction's sum.
    depth: usize,
    /// Numbers of `x`, and of the weight, that are read at once.
    x_vector: usize,
    weight_vector: usize,
    /// Numbers between lines along `k` in shared memory that are not used, against conflicts of banks.
    padding: usize,
    /// As [`Weight::along_columns`].
    along_columns: bool,
}

impl Shape {
    /// From line to line of a tile of `x`.
    fn x_line(&self) -> usize {
        DEPTH + self.padding
    }

    /// From line to line of a tile of the weight.
    fn weight_line(&self) -> usize {
        if self.along_columns { self.tile + 8 } else { DEPTH + self.padding }
    }

    /// Vectors of a tile of `x` in shared memory.
    fn x_size(&self) -> usize {
        self.tile * self.x_line() / self.x_vector
    }

    /// The same of the weight.
    fn weight_size(&self) -> usize {
        self.weight_lines().0 * self.weight_line() / self.weight_vector
    }

    /// Vectors of `x` that a thread reads for one tile.
    fn x_turns(&self) -> usize {
        self.tile * DEPTH / self.x_vector / THREADS
    }

    /// The same of the weight.
    fn weight_turns(&self) -> usize {
        self.tile * DEPTH / self.weight_vector / THREADS
    }

    /// Lines of a tile of the weight, and numbers of each.
    fn weight_lines(&self) -> (usize, usize) {
        if self.along_columns { (DEPTH, self.tile) } else { (self.tile, DEPTH) }
    }
}

/// The next stretch of `x` from memory to registers; zeros beyond its rows and beyond `inner`.
#[cube]
fn fetch_rows<N: Size>(
    x: &Array<Vector<f32, N>>,
    next: &mut Array<Vector<f32, N>>,
    first: usize,
    rows: usize,
    from: usize,
    inner: usize,
    stride: usize,
    #[comptime] shape: Shape,
) {
    let vector = comptime!(shape.x_vector);
    #[unroll]
    for turn in 0..comptime!(shape.x_turns()) {
        let place = (turn * THREADS + UNIT_POS_X as usize) * vector;
        let (row, k) = (first + place / DEPTH, from + place % DEPTH);
        let mut values = Vector::<f32, N>::new(f32::new(0.0));
        if row < rows && k < inner {
            values = x[(row * stride + k) / vector];
        }
        next[turn] = values;
    }
}

/// The same of the weight.
#[cube]
fn fetch_weight<E: Float, N: Size>(
    weight: &Array<Vector<E, N>>,
    next: &mut Array<Vector<E, N>>,
    first: usize,
    columns: usize,
    from: usize,
    inner: usize,
    stride: usize,
    #[comptime] shape: Shape,
) {
    let vector = comptime!(shape.weight_vector);
    let length = comptime!(shape.weight_lines().1);
    #[unroll]
    for turn in 0..comptime!(shape.weight_turns()) {
        let place = (turn * THREADS + UNIT_POS_X as usize) * vector;
        let (line, at) = (place / length, place % length);
        let mut values = Vector::<E, N>::new(E::new(0.0));
        if comptime!(shape.along_columns) {
            if from + line < inner && first + at < columns {
                values = weight[((from + line) * stride + first + at) / vector];
            }
        } else if first + line < columns && from + at < inner {
            values = weight[((first + line) * stride + from + at) / vector];
        }
        next[turn] = values;
    }
}

/// `E` is the weight's type, `S` that of the factors.
#[cube(launch_unchecked)]
fn product_kernel<E: Float, S: Float, NX: Size, NW: Size>(
    x: &Array<Vector<f32, NX>>,
    weight: &Array<Vector<E, NW>>,
    out: &mut Array<f32>,
    rows: usize,
    inner: usize,
    columns: usize,
    x_stride: usize,
    weight_stride: usize,
    out_stride: usize,
    #[comptime] shape: Shape,
    #[define(E, S)] _dtypes: [StorageType; 2],
) {
    let tile = comptime!(shape.tile);
    let depth = comptime!(shape.depth);
    let (x_vector, weight_vector) = comptime!((shape.x_vector, shape.weight_vector));
    let (x_line, weight_line) = comptime!((shape.x_line(), shape.weight_line()));
    let (x_size, weight_size) = comptime!((shape.x_size(), shape.weight_size()));
    let (x_turns, weight_turns) = comptime!((shape.x_turns(), shape.weight_turns()));
    let length = comptime!(shape.weight_lines().1);
    // Squares of an instruction that a warp computes.
    let (down, across) = comptime!((shape.tile / SIDE / WARP_ROWS, shape.tile / SIDE / (WARPS / WARP_ROWS)));
    let thread = UNIT_POS_X as usize;
    let warp = thread / WARP as usize;
    let warp_row = warp % WARP_ROWS * down * SIDE;
    let warp_column = warp / WARP_ROWS * across * SIDE;
    let first_row = CUBE_POS_X as usize * tile;
    let first_column = CUBE_POS_Y as usize * tile;

    let mut xs = SharedMemory::<Vector<S, NX>>::new(x_size);
    let mut ws = SharedMemory::<Vector<S, NW>>::new(weight_size);
    let mut x_next = Array::<Vector<f32, NX>>::new(x_turns);
    let mut weight_next = Array::<Vector<E, NW>>::new(weight_turns);
    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(down * across) {
        sums.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            SIDE,
            SIDE,
            depth,
            cmma::MatrixLayout::Undefined,
            f32::new(0.0),
        ));
    }

    fetch_rows(x, &mut x_next, first_row, rows, 0, inner, x_stride, shape);
    fetch_weight(weight, &mut weight_next, first_column, columns, 0, inner, weight_stride, shape);
    let mut from = 0;
    while from < inner {
        sync_cube();
        #[unroll]
        for turn in 0..x_turns {
            let place = (turn * THREADS + thread) * x_vector;
            xs[(place / DEPTH * x_line + place % DEPTH) / x_vector] = Vector::cast_from(x_next[turn]);
        }
        #[unroll]
        for turn in 0..weight_turns {
            let place = (turn * THREADS + thread) * weight_vector;
            ws[(place / length * weight_line + place % length) / weight_vector] = Vector::cast_from(weight_next[turn]);
        }
        sync_cube();
        from += DEPTH;
        // The next stretch is on its way while this one is multiplied; beyond the end it is zeros.
        fetch_rows(x, &mut x_next, first_row, rows, from, inner, x_stride, shape);
        fetch_weight(weight, &mut weight_next, first_column, columns, from, inner, weight_stride, shape);
        #[unroll]
        for step in 0..comptime!(DEPTH / depth) {
            let k = comptime!(step * depth);
            let mut factors = Sequence::<cmma::Matrix<S>>::new();
            #[unroll]
            for j in 0..across {
                let column = warp_column + comptime!(j * SIDE);
                let layout = comptime!(if shape.along_columns {
                    cmma::MatrixLayout::RowMajor
                } else {
                    cmma::MatrixLayout::ColMajor
                });
                let mut at = column * weight_line + k;
                if comptime!(shape.along_columns) {
                    at = k * weight_line + column;
                }
                let factor =
                    unsafe { cmma::Matrix::<S>::uninitialized(cmma::MatrixIdent::B, SIDE, SIDE, depth, layout) };
                cmma::load(&factor, &ws.slice(at / weight_vector, weight_size), weight_line as u32);
                factors.push(factor);
            }
            #[unroll]
            for i in 0..down {
                let at = (warp_row + comptime!(i * SIDE)) * x_line + k;
                let factor = unsafe {
                    cmma::Matrix::<S>::uninitialized(
                        cmma::MatrixIdent::A,
                        SIDE,
                        SIDE,
                        depth,
                        cmma::MatrixLayout::RowMajor,
                    )
                };
                cmma::load(&factor, &xs.slice(at / x_vector, x_size), x_line as u32);
                #[unroll]
                for j in 0..across {
                    let sum = sums.index(comptime!(i * across + j));
                    cmma::execute::<S, S, f32, f32>(&factor, factors.index(j), sum, sum);
                }
            }
        }
    }
    #[unroll]
    for i in 0..down {
        #[unroll]
        for j in 0..across {
            let row = first_row + warp_row + comptime!(i * SIDE);
            let at = row * out_stride + first_column + warp_column + comptime!(j * SIDE);
            cmma::store(
                &mut out.slice_mut(at, at + SIDE),
                sums.index(comptime!(i * across + j)),
                out_stride as u32,
                cmma::MatrixLayout::RowMajor,
            );
        }
    }
}

/// `x·weight` with the factors in `arithmetic`, which is one of matrix units.
pub fn product(x: &Matrix, weight: &Weight, arithmetic: Arithmetic) -> Matrix {
    let (factors, depth, padding): (StorageType, usize, usize) = match arithmetic {
        Arithmetic::Bf16 => (DType::BF16.into(), 16, 8),
        Arithmetic::F16 => (DType::F16.into(), 16, 8),
        Arithmetic::Tf32 | Arithmetic::F32 => (tf32::as_type_native_unchecked().storage_type(), 8, 4),
    };
    let blocks = |tile: usize| x.rows.div_ceil(tile) * weight.columns.div_ceil(tile);
    let tile = if blocks(128) >= WANTED_BLOCKS { 128 } else { 64 };
    let shape = Shape {
        tile,
        depth,
        x_vector: x.vector(),
        weight_vector: weight.vector(),
        padding,
        along_columns: weight.along_columns,
    };
    // Whole tiles are written.
    let memory = x.empty(x.rows.next_multiple_of(tile), weight.columns.next_multiple_of(tile));
    // SAFETY: the kernel reads within the rows, columns and sums of the matrices, by vectors that do not cross their lines.
    unsafe {
        product_kernel::launch_unchecked::<Gpu>(
            x.client(),
            CubeCount::Static(x.rows.div_ceil(tile) as u32, weight.columns.div_ceil(tile) as u32, 1),
            CubeDim::new_1d(THREADS as u32),
            shape.x_vector,
            shape.weight_vector,
            x.argument(),
            weight.argument(),
            memory.argument(),
            x.rows,
            weight.inner,
            weight.columns,
            x.stride,
            weight.stride,
            memory.stride,
            shape,
            [weight.dtype().into(), factors],
        );
    }
    memory.corner(x.rows, weight.columns)
}
