//! Rules between keys. Each is called by `resolve` with values that are valid by themselves;
//! a value that is missing here was refused already, and then the rule is passed over.

use std::time::Duration;

use crate::reader::Reader;
use crate::resolve::{EXACT, LEAST_SOLVED};
use crate::types::{Loss, Readout, Solver, Stage, TargetEncoding};

/// All samples of the run can be counted exactly.
pub(crate) fn run_length(
    reader: &mut Reader,
    num_epochs: Option<u64>,
    num_batches: Option<u64>,
    batch_size: Option<usize>,
) {
    let (Some(epochs), Some(batches), Some(batch)) = (num_epochs, num_batches, batch_size) else {
        return;
    };
    let samples = epochs.checked_mul(batches).and_then(|steps| steps.checked_mul(batch as u64));
    if samples.is_some_and(|samples| samples <= EXACT) {
        return;
    }
    let culprit = if epochs >= batches { "num_epochs" } else { "num_batches" };
    reader.note(
        culprit,
        format!(
            "num_epochs × num_batches × batch_size = {epochs} × {batches} × {batch} \
             samples, and at most {EXACT} are allowed"
        ),
        Some("lower num_epochs or num_batches".to_string()),
    );
}

/// A step is a whole number of micro-batches.
pub(crate) fn micro_batch(reader: &mut Reader, batch: Option<usize>, micro: Option<usize>) {
    let (Some(batch), Some(micro)) = (batch, micro) else {
        return;
    };
    if batch.is_multiple_of(micro) {
        return;
    }
    let mut near: Vec<String> = Vec::new();
    for divisor in (1..=micro.min(batch)).rev() {
        if batch.is_multiple_of(divisor) && near.len() < 3 {
            near.push(divisor.to_string());
        }
    }
    let message = format!("must divide {}", reader.mention("batch_size"));
    let hint = format!("{} would do", near.join(" or "));
    reader.note("micro_batch_size", message, Some(hint));
}

/// There are values, they can be standardised, and the ones written as text are exact.
pub(crate) fn value_range(
    reader: &mut Reader,
    stage: Option<Stage>,
    min_val: Option<f64>,
    max_val: Option<f64>,
    decimals: Option<u32>,
) {
    let (Some(min), Some(max)) = (min_val, max_val) else {
        return;
    };
    let culprit = reader.likeliest("min_val", "max_val");
    let other = if culprit == "min_val" { "max_val" } else { "min_val" };
    if min >= max {
        let order = if culprit == "min_val" { "below" } else { "above" };
        let message = format!("must be {order} {}", reader.mention(other));
        reader.note(culprit, message, Some("set min_val and max_val together".to_string()));
        return;
    }
    let range = max - min;
    if range > f64::from(f32::MAX) || range < f64::from(f32::MIN_POSITIVE) {
        let message = format!(
            "gives a range of {range:e} with {}, and it must be from {:e} to {:e}",
            reader.mention(other),
            f32::MIN_POSITIVE,
            f32::MAX
        );
        reader.note(culprit, message, None);
        return;
    }
    if let (Some(stage @ (Stage::Text | Stage::Mixed)), Some(decimals)) = (stage, decimals) {
        written_numbers(reader, stage, (min, max), decimals, culprit);
    }
}

/// In the stages with text, at least one number with that many decimals lies in the range, and
/// all of them are exact.
fn written_numbers(reader: &mut Reader, stage: Stage, (min, max): (f64, f64), decimals: u32, culprit: &'static str) {
    let scale = power_of_ten(decimals);
    if min.abs().max(max.abs()) * scale > EXACT as f64 {
        reader.note(
            culprit,
            format!("is too large to be written exactly with {}", reader.mention("decimals")),
            Some("lower decimals, or narrow min_val and max_val".to_string()),
        );
        return;
    }
    if !has_written_number(min, max, scale) {
        let (low, high) = (reader.mention("min_val"), reader.mention("max_val"));
        reader.note(
            "decimals",
            format!(
                "stage {stage} needs a number with that many decimals from {low} up to, \
                 but not including, {high}"
            ),
            Some("raise decimals, or widen min_val and max_val".to_string()),
        );
    }
}

fn power_of_ten(exponent: u32) -> f64 {
    let mut power = 1.0;
    for _ in 0..exponent {
        power *= 10.0;
    }
    power
}

/// Whether some `k / scale` with a whole `k` lies in `[min, max)`. `k / scale` is the float nearest
/// to the decimal number, so no rounding of `min · scale` can hide one.
fn has_written_number(min: f64, max: f64, scale: f64) -> bool {
    let near = (min * scale).round();
    for k in [near - 1.0, near, near + 1.0] {
        let number = k / scale;
        if number >= min {
            return number < max;
        }
    }
    false
}

/// Something trains, and only what the stage uses.
pub(crate) fn trained(reader: &mut Reader, stage: Option<Stage>, input: Option<bool>, output: Option<bool>) {
    if stage == Some(Stage::Text) && input == Some(true) {
        reader.note(
            "train_input_projection",
            format!("must be false with {}, which does not use the input projector", reader.mention("stage")),
            Some("leave it out, or set it to false".to_string()),
        );
        return;
    }
    if input == Some(false) && output == Some(false) {
        let culprit = reader.likeliest("train_output_projection", "train_input_projection");
        let other = match culprit {
            "train_output_projection" => "train_input_projection",
            _ => "train_output_projection",
        };
        let message = format!("leaves nothing to train with {}", reader.mention(other));
        let hint = match stage {
            Some(Stage::Text) => "set train_output_projection to true",
            _ => "set one of the two to true",
        };
        reader.note(culprit, message, Some(hint.to_string()));
    }
}

/// A solver finds the output projector, and `exact` nothing else.
pub(crate) fn solver(reader: &mut Reader, solver: Option<Solver>, input: Option<bool>, output: Option<bool>) {
    let Some(solver @ (Solver::Exact | Solver::Alternate)) = solver else {
        return;
    };
    if output == Some(false) {
        let message =
            format!("finds the output projector, which {} keeps as it is", reader.mention("train_output_projection"));
        reader.note("solver", message, Some("use adam, or set train_output_projection to true".to_string()));
        return;
    }
    if solver == Solver::Exact && input == Some(true) {
        let message = format!(
            "solves for the output projector alone, and {} trains the other one too",
            reader.mention("train_input_projection")
        );
        let hint = "use alternate, or set train_input_projection to false";
        reader.note("solver", message, Some(hint.to_string()));
    }
}

/// One pass over fixed hidden states leaves no room for layer norms that change them.
pub(crate) fn solved_layer_norms(reader: &mut Reader, solver: Option<Solver>, layer_norms: Option<bool>) {
    if solver == Some(Solver::Exact) && layer_norms == Some(true) {
        let message =
            format!("solves for the output projector alone, and {} trains more", reader.mention("train_layer_norms"));
        reader.note("solver", message, Some("use alternate, or set train_layer_norms to false".to_string()));
    }
}

/// The hidden states of a batch travel as one chunk, those of a micro-batch as one message.
pub(crate) fn solved_batch(reader: &mut Reader, solver: Option<Solver>, batch: Option<usize>, micro: Option<usize>) {
    const MOST_PER_CHUNK: usize = 8192;
    const MOST_PER_MESSAGE: usize = 1024;
    if solver.is_none_or(|solver| solver == Solver::Adam) {
        return;
    }
    let limits = [("batch_size", batch, MOST_PER_CHUNK), ("micro_batch_size", micro, MOST_PER_MESSAGE)];
    for (name, size, most) in limits {
        if size.is_some_and(|size| size > most) {
            let message = format!("must be at most {most} with {}", reader.mention("solver"));
            let hint = "hidden states of that many samples are sent at once; take more and smaller batches";
            reader.note(name, message, Some(hint.to_string()));
        }
    }
}

/// The pass of `exact` has samples to hold out.
pub(crate) fn solved_pass(
    reader: &mut Reader,
    solver: Option<Solver>,
    num_epochs: Option<u64>,
    num_batches: Option<u64>,
    batch_size: Option<usize>,
) {
    let (Some(Solver::Exact), Some(epochs), Some(batches), Some(batch)) = (solver, num_epochs, num_batches, batch_size)
    else {
        return;
    };
    let samples = epochs.saturating_mul(batches).saturating_mul(batch as u64);
    if samples < LEAST_SOLVED {
        let message = format!(
            "with num_epochs × num_batches × batch_size = {epochs} × {batches} × {batch} samples, and at least \
             {LEAST_SOLVED} are needed"
        );
        reader.note("solver", message, Some("raise num_batches; some thousand samples are usual".to_string()));
    }
}

/// The transformer itself never trains.
pub(crate) fn transformer(reader: &mut Reader, train_transformer: Option<bool>) {
    if train_transformer != Some(true) {
        return;
    }
    reader.note(
        "train_transformer",
        "is not possible: the model stays frozen, which is why the state is small enough to be shipped, compared and \
         stored at every step, and why any number of workers gives the same bytes"
            .to_string(),
        Some(
            "train_layer_norms: true trains its layer norms, which matter most in a frozen transformer; \
             for all weights use a fine-tuning trainer"
                .to_string(),
        ),
    );
}

/// The numbers' positions are read only where there are some.
pub(crate) fn readout(reader: &mut Reader, stage: Option<Stage>, readout: Option<Readout>) {
    if stage == Some(Stage::Text) && readout == Some(Readout::Numbers) {
        let message = format!("reads projected numbers, and there are none with {}", reader.mention("stage"));
        reader.note("readout", message, Some("use mean or last".to_string()));
    }
}

/// A relative error is taken of the value itself.
pub(crate) fn loss(reader: &mut Reader, loss: Option<Loss>, target: Option<TargetEncoding>) {
    if loss == Some(Loss::Relative) && target == Some(TargetEncoding::Signlog) {
        let message = format!("needs a linear target, not {}", reader.mention("target"));
        let hint = "use mse: an error of a logarithm is relative already".to_string();
        reader.note("loss", message, Some(hint));
    }
}

/// `min_workers ≤ workers ≤ max_workers`.
pub(crate) fn worker_counts(reader: &mut Reader, least: Option<usize>, workers: Option<usize>, most: Option<usize>) {
    if let (Some(least), Some(most)) = (least, most)
        && least > most
    {
        not_above(reader, "min_workers", "max_workers");
        return;
    }
    if let (Some(workers), Some(most)) = (workers, most)
        && workers > most
    {
        not_above(reader, "workers", "max_workers");
    }
    if let (Some(least), Some(workers)) = (least, workers)
        && least > workers
    {
        not_above(reader, "min_workers", "workers");
    }
}

fn not_above(reader: &mut Reader, low: &'static str, high: &'static str) {
    let hint = format!("raise {high} or lower {low}");
    if reader.likeliest(low, high) == low {
        let message = format!("must not be above {}", reader.mention(high));
        reader.note(low, message, Some(hint));
    } else {
        let message = format!("must not be below {}", reader.mention(low));
        reader.note(high, message, Some(hint));
    }
}

/// A worker is not taken for dead between two signs of life.
pub(crate) fn timeouts(reader: &mut Reader, heartbeat: Option<Duration>, dead_after: Option<Duration>) {
    let (Some(heartbeat), Some(dead_after)) = (heartbeat, dead_after) else {
        return;
    };
    if heartbeat * 2 <= dead_after {
        return;
    }
    let raise = format!("raise dead_after to {}s", (heartbeat * 2).as_secs_f64());
    let lower = format!("lower heartbeat to {}s", (dead_after / 2).as_secs_f64());
    let hint = format!("{raise} or {lower}");
    if reader.likeliest("dead_after", "heartbeat") == "dead_after" {
        let message = format!("must be at least twice {}", reader.mention("heartbeat"));
        reader.note("dead_after", message, Some(hint));
    } else {
        let message = format!("must be at most half of {}", reader.mention("dead_after"));
        reader.note("heartbeat", message, Some(hint));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_numbers_are_found_despite_rounding() {
        // 1.1 · 10 is 11.000000000000002 and 0.29 · 100 is 28.999999999999996.
        assert!(has_written_number(1.1, 1.2, 10.0));
        assert!(has_written_number(0.29, 0.3, 100.0));
        assert!(has_written_number(-0.05, 0.05, 10.0));
        assert!(has_written_number(5.0, 5.5, 1.0));
        assert!(!has_written_number(5.1, 5.9, 1.0));
        assert!(!has_written_number(1.11, 1.2, 10.0));
        assert!(!has_written_number(4.5, 5.0, 1.0));
    }
}
