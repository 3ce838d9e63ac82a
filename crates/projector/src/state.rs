//! The state that training changes: projectors, Adam moments, step. Every rank holds a copy; equal bytes, equal digest.

use std::fmt;
use std::ops::Range;

use numalign_config::{LoadedProjections, Recipe, Solver};
use numalign_data::{Position, Schedule};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::adam;
use crate::evaluations::{Evaluation, Evaluations};
use crate::layout::Layout;
use crate::least_squares::Fit;
use crate::schedule::learning_rate;
use crate::solve::{Round, SolveState};

/// Which parts of the state a stage trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trained {
    pub input: bool,
    pub output: bool,
    pub layer_norms: bool,
}

impl Trained {
    /// As the recipe says.
    pub fn of(recipe: &Recipe) -> Self {
        Self {
            input: recipe.train_input_projection,
            output: recipe.train_output_projection,
            layer_norms: recipe.train_layer_norms,
        }
    }

    /// What gradient steps change; the solver finds the rest.
    pub fn by_adam(recipe: &Recipe) -> Self {
        match recipe.solver {
            Solver::Adam | Solver::Alternate => Self::of(recipe),
            Solver::Exact => Self { input: false, output: false, layer_norms: false },
        }
    }

    /// The stretches of the flat vector that train, ascending.
    pub fn ranges(&self, layout: Layout) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        if self.input {
            ranges.push(layout.input());
        }
        if self.output {
            ranges.push(layout.output());
        }
        if self.layer_norms {
            ranges.push(layout.layer_norms());
        }
        ranges
    }

    /// Whether the tensor at `range` trains.
    pub fn covers(&self, layout: Layout, range: &Range<usize>) -> bool {
        self.ranges(layout).iter().any(|trained| trained.contains(&range.start))
    }
}

/// BLAKE3 of a state's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StateDigest(pub [u8; 32]);

impl StateDigest {
    /// Digest in a message; none when it is not 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// 64 hexadecimal digits.
    pub fn to_hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }
}

impl fmt::Display for StateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex()[..16])
    }
}

impl fmt::Debug for StateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why bytes are not a state, or a gradient does not fit one.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
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

const HEADER: usize = 8 + 8 + 8 + 8;

/// Bound of fresh input projections: embeddings of the size of a GPT-2's token embeddings (deviation 0.14). PyTorch's
/// ±1 for one input drowns the positions and learns slower: stage nn with default settings ends at 0.6–0.7 % of the
/// range instead of 0.2–0.3, mixed on the demo model at 2.3 instead of 1.5.
pub const INPUT_BOUND: f64 = 0.2;

impl State {
    /// Fresh projectors: uniform in ±1/√d on the output side, as PyTorch's `Linear`; in ±[`INPUT_BOUND`] on the input side.
    /// Layer norms are 1: [`State::set_layer_norms`] gives them the frozen model's values.
    pub fn initial(layout: impl Into<Layout>, seed: u64) -> Self {
        let layout = layout.into();
        let mut hasher = blake3::Hasher::new_derive_key("numalign 2026-11 projector initialisation");
        hasher.update(&seed.to_le_bytes());
        let mut random = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
        let output_bound = 1.0 / (layout.hidden() as f64).sqrt();
        let mut parameters = Vec::with_capacity(layout.len());
        for i in 0..layout.output().end {
            let bound = if layout.input().contains(&i) { INPUT_BOUND } else { output_bound };
            let unit = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            parameters.push(((2.0 * unit - 1.0) * bound) as f32);
        }
        parameters.resize(layout.len(), 1.0);
        Self::with_parameters(layout, parameters)
    }

    /// Fresh projectors, but for those that `loaded` has and `which` names. Its layer norms, where it has some, come along:
    /// either projector was trained with them.
    pub fn starting_from(loaded: &State, which: LoadedProjections, seed: u64) -> Self {
        let layout = loaded.layout;
        let mut parameters = Self::initial(layout, seed).parameters;
        let taken = match which {
            LoadedProjections::Both => layout.input().start..layout.output().end,
            LoadedProjections::Input => layout.input(),
            LoadedProjections::Output => layout.output(),
        };
        for part in [taken, layout.layer_norms()] {
            parameters[part.clone()].copy_from_slice(&loaded.parameters[part]);
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
        let (mut beta_1_power, mut beta_2_power) = (1.0f64, 1.0f64);
        for _ in 0..step {
            beta_1_power *= adam::BETA_1;
            beta_2_power *= adam::BETA_2;
            if beta_2_power == 0.0 {
                break;
            }
        }
        let evaluations = Evaluations::default();
        Self { layout, step, parameters, exp_avg, exp_avg_sq, beta_1_power, beta_2_power, solve: None, evaluations }
    }

    /// A restored state with its evaluations.
    pub fn with_evaluations(mut self, evaluations: Evaluations) -> Self {
        self.evaluations = evaluations;
        self
    }

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

    /// The embedding `W·x + b`, `[d]`, of an encoded value `x`, `[w]`; products are added in ascending order.
    pub fn embed(&self, x: &[f32]) -> Vec<f32> {
        let weight = &self.parameters[self.layout.input_weight()];
        let bias = &self.parameters[self.layout.input_bias()];
        let mut embedding = Vec::with_capacity(bias.len());
        for (row, b) in weight.chunks_exact(self.layout.input_width()).zip(bias) {
            let mut products = row.iter().zip(x).map(|(w, x)| w * x);
            let mut sum = products.next().unwrap_or(0.0);
            for product in products {
                sum += product;
            }
            embedding.push(sum + b);
        }
        embedding
    }

    /// The encoded prediction `w·h + b` of a hidden state `[d]`, added up in ascending order.
    pub fn read_out(&self, hidden: &[f32]) -> f32 {
        let weight = &self.parameters[self.layout.output_weight()];
        read_out(weight, self.parameters[self.layout.output_bias()], hidden)
    }

    /// One Adam update with the reduced row of this step, `[row_len]` (the last float is the loss and is not used).
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

    /// Little-endian bytes: step, layout word, both powers, parameters, first and second moments; with a solver, where
    /// it stands; evaluations, where some were made.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + 12 * self.layout.len());
        bytes.extend_from_slice(&self.step.to_le_bytes());
        bytes.extend_from_slice(&self.layout.to_word().to_le_bytes());
        bytes.extend_from_slice(&self.beta_1_power.to_le_bytes());
        bytes.extend_from_slice(&self.beta_2_power.to_le_bytes());
        for values in [&self.parameters, &self.exp_avg, &self.exp_avg_sq] {
            for value in values {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
        }
        if let Some(solve) = &self.solve {
            bytes.extend(solve.to_bytes());
        }
        bytes.extend(self.evaluations.to_bytes());
        bytes
    }

    /// Inverse of [`State::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let word = |i: usize| -> Option<[u8; 8]> { bytes.get(8 * i..8 * i + 8)?.try_into().ok() };
        let (Some(step), Some(shape), Some(first), Some(second)) = (word(0), word(1), word(2), word(3)) else {
            return Err(StateError::TooShort { got: bytes.len() });
        };
        let layout = Layout::from_word(u64::from_le_bytes(shape));
        // A layout word holds less than 2^41 numbers: nothing here overflows.
        let want = HEADER + 12 * layout.len();
        let (solve, evaluations) = match bytes.get(want..).and_then(|rest| after_moments(rest, layout)) {
            Some(rest) if !layout.is_empty() => rest,
            _ => return Err(StateError::WrongSize { got: bytes.len(), want, hidden: layout.hidden() }),
        };
        let mut floats = bytes[HEADER..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let mut take = || floats.by_ref().take(layout.len()).collect::<Vec<f32>>();
        let (parameters, exp_avg, exp_avg_sq) = (take(), take(), take());
        Ok(Self {
            layout,
            step: u64::from_le_bytes(step),
            parameters,
            exp_avg,
            exp_avg_sq,
            beta_1_power: f64::from_le_bytes(first),
            beta_2_power: f64::from_le_bytes(second),
            solve,
            evaluations,
        })
    }

    /// BLAKE3 of [`State::to_bytes`].
    pub fn digest(&self) -> StateDigest {
        StateDigest(*blake3::hash(&self.to_bytes()).as_bytes())
    }
}

/// What follows the moments in a state's bytes: nothing, where the solver stands, evaluations, or both in this order.
/// Neither can be taken for the other: the first word of the solver's part is 0 or 1.
fn after_moments(bytes: &[u8], layout: Layout) -> Option<(Option<SolveState>, Evaluations)> {
    if let Some(evaluations) = Evaluations::from_bytes(bytes, layout) {
        return Some((None, evaluations));
    }
    let solve = SolveState::from_bytes(bytes)?;
    let evaluations = Evaluations::from_bytes(bytes.get(SolveState::BYTES..)?, layout)?;
    Some((Some(solve), evaluations))
}

/// `w·h + b`, added up in ascending order in `f32`: the read-out of training, solving and prediction.
pub fn read_out(weight: &[f32], bias: f32, hidden: &[f32]) -> f32 {
    let mut sum = 0.0f32;
    for (w, h) in weight.iter().zip(hidden) {
        sum += w * h;
    }
    sum + bias
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_and_digest() {
        let mut state = State::initial(5, 7);
        state.step = 3;
        let back = State::from_bytes(&state.to_bytes()).unwrap();
        assert_eq!(back, state);
        assert_eq!(back.digest(), state.digest());
        assert!(matches!(State::from_bytes(&state.to_bytes()[..40]), Err(StateError::WrongSize { .. })));
        assert!(matches!(State::from_bytes(&[1, 2]), Err(StateError::TooShort { .. })));
        let mut absurd = state.to_bytes();
        absurd[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(State::from_bytes(&absurd).is_err());
    }

    #[test]
    fn evaluations_travel_with_and_without_a_solver() {
        let flags = [("solver", "alternate"), ("solve_every", "1")];
        let recipe = numalign_config::Config::with(&flags).unwrap().recipe;
        for state in [State::initial(5, 7), State::initial(5, 7).prepared(&recipe)] {
            let bare = state.digest();
            let mut sums = vec![0.0; state.layout().row_len()];
            (sums[0], sums[1]) = (0.5, 0.25);
            let evaluated = state.evaluated(&recipe, &sums, 10).unwrap();
            assert!(evaluated.position().evaluated && !state.position().evaluated);
            assert_ne!(evaluated.digest(), bare);
            let back = State::from_bytes(&evaluated.to_bytes()).unwrap();
            assert_eq!(back, evaluated);
            assert_eq!(back.at_best().unwrap().parameters(), state.parameters());
            let bytes = evaluated.to_bytes();
            assert!(State::from_bytes(&bytes[..bytes.len() - 4]).is_err());
            sums[1] = f32::NAN;
            assert!(matches!(state.evaluated(&recipe, &sums, 10), Err(StateError::NotMeasurable { step: 0 })));
        }
        assert_eq!(State::initial(5, 7).at_best(), None);
    }

    #[test]
    fn wide_inputs_and_layer_norms_travel_too() {
        let mut state = State::initial(Layout::new(4).with_input_width(3), 7);
        state.set_layer_norms(&[1.5, 0.25]);
        assert_eq!(state.layer_norms(), [1.5, 0.25]);
        assert_eq!(state.parameters().len(), 12 + 4 + 4 + 1 + 2);
        let back = State::from_bytes(&state.to_bytes()).unwrap();
        assert_eq!(back, state);
        assert_eq!(back.layout().input_width(), 3);
    }

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
