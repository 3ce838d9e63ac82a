//! Causal attention forward: softmax(q·kᵀ·scale)·v, with the softmax made while walking over the keys, so that no matrix of
//! scores lies in memory (Milakov and Gimelshein, 2018; Dao et al., FlashAttention, 2022).
//!
//! A block of 16×16 threads takes a tile of queries of one head and walks over the tiles of keys in ascending order. A thread
//! has neighbouring queries, and every sixteenth key or column. What a query needs later is the largest score and the sum.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::matrix::{Gpu, Matrix};
use super::sums::{half_warp_max, half_warp_sum};
use super::tiles::{Extent, SIDE, Tiles};
use crate::kernels::attention::Heads;

/// Tiles of queries and keys, the largest first.
pub const LIMITS: [(usize, usize); 3] = [(64, 64), (32, 32), (16, 16)];

/// Shared memory of the kernel.
pub fn bytes(tiles: &Tiles) -> usize {
    4 * ((tiles.queries + tiles.keys) * tiles.line() + tiles.queries * (tiles.keys + 1))
}

/// Below every score.
pub const LOWEST: f32 = -1e30;

/// Rows `first..first + count` of a matrix's columns `from..from + size` into shared memory; zeros beyond row `end` and beyond
/// the columns.
#[cube]
pub fn load_tile(
    x: &Array<f32>,
    tile: &mut SharedMemory<f32>,
    start: usize,
    stride: usize,
    first: usize,
    end: usize,
    #[comptime] count: usize,
    #[comptime] size: usize,
    #[comptime] width: usize,
) {
    let threads = comptime!(SIDE * SIDE);
    let mut place = UNIT_POS_X as usize;
    while place < comptime!(count * width) {
        let (row, column) = (place / width, place % width);
        let mut value = f32::new(0.0);
        if first + row < end && column < size {
            value = x[start + (first + row) * stride + column];
        }
        tile[row * comptime!(width + 1) + column] = value;
        place += threads;
    }
}

/// `a·bᵀ` of two tiles into `products`, `[each_a, each_b]` of this thread: rows `down·each_a + i` of `a`, rows `across + 16·j`
/// of `b`.
#[cube]
pub fn multiply_rows(
    a: &SharedMemory<f32>,
    b: &SharedMemory<f32>,
    products: &mut Array<f32>,
    down: usize,
    across: usize,
    #[comptime] each_a: usize,
    #[comptime] each_b: usize,
    #[comptime] size: usize,
    #[comptime] line: usize,
) {
    #[unroll]
    for i in 0..comptime!(each_a * each_b) {
        products[i] = f32::new(0.0);
    }
    for d in 0..size {
        #[unroll]
        for i in 0..each_a {
            let of_a = a[(down * each_a + i) * line + d];
            #[unroll]
            for j in 0..each_b {
                let place = comptime!(i * each_b + j);
                products[place] = fma(of_a, b[(across + SIDE * j) * line + d], products[place]);
            }
        }
    }
}

/// Adds `p·x` to `sums`, `[each, width / 16]` of this thread: rows `down·each + i` of `p [.., count]`, columns `across + 16·j` of
/// `x`.
#[cube]
pub fn add_product(
    p: &SharedMemory<f32>,
    x: &SharedMemory<f32>,
    sums: &mut Array<f32>,
    down: usize,
    across: usize,
    #[comptime] each: usize,
    #[comptime] count: usize,
    #[comptime] width: usize,
) {
    let columns = comptime!(width / SIDE);
    for c in 0..count {
        #[unroll]
        for i in 0..each {
            let weight = p[(down * each + i) * comptime!(count + 1) + c];
            #[unroll]
            for j in 0..columns {
                let place = comptime!(i * columns + j);
                sums[place] = fma(weight, x[c * comptime!(width + 1) + across + SIDE * j], sums[place]);
            }
        }
    }
}

#[cube(launch_unchecked)]
fn forward_kernel(
    q: &Array<f32>,
    k: &Array<f32>,
    v: &Array<f32>,
    out: &mut Array<f32>,
    stats: &mut Array<f32>,
    q_stride: usize,
    k_stride: usize,
    v_stride: usize,
    length: usize,
    queries: usize,
    heads: usize,
    scale: f32,
    #[comptime] tiles: Tiles,
    #[comptime] group: usize,
) {
    let (each, keys_each, columns) = comptime!((tiles.queries / SIDE, tiles.keys / SIDE, tiles.width() / SIDE));
    let (size, width, line) = comptime!((tiles.size, tiles.width(), tiles.line()));
    let thread = UNIT_POS_X as usize;
    let (across, down) = (thread % SIDE, thread / SIDE);
    let head = CUBE_POS_Y as usize;
    let sequence = CUBE_POS_Z as usize;
    // The longest first.
    let first = (queries.div_ceil(comptime!(tiles.queries)) - 1 - CUBE_POS_X as usize) * comptime!(tiles.queries);
    let hidden = length - queries;
    let keys = min(first + comptime!(tiles.queries), queries) + hidden;

    let mut q_tile = SharedMemory::<f32>::new(comptime!(tiles.queries * tiles.line()));
    let mut kv_tile = SharedMemory::<f32>::new(comptime!(tiles.keys * tiles.line()));
    let mut p_tile = SharedMemory::<f32>::new(comptime!(tiles.queries * (tiles.keys + 1)));
    let mut scores = Array::<f32>::new(comptime!(each * keys_each));
    let mut sums = Array::<f32>::new(comptime!(each * columns));
    let mut most = Array::<f32>::new(each);
    let mut total = Array::<f32>::new(each);
    #[unroll]
    for i in 0..comptime!(each * columns) {
        sums[i] = f32::new(0.0);
    }
    #[unroll]
    for i in 0..each {
        most[i] = f32::new(LOWEST);
        total[i] = f32::new(0.0);
    }
    let q_start = sequence * queries * q_stride + head * size;
    let k_start = sequence * length * k_stride + head / group * size;
    let v_start = sequence * length * v_stride + head / group * size;
    load_tile(q, &mut q_tile, q_start, q_stride, first, queries, comptime!(tiles.queries), size, width);

    let mut key = 0;
    while key < keys {
        sync_cube();
        load_tile(k, &mut kv_tile, k_start, k_stride, key, length, comptime!(tiles.keys), size, width);
        sync_cube();
        multiply_rows(&q_tile, &kv_tile, &mut scores, down, across, each, keys_each, size, line);
        #[unroll]
        for i in 0..each {
            let row = down * each + i;
            let last = first + row + hidden;
            let mut largest = f32::new(LOWEST);
            #[unroll]
            for j in 0..keys_each {
                let place = comptime!(i * keys_each + j);
                let score = scores[place] * scale;
                let sees = key + across + SIDE * j <= last;
                scores[place] = select(sees, score, f32::new(LOWEST));
                largest = largest.max(scores[place]);
            }
            let above = most[i].max(half_warp_max(largest));
            let kept = (most[i] - above).exp();
            let mut sum = f32::new(0.0);
            #[unroll]
            for j in 0..keys_each {
                let place = comptime!(i * keys_each + j);
                let sees = key + across + SIDE * j <= last;
                let p = select(sees, (scores[place] - above).exp(), f32::new(0.0));
                p_tile[row * comptime!(tiles.keys + 1) + across + SIDE * j] = p;
                sum += p;
            }
            total[i] = fma(total[i], kept, half_warp_sum(sum));
            most[i] = above;
            #[unroll]
            for j in 0..columns {
                sums[comptime!(i * columns + j)] *= kept;
            }
        }
        sync_cube();
        load_tile(v, &mut kv_tile, v_start, v_stride, key, length, comptime!(tiles.keys), size, width);
        sync_cube();
        add_product(&p_tile, &kv_tile, &mut sums, down, across, each, comptime!(tiles.keys), width);
        key += comptime!(tiles.keys);
    }
    #[unroll]
    for i in 0..each {
        let query = first + down * each + i;
        if query < queries {
            let row = sequence * queries + query;
            #[unroll]
            for j in 0..columns {
                let column = across + SIDE * j;
                if column < size {
                    out[row * heads * size + head * size + column] = sums[comptime!(i * columns + j)] / total[i];
                }
            }
            if across == 0 {
                stats[(row * heads + head) * 2] = most[i];
                stats[(row * heads + head) * 2 + 1] = total[i];
            }
        }
    }
}

/// The result `[queries, heads·size]`, and of each query and head the largest score and the sum, `[queries, heads·2]`.
pub fn forward(q: &Matrix, k: &Matrix, v: &Matrix, extent: Extent, heads: Heads, tiles: Tiles) -> (Matrix, Matrix) {
    let out = q.empty(q.rows, heads.width());
    let stats = q.empty(q.rows, heads.heads * 2);
    let across = extent.queries.div_ceil(tiles.queries) as u32;
    // SAFETY: a block reads rows of its own sequence alone, as far as there are any, and writes rows of its queries.
    unsafe {
        forward_kernel::launch_unchecked::<Gpu>(
            q.client(),
            CubeCount::Static(across, heads.heads as u32, extent.sequences as u32),
            CubeDim::new_1d((SIDE * SIDE) as u32),
            q.argument(),
            k.argument(),
            v.argument(),
            out.argument(),
            stats.argument(),
            q.stride,
            k.stride,
            v.stride,
            extent.length,
            extent.queries,
            heads.heads,
            heads.scale,
            tiles,
            heads.group(),
        );
    }
    (out, stats)
}
