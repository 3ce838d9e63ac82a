//! Gradients against finite differences of the loss, for every loss, pooling, encoder and trained part; and that a
//! micro-batch's gradient depends on its own micro-batch alone.

use numalign_config::{Config, DeviceChoice, Recipe};
use numalign_data::{Domain, Sample, SampleStream};
use numalign_engine::Engine;
use numalign_projector::State;

fn recipe(flags: &[(&str, &str)]) -> Recipe {
    let mut all = vec![("batch_size", "6"), ("micro_batch_size", "3"), ("mixed_max_numbers", "3")];
    all.extend_from_slice(flags);
    Config::with(&all).unwrap().recipe
}

fn engine(recipe: &Recipe) -> Engine {
    let backward = Engine::needs_backward(recipe);
    Engine::new(numalign_model::load("demo", DeviceChoice::Cpu, backward).unwrap().lm, recipe.clone())
}

fn micro_batches(recipe: &Recipe) -> Vec<(usize, Vec<Sample>)> {
    let stream = SampleStream::generated(recipe, Domain::Train).unwrap();
    let part = |from: u64| (from..from + 3).map(|index| stream.sample(index)).collect();
    vec![(0, part(0)), (1, part(3))]
}

/// The sum of both rows: gradient, then loss.
fn sum_of_rows(engine: &mut Engine, state: &State, work: &[(usize, Vec<Sample>)]) -> Vec<f64> {
    let mut sum = vec![0.0; state.layout().row_len()];
    for (_, row) in engine.gradients(state, work).unwrap() {
        for (s, value) in sum.iter_mut().zip(row) {
            *s += f64::from(value);
        }
    }
    sum
}

/// A fixed direction with entries of both signs.
fn direction(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 + 11) % 19) as f32 / 9.0 - 1.0).collect()
}

fn assert_gradient_is_the_slope(flags: &[(&str, &str)]) {
    let recipe = recipe(flags);
    let mut engine = engine(&recipe);
    let state = engine.initial_state(3).unwrap();
    let work = micro_batches(&recipe);
    let layout = state.layout();
    let gradient = sum_of_rows(&mut engine, &state, &work);
    let mut stretches = Vec::new();
    if recipe.train_input_projection {
        stretches.push(layout.input());
    }
    if recipe.train_output_projection {
        stretches.push(layout.output());
    }
    if recipe.train_layer_norms {
        stretches.push(layout.layer_norms());
    }
    for stretch in stretches {
        let step = 2e-3;
        let towards = direction(stretch.len());
        let mut loss_at = |sign: f32| {
            let mut parameters = state.parameters().to_vec();
            for (parameter, way) in parameters[stretch.clone()].iter_mut().zip(&towards) {
                *parameter += sign * step * way;
            }
            let moved = State::with_parameters(layout, parameters);
            sum_of_rows(&mut engine, &moved, &work)[layout.len()]
        };
        let numeric = (loss_at(1.0) - loss_at(-1.0)) / (2.0 * f64::from(step));
        let analytic: f64 = gradient[stretch.clone()].iter().zip(&towards).map(|(g, w)| g * f64::from(*w)).sum();
        let scale = numeric.abs().max(0.02 * gradient[layout.len()]);
        assert!((numeric - analytic).abs() < 0.02 * scale, "{flags:?} {stretch:?}: {numeric} and {analytic}");
        assert!(analytic != 0.0, "{flags:?} {stretch:?}");
    }
}

#[test]
fn rows_are_the_gradient_of_the_loss() {
    let mixed = ("stage", "mixed");
    let norms = ("train_layer_norms", "true");
    for flags in [
        &[][..],
        &[("value_encoding", "fourier"), ("fourier_periods", "3")],
        &[("value_encoding", "signlog"), ("min_val", "1e-6"), ("max_val", "1e9")],
        &[("loss", "huber"), ("huber_delta", "0.3")],
        &[("loss", "relative")],
        &[norms],
        &[mixed, norms],
        &[mixed, norms, ("pooling", "mean"), ("loss", "huber")],
        &[mixed, norms, ("pooling", "numbers"), ("value_encoding", "fourier")],
        &[mixed, ("pooling", "mean"), ("layer", "2")],
        &[("stage", "text"), norms],
        &[("stage", "text"), ("pooling", "mean"), ("layer", "1")],
    ] {
        assert_gradient_is_the_slope(flags);
    }
}

/// Every rank that computes a micro-batch, beside any others, gets the same bits: the promise, for every part of a row.
#[test]
fn a_row_depends_on_its_micro_batch_alone() {
    let norms = ("train_layer_norms", "true");
    for stage in ["nn", "text", "mixed"] {
        for flags in [&[norms][..], &[norms, ("pooling", "mean")], &[("layer", "2"), ("value_encoding", "fourier")]] {
            let mut all = vec![("stage", stage)];
            all.extend_from_slice(flags);
            let recipe = recipe(&all);
            let mut engine = engine(&recipe);
            let state = engine.initial_state(3).unwrap();
            let work = micro_batches(&recipe);
            let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            let together = engine.gradients(&state, &work).unwrap();
            for (place, part) in work.iter().enumerate() {
                let alone = engine.gradients(&state, std::slice::from_ref(part)).unwrap();
                assert_eq!(bits(&alone[0].1), bits(&together[place].1), "{all:?}, micro-batch {place}");
            }
        }
    }
}

#[test]
fn a_block_that_does_not_exist_is_refused() {
    let recipe = recipe(&[("layer", "9")]);
    let mut engine = engine(&recipe);
    let state = engine.initial_state(0).unwrap();
    let error = engine.gradients(&state, &micro_batches(&recipe)).unwrap_err().to_string();
    assert!(error.contains('9') && error.contains('4'), "{error}");
}
