//! Predictions for samples of a stream, beside their targets.

use numalign_data::SampleStream;
use numalign_projector::State;

use crate::engine::Engine;
use crate::error::EngineError;

/// Samples that pass through the engine at once. Whoever wants the same bits on a device whose results depend on the
/// batch asks for the same samples at once.
pub const AT_ONCE: u64 = 128;

/// Predictions beside what they should have been, both in value units, in the order of the stream.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Evaluation {
    /// One per sample.
    pub predictions: Vec<f64>,
    /// One per sample.
    pub targets: Vec<f64>,
}

/// Predictions for the first `count` samples of `stream`; `progress` is told how many are done.
///
/// # Errors
/// A sample that the model cannot take.
pub fn evaluate(
    engine: &mut Engine,
    state: &State,
    stream: &SampleStream,
    count: u64,
    mut progress: impl FnMut(u64),
) -> Result<Evaluation, EngineError> {
    let mut evaluation = Evaluation::default();
    let mut from = 0;
    while from < count {
        let to = count.min(from + AT_ONCE);
        let samples: Vec<_> = (from..to).map(|index| stream.sample(index)).collect();
        for prediction in engine.predict(state, &samples)? {
            evaluation.predictions.push(engine.encoding().decode(prediction));
        }
        evaluation.targets.extend(samples.iter().map(|sample| sample.target));
        from = to;
        progress(from);
    }
    Ok(evaluation)
}
