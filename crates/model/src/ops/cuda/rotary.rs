//! Rotary positions and norms of heads, for queries or keys: a warp takes one head of one row, its threads the pairs of numbers
//! that turn together.
//!
//! All sequences have the same length, so a row's position follows from its number. Queries may be the last positions only.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::Cuda;
use super::matrix::{Gpu, Matrix};
use super::sums::{WARP, warp_sum};
use super::tiles::Extent;
use crate::ops::norms::NormWeights;
use crate::ops::{AttentionShape, RotaryTable};

/// Heads of a block of threads.
const WARPS: u32 = 4;

/// What is done to a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Turn {
    /// By the position's angles.
    Forward,
    /// Back by them.
    Back,
    /// Normalised, scaled, then turned if there are angles.
    Normalize,
    /// The gradient of that.
    NormalizeBack,
}

#[cube(launch_unchecked)]
fn turn_kernel(
    x: &Array<f32>,
    grad_or_out: &mut Array<f32>,
    cos: &Array<f32>,
    sin: &Array<f32>,
    gamma: &Array<f32>,
    x_stride: usize,
    stride: usize,
    table_stride: usize,
    heads: u32,
    rows_per_sequence: usize,
    first_position: usize,
    eps: f32,
    #[comptime] size: usize,
    #[comptime] turn: Turn,
    #[comptime] turned: bool,
) {
    let row = CUBE_POS_X as usize;
    let head = CUBE_POS_Y * WARPS + UNIT_POS_X / WARP;
    if head >= heads {
        terminate!();
    }
    let lane = (UNIT_POS_X % WARP) as usize;
    let half = comptime!(size / 2);
    let angles = (first_position + row % rows_per_sequence) * table_stride;
    let from = row * x_stride + head as usize * size;
    let to = row * stride + head as usize * size;
    // One over the root of the mean square, and the mean of gradient times normalised number.
    let mut scale = f32::new(1.0);
    let mut along = f32::new(0.0);
    if comptime!(matches!(turn, Turn::Normalize | Turn::NormalizeBack)) {
        let mut squares = f32::new(0.0);
        let mut pair = lane;
        while pair < half {
            let (a, b) = (x[from + pair], x[from + pair + half]);
            squares = fma(b, b, fma(a, a, squares));
            pair += WARP as usize;
        }
        let count = f32::new(comptime!(size as f32));
        scale = f32::new(1.0) / (warp_sum(squares) / count + eps).sqrt();
        if comptime!(matches!(turn, Turn::NormalizeBack)) {
            let mut sum = f32::new(0.0);
            let mut pair = lane;
            while pair < half {
                let (a, b) = (grad_or_out[to + pair], grad_or_out[to + pair + half]);
                let mut ga = a;
                let mut gb = b;
                if comptime!(turned) {
                    let (c, s) = (cos[angles + pair], sin[angles + pair]);
                    ga = a * c + b * s;
                    gb = b * c - a * s;
                }
                sum += ga * gamma[pair] * (x[from + pair] * scale);
                sum += gb * gamma[pair + half] * (x[from + pair + half] * scale);
                pair += WARP as usize;
            }
            along = warp_sum(sum) / count;
        }
    }
    let mut pair = lane;
    while pair < half {
        let mut c = f32::new(1.0);
        let mut s = f32::new(0.0);
        if comptime!(turned) {
            c = cos[angles + pair];
            s = sin[angles + pair];
        }
        if comptime!(matches!(turn, Turn::Forward)) {
            let (a, b) = (grad_or_out[to + pair], grad_or_out[to + pair + half]);
            grad_or_out[to + pair] = a * c - b * s;
            grad_or_out[to + pair + half] = b * c + a * s;
        }
        if comptime!(matches!(turn, Turn::Normalize)) {
            let a = x[from + pair] * scale * gamma[pair];
            let b = x[from + pair + half] * scale * gamma[pair + half];
            grad_or_out[to + pair] = a * c - b * s;
            grad_or_out[to + pair + half] = b * c + a * s;
        }
        if comptime!(matches!(turn, Turn::Back | Turn::NormalizeBack)) {
            let (a, b) = (grad_or_out[to + pair], grad_or_out[to + pair + half]);
            let mut ga = a * c + b * s;
            let mut gb = b * c - a * s;
            if comptime!(matches!(turn, Turn::NormalizeBack)) {
                ga = (ga * gamma[pair] - x[from + pair] * scale * along) * scale;
                gb = (gb * gamma[pair + half] - x[from + pair + half] * scale * along) * scale;
            }
            grad_or_out[to + pair] = ga;
            grad_or_out[to + pair + half] = gb;
        }
        pair += WARP as usize;
    }
}

/// Where the rows of queries or keys stand in their sequences.
#[derive(Clone, Copy)]
pub struct Positions {
    /// Rows of a sequence.
    pub per_sequence: usize,
    /// Position of the first of them.
    pub first: usize,
}

impl Positions {
    /// Of queries and of keys.
    pub fn of(extent: Extent) -> [Self; 2] {
        let first = extent.length - extent.queries;
        [Self { per_sequence: extent.queries, first }, Self { per_sequence: extent.length, first: 0 }]
    }
}

/// Queries or keys as attention takes them. Without a norm nobody needs `x` as it was, and it is turned in place.
pub fn prepare(
    x: &Matrix,
    norm: Option<&NormWeights<Cuda>>,
    positions: Positions,
    shape: &AttentionShape<'_, Cuda>,
) -> Matrix {
    if norm.is_none() && shape.rotary.is_none() {
        return x.clone();
    }
    let (out, turn) = match norm {
        Some(_) => (x.empty(x.rows, x.columns), Turn::Normalize),
        None => (x.clone(), Turn::Forward),
    };
    launch(x, &out, norm, positions, shape.rotary, shape.heads.head_size, turn);
    out
}

/// Turns the gradient of [`prepare`]'s result into that of its input `x`, in place.
pub fn prepare_backward(
    grad: &Matrix,
    x: &Matrix,
    norm: Option<&NormWeights<Cuda>>,
    positions: Positions,
    shape: &AttentionShape<'_, Cuda>,
) {
    if norm.is_none() && shape.rotary.is_none() {
        return;
    }
    let turn = if norm.is_some() { Turn::NormalizeBack } else { Turn::Back };
    launch(x, grad, norm, positions, shape.rotary, shape.heads.head_size, turn);
}

fn launch(
    x: &Matrix,
    to: &Matrix,
    norm: Option<&NormWeights<Cuda>>,
    positions: Positions,
    rotary: Option<&RotaryTable<Cuda>>,
    size: usize,
    turn: Turn,
) {
    let heads = to.columns / size;
    let gamma = norm.map(|norm| Matrix::list(norm.gamma_d.clone()));
    let angles = rotary.map(|table| (Matrix::of(table.cos.clone()), Matrix::of(table.sin.clone())));
    // What a kernel is compiled without still needs an argument.
    let (cos, sin) = angles.as_ref().map_or((x, x), |(cos, sin)| (cos, sin));
    // SAFETY: one warp works on each head of each row of `to`; `x` has the same heads, and the table every position.
    unsafe {
        turn_kernel::launch_unchecked::<Gpu>(
            to.client(),
            CubeCount::Static(to.rows as u32, (heads as u32).div_ceil(WARPS), 1),
            CubeDim::new_1d(WARPS * WARP),
            x.argument(),
            to.argument(),
            cos.argument(),
            sin.argument(),
            gamma.as_ref().unwrap_or(x).argument(),
            x.stride,
            to.stride,
            cos.stride,
            heads as u32,
            positions.per_sequence,
            positions.first,
            norm.map_or(0.0, |norm| norm.eps),
            size,
            turn,
            rotary.is_some(),
        );
    }
}
