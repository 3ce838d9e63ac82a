//! The activation functions on the GPU; formulas as in [`crate::kernels::activation`].

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use crate::kernels::activation::Activation;

/// √(2/π)
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;
const QUICK: f32 = 1.702;
const INV_SQRT_TAU: f32 = 0.398_942_3;

#[cube]
fn sigmoid(x: f32) -> f32 {
    f32::new(1.0) / (f32::new(1.0) + (-x).exp())
}

#[cube]
fn normal_cdf(u: f32) -> f32 {
    f32::new(0.5) * (f32::new(1.0) + Erf::erf(u * f32::new(std::f32::consts::FRAC_1_SQRT_2)))
}

#[cube]
fn gelu_gate(u: f32) -> f32 {
    let z = f32::new(GELU_SCALE) * fma(f32::new(GELU_CUBIC) * u * u, u, u);
    sigmoid(f32::new(2.0) * z)
}

/// `f(u)`
#[cube]
pub fn activated(u: f32, #[comptime] function: Activation) -> f32 {
    if comptime!(function == Activation::GeluTanh) {
        u * gelu_gate(u)
    } else if comptime!(function == Activation::GeluErf) {
        u * normal_cdf(u)
    } else if comptime!(function == Activation::QuickGelu) {
        u * sigmoid(f32::new(QUICK) * u)
    } else if comptime!(function == Activation::Silu) {
        u * sigmoid(u)
    } else if comptime!(function == Activation::Tanh) {
        u.tanh()
    } else {
        select(u > 0.0, u, f32::new(0.0))
    }
}

#[cube]
fn sigmoid_gated_slope(u: f32, sharpness: f32) -> f32 {
    let gate = sigmoid(sharpness * u);
    fma(sharpness * u * gate, f32::new(1.0) - gate, gate)
}

/// `f′(u)`
#[cube]
pub fn slope(u: f32, #[comptime] function: Activation) -> f32 {
    if comptime!(function == Activation::GeluTanh) {
        let gate = gelu_gate(u);
        let inner = f32::new(2.0 * GELU_SCALE) * fma(f32::new(3.0 * GELU_CUBIC) * u, u, f32::new(1.0));
        fma(u * gate * (f32::new(1.0) - gate), inner, gate)
    } else if comptime!(function == Activation::GeluErf) {
        let density = f32::new(INV_SQRT_TAU) * (f32::new(-0.5) * u * u).exp();
        fma(u, density, normal_cdf(u))
    } else if comptime!(function == Activation::QuickGelu) {
        sigmoid_gated_slope(u, f32::new(QUICK))
    } else if comptime!(function == Activation::Silu) {
        sigmoid_gated_slope(u, f32::new(1.0))
    } else if comptime!(function == Activation::Tanh) {
        let t = u.tanh();
        fma(t, -t, f32::new(1.0))
    } else {
        select(u > 0.0, f32::new(1.0), f32::new(0.0))
    }
}
