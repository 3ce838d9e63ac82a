//! Sample streams: sample `i` for every `i`, generated or from a file, the same on every machine and for ever.
//!
//! Training and the trial micro-batch of a joining worker read the stream of [`Domain::Train`], evaluations that of [`Domain::Eval`],
//! the rounds of `solver: alternate` that of [`Domain::Solve`]. With a file, its training rows stand for the first and the
//! last, its held-out rows for the second.

use std::path::Path;
use std::sync::Arc;

use numalign_config::{Recipe, Solver};

use crate::constant::constant_error;
use crate::dataset::{Dataset, Side};
use crate::error::DataError;
use crate::generate::Generator;
use crate::plan::{MicroBatchId, held_out_of, samples_of, samples_of_chunk};
use crate::random::Domain;
use crate::random::permutation::Permutation;
use crate::sample::Sample;
use crate::schedule::Unit;
use crate::table::TableOptions;

/// An endless stream of samples. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SampleStream {
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Generated(Generator),
    Rows { dataset: Arc<Dataset>, side: Side, order: Order },
}

/// The order of a file's rows.
#[derive(Debug, Clone, Copy)]
enum Order {
    File,
    /// Another one in each pass, a function of (seed, pass).
    Shuffled {
        seed: u64,
    },
    /// The same shuffle in each pass.
    Fixed {
        seed: u64,
    },
}

/// The pass whose shuffle is that of held-out rows; no run reaches it.
const HELD_OUT_PASS: u64 = u64::MAX;

impl SampleStream {
    /// The generated stream of `recipe`'s stage in `domain`.
    ///
    /// # Errors
    /// Settings that no sample can satisfy.
    pub fn generated(recipe: &Recipe, domain: Domain) -> Result<SampleStream, DataError> {
        let generator = Generator::new(recipe, domain)?;
        Ok(SampleStream { source: Source::Generated(generator) })
    }

    /// The training rows of a file. The stream starts over at their end; with `dataset.shuffle` each pass has another
    /// order, a function of (seed, pass).
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn from_file(path: &Path, recipe: &Recipe) -> Result<SampleStream, DataError> {
        let dataset = Dataset::open(path, recipe, &TableOptions::default())?;
        Ok(Self::training(Arc::new(dataset), recipe))
    }

    /// The training rows of `dataset`, as [`SampleStream::from_file`].
    pub fn training(dataset: Arc<Dataset>, recipe: &Recipe) -> SampleStream {
        let order = if recipe.dataset_shuffle { Order::Shuffled { seed: recipe.seed } } else { Order::File };
        SampleStream { source: Source::Rows { dataset, side: Side::Train, order } }
    }

    /// The held-out rows of `dataset`, in one shuffled order; `None` if there are none.
    pub fn held_out(dataset: Arc<Dataset>, recipe: &Recipe) -> Option<SampleStream> {
        let order = Order::Fixed { seed: recipe.seed };
        let stream = SampleStream { source: Source::Rows { dataset, side: Side::HeldOut, order } };
        stream.file_len().filter(|rows| *rows > 0).map(|_| stream)
    }

    /// Rows of `dataset` in file order.
    pub fn in_file_order(dataset: Arc<Dataset>, side: Side) -> SampleStream {
        SampleStream { source: Source::Rows { dataset, side, order: Order::File } }
    }

    /// Sample `index`.
    pub fn sample(&self, index: u64) -> Sample {
        match &self.source {
            Source::Generated(generator) => generator.sample(index),
            Source::Rows { dataset, side, order } => {
                dataset.sample(*side, row_of(index, dataset.len(*side), *order), index)
            }
        }
    }

    /// The number in its file, counted from 1, of the row that sample `index` is; `None` for a generated stream.
    pub fn row_number(&self, index: u64) -> Option<u64> {
        match &self.source {
            Source::Generated(_) => None,
            Source::Rows { dataset, side, order } => {
                Some(dataset.number(*side, row_of(index, dataset.len(*side), *order)))
            }
        }
    }

    /// The file that the samples come from; `None` for a generated stream.
    pub fn dataset(&self) -> Option<&Arc<Dataset>> {
        match &self.source {
            Source::Generated(_) => None,
            Source::Rows { dataset, .. } => Some(dataset),
        }
    }

    /// Rows of one pass; `None` for a generated stream.
    pub fn file_len(&self) -> Option<u64> {
        match &self.source {
            Source::Generated(_) => None,
            Source::Rows { dataset, side, .. } => Some(dataset.len(*side)),
        }
    }

    /// Mean absolute error, in value units, of the best constant prediction on the first `count` samples.
    pub fn constant_error(&self, count: u64) -> f64 {
        let targets: Vec<f64> = (0..count).map(|index| self.sample(index).target).collect();
        constant_error(&targets)
    }

    /// The digest of the file's content ([`Dataset::digest`]); `None` for a generated stream.
    pub fn content_digest(&self) -> Option<blake3::Hash> {
        self.dataset().map(|dataset| dataset.digest())
    }
}

/// The row of a sample, below `rows`, which is not 0.
fn row_of(index: u64, rows: u64, order: Order) -> u64 {
    let (pass, position) = (index / rows, index % rows);
    match order {
        Order::File => position,
        Order::Shuffled { seed } => Permutation::new(seed, pass, rows).apply(position),
        Order::Fixed { seed } => Permutation::new(seed, HELD_OUT_PASS, rows).apply(position),
    }
}

/// The samples that are trained on, those of the solver's rounds, and those of the evaluations.
#[derive(Debug, Clone)]
pub struct Streams {
    /// The training samples.
    pub train: SampleStream,
    /// The generated stream of [`Domain::Solve`]; a file has no second stream, so its training rows serve both.
    pub solve: SampleStream,
    /// The generated stream of [`Domain::Eval`], or held-out rows; `None` where a file has none.
    pub held_out: Option<SampleStream>,
}

impl Streams {
    /// `train` with the streams beside it.
    ///
    /// # Errors
    /// As [`SampleStream::generated`].
    pub fn new(train: SampleStream, recipe: &Recipe) -> Result<Self, DataError> {
        let (solve, held_out) = match train.dataset() {
            Some(dataset) => (train.clone(), SampleStream::held_out(dataset.clone(), recipe)),
            None => {
                let held_out = SampleStream::generated(recipe, Domain::Eval)?;
                (SampleStream::generated(recipe, Domain::Solve)?, Some(held_out))
            }
        };
        Ok(Self { train, solve, held_out })
    }

    /// The samples of a micro-batch of `unit`, an evaluation being on `evaluated` samples; none if no worker computes it,
    /// and none of an evaluation on generated samples: that stream is a function of the recipe alone, so that they are
    /// drawn where they are needed.
    pub fn samples(&self, recipe: &Recipe, unit: Unit, micro_batch: MicroBatchId, evaluated: u64) -> Vec<Sample> {
        let (stream, indices) = match (unit, &self.held_out) {
            (Unit::Step(step), _) => (&self.train, samples_of(step, micro_batch, recipe)),
            (Unit::Chunk { round, chunk }, _) => {
                let stream = if recipe.solver == Solver::Exact { &self.train } else { &self.solve };
                (stream, samples_of_chunk(round, chunk, micro_batch, recipe))
            }
            (Unit::Evaluate, Some(held_out)) if held_out.dataset().is_some() => {
                (held_out, held_out_of(evaluated, micro_batch, recipe))
            }
            (Unit::Solve | Unit::Evaluate | Unit::End, _) => return Vec::new(),
        };
        indices.map(|index| stream.sample(index)).collect()
    }
}

/// The default recipe of a stage, for the tests of this crate.
#[cfg(test)]
pub(crate) fn test_recipe(stage: numalign_config::Stage) -> Recipe {
    use numalign_config::{Loss, Pooling, Stage, Task, ValueEncoding};
    Recipe {
        stage,
        model_name: "demo".to_string(),
        num_epochs: 60,
        num_batches: 10,
        batch_size: 8,
        micro_batch_size: 8,
        lr: 0.003,
        shl: true,
        lr_step_epochs: 10,
        lr_gamma: 0.5,
        min_val: 0.0,
        max_val: 100.0,
        decimals: if stage == Stage::Mixed { 2 } else { 4 },
        value_encoding: ValueEncoding::Standard,
        numeric_positions: 1,
        mixed_tasks: vec![Task::Min],
        mixed_max_numbers: 10,
        train_input_projection: true,
        train_output_projection: true,
        solver: Solver::Adam,
        solve_every: None,
        solve_samples: None,
        pooling: Pooling::Last,
        loss: Loss::Mse,
        seed: 0,
        dataset_shuffle: true,
        dataset_input: None,
        dataset_output: None,
        dataset_missing: numalign_config::MissingCells::Refuse,
        dataset_eval_share: None,
        input_ranges: Vec::new(),
        dtype: numalign_config::Dtype::F32,
        arithmetic: numalign_config::CpuArithmetic::F32,
        fourier_periods: None,
        log_threshold: None,
        target: None,
        distribution: None,
        huber_delta: None,
        layer: None,
        taps: Vec::new(),
        probe: None,
        ridge_folds: 0,
        train_layer_norms: false,
        dataset_decimal_comma: false,
        add_special_tokens: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use numalign_config::Stage;
    use proptest::prelude::*;

    /// A file whose line `i` holds the value `i`.
    fn numbered_file(len: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines: Vec<String> = (0..len).map(|i| format!("{{\"input\": {i}, \"output\": {i}}}\n")).collect();
        std::fs::write(file.path(), lines.concat()).unwrap();
        file
    }

    #[test]
    fn domains_seeds_and_stages_differ() {
        for stage in [Stage::Nn, Stage::Text, Stage::Mixed] {
            let recipe = test_recipe(stage);
            let draw = |recipe: &Recipe, domain| SampleStream::generated(recipe, domain).unwrap().sample(5);
            let train = draw(&recipe, Domain::Train);
            assert_eq!(train, draw(&recipe, Domain::Train));
            for domain in [Domain::Eval, Domain::Solve, Domain::Chaos] {
                assert_ne!(train, draw(&recipe, domain));
            }
            assert_ne!(train, draw(&Recipe { seed: 1, ..recipe.clone() }, Domain::Train));
        }
    }

    #[test]
    fn a_file_wraps_around_in_file_order() {
        let file = numbered_file(3);
        let recipe = Recipe { dataset_shuffle: false, ..test_recipe(Stage::Nn) };
        let stream = SampleStream::from_file(file.path(), &recipe).unwrap();
        let targets: Vec<f64> = (0..7).map(|index| stream.sample(index).target).collect();
        assert_eq!(targets, [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0]);
        assert_eq!(stream.sample(6).index, 6);
        assert_eq!(stream.file_len(), Some(3));
        let _ = stream.sample(u64::MAX);
    }

    #[test]
    fn only_files_have_a_digest() {
        let file = numbered_file(3);
        let recipe = test_recipe(Stage::Nn);
        let shuffled = SampleStream::from_file(file.path(), &recipe).unwrap();
        assert!(shuffled.content_digest().is_some());
        let generated = SampleStream::generated(&recipe, Domain::Train).unwrap();
        assert_eq!((generated.content_digest(), generated.file_len()), (None, None));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        #[test]
        fn every_shuffled_pass_holds_every_line_once(seed: u64, len in 1usize..60, pass in 0u64..1000) {
            let file = numbered_file(len);
            let recipe = Recipe { seed, ..test_recipe(Stage::Nn) };
            let stream = SampleStream::from_file(file.path(), &recipe).unwrap();
            let first = pass * len as u64;
            let mut lines: Vec<usize> =
                (first..first + len as u64).map(|index| stream.sample(index).target as usize).collect();
            lines.sort_unstable();
            prop_assert_eq!(lines, (0..len).collect::<Vec<_>>());
        }
    }
}
