//! What a run starts from: fresh projectors, loaded ones, or a checkpoint; and the lock on its folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use numalign_checkpoint::{
    Checkpoint, CheckpointError, Identity, NO_TOKENIZER, RunFolder, SplitDigests, is_void, open_regular,
    remove_abandoned,
};
use numalign_config::{Config, LoadedProjections, Recipe, Resume, Stage};
use numalign_data::{SampleDigest, Schedule, Streams, Unit};
use numalign_projector::{InputEncoder, NormTensor, State, Sums};

use crate::dataset::{OpenedFiles, RunData};
use crate::error::CoordinatorError;
use crate::machine::KnownBase;
use crate::machine::clean_audits::HostDevice;
use crate::state_key::StateKey;

/// Everything known before the first worker comes.
pub struct Start {
    /// Where the run's checkpoints are.
    pub folder: RunFolder,
    /// Held for the life of the run.
    pub lock: File,
    /// The samples.
    pub streams: Streams,
    /// Of the data file, hex.
    pub dataset_digest: Option<String>,
    /// The two parts of the data, if rows of it are held out.
    pub split: Option<SplitDigests>,
    /// Of the loaded projectors, hex.
    pub loaded_digest: Option<String>,
    /// State to continue from or to start with.
    pub state: Option<State>,
    /// Sums of the solver's round in progress.
    pub sums: Option<Sums>,
    /// The frozen model that the workers must have.
    pub base: Option<KnownBase>,
    /// The base's layer norms, if `state` has them.
    pub layer_norms: Vec<NormTensor>,
    /// Digest of the samples behind `state`.
    pub sample_digest: SampleDigest,
    /// Machines with unaudited rows in the run, and the state before them.
    pub unaudited: BTreeMap<HostDevice, Arc<Checkpoint>>,
    /// What committed states are signed with.
    pub key: StateKey,
    /// The folder holds a finished run, whose checkpoints go once this one is about to train.
    pub replaces: bool,
    /// Lines for the user.
    pub messages: Vec<String>,
}

/// Decides what the run starts from; `files` are those that were read before.
///
/// # Errors
/// The run folder is in use or unreadable, or the checkpoint, the loaded projectors or the data file do not fit.
pub fn prepare(config: &Config, files: OpenedFiles) -> Result<Start, CoordinatorError> {
    let recipe = &config.recipe;
    let folder = RunFolder::open(&Path::new(numalign_config::RUNS_FOLDER).join(&config.run.run_id))?;
    let lock = lock(&folder)?;
    let rollbacks = folder.rollbacks()?;
    remove_abandoned(folder.path());
    let data = RunData::open(config, files)?;
    let dataset_digest = data.streams.train.content_digest().map(|digest| digest.to_hex().to_string());
    let loaded = match &config.run.model_path_load {
        Some(path) => Some((path.clone(), Checkpoint::read(path)?)),
        None => None,
    };
    let key = StateKey::open(folder.path(), config)?;
    key.rolled_back(rollbacks);
    let mut start = Start {
        key,
        folder,
        lock,
        streams: data.streams,
        dataset_digest,
        split: data.split,
        loaded_digest: loaded.as_ref().map(|(_, checkpoint)| checkpoint.loaded_digest(config.run.load_projections)),
        state: None,
        sums: None,
        base: None,
        layer_norms: Vec::new(),
        sample_digest: SampleDigest::start(),
        unaudited: BTreeMap::new(),
        replaces: false,
        messages: data.messages,
    };
    if let Some((path, checkpoint)) = &loaded {
        start.messages.push(format!(
            "{} from {} (stage {}, step {})",
            match config.run.load_projections {
                LoadedProjections::Both => "projectors",
                LoadedProjections::Input => "input projector",
                LoadedProjections::Output => "output projector",
            },
            path.display(),
            checkpoint.identity.recipe.stage,
            checkpoint.state.step()
        ));
        loadable(config, path, checkpoint)?;
        start.layer_norms = checkpoint.identity.layer_norms.clone();
        let state =
            State::starting_from(&checkpoint.state, config.run.load_projections, recipe.places().len(), recipe.seed);
        start.state = Some(state.prepared(recipe));
        start.base = Some(base_of(recipe, path, &checkpoint.identity, &mut start.messages));
    }
    if let Some((path, checkpoint)) = find(config, &mut start)? {
        continue_from(config, &path, checkpoint, &mut start)?;
    }
    if config.run.resume.is_some() && !start.replaces {
        start.unaudited = unaudited(config, &mut start)?;
    }
    Ok(start)
}

/// The frozen model that the checkpoint at `path` belongs to; a tokenizer counts where its run and this one read texts.
fn base_of(recipe: &Recipe, path: &Path, identity: &Identity, messages: &mut Vec<String>) -> KnownBase {
    let reads_text = recipe.stage != Stage::Nn;
    if reads_text && identity.lacks_tokenizer() {
        messages.push(format!("{}: {NO_TOKENIZER}", path.display()));
    }
    KnownBase {
        source: path.to_owned(),
        fingerprint: identity.base_fingerprint.clone(),
        tokenizer: identity.tokenizer_fingerprint.clone().filter(|_| reads_text),
        arithmetic: None,
    }
}

/// Loaded projectors must be what this run trains; layer norms that are not loaded are the model's own.
fn loadable(config: &Config, path: &Path, checkpoint: &Checkpoint) -> Result<(), CoordinatorError> {
    let (recipe, layout) = (&config.recipe, checkpoint.state.layout());
    let width = InputEncoder::of(recipe).width();
    if layout.input_width() != width {
        return Err(CoordinatorError::NotLoadable {
            path: path.to_owned(),
            reason: format!(
                "its input projector has {} columns, value_encoding {} needs {width}",
                layout.input_width(),
                recipe.value_encoding
            ),
            hint: "set value_encoding and fourier_periods as its run had them (`numalign inspect` shows them)",
        });
    }
    let (has, wanted) = (layout.places(), recipe.places().len());
    if config.run.load_projections != LoadedProjections::Input && has != wanted {
        return Err(CoordinatorError::NotLoadable {
            path: path.to_owned(),
            reason: format!("its output projector reads {has} places, this run reads {wanted}"),
            hint: "set layer, pooling or taps as its run had them, or load_projections to input",
        });
    }
    if !layout.layer_norms().is_empty() && !recipe.train_layer_norms {
        return Err(CoordinatorError::NotLoadable {
            path: path.to_owned(),
            reason: "its layer norms are trained, and this run leaves the model's own as they are".to_owned(),
            hint: "set train_layer_norms to true",
        });
    }
    Ok(())
}

fn lock(folder: &RunFolder) -> Result<File, CoordinatorError> {
    let path = folder.path().join("lock");
    let failed = |source| CoordinatorError::Lock { folder: folder.path().to_owned(), source };
    let file = open_regular(&path, false).map_err(failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(CoordinatorError::Locked { folder: folder.path().to_owned() }),
        Err(error) => Err(failed(error.into())),
    }
}

/// The checkpoint to continue from, if the configuration asks for one.
fn find(config: &Config, start: &mut Start) -> Result<Option<(PathBuf, Checkpoint)>, CoordinatorError> {
    if let Some(Resume::File(path)) = &config.run.resume {
        if !path.exists() {
            return Err(CoordinatorError::NothingToResume { path: path.clone() });
        }
        if is_void(path) {
            return Err(CheckpointError::Void { path: path.clone() }.into());
        }
        return Ok(Some((path.clone(), Checkpoint::read(path)?)));
    }
    let renewed = start.key.renewed()?;
    let replacing = format!("replacing the finished run in {}", start.folder.path().display());
    let is_replaced = start.folder.is_replaced();
    if is_replaced && config.run.resume.is_some() {
        // A coordinator of this run was killed before it trained: the checkpoints are the earlier run's.
        start.messages.push(replacing);
        (start.replaces, start.key) = (true, renewed);
        return Ok(None);
    }
    let (newest, skipped) = start.folder.newest_valid()?;
    for error in &skipped {
        start.messages.push(format!("passed over: {error}"));
    }
    if config.run.resume.is_some() {
        if newest.is_none() {
            start.messages.push("nothing to resume in the run folder: starting fresh".to_owned());
        }
        return Ok(newest);
    }
    if let Some((_, checkpoint)) = &newest {
        if !is_replaced && !is_finished(checkpoint, config) {
            return Err(CoordinatorError::Unfinished {
                folder: start.folder.path().to_owned(),
                step: checkpoint.state.step(),
                total: checkpoint.identity.recipe.total_steps(),
                run_id: config.run.run_id.clone(),
            });
        }
        let differences = differences(&checkpoint.identity, config, start);
        if !differences.is_empty() {
            return Err(CoordinatorError::OtherRun {
                folder: start.folder.path().to_owned(),
                differences: told(&differences),
            });
        }
        start.messages.push(replacing);
        start.folder.mark_replaced()?;
        // What the finished run signed is none of this one's.
        start.key = renewed;
    }
    if newest.is_none()
        && let Some(error) = skipped.into_iter().next()
    {
        return Err(CoordinatorError::Unreadable { folder: start.folder.path().to_owned(), source: error });
    }
    start.replaces = true;
    Ok(None)
}

/// Whether nothing is left to do. A last evaluation is left if the configuration asks for one after this state and the
/// state's final file, which comes after it, is not written. How often a run was evaluated is no part of its recipe, so
/// a setting does not make a finished run unfinished.
fn is_finished(checkpoint: &Checkpoint, config: &Config) -> bool {
    let stored = &checkpoint.identity.recipe;
    let position = checkpoint.state.position();
    if Schedule::of(stored).next(position) != Unit::End {
        return false;
    }
    if Schedule::with_evaluations(stored, config.run.eval_every).next(position) == Unit::End {
        return true;
    }
    let written = Checkpoint::read(&config.run.model_path_save);
    written.is_ok_and(|written| written.state.digest() == checkpoint.state.digest())
}

fn continue_from(
    config: &Config,
    path: &Path,
    checkpoint: Checkpoint,
    start: &mut Start,
) -> Result<(), CoordinatorError> {
    let mut differences = differences(&checkpoint.identity, config, start);
    // It may grow.
    let (stored, epochs) = (checkpoint.identity.recipe.num_epochs, config.recipe.num_epochs);
    differences.retain(|difference| difference.key != "num_epochs" || epochs < stored);
    let mut lines = told(&differences);
    if let Some(why) = growth(&checkpoint, &config.recipe) {
        lines = format!("{lines}\n{why}").trim_start_matches('\n').to_owned();
    }
    if !lines.is_empty() {
        return Err(CoordinatorError::Differs { path: path.to_owned(), differences: lines });
    }
    let Ok(sample_digest) = SampleDigest::from_hex(&checkpoint.sample_digest) else {
        return Err(CoordinatorError::Checkpoint(CheckpointError::Damaged {
            path: path.to_owned(),
            reason: format!("its sample digest is `{}`", checkpoint.sample_digest),
        }));
    };
    start.messages.push(format!("continuing {} at step {}", path.display(), checkpoint.state.step()));
    let position = checkpoint.state.position();
    let begun = checkpoint.state.step() > 0 || position.gathered.is_some_and(|chunks| chunks > 0);
    if checkpoint.sums.is_none() && checkpoint.state.position().gathered.is_some_and(|chunks| chunks > 0) {
        // Sums over several places are too large to be stored: the round begins again.
        let state = checkpoint.state.rewound(&config.recipe);
        start.messages.push(format!("gathering the solver's round again from step {}", state.step()));
        let mut digest = SampleDigest::start();
        digest.extend(&start.streams.train, &config.recipe, 0..state.step());
        start.sample_digest = digest;
        start.state = Some(state);
    } else {
        start.sample_digest = sample_digest;
        start.state = Some(checkpoint.state);
        start.sums = checkpoint.sums;
    }
    let mut base = base_of(&config.recipe, path, &checkpoint.identity, &mut start.messages);
    base.arithmetic = begun.then_some(checkpoint.identity.arithmetic);
    start.base = Some(base);
    start.layer_norms = checkpoint.identity.layer_norms.clone();
    Ok(())
}

/// The machines with unaudited rows, as the folder has them, and the states before those. One whose file cannot be read has
/// the earliest of the others.
fn unaudited(config: &Config, start: &mut Start) -> Result<BTreeMap<HostDevice, Arc<Checkpoint>>, CoordinatorError> {
    let (mut known, mut unknown) = (BTreeMap::new(), Vec::new());
    for (machine, state) in start.folder.audited()? {
        let machine_unit = machine.unit;
        let machine = HostDevice { host: machine.host, device: machine.device };
        match state {
            Ok(state)
                if state.identity.recipe.differences(&config.recipe).iter().all(|(key, ..)| *key == "num_epochs") =>
            {
                known.insert(machine, (machine_unit, Arc::new(state)));
            }
            // Another run's.
            Ok(_) => {}
            Err(error) => {
                start.messages.push(format!("{error}; the run would go back further, if it has to"));
                unknown.push(machine);
            }
        }
    }
    let earliest = known.values().min_by_key(|(unit, _)| *unit).cloned();
    for machine in unknown {
        if let Some(earliest) = &earliest {
            known.insert(machine, earliest.clone());
        }
    }
    Ok(known.into_iter().map(|(machine, (_, state))| (machine, state)).collect())
}

/// A setting that determines the result, in a checkpoint and in the configuration.
struct Difference {
    key: String,
    stored: String,
    configured: String,
}

/// One line for each.
fn told(differences: &[Difference]) -> String {
    let line = |Difference { key, stored, configured }: &Difference| {
        format!("  {key}: the checkpoint has {stored}, the configuration {configured}")
    };
    differences.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Every setting that determines the result and differs.
fn differences(stored: &Identity, config: &Config, start: &Start) -> Vec<Difference> {
    let recipes = stored.recipe.differences(&config.recipe).into_iter();
    let mut list: Vec<Difference> =
        recipes.map(|(key, stored, configured)| Difference { key, stored, configured }).collect();
    let show = |digest: &Option<String>| digest.as_ref().map_or("none".to_owned(), |digest| format!("{digest:.16}"));
    let digests = [
        ("content of dataset.file", &stored.dataset_digest, &start.dataset_digest),
        ("projectors of model_path_load", &stored.loaded_digest, &start.loaded_digest),
    ];
    for (key, stored, configured) in digests {
        if stored != configured {
            list.push(Difference { key: key.to_owned(), stored: show(stored), configured: show(configured) });
        }
    }
    if let (Some(was), Some(is)) = (&stored.split, &start.split)
        && was != is
    {
        let shown = |split: &SplitDigests| format!("{} rows ({:.16})", split.held_out_rows, split.held_out_digest);
        list.push(Difference { key: "held-out rows".to_owned(), stored: shown(was), configured: shown(is) });
    }
    list
}

/// Why the checkpoint's run cannot grow to `recipe`'s number of steps; `None` if it can.
fn growth(checkpoint: &Checkpoint, recipe: &Recipe) -> Option<String> {
    let stored = &checkpoint.identity.recipe;
    let why = Schedule::of(stored).why_not_extendable(&Schedule::of(recipe), checkpoint.state.position())?;
    Some(format!(
        "  num_epochs: the checkpoint has {}, the configuration {}: {why}",
        stored.num_epochs, recipe.num_epochs
    ))
}
