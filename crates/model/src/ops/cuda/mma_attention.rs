//! Causal attention forward on the matrix units: as [`super::attention`], with the factors of both products rounded to TF32. The
//! softmax and all sums are in `f32`.
//!
//! A block takes a tile of queries of one head, each of its warps sixteen of them, and walks over the tiles of keys in ascending order.
//! Scores and probabilities stay in registers (Dao, FlashAttention-2, 2023).

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::attention::LOWEST;
use super::matrix::{Gpu, Matrix};
use super::mma_tiles::{
    CHUNK, Chunk, Cut, EIGHT, Rows, add_rows, first_of_warp, left_factor, multiply_rows, next_tiles, no_sums,
    row_factors, row_of, scale_rows, tile_bytes, write_rows,
};
use super::sums::{WARP, quad_max, quad_sum};
use super::tiles::{Extent, SIDE, Tiles};
use crate::kernels::attention::Heads;

/// Tiles of queries and keys, the largest first; for the queries' gradient too.
pub const LIMITS: [(usize, usize); 3] = [(64, 64), (32, 32), (16, 16)];

/// Shared memory of the kernel.
pub fn bytes(tiles: &Tiles) -> usize {
    tile_bytes(tiles, 2 * tiles.keys)
}

/// How these matrices are read by blocks with `rows` rows, sixteen of them a warp, that walk over tiles with `others`. Warps more than
/// there are rows help to read.
pub fn cut(tiles: Tiles, [rows, others]: [usize; 2], matrices: &[&Matrix]) -> Cut {
    let whole = matrices.iter().all(|matrix| matrix.vector() == CHUNK) && tiles.size.is_multiple_of(CHUNK);
    let warps = rows.max(others.min(64)) / SIDE;
    Cut { tiles, vector: if whole { CHUNK } else { 1 }, threads: warps * WARP as usize }
}

#[cube(launch_unchecked)]
fn forward_kernel<N: Size>(
    q: &Array<Vector<f32, N>>,
    k: &Array<Vector<f32, N>>,
    v: &Array<Vector<f32, N>>,
    out: &mut Array<f32>,
    stats: &mut Array<f32>,
    q_stride: usize,
    k_stride: usize,
    v_stride: usize,
    length: usize,
    queries: usize,
    heads: usize,
    scale: f32,
    #[comptime] cut: Cut,
    #[comptime] group: usize,
) {
    let (size, key_tile) = comptime!((cut.tiles.size, cut.tiles.keys));
    let (query_tile, squares) = comptime!((cut.tiles.queries, cut.tiles.keys / EIGHT));
    let lane = (UNIT_POS_X % WARP) as usize;
    let head = CUBE_POS_Y as usize;
    let sequence = CUBE_POS_Z as usize;
    // The longest first.
    let first = (queries.div_ceil(query_tile) - 1 - CUBE_POS_X as usize) * query_tile;
    let hidden = length - queries;
    let keys = min(first + query_tile, queries) + hidden;
    let of_warp = first_of_warp(first, queries, query_tile);

    let mut k_tile = SharedMemory::<Chunk>::new(comptime!(cut.tiles.keys * cut.line() / CHUNK));
    let mut v_tile = SharedMemory::<Chunk>::new(comptime!(cut.tiles.keys * cut.line() / CHUNK));
    let q_rows = Rows { start: sequence * queries * q_stride + head * size, stride: q_stride, count: queries };
    let k_rows = Rows { start: sequence * length * k_stride + head / group * size, stride: k_stride, count: length };
    let v_rows = Rows { start: sequence * length * v_stride + head / group * size, stride: v_stride, count: length };
    let of_queries = row_factors(q, q_rows, of_warp, cut);
    let mut sums = no_sums(comptime!(cut.width() / EIGHT));
    let mut most = Array::<f32>::new(2usize);
    let mut total = Array::<f32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        most[half] = f32::new(LOWEST);
        total[half] = f32::new(0.0);
    }

    let mut key = 0;
    while key < keys {
        next_tiles(k, k_rows, &mut k_tile, v, v_rows, &mut v_tile, key, key_tile, cut);
        sync_cube();
        // A warp without queries, or whose last one sees none of these keys, waits for the others.
        if of_warp < queries && key < of_warp + SIDE + hidden {
            let mut scores = no_sums(squares);
            #[unroll]
            for pair in 0..comptime!(cut.tiles.keys / SIDE) {
                multiply_rows(&of_queries, &k_tile, comptime!(pair * SIDE), &mut scores, comptime!(2 * pair), cut);
            }
            let mut kept = Array::<f32>::new(2usize);
            #[unroll]
            for half in 0..2usize {
                let last = of_warp + lane / 4 + comptime!(half * EIGHT) + hidden;
                let mut largest = f32::new(LOWEST);
                #[unroll]
                for square in 0..squares {
                    let mut row = scores.index(square)[half];
                    #[unroll]
                    for column in 0..2usize {
                        let place = row_of(lane % 4 * 2 + column, comptime!(square % 2)) + comptime!(square / 2 * SIDE);
                        let score = select(key + place <= last, row[column] * scale, f32::new(LOWEST));
                        largest = largest.max(score);
                        row[column] = score;
                    }
                    scores.index_mut(square)[half] = row;
                }
                let above = most[half].max(quad_max(largest));
                kept[half] = (most[half] - above).exp();
                most[half] = above;
                // A lane adds up its own columns; the four lanes of a row meet at the end.
                let mut sum = f32::new(0.0);
                #[unroll]
                for square in 0..squares {
                    let mut row = scores.index(square)[half];
                    #[unroll]
                    for column in 0..2usize {
                        let place = row_of(lane % 4 * 2 + column, comptime!(square % 2)) + comptime!(square / 2 * SIDE);
                        let p = select(key + place <= last, (row[column] - above).exp(), f32::new(0.0));
                        sum += p;
                        row[column] = p;
                    }
                    scores.index_mut(square)[half] = row;
                }
                total[half] = fma(total[half], kept[half], sum);
            }
            scale_rows(&mut sums, kept[0], kept[1], cut);
            #[unroll]
            for square in 0..squares {
                let left = left_factor(scores.index(square));
                add_rows(&left, &v_tile, comptime!(square / 2 * SIDE), &mut sums, comptime!(square % 2), cut);
            }
        }
        key += key_tile;
    }
    let in_row = lane % 4;
    #[unroll]
    for half in 0..2usize {
        total[half] = quad_sum(total[half]);
        let query = of_warp + lane / 4 + comptime!(half * EIGHT);
        if query < queries && in_row == 0 {
            let place = ((sequence * queries + query) * heads + head) * 2;
            stats[place] = most[half];
            stats[place + 1] = total[half];
        }
    }
    scale_rows(&mut sums, f32::new(1.0) / total[0], f32::new(1.0) / total[1], cut);
    let row_size = heads * size;
    let to = Rows { start: sequence * queries * row_size + head * size, stride: row_size, count: queries };
    write_rows(&sums, out, to, of_warp, cut);
}

/// As [`super::attention::forward`].
pub fn forward(q: &Matrix, k: &Matrix, v: &Matrix, extent: Extent, heads: Heads, tiles: Tiles) -> (Matrix, Matrix) {
    let out = q.empty(q.rows, heads.width());
    let stats = q.empty(q.rows, heads.heads * 2);
    let across = extent.queries.div_ceil(tiles.queries) as u32;
    let cut = cut(tiles, [tiles.queries, tiles.keys], &[q, k, v]);
    // SAFETY: a block reads rows of its own sequence alone, as far as there are any, and writes rows of its queries.
    unsafe {
        forward_kernel::launch_unchecked::<Gpu>(
            q.client(),
            CubeCount::Static(across, heads.heads as u32, extent.sequences as u32),
            CubeDim::new_1d(cut.threads as u32),
            cut.vector,
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
            cut,
            heads.group(),
        );
    }
    (out, stats)
}
