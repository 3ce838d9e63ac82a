//! The learning rate against PyTorch's `StepLR`, worked out by hand.

use numalign_config::{Config, Recipe};
use numalign_projector::schedule::learning_rate;

/// 5 steps per epoch; the rate falls every 3 epochs, so every 15 steps.
fn recipe(lr: f64, gamma: f64) -> Recipe {
    let mut recipe = Config::with(&[]).unwrap().recipe;
    recipe.lr = lr;
    recipe.shl = true;
    recipe.num_batches = 5;
    recipe.lr_step_epochs = 3;
    recipe.lr_gamma = gamma;
    recipe
}

#[test]
fn it_falls_after_every_lr_step_epochs() {
    let recipe = recipe(0.5, 0.5);
    let expected = [(0, 0.5), (1, 0.5), (14, 0.5), (15, 0.25), (29, 0.25), (30, 0.125), (44, 0.125), (45, 0.0625)];
    for (step, rate) in expected {
        assert_eq!(learning_rate(&recipe, step), rate, "step {step}");
    }
}

#[test]
fn it_is_a_product_taken_one_factor_at_a_time() {
    let recipe = recipe(0.003, 0.1);
    // As PyTorch multiplies the rate it has; the power of 0.1 would give other last bits.
    assert_eq!(learning_rate(&recipe, 45), 0.003 * 0.1 * 0.1 * 0.1);
    assert_ne!(learning_rate(&recipe, 45), 0.003 * (0.1 * 0.1 * 0.1));
}

#[test]
fn without_shl_it_stays() {
    let mut recipe = recipe(0.003, 0.5);
    recipe.shl = false;
    for step in [0, 15, 1_000_000, u64::MAX] {
        assert_eq!(learning_rate(&recipe, step), 0.003);
    }
}

#[test]
fn a_growing_and_a_vanishing_rate() {
    assert_eq!(learning_rate(&recipe(1.0, 2.0), 15 * 10), 1024.0);
    // Half of the smallest number is zero, and the far end is reached without walking there.
    assert_eq!(learning_rate(&recipe(1.0, 0.5), 15 * 1074), 5e-324);
    assert_eq!(learning_rate(&recipe(1.0, 0.5), u64::MAX), 0.0);
}
