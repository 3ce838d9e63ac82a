//! Layer norm and RMS norm, forward and backward: one block of threads a row. Formulas: [`crate::kernels::norm`].

use burn::tensor::Tensor;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::Cuda;
use super::matrix::{Gpu, Matrix, ROW_THREADS};
use super::sums::{WARP, block_sum};
use crate::ops::norms::{NormWeights, Normed};

/// Warps of a row's block.
pub const WARPS: u32 = ROW_THREADS / WARP;

#[cube(launch_unchecked)]
fn forward_kernel(
    x: &Array<f32>,
    gamma: &Array<f32>,
    beta: &Array<f32>,
    y: &mut Array<f32>,
    normed: &mut Array<f32>,
    rstd: &mut Array<f32>,
    stride: usize,
    width: usize,
    count: f32,
    eps: f32,
    #[comptime] centred: bool,
) {
    let row = CUBE_POS_X as usize;
    let (from, to) = (row * stride, row * width);
    let mut shared = SharedMemory::<f32>::new(WARPS as usize);
    let mut mean = f32::new(0.0);
    if comptime!(centred) {
        let mut sum = f32::new(0.0);
        let mut at = UNIT_POS_X as usize;
        while at < width {
            sum += x[from + at];
            at += ROW_THREADS as usize;
        }
        mean = block_sum(sum, &mut shared, WARPS) / count;
    }
    let mut squares = f32::new(0.0);
    let mut at = UNIT_POS_X as usize;
    while at < width {
        let centred_x = x[from + at] - mean;
        squares = fma(centred_x, centred_x, squares);
        at += ROW_THREADS as usize;
    }
    let variance = block_sum(squares, &mut shared, WARPS) / count;
    let scale = f32::new(1.0) / (variance + eps).sqrt();
    if UNIT_POS_X == 0 {
        rstd[row] = scale;
    }
    let mut at = UNIT_POS_X as usize;
    while at < width {
        let n = (x[from + at] - mean) * scale;
        normed[to + at] = n;
        if comptime!(centred) {
            y[to + at] = fma(n, gamma[at], beta[at]);
        } else {
            y[to + at] = n * gamma[at];
        }
        at += ROW_THREADS as usize;
    }
}

#[cube(launch_unchecked)]
fn backward_kernel(
    grad: &Array<f32>,
    normed: &Array<f32>,
    rstd: &Array<f32>,
    gamma: &Array<f32>,
    to: &Array<f32>,
    out: &mut Array<f32>,
    width: usize,
    count: f32,
    #[comptime] centred: bool,
    #[comptime] added: bool,
) {
    let row = CUBE_POS_X as usize;
    let from = row * width;
    let mut shared = SharedMemory::<f32>::new(WARPS as usize);
    let mut sum = f32::new(0.0);
    let mut along = f32::new(0.0);
    let mut at = UNIT_POS_X as usize;
    while at < width {
        let scaled = grad[from + at] * gamma[at];
        sum += scaled;
        along = fma(scaled, normed[from + at], along);
        at += ROW_THREADS as usize;
    }
    let along = block_sum(along, &mut shared, WARPS) / count;
    let mut mean = f32::new(0.0);
    if comptime!(centred) {
        mean = block_sum(sum, &mut shared, WARPS) / count;
    }
    let scale = rstd[row];
    let mut at = UNIT_POS_X as usize;
    while at < width {
        let scaled = grad[from + at] * gamma[at];
        let own = ((scaled - mean) - normed[from + at] * along) * scale;
        if comptime!(added) {
            out[from + at] = to[from + at] + own;
        } else {
            out[from + at] = own;
        }
        at += ROW_THREADS as usize;
    }
}

/// [`crate::ops::FrozenOps::normalize`]
pub fn forward(x_rd: Tensor<Cuda, 2>, weights: &NormWeights<Cuda>) -> (Tensor<Cuda, 2>, Normed<Cuda>) {
    let x = Matrix::of(x_rd);
    let (rows, width) = (x.rows, x.columns);
    let gamma = Matrix::list(weights.gamma_d.clone());
    let beta = weights.beta_d.clone().map(Matrix::list);
    let (y, normed, rstd) = (x.empty(rows, width), x.empty(rows, width), x.empty(rows, 1));
    // SAFETY: each block works on the row of its number, of which all these have `rows`.
    unsafe {
        forward_kernel::launch_unchecked::<Gpu>(
            x.client(),
            CubeCount::Static(rows as u32, 1, 1),
            CubeDim::new_1d(ROW_THREADS),
            x.argument(),
            gamma.argument(),
            beta.as_ref().unwrap_or(&gamma).argument(),
            y.argument(),
            normed.argument(),
            rstd.argument(),
            x.stride,
            width,
            width as f32,
            weights.eps,
            beta.is_some(),
        );
    }
    (y.tensor(), Normed { normed_rd: normed.tensor(), rstd_r1: rstd.tensor() })
}

/// [`crate::ops::FrozenOps::normalize_backward`]
pub fn backward(
    grad_rd: Tensor<Cuda, 2>,
    saved: &Normed<Cuda>,
    weights: &NormWeights<Cuda>,
    to: Option<Tensor<Cuda, 2>>,
) -> Tensor<Cuda, 2> {
    let grad = Matrix::dense(grad_rd);
    let (rows, width) = (grad.rows, grad.columns);
    let (normed, rstd) = (Matrix::dense(saved.normed_rd.clone()), Matrix::dense(saved.rstd_r1.clone()));
    let gamma = Matrix::list(weights.gamma_d.clone());
    let to = to.map(Matrix::dense);
    let out = grad.empty(rows, width);
    // SAFETY: as above.
    unsafe {
        backward_kernel::launch_unchecked::<Gpu>(
            grad.client(),
            CubeCount::Static(rows as u32, 1, 1),
            CubeDim::new_1d(ROW_THREADS),
            grad.argument(),
            normed.argument(),
            rstd.argument(),
            gamma.argument(),
            to.as_ref().unwrap_or(&grad).argument(),
            out.argument(),
            width,
            width as f32,
            weights.beta_d.is_some(),
            to.is_some(),
        );
    }
    out.tensor()
}
