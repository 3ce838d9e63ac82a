//! Causal attention backward on the matrix units: as [`super::attention_backward`], with the factors of all products rounded to TF32.
//! The probabilities, and the sums, are in `f32`; they stay in registers, as in [`super::mma_attention`].

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::attention_backward::Kept;
use super::matrix::{Gpu, Matrix};
use super::mma_attention::cut;
use super::mma_tiles::{
    CHUNK, Chunk, Cut, EIGHT, Rows, add_rows, first_of_warp, left_factor, multiply_rows, next_tiles, no_sums,
    read_chunk, row_factors, row_of, tile_bytes, write_rows,
};
use super::sums::{WARP, quad_sum};
use super::tiles::{Extent, SIDE, Tiles};
use crate::kernels::attention::Heads;

/// Tiles of queries and keys for the gradients of keys and values, the largest first.
pub const KEYS: [(usize, usize); 3] = [(64, 32), (32, 32), (16, 16)];

/// Shared memory of the queries' gradient.
pub fn queries_bytes(tiles: &Tiles) -> usize {
    tile_bytes(tiles, 2 * tiles.keys)
}

/// Shared memory of the gradients of keys and values.
pub fn keys_bytes(tiles: &Tiles) -> usize {
    tile_bytes(tiles, 2 * tiles.queries) + 4 * 3 * tiles.queries
}

/// Gradient of the queries, a tile of them a block, sixteen a warp; and `along`, the product of gradient and result of each query and
/// head.
#[cube(launch_unchecked)]
fn queries_kernel<N: Size>(
    grad: &Array<Vector<f32, N>>,
    out: &Array<Vector<f32, N>>,
    q: &Array<Vector<f32, N>>,
    k: &Array<Vector<f32, N>>,
    v: &Array<Vector<f32, N>>,
    stats: &Array<f32>,
    grad_q: &mut Array<f32>,
    along: &mut Array<f32>,
    q_stride: usize,
    k_stride: usize,
    v_stride: usize,
    grad_q_stride: usize,
    length: usize,
    queries: usize,
    heads: usize,
    scale: f32,
    #[comptime] cut: Cut,
    #[comptime] group: usize,
) {
    let (size, key_tile, query_tile) = comptime!((cut.tiles.size, cut.tiles.keys, cut.tiles.queries));
    let lane = (UNIT_POS_X % WARP) as usize;
    let head = CUBE_POS_Y as usize;
    let sequence = CUBE_POS_Z as usize;
    let first = (queries.div_ceil(query_tile) - 1 - CUBE_POS_X as usize) * query_tile;
    let hidden = length - queries;
    let keys = min(first + query_tile, queries) + hidden;
    let of_warp = first_of_warp(first, queries, query_tile);

    let mut k_tile = SharedMemory::<Chunk>::new(comptime!(cut.tiles.keys * cut.line() / CHUNK));
    let mut v_tile = SharedMemory::<Chunk>::new(comptime!(cut.tiles.keys * cut.line() / CHUNK));
    let row_size = heads * size;
    let rows = Rows { start: sequence * queries * row_size + head * size, stride: row_size, count: queries };
    let q_rows = Rows { start: sequence * queries * q_stride + head * size, stride: q_stride, count: queries };
    let k_rows = Rows { start: sequence * length * k_stride + head / group * size, stride: k_stride, count: length };
    let v_rows = Rows { start: sequence * length * v_stride + head / group * size, stride: v_stride, count: length };
    let of_queries = row_factors(q, q_rows, of_warp, cut);
    let of_grad = row_factors(grad, rows, of_warp, cut);
    let mut most = Array::<f32>::new(2usize);
    let mut share = Array::<f32>::new(2usize);
    let mut of_query = Array::<f32>::new(2usize);
    let in_row = lane % 4;
    #[unroll]
    for half in 0..2usize {
        let query = of_warp + lane / 4 + comptime!(half * EIGHT);
        let mut sum = f32::new(0.0);
        #[unroll]
        for block in 0..comptime!(cut.width() / SIDE) {
            let column = comptime!(block * SIDE) + lane % 4 * CHUNK;
            let g = read_chunk(grad, rows, query, column, cut);
            let o = read_chunk(out, rows, query, column, cut);
            #[unroll]
            for i in 0..CHUNK {
                sum = fma(g[i], o[i], sum);
            }
        }
        of_query[half] = quad_sum(sum);
        most[half] = f32::new(0.0);
        share[half] = f32::new(0.0);
        if query < queries {
            let place = (sequence * queries + query) * heads + head;
            most[half] = stats[place * 2];
            share[half] = f32::new(1.0) / stats[place * 2 + 1];
            if in_row == 0 {
                along[place] = of_query[half];
            }
        }
    }

    let mut sums = no_sums(comptime!(cut.width() / EIGHT));
    let mut key = 0;
    while key < keys {
        next_tiles(k, k_rows, &mut k_tile, v, v_rows, &mut v_tile, key, key_tile, cut);
        sync_cube();
        if of_warp < queries && key < of_warp + SIDE + hidden {
            #[unroll]
            for pair in 0..comptime!(cut.tiles.keys / SIDE) {
                let mut scores = no_sums(2usize);
                let mut grad_p = no_sums(2usize);
                multiply_rows(&of_queries, &k_tile, comptime!(pair * SIDE), &mut scores, 0usize, cut);
                multiply_rows(&of_grad, &v_tile, comptime!(pair * SIDE), &mut grad_p, 0usize, cut);
                #[unroll]
                for square in 0..2usize {
                    #[unroll]
                    for half in 0..2usize {
                        let last = of_warp + lane / 4 + comptime!(half * EIGHT) + hidden;
                        let mut row = scores.index(square)[half];
                        let of_p = grad_p.index(square)[half];
                        #[unroll]
                        for column in 0..2usize {
                            let place = row_of(lane % 4 * 2 + column, square) + comptime!(pair * SIDE);
                            let p = (row[column] * scale - most[half]).exp() * share[half];
                            let grad_s = p * (of_p[column] - of_query[half]) * scale;
                            row[column] = select(key + place <= last, grad_s, f32::new(0.0));
                        }
                        scores.index_mut(square)[half] = row;
                    }
                    let left = left_factor(scores.index(square));
                    add_rows(&left, &k_tile, comptime!(pair * SIDE), &mut sums, square, cut);
                }
            }
        }
        key += key_tile;
    }
    let to = Rows { start: sequence * queries * grad_q_stride + head * size, stride: grad_q_stride, count: queries };
    write_rows(&sums, grad_q, to, of_warp, cut);
}

/// Gradients of keys and values, a tile of them a block, sixteen a warp, summed over the query heads that share them.
#[cube(launch_unchecked)]
fn keys_kernel<N: Size>(
    grad: &Array<Vector<f32, N>>,
    q: &Array<Vector<f32, N>>,
    k: &Array<Vector<f32, N>>,
    v: &Array<Vector<f32, N>>,
    stats: &Array<f32>,
    along: &Array<f32>,
    grad_k: &mut Array<f32>,
    grad_v: &mut Array<f32>,
    q_stride: usize,
    k_stride: usize,
    v_stride: usize,
    grad_k_stride: usize,
    grad_v_stride: usize,
    length: usize,
    queries: usize,
    heads: usize,
    scale: f32,
    #[comptime] cut: Cut,
    #[comptime] group: usize,
) {
    let (size, key_tile, query_tile) = comptime!((cut.tiles.size, cut.tiles.keys, cut.tiles.queries));
    let lane = (UNIT_POS_X % WARP) as usize;
    let kv_head = CUBE_POS_Y as usize;
    let sequence = CUBE_POS_Z as usize;
    let first = CUBE_POS_X as usize * key_tile;
    let hidden = length - queries;
    let of_warp = first_of_warp(first, length, key_tile);

    let mut q_tile = SharedMemory::<Chunk>::new(comptime!(cut.tiles.queries * cut.line() / CHUNK));
    let mut grad_tile = SharedMemory::<Chunk>::new(comptime!(cut.tiles.queries * cut.line() / CHUNK));
    let mut most = SharedMemory::<f32>::new(query_tile);
    let mut share = SharedMemory::<f32>::new(query_tile);
    let mut of_query = SharedMemory::<f32>::new(query_tile);
    let row_size = heads * size;
    let k_rows = Rows { start: sequence * length * k_stride + kv_head * size, stride: k_stride, count: length };
    let v_rows = Rows { start: sequence * length * v_stride + kv_head * size, stride: v_stride, count: length };
    let of_keys = row_factors(k, k_rows, of_warp, cut);
    let of_values = row_factors(v, v_rows, of_warp, cut);

    let mut k_sums = no_sums(comptime!(cut.width() / EIGHT));
    let mut v_sums = no_sums(comptime!(cut.width() / EIGHT));
    for member in 0..group {
        let head = kv_head * group + member;
        let q_rows = Rows { start: sequence * queries * q_stride + head * size, stride: q_stride, count: queries };
        let rows = Rows { start: sequence * queries * row_size + head * size, stride: row_size, count: queries };
        // The tile with the first query that sees the first key.
        let mut query = 0;
        if first > hidden {
            query = (first - hidden) / query_tile * query_tile;
        }
        while query < queries {
            next_tiles(q, q_rows, &mut q_tile, grad, rows, &mut grad_tile, query, query_tile, cut);
            let place = UNIT_POS_X as usize;
            if place < query_tile {
                let index = query + place;
                most[place] = f32::new(0.0);
                share[place] = f32::new(0.0);
                of_query[place] = f32::new(0.0);
                if index < queries {
                    let at = (sequence * queries + index) * heads + head;
                    most[place] = stats[at * 2];
                    share[place] = f32::new(1.0) / stats[at * 2 + 1];
                    of_query[place] = along[at];
                }
            }
            sync_cube();
            // A warp whose first key is seen by none of these queries waits for the others.
            if of_warp < length && of_warp < query + query_tile + hidden {
                #[unroll]
                for pair in 0..comptime!(cut.tiles.queries / SIDE) {
                    let mut scores = no_sums(2usize);
                    let mut grad_p = no_sums(2usize);
                    multiply_rows(&of_keys, &q_tile, comptime!(pair * SIDE), &mut scores, 0usize, cut);
                    multiply_rows(&of_values, &grad_tile, comptime!(pair * SIDE), &mut grad_p, 0usize, cut);
                    #[unroll]
                    for square in 0..2usize {
                        #[unroll]
                        for half in 0..2usize {
                            let first_seen = of_warp + lane / 4 + comptime!(half * EIGHT);
                            let mut row = scores.index(square)[half];
                            let mut of_p = grad_p.index(square)[half];
                            #[unroll]
                            for column in 0..2usize {
                                let place = row_of(lane % 4 * 2 + column, square) + comptime!(pair * SIDE);
                                let sees = query + place < queries && first_seen <= query + place + hidden;
                                let p = (row[column] * scale - most[place]).exp() * share[place];
                                let p = select(sees, p, f32::new(0.0));
                                let grad_s = p * (of_p[column] - of_query[place]) * scale;
                                row[column] = p;
                                of_p[column] = select(sees, grad_s, f32::new(0.0));
                            }
                            scores.index_mut(square)[half] = row;
                            grad_p.index_mut(square)[half] = of_p;
                        }
                        let of_pair = comptime!(pair * SIDE);
                        add_rows(&left_factor(scores.index(square)), &grad_tile, of_pair, &mut v_sums, square, cut);
                        add_rows(&left_factor(grad_p.index(square)), &q_tile, of_pair, &mut k_sums, square, cut);
                    }
                }
            }
            query += query_tile;
        }
    }
    let (k_from, v_from) = (sequence * length * grad_k_stride, sequence * length * grad_v_stride);
    let k_to = Rows { start: k_from + kv_head * size, stride: grad_k_stride, count: length };
    let v_to = Rows { start: v_from + kv_head * size, stride: grad_v_stride, count: length };
    write_rows(&k_sums, grad_k, k_to, of_warp, cut);
    write_rows(&v_sums, grad_v, v_to, of_warp, cut);
}

/// As [`super::attention_backward::backward`], with the tiles of both kernels.
pub fn backward(grad: &Matrix, kept: &Kept<'_>, to: [&Matrix; 3], extent: Extent, heads: Heads, tiles: [Tiles; 2]) {
    let Kept { q, k, v, out, stats } = kept;
    let [grad_q, grad_k, grad_v] = to;
    let [of_queries, of_keys] = tiles;
    let along = q.empty(q.rows, heads.heads);
    let (sequences, length, queries) = (extent.sequences as u32, extent.length, extent.queries);
    let (across, down) = (queries.div_ceil(of_queries.queries) as u32, length.div_ceil(of_keys.keys) as u32);
    let of_queries = cut(of_queries, [of_queries.queries, of_queries.keys], &[grad, out, q, k, v]);
    let of_keys = cut(of_keys, [of_keys.keys, of_keys.queries], &[grad, q, k, v]);
    // SAFETY: a block reads rows of its own sequence alone, as far as there are any, and writes those of its tile.
    unsafe {
        queries_kernel::launch_unchecked::<Gpu>(
            q.client(),
            CubeCount::Static(across, heads.heads as u32, sequences),
            CubeDim::new_1d(of_queries.threads as u32),
            of_queries.vector,
            grad.argument(),
            out.argument(),
            q.argument(),
            k.argument(),
            v.argument(),
            stats.argument(),
            grad_q.argument(),
            along.argument(),
            q.stride,
            k.stride,
            v.stride,
            grad_q.stride,
            length,
            queries,
            heads.heads,
            heads.scale,
            of_queries,
            heads.group(),
        );
        keys_kernel::launch_unchecked::<Gpu>(
            q.client(),
            CubeCount::Static(down, heads.kv_heads as u32, sequences),
            CubeDim::new_1d(of_keys.threads as u32),
            of_keys.vector,
            grad.argument(),
            q.argument(),
            k.argument(),
            v.argument(),
            stats.argument(),
            along.argument(),
            grad_k.argument(),
            grad_v.argument(),
            q.stride,
            k.stride,
            v.stride,
            grad_k.stride,
            grad_v.stride,
            length,
            queries,
            heads.heads,
            heads.scale,
            of_keys,
            heads.group(),
        );
    }
}
