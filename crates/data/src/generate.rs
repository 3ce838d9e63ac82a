//! Generated samples: sample `i` is a pure function of (seed, domain, stage, i) and the recipe's data settings.
//!
//! Every draw comes from the [`SampleRng`] of the sample, in the order written here: changing
//! that order, or the tables of `wording`, changes the samples of every run.

use numalign_config::{Recipe, Stage, Task};

use crate::error::DataError;
use crate::grammar::marked;
use crate::random::{Domain, SampleRng};
use crate::sample::{Input, Sample};

pub mod grid;
mod values;
pub mod wording;

use grid::{Grid, check_range};
use values::Values;

/// What a stage draws from.
#[derive(Debug, Clone)]
enum Kind {
    Nn { values: Values },
    Text { values: Values, grid: Grid },
    Mixed { values: Values, grid: Grid, tasks: Vec<Task>, max_numbers: u64 },
}

/// Makes the samples of one stage in one domain.
#[derive(Debug, Clone)]
pub struct Generator {
    seed: u64,
    domain: Domain,
    kind: Kind,
}

impl Generator {
    /// The generator of `recipe`'s samples in `domain`.
    ///
    /// # Errors
    /// Settings that no sample can satisfy: see [`Grid::new`]; in stage `mixed` also no task, or no numbers.
    pub fn new(recipe: &Recipe, domain: Domain) -> Result<Generator, DataError> {
        let Recipe { min_val, max_val, decimals, .. } = *recipe;
        let values = Values::of(recipe);
        let kind = match recipe.stage {
            Stage::Nn => {
                check_range(min_val, max_val)?;
                Kind::Nn { values }
            }
            Stage::Text => Kind::Text { values, grid: Grid::new(min_val, max_val, decimals)? },
            Stage::Mixed => {
                if recipe.mixed_tasks.is_empty() {
                    return Err(DataError::NoTasks);
                }
                if recipe.mixed_max_numbers == 0 {
                    return Err(DataError::NoNumbers);
                }
                Kind::Mixed {
                    values,
                    grid: Grid::new(min_val, max_val, decimals)?,
                    tasks: recipe.mixed_tasks.clone(),
                    max_numbers: recipe.mixed_max_numbers as u64,
                }
            }
        };
        Ok(Generator { seed: recipe.seed, domain, kind })
    }

    /// Sample `index` of the stream.
    pub fn sample(&self, index: u64) -> Sample {
        match &self.kind {
            Kind::Nn { values } => {
                let value = values.draw(&mut self.rng(Stage::Nn, index));
                Sample { index, input: Input::Number(value), target: value }
            }
            Kind::Text { values, grid } => {
                let value = values.draw_on(grid, &mut self.rng(Stage::Text, index));
                Sample { index, input: Input::Text(marked(value, grid.decimals)), target: value }
            }
            Kind::Mixed { values, grid, tasks, max_numbers } => {
                let rng = &mut self.rng(Stage::Mixed, index);
                let (text, target) =
                    draw_question(|rng| values.draw_on(grid, rng), grid.decimals, tasks, *max_numbers, rng);
                Sample { index, input: Input::Text(text), target }
            }
        }
    }

    fn rng(&self, stage: Stage, index: u64) -> SampleRng {
        // The label is part of every sample; it must not follow a change of how a stage is printed.
        let label = match stage {
            Stage::Nn => "nn",
            Stage::Text => "text",
            Stage::Mixed => "mixed",
        };
        SampleRng::new(self.seed, self.domain, label, index)
    }
}

fn draw_question(
    draw: impl Fn(&mut SampleRng) -> f64,
    decimals: u32,
    tasks: &[Task],
    max_numbers: u64,
    rng: &mut SampleRng,
) -> (String, f64) {
    let count = 1 + rng.below(max_numbers);
    let opening = wording::opening(rng.below(wording::openings_for(count)) as usize);
    let separator = *pick(wording::SEPARATORS, rng);
    let task = *pick(tasks, rng);
    let ask = *pick(wording::asks(task), rng);
    let mut values = Vec::new();
    let mut numbers = Vec::new();
    for _ in 0..count {
        let value = draw(rng);
        values.push(value);
        numbers.push(marked(value, decimals));
    }
    (wording::question(opening, &numbers, separator, ask), answer(task, &values))
}

fn pick<'a, T>(choices: &'a [T], rng: &mut SampleRng) -> &'a T {
    &choices[rng.below(choices.len() as u64) as usize]
}

/// The answer to `task` about `values`, which is not empty. The mean adds in order, then divides.
pub fn answer(task: Task, values: &[f64]) -> f64 {
    match task {
        Task::Min => values.iter().copied().fold(f64::INFINITY, f64::min),
        Task::Max => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        Task::Mean => {
            let mut sum = 0.0;
            for value in values {
                sum += value;
            }
            sum / values.len() as f64
        }
        Task::Count => values.len() as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::{Segment, parse, parse_value};
    use crate::number::DecimalMark;
    use crate::stream::test_recipe;
    use proptest::prelude::*;

    fn sample(stage: Stage, index: u64) -> Sample {
        Generator::new(&test_recipe(stage), Domain::Train).unwrap().sample(index)
    }

    fn text_of(sample: &Sample) -> &str {
        match &sample.input {
            Input::Text(text) => text,
            Input::Number(value) => panic!("{value}"),
        }
    }

    #[test]
    fn the_samples_never_change() {
        let drawn = [0, 1, 1 << 40].map(|index| sample(Stage::Nn, index).target);
        assert_eq!(drawn, [72.95061583900235, 97.65147033241924, 52.759085334777964]);
        let drawn = [0, 1, 2].map(|index| text_of(&sample(Stage::Text, index)).to_string());
        assert_eq!(drawn, ["$$14.7406&&", "$$33.442&&", "$$97.9824&&"]);
        let drawn = [0, 1, 2].map(|index| {
            let question = sample(Stage::Mixed, index);
            (text_of(&question).to_string(), question.target)
        });
        let expected = [
            ("The list of readings holds $$61.82&& and $$88.9&&: which is the minimum?", 61.82),
            ("The first sensor logged $$76.59&&: what is the smallest value?", 76.59),
            ("The set holds $$59.16&&, $$54.17&&, $$76.55&&: what is the lowest?", 54.17),
        ];
        assert_eq!(drawn, expected.map(|(text, target)| (text.to_string(), target)));
    }

    #[test]
    fn every_count_opening_and_ask_comes_up() {
        let mut recipe = test_recipe(Stage::Mixed);
        recipe.mixed_tasks = vec![Task::Min, Task::Max, Task::Mean, Task::Count];
        let generator = Generator::new(&recipe, Domain::Eval).unwrap();
        let mut counts = [0; 11];
        let mut texts = Vec::new();
        for index in 0..5_000 {
            let sample = generator.sample(index);
            let segments = parse(text_of(&sample)).unwrap();
            let numbers = segments.iter().filter(|piece| matches!(piece, Segment::Number(_))).count();
            counts[numbers] += 1;
            texts.push(text_of(&sample).to_string());
        }
        assert_eq!(counts[0], 0);
        assert!(counts[1..].iter().all(|count| (400..600).contains(count)), "{counts:?}");
        for opening in wording::OPENINGS.iter().chain(wording::PLURAL_OPENINGS) {
            assert!(texts.iter().any(|text| text.starts_with(&format!("{opening}$$"))), "{opening}");
        }
        for task in recipe.mixed_tasks {
            for ask in wording::asks(task) {
                assert!(texts.iter().any(|text| text.ends_with(ask)), "{ask}");
            }
        }
    }

    #[test]
    fn answers_are_exact() {
        let values = [0.1, 0.2, 0.3];
        assert_eq!(answer(Task::Min, &values), 0.1);
        assert_eq!(answer(Task::Max, &values), 0.3);
        assert_eq!(answer(Task::Mean, &values), (0.1 + 0.2 + 0.3) / 3.0);
        assert_eq!(answer(Task::Count, &values), 3.0);
    }

    #[test]
    fn refuses_settings_that_no_sample_satisfies() {
        for (min_val, max_val) in [(1.0, 1.0), (2.0, 1.0), (f64::NAN, 1.0), (-1e308, 1e308)] {
            let mut recipe = test_recipe(Stage::Nn);
            (recipe.min_val, recipe.max_val) = (min_val, max_val);
            for stage in [Stage::Nn, Stage::Text, Stage::Mixed] {
                recipe.stage = stage;
                let refused = Generator::new(&recipe, Domain::Train);
                assert!(matches!(refused, Err(DataError::BadRange { .. })), "{min_val} {max_val}");
            }
        }
        let mut recipe = test_recipe(Stage::Mixed);
        recipe.mixed_max_numbers = 0;
        assert!(matches!(Generator::new(&recipe, Domain::Train), Err(DataError::NoNumbers)));
        recipe.mixed_tasks.clear();
        assert!(matches!(Generator::new(&recipe, Domain::Train), Err(DataError::NoTasks)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn numbers_are_in_range_and_texts_say_exactly_the_target(
            seed: u64, index: u64, min_val in -1e5f64..1e5, width in 10.0f64..1e5, decimals in 0u32..6,
        ) {
            let mut recipe = test_recipe(Stage::Nn);
            recipe.seed = seed;
            recipe.decimals = decimals;
            (recipe.min_val, recipe.max_val) = (min_val, min_val + width);
            let range = recipe.min_val..recipe.max_val;

            let number = Generator::new(&recipe, Domain::Train).unwrap().sample(index);
            prop_assert!(range.contains(&number.target));
            prop_assert_eq!(number.input, Input::Number(number.target));

            recipe.stage = Stage::Text;
            let text = Generator::new(&recipe, Domain::Train).unwrap().sample(index);
            prop_assert!(range.contains(&text.target));
            prop_assert_eq!(parse_value(text_of(&text), DecimalMark::Point), Ok(text.target));
            prop_assert_eq!(text_of(&text), marked(text.target, decimals));

            recipe.stage = Stage::Mixed;
            let mixed = Generator::new(&recipe, Domain::Train).unwrap().sample(index);
            let mut values = Vec::new();
            for segment in parse(text_of(&mixed)).unwrap() {
                if let Segment::Number(value) = segment {
                    prop_assert!(range.contains(&value));
                    values.push(value);
                }
            }
            prop_assert!((1..=10).contains(&values.len()));
            prop_assert_eq!(mixed.target, answer(Task::Min, &values));
        }
    }
}
