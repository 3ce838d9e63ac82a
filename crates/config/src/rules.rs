//! Rules between keys. A rule looks at values that are valid by themselves; it has nothing to say where one that it needs
//! is unknown, since that was refused already.

use crate::choice::{CpuArithmetic, Dtype, Loss, Pooling, Solver, Stage, TargetEncoding, ValueEncoding};
use crate::error::ConfigError;
use crate::key::Part;
use crate::keys::{EXACT, LEAST_SOLVED};
use crate::origins::Check;

type Rule = fn(&Check<'_>) -> Option<ConfigError>;

/// What the rules of one part of the keys find.
pub(crate) fn apply(part: Part, check: &Check<'_>) -> Vec<ConfigError> {
    let rules: &[Rule] = match part {
        Part::Recipe => &[
            fourier_periods,
            log_threshold,
            huber_delta,
            special_tokens,
            arithmetic,
            run_length,
            micro_batch,
            value_range,
            trained,
            solver,
            solved_layer_norms,
            solved_batch,
            solved_micro_batch,
            solved_pass,
            ridge_folds,
            pooling,
            taps,
            probe,
            loss,
        ],
        Part::Refused => &[transformer],
        Part::Run => &[written_numbers, eval_share, worker_counts, timeouts],
    };
    rules.iter().filter_map(|rule| rule(check)).collect()
}

fn fourier_periods(check: &Check<'_>) -> Option<ConfigError> {
    let is_unused = check.settings.value_encoding? != ValueEncoding::Fourier;
    only_where_used(
        check,
        "fourier_periods",
        "value_encoding fourier",
        is_unused && check.settings.fourier_periods?.is_some(),
    )
}

fn log_threshold(check: &Check<'_>) -> Option<ConfigError> {
    let places = "value_encoding signlog, target signlog or distribution log";
    let is_unused = !check.settings.is_logarithmic()?;
    only_where_used(check, "log_threshold", places, is_unused && check.settings.log_threshold?.is_some())
}

fn huber_delta(check: &Check<'_>) -> Option<ConfigError> {
    let is_unused = check.settings.loss? != Loss::Huber;
    only_where_used(check, "huber_delta", "loss huber", is_unused && check.settings.huber_delta?.is_some())
}

fn special_tokens(check: &Check<'_>) -> Option<ConfigError> {
    let is_unused = check.settings.stage? == Stage::Nn;
    let is_idle = is_unused && check.settings.add_special_tokens?;
    only_where_used(check, "add_special_tokens", "stage text or mixed", is_idle)
}

/// Other types would be rounded twice.
fn arithmetic(check: &Check<'_>) -> Option<ConfigError> {
    let is_rounded = check.settings.arithmetic? == CpuArithmetic::Bf16;
    if !is_rounded || matches!(check.settings.dtype?, Dtype::F32 | Dtype::Bf16) {
        return None;
    }
    let message = format!("rounds f32 and bf16 weights, and not {}", check.mention("dtype"));
    check.refuse("arithmetic", message, "leave one of the two out")
}

/// A setting of an encoder, a loss or a tokenizer is set only where it is used.
fn only_where_used(check: &Check<'_>, name: &'static str, places: &str, is_idle: bool) -> Option<ConfigError> {
    is_idle.then(|| check.refuse(name, format!("means something only with {places}"), "leave it out"))?
}

/// All samples of the run can be counted exactly.
fn run_length(check: &Check<'_>) -> Option<ConfigError> {
    let settings = check.settings;
    let (epochs, batches, batch) = (settings.num_epochs?, settings.num_batches?, settings.batch_size?);
    let samples = epochs.checked_mul(batches).and_then(|steps| steps.checked_mul(batch as u64));
    if samples.is_some_and(|samples| samples <= EXACT) {
        return None;
    }
    let culprit = if epochs >= batches { "num_epochs" } else { "num_batches" };
    let product = format!("num_epochs × num_batches × batch_size = {epochs} × {batches} × {batch} samples");
    let message = format!("{product}, and at most {EXACT} are allowed");
    check.refuse(culprit, message, "lower num_epochs or num_batches")
}

/// A step is a whole number of micro-batches.
fn micro_batch(check: &Check<'_>) -> Option<ConfigError> {
    let (batch, micro) = (check.settings.batch_size?, check.settings.micro_batch_size?);
    if batch.is_multiple_of(micro) {
        return None;
    }
    let divisors = (1..=micro.min(batch)).rev().filter(|divisor| batch.is_multiple_of(*divisor));
    let near: Vec<String> = divisors.take(3).map(|divisor| divisor.to_string()).collect();
    let message = format!("must divide {}", check.mention("batch_size"));
    check.refuse("micro_batch_size", message, format!("{} would do", near.join(" or ")))
}

/// There are values, and they can be standardised.
fn value_range(check: &Check<'_>) -> Option<ConfigError> {
    let (min, max) = (check.settings.min_val?, check.settings.max_val?);
    let culprit = check.most_specific("min_val", "max_val");
    let (other, order) = if culprit == "min_val" { ("max_val", "below") } else { ("min_val", "above") };
    let other = check.mention(other);
    let range = max - min;
    let (least, most) = (f32::MIN_POSITIVE, f32::MAX);
    if min >= max {
        let message = format!("must be {order} {other}");
        return check.refuse(culprit, message, "set min_val and max_val together");
    }
    if range > f64::from(most) || range < f64::from(least) {
        let message = format!("gives a range of {range:e} with {other}, and it must be from {least:e} to {most:e}");
        return check.refuse(culprit, message, "");
    }
    None
}

/// In the stages with text, at least one number with that many decimals lies in the range, and all of them are exact: where
/// samples are generated.
fn written_numbers(check: &Check<'_>) -> Option<ConfigError> {
    if check.settings.dataset_file.as_ref()?.is_some() {
        return None;
    }
    let (min, max) = (check.settings.min_val?, check.settings.max_val?);
    let (stage, decimals) = (check.settings.stage?, check.settings.decimals?);
    let scale = (0..decimals).fold(1.0, |power, _| power * 10.0);
    if stage == Stage::Nn || value_range(check).is_some() {
        return None;
    }
    if min.abs().max(max.abs()) * scale > EXACT as f64 {
        let message = format!("is too large to be written exactly with {}", check.mention("decimals"));
        let culprit = check.most_specific("min_val", "max_val");
        return check.refuse(culprit, message, "lower decimals, or narrow min_val and max_val");
    }
    if has_written_number(min, max, scale) {
        return None;
    }
    let (low, high) = (check.mention("min_val"), check.mention("max_val"));
    let message =
        format!("stage {stage} needs a number with that many decimals from {low} up to, but not including, {high}");
    check.refuse("decimals", message, "raise decimals, or widen min_val and max_val")
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
fn trained(check: &Check<'_>) -> Option<ConfigError> {
    const INPUT: &str = "train_input_projection";
    const OUTPUT: &str = "train_output_projection";
    let settings = check.settings;
    let input = settings.train_input_projection?;
    if settings.train_layer_norms == Some(true) {
        return None;
    }
    if settings.stage == Some(Stage::Text) && input {
        let message = format!("must be false with {}, which does not use the input projector", check.mention("stage"));
        return check.refuse(INPUT, message, "leave it out, or set it to false");
    }
    if input || settings.train_output_projection? {
        return None;
    }
    let culprit = check.most_specific(OUTPUT, INPUT);
    let other = if culprit == OUTPUT { INPUT } else { OUTPUT };
    let hint = match settings.stage {
        Some(Stage::Text) => "set train_output_projection to true",
        _ => "set one of the two to true",
    };
    check.refuse(culprit, format!("leaves nothing to train with {}", check.mention(other)), hint)
}

/// A solver finds the output projector, and `exact` nothing else.
fn solver(check: &Check<'_>) -> Option<ConfigError> {
    let settings = check.settings;
    let solver = settings.solver.filter(|solver| *solver != Solver::Adam)?;
    if settings.train_output_projection == Some(false) {
        let message =
            format!("finds the output projector, which {} keeps as it is", check.mention("train_output_projection"));
        return check.refuse("solver", message, "use adam, or set train_output_projection to true");
    }
    if solver != Solver::Exact || settings.train_input_projection != Some(true) {
        return None;
    }
    let input = check.mention("train_input_projection");
    let message = format!("solves for the output projector alone, and {input} trains the other one too");
    check.refuse("solver", message, "use alternate, or set train_input_projection to false")
}

/// One pass over fixed hidden states leaves no room for layer norms that change them.
fn solved_layer_norms(check: &Check<'_>) -> Option<ConfigError> {
    if check.settings.solver? != Solver::Exact || !check.settings.train_layer_norms? {
        return None;
    }
    let norms = check.mention("train_layer_norms");
    let message = format!("solves for the output projector alone, and {norms} trains more");
    check.refuse("solver", message, "use alternate, or set train_layer_norms to false")
}

/// The hidden states of a batch travel as one chunk.
fn solved_batch(check: &Check<'_>) -> Option<ConfigError> {
    solved_at_once(check, "batch_size", check.settings.batch_size?, 8192)
}

/// Those of a micro-batch travel as one message.
fn solved_micro_batch(check: &Check<'_>) -> Option<ConfigError> {
    solved_at_once(check, "micro_batch_size", check.settings.micro_batch_size?, 1024)
}

fn solved_at_once(check: &Check<'_>, name: &'static str, size: usize, most: usize) -> Option<ConfigError> {
    if check.settings.solver? == Solver::Adam || size <= most {
        return None;
    }
    let message = format!("must be at most {most} with {}", check.mention("solver"));
    let hint = "hidden states of that many samples are sent at once; take more and smaller batches";
    check.refuse(name, message, hint)
}

/// The pass of `exact` has samples to hold out.
fn solved_pass(check: &Check<'_>) -> Option<ConfigError> {
    let settings = check.settings;
    let (epochs, batches, batch) = (settings.num_epochs?, settings.num_batches?, settings.batch_size?);
    let samples = epochs.saturating_mul(batches).saturating_mul(batch as u64);
    if settings.solver? != Solver::Exact || samples >= LEAST_SOLVED {
        return None;
    }
    let product = format!("num_epochs × num_batches × batch_size = {epochs} × {batches} × {batch} samples");
    let message = format!("with {product}, and at least {LEAST_SOLVED} are needed");
    check.refuse("solver", message, "raise num_batches; some thousand samples are usual")
}

/// Folds are left out in turn, of the samples of a solution.
fn ridge_folds(check: &Check<'_>) -> Option<ConfigError> {
    let settings = check.settings;
    let folds = settings.ridge_folds.filter(|folds| *folds > 0)?;
    if folds == 1 {
        return check.refuse("ridge_folds", "leaves nothing to fit".to_owned(), "10 is usual, 0 holds out an eighth");
    }
    if settings.probe?.is_some() {
        let message = format!("means nothing with {}, which holds out an eighth", check.mention("probe"));
        return check.refuse("ridge_folds", message, "leave it out");
    }
    let is_unused = settings.solver? == Solver::Adam;
    only_where_used(check, "ridge_folds", "solver exact or alternate", is_unused)
}

/// The transformer itself never trains.
fn transformer(check: &Check<'_>) -> Option<ConfigError> {
    if !check.settings.train_transformer? {
        return None;
    }
    let message = "is not possible: the model stays frozen, which is why the state is small enough to be shipped, \
                   compared and stored at every step, and why any number of workers gives the same bytes";
    let hint = "train_layer_norms: true trains its layer norms, which matter most in a frozen transformer; for all \
                weights use a fine-tuning trainer";
    check.refuse("train_transformer", message.to_string(), hint)
}

/// The numbers' positions are read only where there are some.
fn pooling(check: &Check<'_>) -> Option<ConfigError> {
    let settings = check.settings;
    let taps = settings.taps.as_deref()?;
    let is_tapped = taps.iter().any(|tap| tap.pooling == Pooling::Numbers);
    if settings.stage? != Stage::Text || !(is_tapped || settings.pooling? == Pooling::Numbers) {
        return None;
    }
    let message = format!("reads projected numbers, and there are none with {}", check.mention("stage"));
    check.refuse(if is_tapped { "taps" } else { "pooling" }, message, "use mean or last")
}

/// Taps stand in the place of `layer` and `pooling`.
fn taps(check: &Check<'_>) -> Option<ConfigError> {
    let settings = check.settings;
    let (has_layer, has_pooling) = (settings.layer?.is_some(), settings.pooling? != Pooling::Last);
    if settings.taps.as_ref()?.is_empty() || !(has_layer || has_pooling) {
        return None;
    }
    let other = check.mention(if has_layer { "layer" } else { "pooling" });
    check.refuse(
        "taps",
        format!("say all that is read, and {other} says more"),
        "give either taps or layer and pooling",
    )
}

/// A probe is a pass of the solver.
fn probe(check: &Check<'_>) -> Option<ConfigError> {
    if check.settings.probe?.is_none() || check.settings.solver? == Solver::Exact {
        return None;
    }
    let message = format!("is a pass of solver exact, not of {}", check.mention("solver"));
    check.refuse("probe", message, "leave it to `numalign probe`")
}

/// A relative error is taken of the value itself.
fn loss(check: &Check<'_>) -> Option<ConfigError> {
    if check.settings.loss? != Loss::Relative || check.settings.target_encoding()? != TargetEncoding::Signlog {
        return None;
    }
    let message = format!("needs a linear target, not {}", check.mention("target"));
    check.refuse("loss", message, "use mse: an error of a logarithm is relative already")
}

/// Held-out rows come from one place.
fn eval_share(check: &Check<'_>) -> Option<ConfigError> {
    check.settings.dataset_eval_file.as_ref()?.as_ref()?;
    check.settings.dataset_eval_share??;
    let file = check.mention("dataset.eval_file");
    let message = format!("holds out rows of dataset.file, and {file} names others");
    check.refuse("dataset.eval_share", message, "leave one of the two out")
}

/// `min_workers ≤ workers ≤ max_workers`.
fn worker_counts(check: &Check<'_>) -> Option<ConfigError> {
    let settings = check.settings;
    let [least, workers, most] =
        [("min_workers", settings.min_workers), ("workers", settings.workers), ("max_workers", settings.max_workers)];
    let pairs = [(least, most), (workers, most), (least, workers)];
    pairs.into_iter().find_map(|(low, high)| not_above(check, low, high))
}

/// The first key's number is not above the second's.
fn not_above(
    check: &Check<'_>,
    (low, least): (&'static str, Option<usize>),
    (high, most): (&'static str, Option<usize>),
) -> Option<ConfigError> {
    if least? <= most? {
        return None;
    }
    let culprit = check.most_specific(low, high);
    let message = match culprit == low {
        true => format!("must not be above {}", check.mention(high)),
        false => format!("must not be below {}", check.mention(low)),
    };
    check.refuse(culprit, message, format!("raise {high} or lower {low}"))
}

/// A worker is not taken for dead between two signs of life.
fn timeouts(check: &Check<'_>) -> Option<ConfigError> {
    let (heartbeat, dead_after) = (check.settings.heartbeat?, check.settings.dead_after?);
    if heartbeat * 2 <= dead_after {
        return None;
    }
    let (longer, shorter) = ((heartbeat * 2).as_secs_f64(), (dead_after / 2).as_secs_f64());
    let culprit = check.most_specific("dead_after", "heartbeat");
    let message = match culprit {
        "dead_after" => format!("must be at least twice {}", check.mention("heartbeat")),
        _ => format!("must be at most half of {}", check.mention("dead_after")),
    };
    check.refuse(culprit, message, format!("raise dead_after to {longer}s or lower heartbeat to {shorter}s"))
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
