//! Whether a state that a returning worker brings along can be a state of this run. Pure.

use numalign_config::{Recipe, Solver};
use numalign_data::Schedule;
use numalign_projector::{Layout, State};

use super::admission::MAX_HIDDEN;

/// Checks a state against the recipe: its layout, that every number is finite, and that it says of its own position what
/// only such a state can say.
///
/// # Errors
/// Why it cannot be a state of this run.
pub fn check_rejoin_state(state: &State, recipe: &Recipe) -> Result<(), String> {
    let layout = state.layout();
    if !(1..=MAX_HIDDEN).contains(&layout.hidden()) {
        return Err(format!("a hidden size of {} is not from 1 to {MAX_HIDDEN}", layout.hidden()));
    }
    let norms = layout.layer_norms().len();
    let wanted = Layout::of(recipe, layout.hidden(), norms);
    if layout.input_width() != wanted.input_width() {
        let (its, ours) = (layout.input_width(), wanted.input_width());
        return Err(format!("its input projector has {its} columns, this run's {ours}"));
    }
    if layout.places() != wanted.places() {
        let (its, ours) = (layout.places(), wanted.places());
        return Err(format!("its output projector reads {its} places, this run's {ours}"));
    }
    if recipe.train_layer_norms != (norms > 0) {
        let wanted = recipe.train_layer_norms;
        return Err(format!("it has {norms} numbers of layer norms (train_layer_norms is {wanted})"));
    }
    let total = recipe.total_steps();
    if state.step() > total {
        return Err(format!("it is after {} of {total} steps", state.step()));
    }
    check_round(state, recipe)?;
    for (what, values) in
        [("parameter", state.parameters()), ("first moment", state.exp_avg()), ("second moment", state.exp_avg_sq())]
    {
        if let Some(place) = values.iter().position(|value| !value.is_finite()) {
            return Err(format!("its {what} {place} is {}", values[place]));
        }
    }
    if let Some(place) = state.exp_avg_sq().iter().position(|value| *value < 0.0) {
        return Err(format!("its second moment {place} is {}", state.exp_avg_sq()[place]));
    }
    if !state.has_powers_of_its_step(recipe) {
        return Err(format!("its powers of β are not those of step {}", state.step()));
    }
    let mut before = None;
    for evaluation in state.evaluations().list() {
        let in_order = before.is_none_or(|before| before < evaluation.step) && evaluation.step <= state.step();
        if !in_order || !evaluation.mae.is_finite() || !evaluation.mse.is_finite() {
            return Err(format!("its evaluation after step {} cannot be", evaluation.step));
        }
        before = Some(evaluation.step);
    }
    Ok(())
}

/// A round of the solver is in progress exactly where the schedule has one.
fn check_round(state: &State, recipe: &Recipe) -> Result<(), String> {
    let schedule = Schedule::of(recipe);
    if state.solve().is_some() != (recipe.solver != Solver::Adam) {
        return Err(format!("it is not one of solver {}", recipe.solver));
    }
    let position = state.position();
    let solved = state.solve().and_then(|solve| solve.solved).is_some();
    let possible = match (recipe.solver, position.gathered) {
        (Solver::Adam, gathered) => gathered.is_none(),
        (Solver::Exact, Some(gathered)) => gathered == position.step,
        (Solver::Exact, None) => position.step == recipe.total_steps() && solved,
        (Solver::Alternate, Some(gathered)) => gathered <= schedule.chunks() && schedule.round_after(position.step),
        (Solver::Alternate, None) => true,
    };
    match possible {
        true => Ok(()),
        false => Err(format!("step {} has no round of the solver as it claims", position.step)),
    }
}

#[cfg(test)]
mod tests {
    use numalign_config::Config;

    use super::*;

    fn recipe(flags: &[(&str, &str)]) -> Recipe {
        Config::with(&[&[("num_epochs", "1"), ("num_batches", "6")], flags].concat()).unwrap().recipe
    }

    /// After `steps` updates.
    fn trained(recipe: &Recipe, steps: u64) -> State {
        let mut state = State::initial(Layout::of(recipe, 2, 0), 1).prepared(recipe);
        for step in 0..steps {
            let row: Vec<f32> = (0..state.layout().row_len()).map(|i| (i as f32 - 3.0) * (step as f32 + 0.5)).collect();
            state.update(&row, recipe).unwrap();
        }
        state
    }

    /// The state with some of its bytes replaced.
    fn changed(state: &State, at: usize, bytes: &[u8]) -> State {
        let mut all = state.to_bytes();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        State::from_bytes(&all).unwrap()
    }

    fn refusal(state: &State, recipe: &Recipe) -> String {
        check_rejoin_state(state, recipe).expect_err("it is refused")
    }

    #[test]
    fn every_state_of_the_run_is_accepted() {
        let adam = recipe(&[]);
        for steps in 0..=6 {
            assert_eq!(check_rejoin_state(&trained(&adam, steps), &adam), Ok(()), "step {steps}");
        }
        let fourier = recipe(&[("value_encoding", "fourier")]);
        assert_eq!(check_rejoin_state(&trained(&fourier, 2), &fourier), Ok(()));
        let norms = recipe(&[("train_layer_norms", "true")]);
        let mut state = trained(&norms, 0);
        state.set_layer_norms(&[1.0, 2.0]);
        assert_eq!(check_rejoin_state(&state, &norms), Ok(()));
        let exact = recipe(&[("solver", "exact"), ("train_input_projection", "false")]);
        let mut state = trained(&exact, 0);
        for _ in 0..6 {
            assert_eq!(check_rejoin_state(&state, &exact), Ok(()));
            state = state.gathered(&exact, [3; 32]).unwrap();
        }
        assert_eq!(check_rejoin_state(&state, &exact), Ok(()));
    }

    #[test]
    fn another_layout_is_refused() {
        let (adam, fourier) = (recipe(&[]), recipe(&[("value_encoding", "fourier")]));
        assert!(refusal(&trained(&fourier, 1), &adam).contains("columns, this run's 1"));
        assert!(refusal(&trained(&adam, 1), &fourier).contains("has 1 columns"));
        let mut norms = trained(&adam, 1);
        norms.set_layer_norms(&[1.0]);
        assert!(refusal(&norms, &adam).contains("1 numbers of layer norms (train_layer_norms is false)"));
        let wants = recipe(&[("train_layer_norms", "true")]);
        assert!(refusal(&trained(&wants, 1), &wants).contains("0 numbers of layer norms"));
    }

    #[test]
    fn numbers_that_no_update_makes_are_refused() {
        let adam = recipe(&[]);
        let state = trained(&adam, 3);
        let (header, len) = (32, state.layout().len());
        for (part, words) in [(0, "parameter 1 is"), (1, "first moment 1 is"), (2, "second moment 1 is")] {
            for bad in [f32::NAN, f32::INFINITY] {
                let state = changed(&state, header + 4 * (part * len + 1), &bad.to_le_bytes());
                assert!(refusal(&state, &adam).contains(words), "{}", refusal(&state, &adam));
            }
        }
        let negative = changed(&state, header + 4 * (2 * len + 1), &(-1.0f32).to_le_bytes());
        assert!(refusal(&negative, &adam).contains("second moment 1 is -1"));
    }

    #[test]
    fn another_step_than_its_powers_say_is_refused() {
        let adam = recipe(&[]);
        let state = trained(&adam, 3);
        for step in [0u64, 2, 4, 6] {
            let moved = changed(&state, 0, &step.to_le_bytes());
            assert!(refusal(&moved, &adam).contains(&format!("not those of step {step}")));
        }
        let power = changed(&state, 16, &0.5f64.to_le_bytes());
        assert!(refusal(&power, &adam).contains("powers of β"));
        let beyond = changed(&state, 0, &7u64.to_le_bytes());
        assert_eq!(refusal(&beyond, &adam), "it is after 7 of 6 steps");
        let absurd = changed(&state, 0, &u64::MAX.to_le_bytes());
        assert!(refusal(&absurd, &adam).contains("of 6 steps"));
    }

    #[test]
    fn a_round_that_the_schedule_does_not_have_is_refused() {
        let (adam, exact) = (recipe(&[]), recipe(&[("solver", "exact"), ("train_input_projection", "false")]));
        assert!(refusal(&trained(&adam, 1), &exact).contains("not one of solver exact"));
        assert!(refusal(&trained(&exact, 0), &adam).contains("not one of solver adam"));
        let gathered = trained(&exact, 0).gathered(&exact, [3; 32]).unwrap();
        let moved = changed(&gathered, 0, &4u64.to_le_bytes());
        assert!(refusal(&moved, &exact).contains("no round of the solver"));
        let flags = [("solver", "alternate"), ("solve_every", "3"), ("solve_samples", "16")];
        let alternate = recipe(&flags);
        let state = trained(&alternate, 3);
        assert_eq!(check_rejoin_state(&state, &alternate), Ok(()));
        let solve = state.to_bytes().len() - 72;
        let far = changed(&state, solve + 8, &1_000_000u64.to_le_bytes());
        assert!(refusal(&far, &alternate).contains("no round of the solver"));
    }
}
