//! Layer and RMS normalisation over rows, forward, with respect to the input, and with respect to scale and shift.
//!
//! Formulas as in `torch.nn.LayerNorm`: biased variance, `x̂ = (x − mean)·rstd`, `y = γ·x̂ + β`; and, where there is no
//! `β`, as in `torch.nn.RMSNorm`: `x̂ = x·rstd` with `rstd = 1/√(mean(x²)+eps)`, `y = γ·x̂`.

use std::ops::Range;

use rayon::prelude::*;

use super::dispatch::{isa, multiversion};
use super::lanes;

/// Rows handled by one task; a constant, so that the split never depends on the machine.
const ROWS_PER_TASK: usize = 16;

/// Normalises each of the rows of `x [rows, d]` into `normed` (`x̂`), writes `1/√(var+eps)` to `rstd [rows]`
/// and `γ·x̂ + β` to `y`; without `β`, an RMS norm.
pub fn forward(
    x: &[f32],
    gamma: &[f32],
    beta: Option<&[f32]>,
    eps: f32,
    normed: &mut [f32],
    rstd: &mut [f32],
    y: &mut [f32],
) {
    let d = gamma.len();
    let task = ROWS_PER_TASK * d;
    let found = isa();
    x.par_chunks(task)
        .zip(normed.par_chunks_mut(task))
        .zip(rstd.par_chunks_mut(ROWS_PER_TASK))
        .zip(y.par_chunks_mut(task))
        .for_each(|(((x, normed), rstd), y)| match beta {
            Some(beta) => rows_forward(found, x, gamma, beta, eps, normed, rstd, y),
            None => rms_rows_forward(found, x, gamma, eps, normed, rstd, y),
        });
}

multiversion! {
    fn rows_forward(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, normed: &mut [f32], rstd: &mut [f32], y: &mut [f32]) => rows_forward_body
}

#[inline(always)]
fn rows_forward_body(
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    normed: &mut [f32],
    rstd: &mut [f32],
    y: &mut [f32],
) {
    let d = gamma.len();
    let width = d as f32;
    for (((x, normed), rstd), y) in
        x.chunks_exact(d).zip(normed.chunks_exact_mut(d)).zip(rstd.iter_mut()).zip(y.chunks_exact_mut(d))
    {
        let mean = lanes::sum(x) / width;
        let variance = lanes::sum_of_squares_about(x, mean) / width;
        let scale = 1.0 / (variance + eps).sqrt();
        *rstd = scale;
        for i in 0..d {
            let n = (x[i] - mean) * scale;
            normed[i] = n;
            y[i] = n.mul_add(gamma[i], beta[i]);
        }
    }
}

multiversion! {
    fn rms_rows_forward(x: &[f32], gamma: &[f32], eps: f32, normed: &mut [f32], rstd: &mut [f32], y: &mut [f32]) => rms_rows_forward_body
}

#[inline(always)]
fn rms_rows_forward_body(x: &[f32], gamma: &[f32], eps: f32, normed: &mut [f32], rstd: &mut [f32], y: &mut [f32]) {
    let d = gamma.len();
    let width = d as f32;
    for (((x, normed), rstd), y) in
        x.chunks_exact(d).zip(normed.chunks_exact_mut(d)).zip(rstd.iter_mut()).zip(y.chunks_exact_mut(d))
    {
        let mean_square = lanes::dot(x, x) / width;
        let scale = 1.0 / (mean_square + eps).sqrt();
        *rstd = scale;
        for i in 0..d {
            let n = x[i] * scale;
            normed[i] = n;
            y[i] = n * gamma[i];
        }
    }
}

/// Adds the gradient with respect to `x` to `grad_x [rows, d]`, given the gradient of `y` in `grad_y`.
///
/// With `g = γ·grad_y`: `grad_x = rstd·(g − mean(g) − x̂·mean(g·x̂))`, where the mean of `g` belongs to a layer norm
/// (`centred`) only.
pub fn backward_add(grad_y: &[f32], normed: &[f32], rstd: &[f32], gamma: &[f32], centred: bool, grad_x: &mut [f32]) {
    let d = gamma.len();
    let task = ROWS_PER_TASK * d;
    let found = isa();
    grad_y
        .par_chunks(task)
        .zip(normed.par_chunks(task))
        .zip(rstd.par_chunks(ROWS_PER_TASK))
        .zip(grad_x.par_chunks_mut(task))
        .for_each(|(((grad_y, normed), rstd), grad_x)| {
            rows_backward(found, grad_y, normed, rstd, gamma, centred, grad_x);
        });
}

multiversion! {
    fn rows_backward(grad_y: &[f32], normed: &[f32], rstd: &[f32], gamma: &[f32], centred: bool, grad_x: &mut [f32]) => rows_backward_body
}

#[inline(always)]
fn rows_backward_body(grad_y: &[f32], normed: &[f32], rstd: &[f32], gamma: &[f32], centred: bool, grad_x: &mut [f32]) {
    let d = gamma.len();
    let width = d as f32;
    let mut scaled = vec![0.0f32; d];
    for (((grad_y, normed), rstd), grad_x) in
        grad_y.chunks_exact(d).zip(normed.chunks_exact(d)).zip(rstd).zip(grad_x.chunks_exact_mut(d))
    {
        for i in 0..d {
            scaled[i] = grad_y[i] * gamma[i];
        }
        let mean = if centred { lanes::sum(&scaled) / width } else { 0.0 };
        let along = lanes::dot(&scaled, normed) / width;
        for i in 0..d {
            grad_x[i] += rstd * (scaled[i] - mean - normed[i] * along);
        }
    }
}

/// Adds the gradients of scale and shift, `Σ grad_y·x̂` and `Σ grad_y` over the rows of each group, to ranges `scale` and
/// `shift` of the group's list. Row `i` belongs to `groups[i]`; rows are added one by one in ascending order.
pub fn parameter_gradients(
    grad_y: &[f32],
    normed: &[f32],
    groups: &[usize],
    scale: Range<usize>,
    shift: Option<Range<usize>>,
    sums: &mut [Vec<f32>],
) {
    let d = scale.len();
    for ((grad, normed), group) in grad_y.chunks_exact(d).zip(normed.chunks_exact(d)).zip(groups) {
        let sums = &mut sums[*group];
        for ((s, g), n) in sums[scale.clone()].iter_mut().zip(grad).zip(normed) {
            *s += g * n;
        }
        if let Some(shift) = shift.clone() {
            for (s, g) in sums[shift].iter_mut().zip(grad) {
                *s += g;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::dispatch::available;

    #[test]
    fn bits_do_not_depend_on_the_instruction_set() {
        let d = 77;
        let x: Vec<f32> = (0..3 * d).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.03).collect();
        let gamma: Vec<f32> = (0..d).map(|i| 1.0 + i as f32 * 0.01).collect();
        let beta: Vec<f32> = (0..d).map(|i| i as f32 * -0.02).collect();
        let mut results = Vec::new();
        for found in available() {
            let (mut normed, mut rstd, mut y) = (vec![0.0; x.len()], vec![0.0; 3], vec![0.0; x.len()]);
            rows_forward(found, &x, &gamma, &beta, 1e-5, &mut normed, &mut rstd, &mut y);
            let mut grad = vec![0.5; x.len()];
            rows_backward(found, &y, &normed, &rstd, &gamma, true, &mut grad);
            rms_rows_forward(found, &x, &gamma, 1e-5, &mut normed, &mut rstd, &mut y);
            rows_backward(found, &y, &normed, &rstd, &gamma, false, &mut grad);
            results.push((normed, rstd, y, grad));
        }
        for other in &results[1..] {
            assert_eq!(other, &results[0]);
        }
    }
}
