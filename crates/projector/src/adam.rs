//! One Adam update on a stretch of the flat state.
//!
//! Kingma and Ba, 2015, with PyTorch's order of operations (`torch.optim.Adam`, single-tensor path, β 0.9 and 0.999,
//! ε 1e-8, bias-corrected), so that equal gradients give PyTorch's bits. Its CPU kernels fuse multiply and add in both
//! moments; a fused operation rounds once, so every machine computes the same.

/// β₁ of the first moment.
pub const BETA_1: f64 = 0.9;
/// β₂ of the second moment.
pub const BETA_2: f64 = 0.999;
/// ε in the denominator.
pub const EPSILON: f64 = 1e-8;

/// Updates `parameters` and both moments in place. The powers are `β₁ᵗ` and `β₂ᵗ` of the update being made (t from 1).
pub fn update(
    parameters: &mut [f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    gradient: &[f32],
    learning_rate: f64,
    beta_1_power: f64,
    beta_2_power: f64,
) {
    let step_size = (-(learning_rate / (1.0 - beta_1_power))) as f32;
    let correction = (1.0 - beta_2_power).sqrt() as f32;
    let (weight_1, weight_2) = ((1.0 - BETA_1) as f32, (1.0 - BETA_2) as f32);
    let (beta_2, epsilon) = (BETA_2 as f32, EPSILON as f32);
    for (((p, m), v), g) in parameters.iter_mut().zip(exp_avg).zip(exp_avg_sq).zip(gradient) {
        *m = weight_1.mul_add(g - *m, *m);
        *v = (weight_2 * g).mul_add(*g, *v * beta_2);
        let denominator = v.sqrt() / correction + epsilon;
        *p += step_size * *m / denominator;
    }
}
