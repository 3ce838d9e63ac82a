//! Sample streams: sample `i` for every `i`, generated or from a file, the same on every machine and for ever.
//!
//! Training and the probe of a joining worker read the stream of [`Domain::Train`], evaluations that of [`Domain::Eval`],
//! the rounds of `solver: alternate` that of [`Domain::Solve`].

use std::path::Path;
use std::sync::Arc;

use numalign_config::{Recipe, Solver};

use crate::error::DataError;
use crate::generate::Generator;
use crate::jsonl::{self, FileSamples};
use crate::plan::{MicroBatchId, samples_of, samples_of_chunk};
use crate::random::Domain;
use crate::random::permutation::Permutation;
use crate::sample::Sample;
use crate::schedule::Unit;

/// An endless stream of samples. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SampleStream {
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Generated(Generator),
    File {
        samples: Arc<FileSamples>,
        /// The seed of the shuffle; file order if there is none.
        shuffle_seed: Option<u64>,
    },
}

impl SampleStream {
    /// The generated stream of `recipe`'s stage in `domain`.
    ///
    /// # Errors
    /// Settings that no sample can satisfy.
    pub fn generated(recipe: &Recipe, domain: Domain) -> Result<SampleStream, DataError> {
        let generator = Generator::new(recipe, domain)?;
        Ok(SampleStream { source: Source::Generated(generator) })
    }

    /// The samples of a JSONL file, read into memory. The stream starts over at the end of the file; with
    /// `dataset.shuffle` each pass has another order, a function of (seed, pass).
    ///
    /// # Errors
    /// A file that cannot be read, holds nothing, or has a line that is no sample of `recipe`'s stage.
    pub fn from_file(path: &Path, recipe: &Recipe) -> Result<SampleStream, DataError> {
        let samples = Arc::new(jsonl::read_file(path, recipe.stage)?);
        let shuffle_seed = recipe.dataset_shuffle.then_some(recipe.seed);
        Ok(SampleStream { source: Source::File { samples, shuffle_seed } })
    }

    /// Sample `index`.
    pub fn sample(&self, index: u64) -> Sample {
        match &self.source {
            Source::Generated(generator) => generator.sample(index),
            Source::File { samples, shuffle_seed } => {
                // A file that was read holds at least one sample.
                let len = samples.len() as u64;
                let (pass, position) = (index / len, index % len);
                let line = match shuffle_seed {
                    Some(seed) => Permutation::new(*seed, pass, len).apply(position),
                    None => position,
                };
                samples.sample(line as usize, index)
            }
        }
    }

    /// Samples in the file; `None` for a generated stream.
    pub fn file_len(&self) -> Option<u64> {
        match &self.source {
            Source::Generated(_) => None,
            Source::File { samples, .. } => Some(samples.len() as u64),
        }
    }

    /// The digest of the file's parsed content ([`FileSamples::digest`]); `None` for a generated stream.
    pub fn content_digest(&self) -> Option<blake3::Hash> {
        match &self.source {
            Source::Generated(_) => None,
            Source::File { samples, .. } => Some(samples.digest()),
        }
    }
}

/// The samples that are trained on, and those of the solver's rounds.
#[derive(Debug, Clone)]
pub struct Streams {
    /// The training samples.
    pub train: SampleStream,
    /// The generated stream of [`Domain::Solve`]; a file has no second stream, so its lines serve both.
    pub solve: SampleStream,
}

impl Streams {
    /// `train` with the solver's stream beside it.
    ///
    /// # Errors
    /// As [`SampleStream::generated`].
    pub fn new(train: SampleStream, recipe: &Recipe) -> Result<Self, DataError> {
        let solve = match train.file_len() {
            Some(_) => train.clone(),
            None => SampleStream::generated(recipe, Domain::Solve)?,
        };
        Ok(Self { train, solve })
    }

    /// The samples of a micro-batch of `unit`; none if no worker computes it, or if it draws held-out
    /// samples: their stream is a function of the recipe alone, so that they are drawn where they are needed.
    pub fn samples(&self, recipe: &Recipe, unit: Unit, micro_batch: MicroBatchId) -> Vec<Sample> {
        let (stream, indices) = match unit {
            Unit::Step(step) => (&self.train, samples_of(step, micro_batch, recipe)),
            Unit::Chunk { round, chunk } => {
                let stream = if recipe.solver == Solver::Exact { &self.train } else { &self.solve };
                (stream, samples_of_chunk(round, chunk, micro_batch, recipe))
            }
            Unit::Solve | Unit::Evaluate | Unit::End => return Vec::new(),
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
        dtype: numalign_config::Dtype::F32,
        fourier_periods: None,
        log_threshold: None,
        target: None,
        distribution: None,
        huber_delta: None,
        layer: None,
        train_layer_norms: false,
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
