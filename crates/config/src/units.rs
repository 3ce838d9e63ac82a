//! A run as a sequence of units: training steps, and the chunks of the solver's rounds. A pure function of the recipe.
//! Read by `data` (which samples a unit has), `projector` (where a state stands), `coordinator` and `worker`.
//!
//! - `adam`: unit `i` is training step `i`.
//! - `exact`: one round over the whole run; unit `i` is its chunk `i`, which counts as step `i`; then it is solved.
//! - `alternate`: after every `solve_every` steps, and after the last one, a round of `solve_samples` samples, each
//!   chunk of it a unit, and then it is solved. Solving is a unit of its own, so that every state has its own number.

use crate::types::{Recipe, Solver};

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
}

/// The sequence of a recipe's units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Units {
    solver: Solver,
    /// Steps of the run; at least 1.
    steps: u64,
    /// Steps between rounds, from 1 to `steps`.
    every: u64,
    /// Chunks of a round.
    chunks: u64,
}

impl Recipe {
    /// The run as a sequence of units.
    pub fn units(&self) -> Units {
        let steps = self.total_steps().max(1);
        let every = match self.solve_every {
            None | Some(0) => steps,
            Some(every) => every.min(steps),
        };
        let chunks = match self.solver {
            Solver::Adam => 0,
            Solver::Exact => steps,
            Solver::Alternate => self.solve_samples.unwrap_or(1).div_ceil(self.batch_size.max(1) as u64),
        };
        Units { solver: self.solver, steps, every, chunks }
    }
}

impl Units {
    /// Chunks of a round; 0 where there are no rounds.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Where a run begins.
    pub fn start(&self) -> Position {
        Position { step: 0, gathered: (self.solver == Solver::Exact).then_some(0) }
    }

    /// Whether a round follows once `step` training steps are done.
    pub fn round_after(&self, step: u64) -> bool {
        let due = step > 0 && (step.is_multiple_of(self.every) || step == self.steps);
        self.solver == Solver::Alternate && due
    }

    /// Rounds that were complete when step `step − 1` was made.
    fn rounds_before(&self, step: u64) -> u64 {
        step.saturating_sub(1) / self.every
    }

    /// The number of the unit that comes next at `position`: how many units are behind it.
    pub fn index(&self, position: Position) -> u64 {
        let Position { step, gathered } = position;
        match (self.solver, gathered) {
            (Solver::Adam, _) | (Solver::Exact, Some(_)) => step,
            (Solver::Exact, None) => self.steps + 1,
            (Solver::Alternate, _) => {
                let into_round = match gathered {
                    Some(gathered) => gathered,
                    None if self.round_after(step) => self.chunks + 1,
                    None => 0,
                };
                step + self.rounds_before(step) * (self.chunks + 1) + into_round
            }
        }
    }

    /// Unit `index`.
    pub fn unit(&self, index: u64) -> Unit {
        match self.solver {
            Solver::Adam if index < self.steps => Unit::Step(index),
            Solver::Adam => Unit::End,
            Solver::Exact if index < self.steps => Unit::Chunk { round: 0, chunk: index },
            Solver::Exact if index == self.steps => Unit::Solve,
            Solver::Exact => Unit::End,
            Solver::Alternate => self.alternating(index),
        }
    }

    fn alternating(&self, index: u64) -> Unit {
        let period = self.every + self.chunks + 1;
        let (round, into_period) = (index / period, index % period);
        let first = round * self.every;
        if first >= self.steps {
            return Unit::End;
        }
        let steps = self.every.min(self.steps - first);
        if into_period < steps {
            return Unit::Step(first + into_period);
        }
        let chunk = into_period - steps;
        match chunk.cmp(&self.chunks) {
            std::cmp::Ordering::Less => Unit::Chunk { round, chunk },
            std::cmp::Ordering::Equal => Unit::Solve,
            std::cmp::Ordering::Greater => Unit::End,
        }
    }

    /// What comes next at `position`.
    pub fn next(&self, position: Position) -> Unit {
        self.unit(self.index(position))
    }

    /// The number of the first unit from `position` on that is no worker's: workers rest there.
    pub fn rest_after(&self, position: Position) -> u64 {
        let index = self.index(position);
        match (self.solver, position.gathered) {
            (Solver::Adam, _) | (Solver::Exact, Some(_)) => self.steps,
            (Solver::Exact, None) => index,
            (Solver::Alternate, Some(gathered)) => index - gathered + self.chunks,
            (Solver::Alternate, None) if position.step >= self.steps => index,
            (Solver::Alternate, None) => {
                let step = ((position.step / self.every + 1) * self.every).min(self.steps);
                self.index(Position { step, gathered: Some(self.chunks) })
            }
        }
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
    pub fn refuses_to_grow(&self, longer: &Units, position: Position) -> Option<&'static str> {
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
    use crate::layer::Layer;
    use crate::resolve::resolve;

    fn units(solver: Solver, steps: u64, every: u64, chunks: u64) -> Units {
        let none: [(&str, String); 0] = [];
        let mut recipe = resolve(None, Layer::from_env([]), Layer::from_flags(none)).unwrap().recipe;
        (recipe.num_epochs, recipe.num_batches, recipe.solver) = (1, steps, solver);
        (recipe.solve_every, recipe.solve_samples) = (Some(every), Some(chunks * 8));
        recipe.units()
    }

    /// Every position of a run, walked one unit at a time.
    fn walk(units: Units) -> Vec<(Position, Unit)> {
        let mut position = units.start();
        let mut walked = Vec::new();
        loop {
            let unit = units.next(position);
            walked.push((position, unit));
            match unit {
                Unit::Step(step) => {
                    assert_eq!(step, position.step);
                    position.step += 1;
                    position.gathered = units.round_after(position.step).then_some(0);
                }
                Unit::Chunk { chunk, .. } => {
                    assert_eq!(Some(chunk), position.gathered);
                    position.gathered = Some(chunk + 1);
                    position.step += u64::from(units.solver == Solver::Exact);
                }
                Unit::Solve => position.gathered = None,
                Unit::End => return walked,
            }
        }
    }

    #[test]
    fn every_position_has_its_own_number_in_order() {
        for solver in [Solver::Adam, Solver::Exact, Solver::Alternate] {
            for (steps, every) in [(1, 1), (1, 0), (6, 2), (7, 2), (7, 0), (5, 9), (8, 8), (9, 1)] {
                for chunks in [1, 3] {
                    let units = units(solver, steps, every, chunks);
                    let walked = walk(units);
                    let mut trained = 0;
                    for (index, (position, unit)) in walked.iter().enumerate() {
                        assert_eq!(units.index(*position), index as u64, "{units:?} {position:?}");
                        assert_eq!(units.unit(index as u64), *unit);
                        trained += u64::from(matches!(unit, Unit::Step(_)));
                        let rest = units.rest_after(*position);
                        assert!(matches!(units.unit(rest), Unit::Solve | Unit::End), "{units:?} {position:?}");
                        for before in index as u64..rest {
                            assert!(matches!(units.unit(before), Unit::Step(_) | Unit::Chunk { .. }));
                        }
                        let start = units.round_start(*position);
                        assert_eq!(start.gathered.unwrap_or(0), 0);
                        assert!(units.index(start) <= index as u64);
                    }
                    assert_eq!(trained, if solver == Solver::Exact { 0 } else { steps });
                    let solved = walked.iter().filter(|(_, unit)| *unit == Unit::Solve).count();
                    let every = if every == 0 { steps } else { every };
                    let rounds = match solver {
                        Solver::Adam => 0,
                        Solver::Exact => 1,
                        Solver::Alternate => steps.div_ceil(every) as usize,
                    };
                    assert_eq!(solved, rounds, "{units:?}");
                    assert_eq!(units.unit(walked.len() as u64 + 5), Unit::End);
                }
            }
        }
    }

    #[test]
    fn rounds_are_numbered() {
        let rounds: Vec<u64> = walk(units(Solver::Alternate, 5, 2, 1))
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
        let (short, long) = (units(Solver::Alternate, 6, 3, 2), units(Solver::Alternate, 9, 3, 2));
        let end = Position { step: 6, gathered: None };
        assert_eq!(short.refuses_to_grow(&long, end), None);
        let (short, long) = (units(Solver::Alternate, 5, 3, 2), units(Solver::Alternate, 10, 3, 2));
        assert!(short.refuses_to_grow(&long, Position { step: 5, gathered: None }).is_some());
        assert_eq!(short.refuses_to_grow(&long, Position { step: 3, gathered: Some(1) }), None);
        let (short, long) = (units(Solver::Alternate, 5, 0, 2), units(Solver::Alternate, 10, 0, 2));
        assert!(short.refuses_to_grow(&long, Position { step: 5, gathered: None }).is_some());
        let (short, long) = (units(Solver::Exact, 5, 0, 2), units(Solver::Exact, 10, 0, 2));
        assert_eq!(short.refuses_to_grow(&long, Position { step: 5, gathered: Some(5) }), None);
        assert!(short.refuses_to_grow(&long, Position { step: 5, gathered: None }).is_some());
        assert_eq!(short.refuses_to_grow(&short, Position { step: 5, gathered: None }), None);
    }
}
