//! The activation functions that `config.json` may name, forward and derivative.

use rayon::prelude::*;

use super::dispatch::{isa, multiversion};
use super::math;

/// An activation function of the feed-forward part. Names as in `transformers.activations.ACT2FN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `gelu`: `x·Φ(x)` with the error function.
    GeluErf,
    /// `gelu_new`, `gelu_fast`, `gelu_pytorch_tanh`: the tanh approximation of GELU.
    GeluTanh,
    /// `quick_gelu`: `x·σ(1.702·x)`.
    QuickGelu,
    /// `relu`
    Relu,
    /// `silu`, `swish`: `x·σ(x)`
    Silu,
    /// `tanh`
    Tanh,
}

/// Elements handled by one task.
const TASK: usize = 1 << 14;

/// √(2/π)
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// `u ↦ f(u)` into `out`.
pub fn forward(function: Activation, u: &[f32], out: &mut [f32]) {
    let found = isa();
    u.par_chunks(TASK).zip(out.par_chunks_mut(TASK)).for_each(|(u, out)| match function {
        Activation::GeluTanh => gelu_tanh_forward(found, u, out),
        Activation::GeluErf => gelu_erf_forward(u, out),
        Activation::QuickGelu => quick_gelu_forward(found, u, out),
        Activation::Relu => relu_forward(u, out),
        Activation::Silu => silu_forward(found, u, out),
        Activation::Tanh => tanh_forward(found, u, out),
    });
}

/// `grad ← grad · f′(u)` in place.
pub fn backward(function: Activation, u: &[f32], grad: &mut [f32]) {
    let found = isa();
    u.par_chunks(TASK).zip(grad.par_chunks_mut(TASK)).for_each(|(u, grad)| match function {
        Activation::GeluTanh => gelu_tanh_backward(found, u, grad),
        Activation::GeluErf => gelu_erf_backward(u, grad),
        Activation::QuickGelu => quick_gelu_backward(found, u, grad),
        Activation::Relu => relu_backward(u, grad),
        Activation::Silu => silu_backward(found, u, grad),
        Activation::Tanh => tanh_backward(found, u, grad),
    });
}

// 0.5·(1 + tanh z) = σ(2z), so the tanh approximation of GELU is u·σ(2z) with z = √(2/π)·(u + 0.044715·u³).
#[inline(always)]
fn gelu_gate(u: f32) -> f32 {
    let z = GELU_SCALE * (GELU_CUBIC * u * u).mul_add(u, u);
    math::sigmoid(2.0 * z)
}

multiversion! { fn gelu_tanh_forward(u: &[f32], out: &mut [f32]) => gelu_tanh_forward_body }
#[inline(always)]
fn gelu_tanh_forward_body(u: &[f32], out: &mut [f32]) {
    for (u, out) in u.iter().zip(out) {
        *out = u * gelu_gate(*u);
    }
}

multiversion! { fn gelu_tanh_backward(u: &[f32], grad: &mut [f32]) => gelu_tanh_backward_body }
#[inline(always)]
fn gelu_tanh_backward_body(u: &[f32], grad: &mut [f32]) {
    for (u, grad) in u.iter().zip(grad) {
        let gate = gelu_gate(*u);
        let slope = 2.0 * GELU_SCALE * (3.0 * GELU_CUBIC * u).mul_add(*u, 1.0);
        *grad *= (u * gate * (1.0 - gate)).mul_add(slope, gate);
    }
}

#[inline(always)]
fn sigmoid_gated_forward(u: &[f32], out: &mut [f32], sharpness: f32) {
    for (u, out) in u.iter().zip(out) {
        *out = u * math::sigmoid(sharpness * u);
    }
}

#[inline(always)]
fn sigmoid_gated_backward(u: &[f32], grad: &mut [f32], sharpness: f32) {
    for (u, grad) in u.iter().zip(grad) {
        let gate = math::sigmoid(sharpness * u);
        *grad *= (sharpness * u * gate).mul_add(1.0 - gate, gate);
    }
}

multiversion! { fn quick_gelu_forward(u: &[f32], out: &mut [f32]) => quick_gelu_forward_body }
#[inline(always)]
fn quick_gelu_forward_body(u: &[f32], out: &mut [f32]) {
    sigmoid_gated_forward(u, out, 1.702);
}

multiversion! { fn quick_gelu_backward(u: &[f32], grad: &mut [f32]) => quick_gelu_backward_body }
#[inline(always)]
fn quick_gelu_backward_body(u: &[f32], grad: &mut [f32]) {
    sigmoid_gated_backward(u, grad, 1.702);
}

multiversion! { fn silu_forward(u: &[f32], out: &mut [f32]) => silu_forward_body }
#[inline(always)]
fn silu_forward_body(u: &[f32], out: &mut [f32]) {
    sigmoid_gated_forward(u, out, 1.0);
}

multiversion! { fn silu_backward(u: &[f32], grad: &mut [f32]) => silu_backward_body }
#[inline(always)]
fn silu_backward_body(u: &[f32], grad: &mut [f32]) {
    sigmoid_gated_backward(u, grad, 1.0);
}

multiversion! { fn tanh_forward(u: &[f32], out: &mut [f32]) => tanh_forward_body }
#[inline(always)]
fn tanh_forward_body(u: &[f32], out: &mut [f32]) {
    for (u, out) in u.iter().zip(out) {
        *out = 2.0f32.mul_add(math::sigmoid(2.0 * u), -1.0);
    }
}

multiversion! { fn tanh_backward(u: &[f32], grad: &mut [f32]) => tanh_backward_body }
#[inline(always)]
fn tanh_backward_body(u: &[f32], grad: &mut [f32]) {
    for (u, grad) in u.iter().zip(grad) {
        let t = 2.0f32.mul_add(math::sigmoid(2.0 * u), -1.0);
        *grad *= t.mul_add(-t, 1.0);
    }
}

fn relu_forward(u: &[f32], out: &mut [f32]) {
    for (u, out) in u.iter().zip(out) {
        *out = if *u > 0.0 { *u } else { 0.0 };
    }
}

fn relu_backward(u: &[f32], grad: &mut [f32]) {
    for (u, grad) in u.iter().zip(grad) {
        *grad = if *u > 0.0 { *grad } else { 0.0 };
    }
}

// The error function comes from the `libm` crate: the same bits everywhere, though not vectorised.
fn normal_cdf(u: f32) -> f32 {
    0.5 * (1.0 + libm::erff(u * std::f32::consts::FRAC_1_SQRT_2))
}

fn gelu_erf_forward(u: &[f32], out: &mut [f32]) {
    for (u, out) in u.iter().zip(out) {
        *out = u * normal_cdf(*u);
    }
}

fn gelu_erf_backward(u: &[f32], grad: &mut [f32]) {
    const INV_SQRT_TAU: f32 = 0.398_942_3;
    for (u, grad) in u.iter().zip(grad) {
        let density = INV_SQRT_TAU * math::exp(-0.5 * u * u);
        *grad *= u.mul_add(density, normal_cdf(*u));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Activation; 6] = [
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
    ];

    #[test]
    fn derivatives_agree_with_central_differences() {
        let u: Vec<f32> = (0..200).map(|i| -4.987 + i as f32 * 0.05).collect();
        for function in ALL {
            let step = 1e-2f32;
            let above: Vec<f32> = u.iter().map(|v| v + step).collect();
            let below: Vec<f32> = u.iter().map(|v| v - step).collect();
            let (mut high, mut low) = (vec![0.0; u.len()], vec![0.0; u.len()]);
            forward(function, &above, &mut high);
            forward(function, &below, &mut low);
            let mut slope = vec![1.0; u.len()];
            backward(function, &u, &mut slope);
            for i in 0..u.len() {
                if function == Activation::Relu && u[i].abs() <= step {
                    continue;
                }
                let want = (high[i] - low[i]) / (above[i] - below[i]);
                assert!((slope[i] - want).abs() < 2e-4, "{function:?} at {}: {} against {want}", u[i], slope[i]);
            }
        }
    }
}
