//! What changes a state: an update, a gathered chunk, a solution, an evaluation. Each is a pure function of the state, the
//! recipe and what all ranks agree on.

use numalign_config::{Recipe, Solver};
use numalign_data::Schedule;

use super::{State, StateError};
use crate::adam;
use crate::evaluations::Evaluation;
use crate::schedule::learning_rate;
use crate::solver::least_squares::Fit;
use crate::solver::progress::Round;
use crate::trained::Trained;

impl State {
    /// One Adam update with the reduced row of this step, `[row_len]` (the last float is the loss and is not used).
    ///
    /// # Errors
    /// A row of another length, or with a float that is not finite.
    pub fn update(&mut self, reduced: &[f32], recipe: &Recipe) -> Result<(), StateError> {
        if reduced.len() != self.layout.row_len() {
            return Err(StateError::WrongGradient { got: reduced.len(), want: self.layout.row_len() });
        }
        for (index, value) in reduced.iter().enumerate() {
            if !value.is_finite() {
                return Err(StateError::NotFinite { step: self.step, index, value: *value });
            }
        }
        let rate = learning_rate(recipe, self.step);
        self.beta_1_power *= adam::BETA_1;
        self.beta_2_power *= adam::BETA_2;
        for range in Trained::by_adam(recipe).ranges(self.layout) {
            adam::update(
                &mut self.parameters[range.clone()],
                &mut self.exp_avg[range.clone()],
                &mut self.exp_avg_sq[range.clone()],
                &reduced[range],
                rate,
                self.beta_1_power,
                self.beta_2_power,
            );
        }
        self.step += 1;
        if let Some(solve) = &mut self.solve {
            solve.round = Schedule::of(recipe).round_after(self.step).then(Round::start);
        }
        Ok(())
    }

    /// The state after one more chunk of the round in progress, whose features have this digest.
    ///
    /// # Errors
    /// No round is in progress.
    pub fn gathered(&self, recipe: &Recipe, features_digest: [u8; 32]) -> Result<Self, StateError> {
        let mut next = self.clone();
        let Some(round) = next.solve.as_mut().and_then(|solve| solve.round.as_mut()) else {
            return Err(StateError::NoRound { step: self.step });
        };
        *round = round.with_chunk(features_digest);
        next.step += u64::from(recipe.solver == Solver::Exact);
        Ok(next)
    }

    /// The state after the round in progress was solved.
    pub fn solved(&self, fit: &Fit) -> Self {
        let mut next = self.clone();
        for (place, value) in next.layout.output_weight().zip(&fit.weight) {
            next.parameters[place] = *value;
        }
        let bias = next.layout.output_bias();
        next.parameters[bias] = fit.bias;
        next.solve = Some(next.solve.unwrap_or_default().after(fit));
        next
    }

    /// The state after an evaluation on `samples` held-out samples, from the reduced row of all its micro-batches
    /// ([`crate::ErrorSums`]).
    ///
    /// # Errors
    /// The errors' sums are not finite.
    pub fn evaluated(&self, recipe: &Recipe, reduced: &[f32], samples: u64) -> Result<Self, StateError> {
        let Some(evaluation) = Evaluation::of(reduced, self.step, samples, recipe.range()) else {
            return Err(StateError::NotMeasurable { step: self.step });
        };
        let mut next = self.clone();
        next.evaluations.add(evaluation, &self.parameters);
        Ok(next)
    }

    /// The state as it was when the round in progress began: a round changes no projector until it is solved. The
    /// state itself between rounds.
    pub fn rewound(&self, recipe: &Recipe) -> Self {
        let mut earlier = self.clone();
        earlier.step = Schedule::of(recipe).round_start(self.position()).step;
        if let Some(round) = earlier.solve.as_mut().and_then(|solve| solve.round.as_mut()) {
            *round = Round::start();
        }
        earlier
    }
}
