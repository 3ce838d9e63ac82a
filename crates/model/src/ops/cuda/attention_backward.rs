//! Causal attention backward. The probabilities are computed again from the largest scores and sums that the forward pass kept
//! (Dao et al., FlashAttention, 2022), once for the queries' gradient and once for those of keys and values: so each number has
//! one thread that adds it up in a fixed order.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::attention::{add_product, load_tile, multiply_rows};
use super::matrix::{Gpu, Matrix};
use super::sums::half_warp_sum;
use super::tiles::{Extent, SIDE, Tiles};
use crate::kernels::attention::Heads;

/// Shared memory of the larger kernel.
pub fn bytes(tiles: &Tiles) -> usize {
    let scores = (tiles.queries * (tiles.keys + 1)).max(tiles.keys * (tiles.queries + 1));
    4 * (2 * (tiles.queries + tiles.keys) * tiles.line() + scores)
}

/// Gradient of the queries, a tile of them a block; and `along`, the product of gradient and result of each query and head.
#[cube(launch_unchecked)]
fn queries_kernel(
    grad: &Array<f32>,
    out: &Array<f32>,
    q: &Array<f32>,
    k: &Array<f32>,
    v: &Array<f32>,
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
    #[comptime] tiles: Tiles,
    #[comptime] group: usize,
) {
    let (each, keys_each, columns) = comptime!((tiles.queries / SIDE, tiles.keys / SIDE, tiles.width() / SIDE));
    let (size, width, line) = comptime!((tiles.size, tiles.width(), tiles.line()));
    let thread = UNIT_POS_X as usize;
    let (across, down) = (thread % SIDE, thread / SIDE);
    let head = CUBE_POS_Y as usize;
    let sequence = CUBE_POS_Z as usize;
    let first = (queries.div_ceil(comptime!(tiles.queries)) - 1 - CUBE_POS_X as usize) * comptime!(tiles.queries);
    let hidden = length - queries;
    let keys = min(first + comptime!(tiles.queries), queries) + hidden;

    let mut q_tile = SharedMemory::<f32>::new(comptime!(tiles.queries * tiles.line()));
    let mut grad_tile = SharedMemory::<f32>::new(comptime!(tiles.queries * tiles.line()));
    let mut k_tile = SharedMemory::<f32>::new(comptime!(tiles.keys * tiles.line()));
    let mut v_tile = SharedMemory::<f32>::new(comptime!(tiles.keys * tiles.line()));
    let mut s_tile = SharedMemory::<f32>::new(comptime!(tiles.queries * (tiles.keys + 1)));
    let mut scores = Array::<f32>::new(comptime!(each * keys_each));
    let mut grad_p = Array::<f32>::new(comptime!(each * keys_each));
    let mut sums = Array::<f32>::new(comptime!(each * columns));
    let mut most = Array::<f32>::new(each);
    let mut total = Array::<f32>::new(each);
    let mut of_query = Array::<f32>::new(each);
    #[unroll]
    for i in 0..comptime!(each * columns) {
        sums[i] = f32::new(0.0);
    }
    let row_size = heads * size;
    let start = sequence * queries * row_size + head * size;
    let q_start = sequence * queries * q_stride + head * size;
    let k_start = sequence * length * k_stride + head / group * size;
    let v_start = sequence * length * v_stride + head / group * size;
    load_tile(q, &mut q_tile, q_start, q_stride, first, queries, comptime!(tiles.queries), size, width);
    load_tile(grad, &mut grad_tile, start, row_size, first, queries, comptime!(tiles.queries), size, width);
    sync_cube();
    #[unroll]
    for i in 0..each {
        let row = down * each + i;
        let query = first + row;
        let mut sum = f32::new(0.0);
        most[i] = f32::new(0.0);
        total[i] = f32::new(1.0);
        if query < queries {
            let place = ((sequence * queries + query) * heads + head) * 2;
            most[i] = stats[place];
            total[i] = stats[place + 1];
            #[unroll]
            for j in 0..columns {
                let column = across + SIDE * j;
                if column < size {
                    sum = fma(grad_tile[row * line + column], out[start + query * row_size + column], sum);
                }
            }
        }
        of_query[i] = half_warp_sum(sum);
        if query < queries && across == 0 {
            along[(sequence * queries + query) * heads + head] = of_query[i];
        }
    }

    let mut key = 0;
    while key < keys {
        sync_cube();
        load_tile(k, &mut k_tile, k_start, k_stride, key, length, comptime!(tiles.keys), size, width);
        load_tile(v, &mut v_tile, v_start, v_stride, key, length, comptime!(tiles.keys), size, width);
        sync_cube();
        multiply_rows(&q_tile, &k_tile, &mut scores, down, across, each, keys_each, size, line);
        multiply_rows(&grad_tile, &v_tile, &mut grad_p, down, across, each, keys_each, size, line);
        #[unroll]
        for i in 0..each {
            let row = down * each + i;
            let last = first + row + hidden;
            #[unroll]
            for j in 0..keys_each {
                let place = comptime!(i * keys_each + j);
                let p = (scores[place] * scale - most[i]).exp() / total[i];
                let grad_s = p * (grad_p[place] - of_query[i]) * scale;
                let sees = key + across + SIDE * j <= last;
                s_tile[row * comptime!(tiles.keys + 1) + across + SIDE * j] = select(sees, grad_s, f32::new(0.0));
            }
        }
        sync_cube();
        add_product(&s_tile, &k_tile, &mut sums, down, across, each, comptime!(tiles.keys), width);
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
                    grad_q[row * grad_q_stride + head * size + column] = sums[comptime!(i * columns + j)];
                }
            }
        }
    }
}

/// Gradients of keys and values, a tile of them a block, over all heads of the group and all queries that see the keys.
#[cube(launch_unchecked)]
fn keys_kernel(
    grad: &Array<f32>,
    q: &Array<f32>,
    k: &Array<f32>,
    v: &Array<f32>,
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
    #[comptime] tiles: Tiles,
    #[comptime] group: usize,
) {
    let (each, queries_each, columns) = comptime!((tiles.keys / SIDE, tiles.queries / SIDE, tiles.width() / SIDE));
    let (size, width, line) = comptime!((tiles.size, tiles.width(), tiles.line()));
    let thread = UNIT_POS_X as usize;
    let (across, down) = (thread % SIDE, thread / SIDE);
    let kv_head = CUBE_POS_Y as usize;
    let sequence = CUBE_POS_Z as usize;
    let first = CUBE_POS_X as usize * comptime!(tiles.keys);
    let hidden = length - queries;

    let mut k_tile = SharedMemory::<f32>::new(comptime!(tiles.keys * tiles.line()));
    let mut v_tile = SharedMemory::<f32>::new(comptime!(tiles.keys * tiles.line()));
    let mut q_tile = SharedMemory::<f32>::new(comptime!(tiles.queries * tiles.line()));
    let mut grad_tile = SharedMemory::<f32>::new(comptime!(tiles.queries * tiles.line()));
    let mut p_tile = SharedMemory::<f32>::new(comptime!(tiles.keys * (tiles.queries + 1)));
    let mut scores = Array::<f32>::new(comptime!(each * queries_each));
    let mut grad_p = Array::<f32>::new(comptime!(each * queries_each));
    let mut sums_k = Array::<f32>::new(comptime!(each * columns));
    let mut sums_v = Array::<f32>::new(comptime!(each * columns));
    #[unroll]
    for i in 0..comptime!(each * columns) {
        sums_k[i] = f32::new(0.0);
        sums_v[i] = f32::new(0.0);
    }
    let row_size = heads * size;
    let k_start = sequence * length * k_stride + kv_head * size;
    let v_start = sequence * length * v_stride + kv_head * size;
    load_tile(k, &mut k_tile, k_start, k_stride, first, length, comptime!(tiles.keys), size, width);
    load_tile(v, &mut v_tile, v_start, v_stride, first, length, comptime!(tiles.keys), size, width);

    for member in 0..group {
        let head = kv_head * group + member;
        let q_start = sequence * queries * q_stride + head * size;
        let start = sequence * queries * row_size + head * size;
        // The tile with the first query that sees the first key.
        let mut query = 0;
        if first > hidden {
            query = (first - hidden) / comptime!(tiles.queries) * comptime!(tiles.queries);
        }
        while query < queries {
            sync_cube();
            load_tile(q, &mut q_tile, q_start, q_stride, query, queries, comptime!(tiles.queries), size, width);
            load_tile(grad, &mut grad_tile, start, row_size, query, queries, comptime!(tiles.queries), size, width);
            sync_cube();
            multiply_rows(&k_tile, &q_tile, &mut scores, down, across, each, queries_each, size, line);
            multiply_rows(&v_tile, &grad_tile, &mut grad_p, down, across, each, queries_each, size, line);
            #[unroll]
            for j in 0..queries_each {
                let column = across + SIDE * j;
                let index = query + column;
                let mut most = f32::new(0.0);
                let mut total = f32::new(1.0);
                let mut of_query = f32::new(0.0);
                if index < queries {
                    let place = (sequence * queries + index) * heads + head;
                    most = stats[place * 2];
                    total = stats[place * 2 + 1];
                    of_query = along[place];
                }
                #[unroll]
                for i in 0..each {
                    let place = comptime!(i * queries_each + j);
                    let row = down * each + i;
                    let sees = index < queries && first + row <= index + hidden;
                    let p = select(sees, (scores[place] * scale - most).exp() / total, f32::new(0.0));
                    p_tile[row * comptime!(tiles.queries + 1) + column] = p;
                    scores[place] = select(sees, p * (grad_p[place] - of_query) * scale, f32::new(0.0));
                }
            }
            sync_cube();
            add_product(&p_tile, &grad_tile, &mut sums_v, down, across, each, comptime!(tiles.queries), width);
            sync_cube();
            #[unroll]
            for j in 0..queries_each {
                #[unroll]
                for i in 0..each {
                    let row = down * each + i;
                    p_tile[row * comptime!(tiles.queries + 1) + across + SIDE * j] =
                        scores[comptime!(i * queries_each + j)];
                }
            }
            sync_cube();
            add_product(&p_tile, &q_tile, &mut sums_k, down, across, each, comptime!(tiles.queries), width);
            query += comptime!(tiles.queries);
        }
    }
    #[unroll]
    for i in 0..each {
        let key = first + down * each + i;
        if key < length {
            let row = sequence * length + key;
            #[unroll]
            for j in 0..columns {
                let column = across + SIDE * j;
                if column < size {
                    let place = comptime!(i * columns + j);
                    grad_k[row * grad_k_stride + kv_head * size + column] = sums_k[place];
                    grad_v[row * grad_v_stride + kv_head * size + column] = sums_v[place];
                }
            }
        }
    }
}

/// What the forward pass was given and kept.
pub struct Kept<'a> {
    /// Queries.
    pub q: &'a Matrix,
    /// Keys.
    pub k: &'a Matrix,
    /// Values.
    pub v: &'a Matrix,
    /// The result.
    pub out: &'a Matrix,
    /// Largest scores and sums.
    pub stats: &'a Matrix,
}

/// Writes the gradients of queries, keys and values to `to`.
pub fn backward(grad: &Matrix, kept: &Kept<'_>, to: [&Matrix; 3], extent: Extent, heads: Heads, tiles: Tiles) {
    let Kept { q, k, v, out, stats } = kept;
    let [grad_q, grad_k, grad_v] = to;
    let along = q.empty(q.rows, heads.heads);
    let threads = CubeDim::new_1d((SIDE * SIDE) as u32);
    let (sequences, length, queries) = (extent.sequences as u32, extent.length, extent.queries);
    // SAFETY: a block reads rows of its own sequence alone, as far as there are any, and writes those of its tile.
    unsafe {
        queries_kernel::launch_unchecked::<Gpu>(
            q.client(),
            CubeCount::Static(queries.div_ceil(tiles.queries) as u32, heads.heads as u32, sequences),
            threads,
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
            tiles,
            heads.group(),
        );
        keys_kernel::launch_unchecked::<Gpu>(
            q.client(),
            CubeCount::Static(length.div_ceil(tiles.keys) as u32, heads.kv_heads as u32, sequences),
            threads,
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
            tiles,
            heads.group(),
        );
    }
}
