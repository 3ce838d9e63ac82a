//! What follows a product where a norm is next, in one pass over its rows: the sum over the parts that it was computed in, the
//! bias and the residual, and the norm; or, backward, the norm's gradient. One block of threads a row; formulas and order are those
//! of [`super::finish`] and [`super::norm`].

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::Cuda;
use super::linear::Product;
use super::matrix::{Gpu, Matrix, ROW_THREADS};
use super::norm::WARPS;
use super::sums::block_sum;
use crate::ops::norms::{NormWeights, Normed};

/// The sum over the parts of a product at one place.
#[cube]
fn sum_of_parts(product: &Array<f32>, at: usize, parts: usize, part_size: usize) -> f32 {
    let mut from = at;
    let mut p = product[from];
    let mut part = 1;
    while part < parts {
        from += part_size;
        p += product[from];
        part += 1;
    }
    p
}

#[cube(launch_unchecked)]
fn finish_norm_kernel(
    product: &Array<f32>,
    bias: &Array<f32>,
    residual: &Array<f32>,
    gamma: &Array<f32>,
    beta: &Array<f32>,
    out: &mut Array<f32>,
    y: &mut Array<f32>,
    normed: &mut Array<f32>,
    rstd: &mut Array<f32>,
    width: usize,
    product_stride: usize,
    residual_stride: usize,
    parts: usize,
    part_size: usize,
    count: f32,
    eps: f32,
    #[comptime] biased: bool,
    #[comptime] centred: bool,
) {
    let row = CUBE_POS_X as usize;
    let to = row * width;
    let mut shared = SharedMemory::<f32>::new(WARPS as usize);
    let mut sum = f32::new(0.0);
    let mut at = UNIT_POS_X as usize;
    while at < width {
        let mut p = sum_of_parts(product, row * product_stride + at, parts, part_size);
        if comptime!(biased) {
            p += bias[at];
        }
        p += residual[row * residual_stride + at];
        out[to + at] = p;
        sum += p;
        at += ROW_THREADS as usize;
    }
    let mut mean = f32::new(0.0);
    if comptime!(centred) {
        mean = block_sum(sum, &mut shared, WARPS) / count;
    }
    let mut squares = f32::new(0.0);
    let mut at = UNIT_POS_X as usize;
    while at < width {
        let x = out[to + at] - mean;
        squares = fma(x, x, squares);
        at += ROW_THREADS as usize;
    }
    let variance = block_sum(squares, &mut shared, WARPS) / count;
    let scale = f32::new(1.0) / (variance + eps).sqrt();
    if UNIT_POS_X == 0 {
        rstd[row] = scale;
    }
    let mut at = UNIT_POS_X as usize;
    while at < width {
        let n = (out[to + at] - mean) * scale;
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
fn finish_norm_backward_kernel(
    product: &Array<f32>,
    own: &Array<f32>,
    normed: &Array<f32>,
    rstd: &Array<f32>,
    gamma: &Array<f32>,
    to: &Array<f32>,
    out: &mut Array<f32>,
    width: usize,
    product_stride: usize,
    own_stride: usize,
    to_stride: usize,
    parts: usize,
    part_size: usize,
    count: f32,
    #[comptime] has_own: bool,
    #[comptime] centred: bool,
) {
    let row = CUBE_POS_X as usize;
    let from = row * width;
    let mut shared = SharedMemory::<f32>::new(WARPS as usize);
    let mut sum = f32::new(0.0);
    let mut along = f32::new(0.0);
    let mut at = UNIT_POS_X as usize;
    while at < width {
        let mut grad = sum_of_parts(product, row * product_stride + at, parts, part_size);
        if comptime!(has_own) {
            grad += own[row * own_stride + at];
        }
        let scaled = grad * gamma[at];
        out[from + at] = scaled;
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
        let grad = ((out[from + at] - mean) - normed[from + at] * along) * scale;
        out[from + at] = to[row * to_stride + at] + grad;
        at += ROW_THREADS as usize;
    }
}

/// The sum `product + bias + residual`, its norm, and what the norm's backward pass needs.
pub fn forward(
    product: &Product,
    bias: Option<&Matrix>,
    residual: &Matrix,
    weights: &NormWeights<Cuda>,
) -> (Matrix, Matrix, Normed<Cuda>) {
    let (rows, width) = (residual.rows, residual.columns);
    let gamma = Matrix::list(weights.gamma_d.clone());
    let beta = weights.beta_d.clone().map(Matrix::list);
    let out = residual.empty(rows, width);
    let (y, normed, rstd) = (out.empty(rows, width), out.empty(rows, width), out.empty(rows, 1));
    // SAFETY: each block works on the row of its number, of which all these have `rows`.
    unsafe {
        finish_norm_kernel::launch_unchecked::<Gpu>(
            out.client(),
            CubeCount::Static(rows as u32, 1, 1),
            CubeDim::new_1d(ROW_THREADS),
            product.parts.argument(),
            bias.unwrap_or(residual).argument(),
            residual.argument(),
            gamma.argument(),
            beta.as_ref().unwrap_or(&gamma).argument(),
            out.argument(),
            y.argument(),
            normed.argument(),
            rstd.argument(),
            width,
            product.parts.stride,
            residual.stride,
            product.count,
            rows * product.parts.stride,
            width as f32,
            weights.eps,
            bias.is_some(),
            beta.is_some(),
        );
    }
    (out, y, Normed { normed_rd: normed.tensor(), rstd_r1: rstd.tensor() })
}

/// `to` plus the gradient of the norm's input, where that of its output is `product + own`.
pub fn backward(
    product: &Product,
    own: Option<&Matrix>,
    (weights, saved): (&NormWeights<Cuda>, &Normed<Cuda>),
    to: &Matrix,
) -> Matrix {
    let (rows, width) = (to.rows, to.columns);
    let (normed, rstd) = (Matrix::dense(saved.normed_rd.clone()), Matrix::dense(saved.rstd_r1.clone()));
    let gamma = Matrix::list(weights.gamma_d.clone());
    let out = to.empty(rows, width);
    // SAFETY: as above.
    unsafe {
        finish_norm_backward_kernel::launch_unchecked::<Gpu>(
            out.client(),
            CubeCount::Static(rows as u32, 1, 1),
            CubeDim::new_1d(ROW_THREADS),
            product.parts.argument(),
            own.unwrap_or(to).argument(),
            normed.argument(),
            rstd.argument(),
            gamma.argument(),
            to.argument(),
            out.argument(),
            width,
            product.parts.stride,
            own.map_or(0, |own| own.stride),
            to.stride,
            product.count,
            rows * product.parts.stride,
            width as f32,
            own.is_some(),
            weights.beta_d.is_some(),
        );
    }
    out
}
