//! Sums over the threads of a block and over parts of a warp, each in one fixed order.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

/// Threads of a warp on every NVIDIA GPU.
pub const WARP: u32 = 32;

/// The sum of `value` over a block of `warps` warps, for every thread: within a warp by halves, then warp by warp.
#[cube]
pub fn block_sum(value: f32, shared: &mut SharedMemory<f32>, #[comptime] warps: u32) -> f32 {
    let of_warp = warp_sum(value);
    let (warp, lane) = (UNIT_POS_X / WARP, UNIT_POS_X % WARP);
    if lane == 0 {
        shared[warp as usize] = of_warp;
    }
    sync_cube();
    let mut total = f32::new(0.0);
    #[unroll]
    for warp in 0..warps {
        total += shared[warp as usize];
    }
    sync_cube();
    total
}

/// The sum of `value` over a warp, for every thread. Both of a pair add the same two numbers, so all get the same bits.
#[cube]
pub fn warp_sum(value: f32) -> f32 {
    let mut sum = value;
    sum += plane_shuffle_xor(sum, 16);
    sum += plane_shuffle_xor(sum, 8);
    sum += plane_shuffle_xor(sum, 4);
    sum += plane_shuffle_xor(sum, 2);
    sum += plane_shuffle_xor(sum, 1);
    sum
}

/// [`warp_sum`] over each half of a warp.
#[cube]
pub fn half_warp_sum(value: f32) -> f32 {
    let mut sum = value;
    sum += plane_shuffle_xor(sum, 8);
    sum += plane_shuffle_xor(sum, 4);
    sum += plane_shuffle_xor(sum, 2);
    sum += plane_shuffle_xor(sum, 1);
    sum
}

/// The largest `value` of each half of a warp.
#[cube]
pub fn half_warp_max(value: f32) -> f32 {
    let mut most = value;
    most = most.max(plane_shuffle_xor(most, 8));
    most = most.max(plane_shuffle_xor(most, 4));
    most = most.max(plane_shuffle_xor(most, 2));
    most = most.max(plane_shuffle_xor(most, 1));
    most
}

/// The sum of `value` over the four lanes of each row of a matrix unit's sums, see [`super::mma_tiles`].
#[cube]
pub fn quad_sum(value: f32) -> f32 {
    let mut sum = value;
    sum += plane_shuffle_xor(sum, 2);
    sum += plane_shuffle_xor(sum, 1);
    sum
}

/// The largest `value` of the same four lanes.
#[cube]
pub fn quad_max(value: f32) -> f32 {
    let mut most = value;
    most = most.max(plane_shuffle_xor(most, 2));
    most = most.max(plane_shuffle_xor(most, 1));
    most
}
