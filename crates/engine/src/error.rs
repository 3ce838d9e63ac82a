//! Why a sample gives no gradient or prediction, or a checkpoint no engine.

use std::path::PathBuf;

use numalign_data::DataError;
use numalign_model::ModelError;
use numalign_projector::{FeaturesError, FitError, RowError, StateError};

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The frozen model cannot be loaded or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The frozen model cannot take a sample.
    #[error("sample {index}: {source}")]
    Sample {
        /// Of the sample, in its stream.
        index: u64,
        /// What the model says.
        source: ModelError,
    },
    /// A sample makes no sense to the recipe, or its numbers are not finite.
    #[error("sample {index}: {reason}")]
    BadSample {
        /// Of the sample, in its stream.
        index: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The frozen model gave fewer gradients than it was given embeddings.
    #[error("the model returned {got} gradients for {want} embeddings")]
    MissingGradients {
        /// Gradients that came.
        got: usize,
        /// Embeddings that went in.
        want: usize,
    },
    /// No samples.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Rows that have no sum.
    #[error(transparent)]
    Rows(#[from] RowError),
    /// Features that the solver cannot use.
    #[error(transparent)]
    Features(#[from] FeaturesError),
    /// The output projector has no least-squares solution, or its sums were made in another process.
    #[error("the output projector cannot be solved for: {0}")]
    Unsolvable(String),
    /// No next state.
    #[error("{0}")]
    State(#[from] StateError),
    /// The model at hand is not the one a checkpoint was trained on.
    #[error(
        "{} was trained on another frozen model: its fingerprint is {stored:.16}, that of `{name}` is {found:.16}",
        path.display()
    )]
    OtherModel {
        /// The checkpoint.
        path: PathBuf,
        /// Hex fingerprint in the checkpoint.
        stored: String,
        /// The model that was loaded.
        name: String,
        /// Its hex fingerprint.
        found: String,
    },
    /// The model at hand has another tokenizer than the one a checkpoint was trained with.
    #[error(
        "{} was trained with another tokenizer: its fingerprint is {stored:.16}, that of the tokenizer of `{name}` is {found:.16}",
        path.display()
    )]
    OtherTokenizer {
        /// The checkpoint.
        path: PathBuf,
        /// Hex fingerprint in the checkpoint.
        stored: String,
        /// The model that was loaded.
        name: String,
        /// Hex fingerprint of its tokenizer.
        found: String,
    },
    /// A checkpoint's samples come from a file, and none was given.
    #[error(
        "{} was trained from a file (digest {stored:.16}); without it, it stays unproven which samples it took and that no \
         held-out row is among them",
        path.display()
    )]
    NeedsFile {
        /// The checkpoint.
        path: PathBuf,
        /// Hex digest of the file's content.
        stored: String,
    },
    /// A checkpoint's samples were generated, and a file was given.
    #[error("{} was not trained from a file", path.display())]
    NeedsNoFile {
        /// The checkpoint.
        path: PathBuf,
    },
    /// An evaluation, and no row of the file is held out.
    #[error("no row of the file is held out, so there is nothing to evaluate on")]
    NothingHeldOut,
    /// A checkpoint's held-out rows are a file of their own.
    #[error("the held-out rows of {} are in a file of their own", path.display())]
    HeldOutElsewhere {
        /// The checkpoint.
        path: PathBuf,
    },
    /// The file that was given is not the one a checkpoint was trained from.
    #[error(
        "{} is not the file that {} was trained from: its content has digest {found:.16}, the run's {stored:.16}",
        file.display(),
        path.display()
    )]
    OtherFile {
        /// The file that was given.
        file: PathBuf,
        /// The checkpoint.
        path: PathBuf,
        /// Hex digest of the given file's content.
        found: String,
        /// Hex digest in the checkpoint.
        stored: String,
    },
}

impl From<FitError> for EngineError {
    fn from(error: FitError) -> Self {
        Self::Unsolvable(error.to_string())
    }
}

impl EngineError {
    /// The sample that it is about, by its index.
    pub fn sample(&self) -> Option<u64> {
        match self {
            Self::Sample { index, .. } | Self::BadSample { index, .. } => Some(*index),
            _ => None,
        }
    }

    /// What is wrong with a sample, without its number.
    pub fn reason(&self) -> String {
        match self {
            Self::Sample { source, .. } => source.to_string(),
            Self::BadSample { reason, .. } => reason.clone(),
            other => other.to_string(),
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Model(error) | Self::Sample { source: error, .. } => error.hint(),
            Self::BadSample { .. } => Some("mend that sample; a marked number looks like $$12.5&&"),
            Self::State(StateError::NotFinite { .. } | StateError::NotMeasurable { .. }) => {
                Some("the training diverged: lower lr, or look for extreme values in the dataset")
            }
            Self::OtherModel { .. } => {
                Some("give the model it was trained on with --model; a projector is valid for one base only")
            }
            Self::OtherTokenizer { .. } => Some(
                "the weights are the same, the tokenizer files are not: give --model a folder with those of the training",
            ),
            Self::NeedsFile { .. } => Some("give that file with --dataset"),
            Self::NothingHeldOut => Some("set dataset.eval_share or dataset.eval_file when training"),
            Self::HeldOutElsewhere { .. } => Some("give the run's dataset.eval_file with --eval-file"),
            Self::NeedsNoFile { .. } => Some("leave --dataset out: its samples are regenerated from its seed"),
            Self::OtherFile { .. } => Some("give the file of the run, with the same lines in the same order"),
            _ => None,
        }
    }
}
