//! A run as a sequence of units: training steps, the chunks of the solver's rounds, and evaluations. A pure function of
//! the recipe, and of `eval_every` where evaluations are counted too ([`Schedule::of_run`]).
//!
//! - `adam`: unit `i` is training step `i`.
//! - `exact`: one round over the whole run; unit `i` is its chunk `i`, which counts as step `i`; then it is solved.
//! - `alternate`: after every `solve_every` steps, and after the last one, a round of `solve_samples` samples, each
//!   chunk of it a unit, and then it is solved. Solving is a unit of its own, so that every state has its own number.
//! - An evaluation is a unit too, after the step it is due at, and after that step's round. A run whose projector is
//!   solved for once, at its end, is evaluated there in any case, and with `exact` only there.

use numalign_config::{Config, Recipe, Solver};

/// What a unit of a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Training step, counted from 0.
    Step(u64),
    /// The features of one batch of samples are gathered.
    Chunk {
        /// Rounds before this one.
        round: u64,
        /// Place in the round.
        chunk: u64,
    },
    /// The coordinator solves for the output projector.
    Solve,
    /// The projectors are tried on held-out samples.
    Evaluate,
    /// Nothing is left to do.
    End,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Committed steps.
    pub step: u64,
    /// Chunks gathered in the round in progress; none between rounds.
    pub gathered: Option<u64>,
    /// The evaluation at `step` is made.
    pub evaluated: bool,
}

/// The sequence of a run's units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    solver: Solver,
    /// Steps of the run; at least 1.
    steps: u64,
    /// Steps between rounds, from 1 to `steps`.
    every: u64,
    /// Chunks of a round.
    chunks: u64,
    /// There is one round, at the end, and the run cannot grow beyond it.
    once: bool,
    /// Steps between evaluations; 0 where there are none.
    evaluate_every: u64,
}

impl Schedule {
    /// The schedule of a run, evaluations among it.
    pub fn of_run(config: &Config) -> Schedule {
        Schedule::with_evaluations(&config.recipe, config.run.eval_every)
    }

    /// The schedule of a recipe, with evaluations `epochs` epochs apart; none where that is 0.
    pub fn with_evaluations(recipe: &Recipe, epochs: u64) -> Schedule {
        Schedule { evaluate_every: epochs.saturating_mul(recipe.num_batches), ..Schedule::of(recipe) }
    }

    /// The schedule of a recipe, without evaluations: they change no projector.
    pub fn of(recipe: &Recipe) -> Schedule {
        let steps = recipe.total_steps().max(1);
        let every = match recipe.solve_every {
            None | Some(0) => steps,
            Some(every) => every.min(steps),
        };
        let chunks = match recipe.solver {
            Solver::Adam => 0,
            Solver::Exact => steps,
            Solver::Alternate => recipe.solve_samples.unwrap_or(1).div_ceil(recipe.batch_size.max(1) as u64),
        };
        let once = match recipe.solver {
            Solver::Adam => false,
            Solver::Exact => true,
            Solver::Alternate => recipe.solve_every.is_none_or(|every| every == 0),
        };
        Schedule { solver: recipe.solver, steps, every, chunks, once, evaluate_every: 0 }
    }

    /// Chunks of a round; 0 where there are no rounds.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Where a run begins.
    pub fn start(&self) -> Position {
        Position { step: 0, gathered: (self.solver == Solver::Exact).then_some(0), evaluated: false }
    }

    /// Whether a round follows once `step` training steps are done.
    pub fn round_after(&self, step: u64) -> bool {
        let due = step > 0 && (step.is_multiple_of(self.every) || step == self.steps);
        self.solver == Solver::Alternate && due
    }

    /// Whether an evaluation follows once `step` steps are done, and solved for where that is due.
    fn evaluation_after(&self, step: u64) -> bool {
        if self.evaluate_every == 0 || step == 0 {
            return false;
        }
        let due = self.solver != Solver::Exact && step.is_multiple_of(self.evaluate_every);
        due || (self.once && step == self.steps)
    }

    /// Units behind a state that has just made its step number `step`, with `adam` and `alternate`.
    fn behind(&self, step: u64) -> u64 {
        let earlier = step.saturating_sub(1);
        let rounds = if self.solver == Solver::Alternate { earlier / self.every } else { 0 };
        step + rounds * (self.chunks + 1) + earlier.checked_div(self.evaluate_every).unwrap_or(0)
    }

    /// Units of the round that follows `step`, its solution among them.
    fn of_round_after(&self, step: u64) -> u64 {
        if self.round_after(step) { self.chunks + 1 } else { 0 }
    }

    /// The number of the unit that comes next at `position`: how many units are behind it.
    pub fn index(&self, position: Position) -> u64 {
        let Position { step, gathered, evaluated } = position;
        let evaluation = u64::from(evaluated && self.evaluation_after(step));
        match (self.solver, gathered) {
            (Solver::Exact, Some(_)) => step,
            (Solver::Exact, None) => self.steps + 1 + evaluation,
            (Solver::Adam | Solver::Alternate, Some(gathered)) => self.behind(step) + gathered,
            (Solver::Adam | Solver::Alternate, None) => self.behind(step) + self.of_round_after(step) + evaluation,
        }
    }

    /// Unit `index`.
    pub fn unit(&self, index: u64) -> Unit {
        if self.solver == Solver::Exact {
            let after = index.checked_sub(self.steps);
            return match after {
                None => Unit::Chunk { round: 0, chunk: index },
                Some(0) => Unit::Solve,
                Some(1) if self.evaluation_after(self.steps) => Unit::Evaluate,
                Some(_) => Unit::End,
            };
        }
        let step = self.last_step_behind(index);
        let mut place = index - self.behind(step);
        if self.round_after(step) {
            match place.cmp(&self.chunks) {
                std::cmp::Ordering::Less => return Unit::Chunk { round: (step - 1) / self.every, chunk: place },
                std::cmp::Ordering::Equal => return Unit::Solve,
                std::cmp::Ordering::Greater => place -= self.chunks + 1,
            }
        }
        if self.evaluation_after(step) {
            if place == 0 {
                return Unit::Evaluate;
            }
            place -= 1;
        }
        if place == 0 && step < self.steps { Unit::Step(step) } else { Unit::End }
    }

    /// The latest step that is made when `index` units are behind; [`Schedule::behind`] grows with the step.
    fn last_step_behind(&self, index: u64) -> u64 {
        let (mut low, mut high) = (0, self.steps.min(index));
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.behind(middle) <= index {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }

    /// What comes next at `position`.
    pub fn next(&self, position: Position) -> Unit {
        self.unit(self.index(position))
    }

    /// The number of the first unit from `position` on that is no worker's: workers wait there.
    pub fn barrier_after(&self, position: Position) -> u64 {
        match (self.solver, position.gathered) {
            (Solver::Exact, Some(_)) => self.steps,
            (Solver::Alternate, Some(_)) => self.behind(position.step) + self.chunks,
            (Solver::Alternate, None) if position.step < self.steps => {
                let step = ((position.step / self.every + 1) * self.every).min(self.steps);
                self.behind(step) + self.chunks
            }
            _ => self.end(),
        }
    }

    /// The number of units of the run.
    fn end(&self) -> u64 {
        self.index(Position { step: self.steps, gathered: None, evaluated: true })
    }

    /// The last training step, the last chunk and, where the run ends with one, the last evaluation: as far as there are any.
    pub fn last_of_each_kind(&self) -> Vec<u64> {
        let step = match self.solver {
            Solver::Adam | Solver::Alternate => Some(self.behind(self.steps) - 1),
            Solver::Exact => None,
        };
        let chunk = match self.solver {
            Solver::Adam => None,
            Solver::Exact => Some(self.steps - 1),
            Solver::Alternate => (self.behind(self.steps) + self.chunks).checked_sub(1).filter(|_| self.chunks > 0),
        };
        let evaluation = self.end().checked_sub(1).filter(|last| self.unit(*last) == Unit::Evaluate);
        [step, chunk, evaluation].into_iter().flatten().collect()
    }

    /// Where the round that `position` is in began; `position` itself between rounds.
    pub fn round_start(&self, position: Position) -> Position {
        match (self.solver, position.gathered) {
            (Solver::Exact, Some(_)) => self.start(),
            (_, Some(_)) => Position { gathered: Some(0), ..position },
            (_, None) => position,
        }
    }

    /// Why a run that stands at `position` cannot go on as the longer run `longer`, where it cannot: the longer run
    /// would not have come by here.
    pub fn why_not_extendable(&self, longer: &Schedule, position: Position) -> Option<&'static str> {
        if self.steps == longer.steps {
            return None;
        }
        match self.solver {
            Solver::Adam => None,
            Solver::Exact if position.gathered.is_some() => None,
            Solver::Exact => Some("the pass is solved and its sums are gone"),
            Solver::Alternate if position.step < self.steps || self.steps.is_multiple_of(longer.every) => None,
            Solver::Alternate => Some("the run ended with a round that the longer run does not have"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(solver: Solver, steps: u64, every: u64, chunks: u64) -> Schedule {
        evaluated(solver, steps, every, chunks, 0)
    }

    /// With an evaluation every `evaluate_every` steps.
    fn evaluated(solver: Solver, steps: u64, every: u64, chunks: u64, evaluate_every: u64) -> Schedule {
        let mut recipe = Config::with(&[]).unwrap().recipe;
        (recipe.num_epochs, recipe.num_batches, recipe.solver) = (1, steps, solver);
        (recipe.solve_every, recipe.solve_samples) = (Some(every), Some(chunks * 8));
        Schedule { evaluate_every, ..Schedule::of(&recipe) }
    }

    /// Every position of a run, walked one unit at a time.
    fn walk(schedule: Schedule) -> Vec<(Position, Unit)> {
        let mut position = schedule.start();
        let mut walked = Vec::new();
        loop {
            let unit = schedule.next(position);
            walked.push((position, unit));
            match unit {
                Unit::Step(step) => {
                    assert_eq!(step, position.step);
                    position.step += 1;
                    position.evaluated = false;
                    position.gathered = schedule.round_after(position.step).then_some(0);
                }
                Unit::Chunk { chunk, .. } => {
                    assert_eq!(Some(chunk), position.gathered);
                    position.gathered = Some(chunk + 1);
                    position.step += u64::from(schedule.solver == Solver::Exact);
                }
                Unit::Solve => position.gathered = None,
                Unit::Evaluate => position.evaluated = true,
                Unit::End => return walked,
            }
        }
    }

    #[test]
    fn every_position_has_its_own_number_in_order() {
        for solver in [Solver::Adam, Solver::Exact, Solver::Alternate] {
            for (steps, every) in [(1, 1), (1, 0), (6, 2), (7, 2), (7, 0), (5, 9), (8, 8), (9, 1)] {
                for (chunks, evaluate_every) in [(1, 0), (3, 0), (1, 1), (2, 2), (3, 3), (1, 20)] {
                    let schedule = evaluated(solver, steps, every, chunks, evaluate_every);
                    let walked = walk(schedule);
                    let mut trained = 0;
                    for (index, (position, unit)) in walked.iter().enumerate() {
                        assert_eq!(schedule.index(*position), index as u64, "{schedule:?} {position:?}");
                        assert_eq!(schedule.unit(index as u64), *unit);
                        trained += u64::from(matches!(unit, Unit::Step(_)));
                        let barrier = schedule.barrier_after(*position);
                        assert!(matches!(schedule.unit(barrier), Unit::Solve | Unit::End), "{schedule:?} {position:?}");
                        for before in index as u64..barrier {
                            let work = [Unit::Solve, Unit::End].iter().all(|barrier| schedule.unit(before) != *barrier);
                            assert!(work, "{schedule:?} {position:?}");
                        }
                        let start = schedule.round_start(*position);
                        assert_eq!(start.gathered.unwrap_or(0), 0);
                        assert!(schedule.index(start) <= index as u64);
                    }
                    assert_eq!(trained, if solver == Solver::Exact { 0 } else { steps });
                    for last in schedule.last_of_each_kind() {
                        let kind = std::mem::discriminant(&walked[last as usize].1);
                        let after = &walked[last as usize + 1..];
                        assert!(
                            after.iter().all(|(_, unit)| std::mem::discriminant(unit) != kind),
                            "{schedule:?} {last}"
                        );
                    }
                    let solved = walked.iter().filter(|(_, unit)| *unit == Unit::Solve).count();
                    let every = if every == 0 { steps } else { every };
                    let rounds = match solver {
                        Solver::Adam => 0,
                        Solver::Exact => 1,
                        Solver::Alternate => steps.div_ceil(every) as usize,
                    };
                    assert_eq!(solved, rounds, "{schedule:?}");
                    assert_eq!(schedule.unit(walked.len() as u64 + 5), Unit::End);
                }
            }
        }
    }

    #[test]
    fn evaluations_come_after_the_steps_they_are_due_at_and_after_their_rounds() {
        let made_at = |schedule: Schedule| -> Vec<u64> {
            let walked = walk(schedule);
            walked.iter().filter(|(_, unit)| *unit == Unit::Evaluate).map(|(position, _)| position.step).collect()
        };
        assert_eq!(made_at(evaluated(Solver::Adam, 7, 0, 1, 3)), [3, 6]);
        assert_eq!(made_at(evaluated(Solver::Alternate, 7, 2, 1, 3)), [3, 6]);
        assert_eq!(
            made_at(evaluated(Solver::Alternate, 7, 0, 1, 3)),
            [3, 6, 7],
            "one solution, and it is the last word"
        );
        assert_eq!(made_at(evaluated(Solver::Exact, 7, 0, 1, 3)), [7], "nothing changes before");
        for (position, unit) in walk(evaluated(Solver::Alternate, 6, 2, 2, 2)) {
            assert!(unit != Unit::Evaluate || position.gathered.is_none(), "{position:?}");
        }
        let elsewhere = Position { step: 4, gathered: None, evaluated: true };
        let schedule = evaluated(Solver::Adam, 7, 0, 1, 3);
        assert_eq!(schedule.next(elsewhere), Unit::Step(4), "an evaluation of other settings counts for nothing");
    }

    #[test]
    fn rounds_are_numbered() {
        let rounds: Vec<u64> = walk(schedule(Solver::Alternate, 5, 2, 1))
            .into_iter()
            .filter_map(|(_, unit)| match unit {
                Unit::Chunk { round, .. } => Some(round),
                _ => None,
            })
            .collect();
        assert_eq!(rounds, [0, 1, 2]);
    }

    #[test]
    fn a_run_grows_where_the_longer_one_came_by() {
        let (short, long) = (schedule(Solver::Alternate, 6, 3, 2), schedule(Solver::Alternate, 9, 3, 2));
        let end = Position { step: 6, gathered: None, evaluated: false };
        assert_eq!(short.why_not_extendable(&long, end), None);
        let (short, long) = (schedule(Solver::Alternate, 5, 3, 2), schedule(Solver::Alternate, 10, 3, 2));
        assert!(short.why_not_extendable(&long, Position { step: 5, gathered: None, evaluated: false }).is_some());
        assert_eq!(short.why_not_extendable(&long, Position { step: 3, gathered: Some(1), evaluated: false }), None);
        let (short, long) = (schedule(Solver::Alternate, 5, 0, 2), schedule(Solver::Alternate, 10, 0, 2));
        assert!(short.why_not_extendable(&long, Position { step: 5, gathered: None, evaluated: false }).is_some());
        let (short, long) = (schedule(Solver::Exact, 5, 0, 2), schedule(Solver::Exact, 10, 0, 2));
        assert_eq!(short.why_not_extendable(&long, Position { step: 5, gathered: Some(5), evaluated: false }), None);
        assert!(short.why_not_extendable(&long, Position { step: 5, gathered: None, evaluated: false }).is_some());
        assert_eq!(short.why_not_extendable(&short, Position { step: 5, gathered: None, evaluated: false }), None);
    }
}
