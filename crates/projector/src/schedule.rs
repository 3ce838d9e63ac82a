//! The learning rate as a function of the step alone.

use numalign_config::Recipe;

/// Learning rate of update `step` (0-based): `lr · gamma^(epoch / lr_step_epochs)` with `shl`, else `lr`.
///
/// PyTorch's `StepLR`: the power is a product taken one factor at a time, so that no platform's `pow` is involved.
pub fn learning_rate(recipe: &Recipe, step: u64) -> f64 {
    if !recipe.shl {
        return recipe.lr;
    }
    let epoch = step / recipe.num_batches.max(1);
    let mut rate = recipe.lr;
    for _ in 0..epoch / recipe.lr_step_epochs.max(1) {
        let next = rate * recipe.lr_gamma;
        // Zero, infinity or a factor of one: further products change nothing.
        if next == rate {
            break;
        }
        rate = next;
    }
    rate
}
