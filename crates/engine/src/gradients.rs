//! Gradients of micro-batches: forward, loss and its slope, backward, and the projectors' own gradients.

use numalign_data::Sample;
use numalign_model::NormGradients;
use numalign_projector::{MicroBatchGradients, State};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::prepare::Prepared;

/// Flattened gradients in the making.
struct Gradients {
    rows: MicroBatchGradients,
    /// Gradients of the layer norms, one list per row; empty lists where they do not train.
    layer_norms: Vec<Vec<f32>>,
}

impl Engine {
    /// Flattened gradients of micro-batches, `[row_len]` each: gradient of the mean loss over the global batch
    /// with respect to every trainable number, then the micro-batch's share of the loss.
    ///
    /// # Errors
    /// A sample that the model cannot take.
    pub fn gradients(
        &mut self,
        state: &State,
        micro_batches: &[(usize, Vec<Sample>)],
    ) -> Result<MicroBatchGradients, EngineError> {
        self.apply_layer_norms(state)?;
        let layout = state.layout();
        let mut gradients = Gradients { rows: Vec::with_capacity(micro_batches.len()), layer_norms: Vec::new() };
        // Each entry: place in `gradients`, sample.
        let mut waiting: Vec<(usize, Prepared)> = Vec::new();
        for (micro_batch, samples) in micro_batches {
            let place = gradients.rows.len();
            gradients.rows.push((*micro_batch, vec![0.0f32; layout.row_len()]));
            gradients.layer_norms.push(vec![0.0f32; layout.layer_norms().len()]);
            for sample in samples {
                waiting.push((place, self.prepare(sample)?));
            }
        }
        self.run_all(state, waiting, &mut gradients)?;
        for ((_, row), norms) in gradients.rows.iter_mut().zip(gradients.layer_norms) {
            row[layout.layer_norms()].copy_from_slice(&norms);
        }
        Ok(gradients.rows)
    }

    /// Passes all of `waiting` through the model, in order, in passes of bounded size.
    fn run_all(
        &mut self,
        state: &State,
        waiting: Vec<(usize, Prepared)>,
        gradients: &mut Gradients,
    ) -> Result<(), EngineError> {
        let mut rest = waiting;
        while !rest.is_empty() {
            let count = self.fits(rest.iter().map(|(_, prepared)| prepared));
            let tail = rest.split_off(count);
            self.accumulate(state, &rest, gradients)?;
            rest = tail;
        }
        Ok(())
    }

    /// One pass, forward and backward, added to the rows of its samples' micro-batches.
    fn accumulate(
        &mut self,
        state: &State,
        samples: &[(usize, Prepared)],
        gradients: &mut Gradients,
    ) -> Result<(), EngineError> {
        let layout = state.layout();
        let d = layout.hidden();
        let keep = Self::needs_backward(&self.recipe);
        let hidden = self.pass(state, samples.iter().map(|(_, prepared)| prepared), keep)?;
        let inverse_batch = 1.0 / self.recipe.batch_size as f32;
        let mut slopes = Vec::with_capacity(samples.len());
        for ((place, prepared), hidden) in samples.iter().zip(hidden.chunks_exact(layout.read_width())) {
            let error = state.read_out(hidden) - prepared.target;
            let (loss, slope) = self.loss.value_and_slope(error, prepared.weight, inverse_batch);
            slopes.push(slope);
            let row = &mut gradients.rows[*place].1;
            row[layout.len()] += loss;
            if self.recipe.train_output_projection {
                for (g, h) in row[layout.output_weight()].iter_mut().zip(hidden) {
                    *g += slope * h;
                }
                row[layout.output_bias()] += slope;
            }
        }
        if !keep {
            return Ok(());
        }
        let weight = &state.parameters()[layout.output_weight()];
        let mut cotangent = Vec::with_capacity(samples.len() * weight.len());
        for slope in &slopes {
            cotangent.extend(weight.iter().map(|w| slope * w));
        }
        let places: Vec<usize> = samples.iter().map(|(place, _)| *place).collect();
        let norms = NormGradients { group_of_sequence: &places, sums: &mut gradients.layer_norms };
        let grads = self.lm.backward(&cotangent, self.recipe.train_layer_norms.then_some(norms))?;
        if !self.recipe.train_input_projection {
            return Ok(());
        }
        let (got, want) = (grads.len() / d, samples.iter().map(|(_, prepared)| prepared.inputs.len()).sum());
        let mut grads = grads.chunks_exact(d);
        for (place, prepared) in samples {
            let row = &mut gradients.rows[*place].1;
            for input in &prepared.inputs {
                let Some(grad) = grads.next() else {
                    return Err(EngineError::MissingGradients { got, want });
                };
                let weights = row[layout.input_weight()].chunks_exact_mut(layout.input_width());
                for (of_unit, e) in weights.zip(grad) {
                    for (g, x) in of_unit.iter_mut().zip(input) {
                        *g += x * e;
                    }
                }
                for (g, e) in row[layout.input_bias()].iter_mut().zip(grad) {
                    *g += e;
                }
            }
        }
        Ok(())
    }
}
