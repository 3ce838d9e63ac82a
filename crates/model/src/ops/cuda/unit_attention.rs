//! Causal attention on the matrix units: as [`super::attention`] and [`super::attention_backward`], with the factors of all products
//! rounded to TF32. The softmax and all sums are in `f32`.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::attention::LOWEST;
use super::attention_backward::Kept;
use super::matrix::{Gpu, Matrix};
use super::sums::{half_warp_max, half_warp_sum};
use super::tiles::{Extent, SIDE, Tiles};
use super::unit_tiles::{THREADS, Tf32, add_product, line, load_rounded, no_sums, store_sums, write_rows};
use crate::kernels::attention::Heads;

/// Tiles of the forward pass, the largest first.
pub const FORWARD: [(usize, usize); 3] = [(64, 64), (32, 32), (16, 16)];
/// Of the queries' gradient.
pub const QUERIES: [(usize, usize); 4] = [(64, 32), (32, 32), (32, 16), (16, 16)];
/// Of the gradients of keys and values.
pub const KEYS: [(usize, usize); 4] = [(32, 64), (32, 32), (16, 32), (16, 16)];

/// A line of the forward pass's scores, which later hold its products with the values.
fn score_line(tiles: &Tiles) -> usize {
    line(tiles.keys.max(tiles.width()))
}

/// Shared memory of the forward pass.
pub fn forward_bytes(tiles: &Tiles) -> usize {
    let heads = (tiles.queries + tiles.keys) * line(tiles.width());
    4 * (heads + tiles.queries * (score_line(tiles) + line(tiles.keys)))
}

/// Shared memory of the queries' gradient.
pub fn queries_bytes(tiles: &Tiles) -> usize {
    let heads = 2 * (tiles.queries + tiles.keys) * line(tiles.width());
    let scores = tiles.queries * (score_line(tiles) + 2 * line(tiles.keys));
    4 * (heads + scores)
}

/// A line of the keys' kernel's scores, which later hold the gradients.
fn turned_line(tiles: &Tiles) -> usize {
    line(tiles.queries.max(tiles.width()))
}

/// Shared memory of the gradients of keys and values.
pub fn keys_bytes(tiles: &Tiles) -> usize {
    let heads = 2 * (tiles.queries + tiles.keys) * line(tiles.width());
    let scores = tiles.keys * (turned_line(tiles) + 3 * line(tiles.queries));
    4 * (heads + scores)
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
    let (size, width) = comptime!((tiles.size, tiles.width()));
    let (query_tile, key_tile) = comptime!((tiles.queries, tiles.keys));
    let (s_line, p_line) = comptime!((score_line(&tiles), line(tiles.keys)));
    let thread = UNIT_POS_X as usize;
    let (across, down) = (thread % SIDE, thread / SIDE);
    let head = CUBE_POS_Y as usize;
    let sequence = CUBE_POS_Z as usize;
    // The longest first.
    let first = (queries.div_ceil(query_tile) - 1 - CUBE_POS_X as usize) * query_tile;
    let hidden = length - queries;
    let keys = min(first + query_tile, queries) + hidden;

    let mut q_tile = SharedMemory::<Tf32>::new(comptime!(tiles.queries * line(tiles.width())));
    let mut kv_tile = SharedMemory::<Tf32>::new(comptime!(tiles.keys * line(tiles.width())));
    let mut scores = SharedMemory::<f32>::new(comptime!(tiles.queries * score_line(&tiles)));
    let mut p_tile = SharedMemory::<Tf32>::new(comptime!(tiles.queries * line(tiles.keys)));
    let mut sums = Array::<f32>::new(comptime!(each * columns));
    let mut most = Array::<f32>::new(each);
    let mut total = Array::<f32>::new(each);
    let mut kept = Array::<f32>::new(each);
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
    load_rounded(q, &mut q_tile, q_start, q_stride, first, queries, query_tile, size, width);

    let mut key = 0;
    while key < keys {
        sync_cube();
        load_rounded(k, &mut kv_tile, k_start, k_stride, key, length, key_tile, size, width);
        sync_cube();
        let products = no_sums(query_tile, key_tile);
        add_product(&q_tile, &kv_tile, &products, query_tile, key_tile, width, true);
        store_sums(&products, &mut scores, query_tile, key_tile, s_line);
        sync_cube();
        // All have read the keys.
        load_rounded(v, &mut kv_tile, v_start, v_stride, key, length, key_tile, size, width);
        #[unroll]
        for i in 0..each {
            let row = down * each + i;
            let last = first + row + hidden;
            let mut largest = f32::new(LOWEST);
            #[unroll]
            for j in 0..keys_each {
                let column = across + SIDE * j;
                let score = select(key + column <= last, scores[row * s_line + column] * scale, f32::new(LOWEST));
                largest = largest.max(score);
            }
            let above = most[i].max(half_warp_max(largest));
            kept[i] = (most[i] - above).exp();
            let mut sum = f32::new(0.0);
            #[unroll]
            for j in 0..keys_each {
                let column = across + SIDE * j;
                let score = scores[row * s_line + column] * scale;
                let p = select(key + column <= last, (score - above).exp(), f32::new(0.0));
                p_tile[row * p_line + column] = Tf32::cast_from(p);
                sum += p;
            }
            total[i] = fma(total[i], kept[i], half_warp_sum(sum));
            most[i] = above;
        }
        sync_cube();
        let products = no_sums(query_tile, width);
        add_product(&p_tile, &kv_tile, &products, query_tile, width, key_tile, false);
        store_sums(&products, &mut scores, query_tile, width, s_line);
        sync_cube();
        #[unroll]
        for i in 0..each {
            #[unroll]
            for j in 0..columns {
                let place = comptime!(i * columns + j);
                sums[place] = fma(sums[place], kept[i], scores[(down * each + i) * s_line + across + SIDE * j]);
            }
        }
        key += key_tile;
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

/// As [`super::attention::forward`].
pub fn forward(q: &Matrix, k: &Matrix, v: &Matrix, extent: Extent, heads: Heads, tiles: Tiles) -> (Matrix, Matrix) {
    let out = q.empty(q.rows, heads.width());
    let stats = q.empty(q.rows, heads.heads * 2);
    let across = extent.queries.div_ceil(tiles.queries) as u32;
    // SAFETY: a block reads rows of its own sequence alone, as far as there are any, and writes rows of its queries.
    unsafe {
        forward_kernel::launch_unchecked::<Gpu>(
            q.client(),
            CubeCount::Static(across, heads.heads as u32, extent.sequences as u32),
            CubeDim::new_1d(THREADS as u32),
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
    let (size, width) = comptime!((tiles.size, tiles.width()));
    let (query_tile, key_tile) = comptime!((tiles.queries, tiles.keys));
    let (s_line, p_line) = comptime!((score_line(&tiles), line(tiles.keys)));
    let thread = UNIT_POS_X as usize;
    let (across, down) = (thread % SIDE, thread / SIDE);
    let head = CUBE_POS_Y as usize;
    let sequence = CUBE_POS_Z as usize;
    let first = (queries.div_ceil(query_tile) - 1 - CUBE_POS_X as usize) * query_tile;
    let hidden = length - queries;
    let keys = min(first + query_tile, queries) + hidden;

    let mut q_tile = SharedMemory::<Tf32>::new(comptime!(tiles.queries * line(tiles.width())));
    let mut grad_tile = SharedMemory::<Tf32>::new(comptime!(tiles.queries * line(tiles.width())));
    let mut k_tile = SharedMemory::<Tf32>::new(comptime!(tiles.keys * line(tiles.width())));
    let mut v_tile = SharedMemory::<Tf32>::new(comptime!(tiles.keys * line(tiles.width())));
    let mut scores = SharedMemory::<f32>::new(comptime!(tiles.queries * score_line(&tiles)));
    let mut grad_p = SharedMemory::<f32>::new(comptime!(tiles.queries * line(tiles.keys)));
    let mut s_tile = SharedMemory::<Tf32>::new(comptime!(tiles.queries * line(tiles.keys)));
    let mut most = Array::<f32>::new(each);
    let mut total = Array::<f32>::new(each);
    let mut of_query = Array::<f32>::new(each);
    let row_size = heads * size;
    let start = sequence * queries * row_size + head * size;
    let q_start = sequence * queries * q_stride + head * size;
    let k_start = sequence * length * k_stride + head / group * size;
    let v_start = sequence * length * v_stride + head / group * size;
    load_rounded(q, &mut q_tile, q_start, q_stride, first, queries, query_tile, size, width);
    load_rounded(grad, &mut grad_tile, start, row_size, first, queries, query_tile, size, width);
    #[unroll]
    for i in 0..each {
        let query = first + down * each + i;
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
                    let at = start + query * row_size + column;
                    sum = fma(grad[at], out[at], sum);
                }
            }
        }
        of_query[i] = half_warp_sum(sum);
        if query < queries && across == 0 {
            along[(sequence * queries + query) * heads + head] = of_query[i];
        }
    }

    let grad_sums = no_sums(query_tile, width);
    let mut key = 0;
    while key < keys {
        sync_cube();
        load_rounded(k, &mut k_tile, k_start, k_stride, key, length, key_tile, size, width);
        load_rounded(v, &mut v_tile, v_start, v_stride, key, length, key_tile, size, width);
        sync_cube();
        let products = no_sums(query_tile, key_tile);
        add_product(&q_tile, &k_tile, &products, query_tile, key_tile, width, true);
        store_sums(&products, &mut scores, query_tile, key_tile, s_line);
        let products = no_sums(query_tile, key_tile);
        add_product(&grad_tile, &v_tile, &products, query_tile, key_tile, width, true);
        store_sums(&products, &mut grad_p, query_tile, key_tile, p_line);
        sync_cube();
        #[unroll]
        for i in 0..each {
            let row = down * each + i;
            let last = first + row + hidden;
            #[unroll]
            for j in 0..keys_each {
                let column = across + SIDE * j;
                let p = (scores[row * s_line + column] * scale - most[i]).exp() / total[i];
                let grad_s = p * (grad_p[row * p_line + column] - of_query[i]) * scale;
                let seen = select(key + column <= last, grad_s, f32::new(0.0));
                s_tile[row * p_line + column] = Tf32::cast_from(seen);
            }
        }
        sync_cube();
        add_product(&s_tile, &k_tile, &grad_sums, query_tile, width, key_tile, false);
        key += key_tile;
    }
    store_sums(&grad_sums, &mut scores, query_tile, width, s_line);
    sync_cube();
    let to = sequence * queries * grad_q_stride + head * size;
    write_rows(&scores, grad_q, to, grad_q_stride, first, queries, query_tile, size, s_line);
}

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
    let (each, queries_each) = comptime!((tiles.keys / SIDE, tiles.queries / SIDE));
    let (size, width) = comptime!((tiles.size, tiles.width()));
    let (query_tile, key_tile) = comptime!((tiles.queries, tiles.keys));
    let (s_line, p_line) = comptime!((turned_line(&tiles), line(tiles.queries)));
    let thread = UNIT_POS_X as usize;
    let (across, down) = (thread % SIDE, thread / SIDE);
    let kv_head = CUBE_POS_Y as usize;
    let sequence = CUBE_POS_Z as usize;
    let first = CUBE_POS_X as usize * key_tile;
    let hidden = length - queries;

    let mut k_tile = SharedMemory::<Tf32>::new(comptime!(tiles.keys * line(tiles.width())));
    let mut v_tile = SharedMemory::<Tf32>::new(comptime!(tiles.keys * line(tiles.width())));
    let mut q_tile = SharedMemory::<Tf32>::new(comptime!(tiles.queries * line(tiles.width())));
    let mut grad_tile = SharedMemory::<Tf32>::new(comptime!(tiles.queries * line(tiles.width())));
    let mut scores = SharedMemory::<f32>::new(comptime!(tiles.keys * turned_line(&tiles)));
    let mut grad_p = SharedMemory::<f32>::new(comptime!(tiles.keys * line(tiles.queries)));
    let mut p_tile = SharedMemory::<Tf32>::new(comptime!(tiles.keys * line(tiles.queries)));
    let mut s_tile = SharedMemory::<Tf32>::new(comptime!(tiles.keys * line(tiles.queries)));
    let row_size = heads * size;
    let k_start = sequence * length * k_stride + kv_head * size;
    let v_start = sequence * length * v_stride + kv_head * size;
    load_rounded(k, &mut k_tile, k_start, k_stride, first, length, key_tile, size, width);
    load_rounded(v, &mut v_tile, v_start, v_stride, first, length, key_tile, size, width);

    let k_sums = no_sums(key_tile, width);
    let v_sums = no_sums(key_tile, width);
    for member in 0..group {
        let head = kv_head * group + member;
        let q_start = sequence * queries * q_stride + head * size;
        let start = sequence * queries * row_size + head * size;
        // The tile with the first query that sees the first key.
        let mut query = 0;
        if first > hidden {
            query = (first - hidden) / query_tile * query_tile;
        }
        while query < queries {
            sync_cube();
            load_rounded(q, &mut q_tile, q_start, q_stride, query, queries, query_tile, size, width);
            load_rounded(grad, &mut grad_tile, start, row_size, query, queries, query_tile, size, width);
            sync_cube();
            let products = no_sums(key_tile, query_tile);
            add_product(&k_tile, &q_tile, &products, key_tile, query_tile, width, true);
            store_sums(&products, &mut scores, key_tile, query_tile, s_line);
            let products = no_sums(key_tile, query_tile);
            add_product(&v_tile, &grad_tile, &products, key_tile, query_tile, width, true);
            store_sums(&products, &mut grad_p, key_tile, query_tile, p_line);
            sync_cube();
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
                    let row = down * each + i;
                    let sees = index < queries && first + row <= index + hidden;
                    let score = scores[row * s_line + column] * scale;
                    let p = select(sees, (score - most).exp() / total, f32::new(0.0));
                    let grad_s = p * (grad_p[row * p_line + column] - of_query) * scale;
                    p_tile[row * p_line + column] = Tf32::cast_from(p);
                    s_tile[row * p_line + column] = Tf32::cast_from(select(sees, grad_s, f32::new(0.0)));
                }
            }
            sync_cube();
            add_product(&p_tile, &grad_tile, &v_sums, key_tile, width, query_tile, false);
            add_product(&s_tile, &q_tile, &k_sums, key_tile, width, query_tile, false);
            query += query_tile;
        }
    }
    sync_cube();
    store_sums(&k_sums, &mut scores, key_tile, width, s_line);
    sync_cube();
    let k_to = sequence * length * grad_k_stride + kv_head * size;
    write_rows(&scores, grad_k, k_to, grad_k_stride, first, length, key_tile, size, s_line);
    sync_cube();
    store_sums(&v_sums, &mut scores, key_tile, width, s_line);
    sync_cube();
    let v_to = sequence * length * grad_v_stride + kv_head * size;
    write_rows(&scores, grad_v, v_to, grad_v_stride, first, length, key_tile, size, s_line);
}

/// As [`super::attention_backward::backward`], with the tiles of both kernels.
pub fn backward(grad: &Matrix, kept: &Kept<'_>, to: [&Matrix; 3], extent: Extent, heads: Heads, tiles: [Tiles; 2]) {
    let Kept { q, k, v, out, stats } = kept;
    let [grad_q, grad_k, grad_v] = to;
    let [of_queries, of_keys] = tiles;
    let along = q.empty(q.rows, heads.heads);
    let threads = CubeDim::new_1d(THREADS as u32);
    let (sequences, length, queries) = (extent.sequences as u32, extent.length, extent.queries);
    // SAFETY: a block reads rows of its own sequence alone, as far as there are any, and writes those of its tile.
    unsafe {
        queries_kernel::launch_unchecked::<Gpu>(
            q.client(),
            CubeCount::Static(queries.div_ceil(of_queries.queries) as u32, heads.heads as u32, sequences),
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
            of_queries,
            heads.group(),
        );
        keys_kernel::launch_unchecked::<Gpu>(
            q.client(),
            CubeCount::Static(length.div_ceil(of_keys.keys) as u32, heads.kv_heads as u32, sequences),
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
            of_keys,
            heads.group(),
        );
    }
}
