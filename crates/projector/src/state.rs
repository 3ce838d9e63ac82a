//! The state that training changes: projectors, Adam moments, step. Every rank holds a copy; equal bytes, equal digest.
//! [`transitions`] changes it, [`codec`] turns it into bytes.

use std::ops::Range;

use numalign_config::{LoadedProjections, Recipe, Solver};
use numalign_data::{Position, Schedule};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::evaluations::Evaluations;
use crate::layout::Layout;
use crate::solver::progress::{Round, SolveState};
use crate::{adam, linear};

mod codec;
mod transitions;

pub use codec::StateDigest;

/// Why bytes are not a state, or a gradient does not fit one.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum StateError {
    #[error("a state of {got} bytes, where its layout (hidden size {hidden}) needs {want}")]
    WrongSize { got: usize, want: usize, hidden: usize },
    #[error("a state of {got} bytes is too short")]
    TooShort { got: usize },
    #[error("a gradient of {got} floats for a state of {want}")]
    WrongGradient { got: usize, want: usize },
    #[error("the gradient of step {step} is not finite ({value} at {index})")]
    NotFinite { step: u64, index: usize, value: f32 },
    #[error("features came after step {step}, where no round of the solver is in progress")]
    NoRound { step: u64 },
    #[error("the evaluation after step {step} found errors that are not finite")]
    NotMeasurable { step: u64 },
}

/// Projectors and optimizer after `step` updates, and what evaluations found on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    layout: Layout,
    step: u64,
    parameters: Vec<f32>,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
    /// `β₁ˢᵗᵉᵖ` and `β₂ˢᵗᵉᵖ` as accumulated products: no platform's `pow` decides a bit of them.
    beta_1_power: f64,
    beta_2_power: f64,
    /// Where a run with a solver stands; none with `adam`.
    solve: Option<SolveState>,
    evaluations: Evaluations,
}

/// Bound of fresh input projections: embeddings of the size of a GPT-2's token embeddings (deviation 0.14). PyTorch's
/// ±1 for one input drowns the positions and learns slower: stage nn with default settings ends at 0.6–0.7 % of the
/// range instead of 0.2–0.3, mixed on the demo model at 2.3 instead of 1.5.
pub const INPUT_BOUND: f64 = 0.2;

impl State {
    /// Fresh projectors: uniform in ±1/√(k·d) on the output side, as PyTorch's `Linear`; in ±[`INPUT_BOUND`] on the input side.
    /// Layer norms are 1: [`State::set_layer_norms`] gives them the frozen model's values.
    pub fn initial(layout: impl Into<Layout>, seed: u64) -> Self {
        let layout = layout.into();
        let mut hasher = blake3::Hasher::new_derive_key("numalign 2026-11 projector initialisation");
        hasher.update(&seed.to_le_bytes());
        let mut random = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
        let output_bound = 1.0 / (layout.read_width() as f64).sqrt();
        let mut parameters = Vec::with_capacity(layout.len());
        for i in 0..layout.output().end {
            let bound = if layout.input().contains(&i) { INPUT_BOUND } else { output_bound };
            let unit = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            parameters.push(((2.0 * unit - 1.0) * bound) as f32);
        }
        parameters.resize(layout.len(), 1.0);
        Self::with_parameters(layout, parameters)
    }

    /// Fresh projectors that read `places` places, but for those that `loaded` has and `which` names; an output projector
    /// that is named reads as many. Its layer norms, where it has some, come along: either projector was trained with
    /// them.
    pub fn starting_from(loaded: &State, which: LoadedProjections, places: usize, seed: u64) -> Self {
        let layout = loaded.layout.with_places(places);
        let mut parameters = Self::initial(layout, seed).parameters;
        let parts: &[fn(&Layout) -> Range<usize>] = match which {
            LoadedProjections::Both => &[Layout::input, Layout::output, Layout::layer_norms],
            LoadedProjections::Input => &[Layout::input, Layout::layer_norms],
            LoadedProjections::Output => &[Layout::output, Layout::layer_norms],
        };
        for part in parts {
            parameters[part(&layout)].copy_from_slice(&loaded.parameters[part(&loaded.layout)]);
        }
        Self::with_parameters(layout, parameters)
    }

    /// Given projectors with a fresh optimizer; `parameters` has the layout's length.
    pub fn with_parameters(layout: Layout, parameters: Vec<f32>) -> Self {
        let zeros = vec![0.0; layout.len()];
        Self {
            layout,
            step: 0,
            parameters,
            exp_avg: zeros.clone(),
            exp_avg_sq: zeros,
            beta_1_power: 1.0,
            beta_2_power: 1.0,
            solve: None,
            evaluations: Evaluations::default(),
        }
    }

    /// This state as the start of a run of `recipe`.
    pub fn prepared(mut self, recipe: &Recipe) -> Self {
        self.solve = match recipe.solver {
            Solver::Adam => None,
            Solver::Exact | Solver::Alternate => {
                Some(SolveState { round: Schedule::of(recipe).start().gathered.map(|_| Round::start()), solved: None })
            }
        };
        self
    }

    /// A restored state with where its solver stood. Steps of `exact` are no updates, so its powers stay 1.
    pub fn with_solve(mut self, recipe: &Recipe, solve: Option<SolveState>) -> Self {
        if recipe.solver == Solver::Exact {
            (self.beta_1_power, self.beta_2_power) = (1.0, 1.0);
        }
        self.solve = solve;
        self
    }

    /// A state read back from a checkpoint; the vectors have the layout's length.
    pub fn restored(layout: Layout, step: u64, parameters: Vec<f32>, exp_avg: Vec<f32>, exp_avg_sq: Vec<f32>) -> Self {
        let (beta_1_power, beta_2_power) = powers(step);
        let evaluations = Evaluations::default();
        Self { layout, step, parameters, exp_avg, exp_avg_sq, beta_1_power, beta_2_power, solve: None, evaluations }
    }

    /// Whether both powers are those that the updates of `recipe` make up to this step.
    pub fn has_powers_of_its_step(&self, recipe: &Recipe) -> bool {
        let updates = if recipe.solver == Solver::Exact { 0 } else { self.step };
        let (beta_1_power, beta_2_power) = powers(updates);
        self.beta_1_power.to_bits() == beta_1_power.to_bits() && self.beta_2_power.to_bits() == beta_2_power.to_bits()
    }

    /// A restored state with its evaluations.
    pub fn with_evaluations(mut self, evaluations: Evaluations) -> Self {
        self.evaluations = evaluations;
        self
    }

    /// Where each number lies.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Replaces the layer norms, whatever there was, by `values` with fresh moments.
    pub fn set_layer_norms(&mut self, values: &[f32]) {
        let start = self.layout.layer_norms().start;
        self.layout = self.layout.with_layer_norms(values.len());
        self.parameters.truncate(start);
        self.parameters.extend_from_slice(values);
        for moments in [&mut self.exp_avg, &mut self.exp_avg_sq] {
            moments.truncate(start);
            moments.resize(self.layout.len(), 0.0);
        }
    }

    /// The layer norms in the model's order; empty where they do not train.
    pub fn layer_norms(&self) -> &[f32] {
        &self.parameters[self.layout.layer_norms()]
    }

    /// Updates made so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Steps made, chunks gathered in the round in progress, and whether an evaluation was made here.
    pub fn position(&self) -> Position {
        let round = self.solve.as_ref().and_then(|solve| solve.round);
        let evaluated = self.evaluations.list().last().is_some_and(|latest| latest.step == self.step);
        Position { step: self.step, gathered: round.map(|round| round.chunks), evaluated }
    }

    /// Evaluations made so far.
    pub fn evaluations(&self) -> &Evaluations {
        &self.evaluations
    }

    /// The projectors (and layer norms) of the best evaluation, with a fresh optimizer; none before the first evaluation.
    pub fn at_best(&self) -> Option<Self> {
        let best = self.evaluations.best()?;
        let mut state = Self::with_parameters(self.layout, self.evaluations.best_parameters().to_vec());
        state.step = best.step;
        Some(state)
    }

    /// Where the solver stands; none with `adam`.
    pub fn solve(&self) -> Option<&SolveState> {
        self.solve.as_ref()
    }

    /// All projector numbers, in the layout's order.
    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// First moments.
    pub fn exp_avg(&self) -> &[f32] {
        &self.exp_avg
    }

    /// Second moments.
    pub fn exp_avg_sq(&self) -> &[f32] {
        &self.exp_avg_sq
    }

    /// The embedding `W·x + b`, `[d]`, of an encoded value `x [w]`.
    pub fn embed(&self, x: &[f32]) -> Vec<f32> {
        let (weight, bias) = (self.layout.input_weight(), self.layout.input_bias());
        linear::embed(&self.parameters[weight], &self.parameters[bias], x)
    }

    /// The encoded prediction `w·h + b` of what is read of a sample, `[k·d]`.
    pub fn read_out(&self, hidden: &[f32]) -> f32 {
        let weight = &self.parameters[self.layout.output_weight()];
        linear::read_out(weight, self.parameters[self.layout.output_bias()], hidden)
    }
}

/// `β₁ˢᵗᵉᵖ` and `β₂ˢᵗᵉᵖ` after so many updates.
fn powers(updates: u64) -> (f64, f64) {
    let (mut beta_1_power, mut beta_2_power) = (1.0f64, 1.0f64);
    for _ in 0..updates {
        let next = (beta_1_power * adam::BETA_1, beta_2_power * adam::BETA_2);
        // The smallest numbers of all do not change any more.
        if next == (beta_1_power, beta_2_power) {
            break;
        }
        (beta_1_power, beta_2_power) = next;
    }
    (beta_1_power, beta_2_power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_embedding_is_the_matrix_product() {
        let layout = Layout::new(2).with_input_width(3);
        let mut parameters = vec![1.0, 2.0, 3.0, -1.0, 0.5, 0.0, 10.0, 20.0];
        parameters.resize(layout.len(), 0.0);
        let state = State::with_parameters(layout, parameters);
        assert_eq!(state.embed(&[2.0, 0.5, -1.0]), [10.0, 18.25]);
    }

    #[test]
    fn initial_values_are_within_their_bounds_and_follow_the_seed() {
        let state = State::initial(64, 1);
        let bound = 1.0 / 8.0;
        assert!(state.parameters[..128].iter().all(|p| p.abs() <= 0.2));
        assert!(state.parameters[..128].iter().any(|p| p.abs() > 0.15));
        assert!(state.parameters[128..].iter().all(|p| p.abs() <= bound));
        assert_ne!(state, State::initial(64, 2));
        assert_eq!(state, State::initial(64, 1));
    }
}
