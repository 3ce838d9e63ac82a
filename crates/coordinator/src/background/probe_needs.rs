//! What a probe's pass needs of the machine, known before it begins.

use std::fmt;
use std::path::Path;

use numalign_config::Recipe;
use numalign_data::Schedule;
use numalign_projector::{Features, probe};

use super::memory::free_memory;
use super::solver::Backlog;

/// Copies of a chunk that exist at once while it is gathered: its rows as they come, put together, and on their way into
/// the file.
const CHUNK_COPIES: u64 = 3;

/// Copies of the state that exist at once: a state has three numbers for each column, and those of some units are kept.
const STATE_COPIES: u64 = 32;

/// The program itself, its threads and its connections.
const PROCESS: u64 = 64 << 20;

/// Bytes that a pass takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeNeeds {
    /// Of the file of rows, in the run's folder.
    pub disk: u64,
    /// Of the coordinator's memory, at most.
    pub coordinator: u64,
    /// Of each worker's memory beside the model's weights.
    pub worker: u64,
}

impl ProbeNeeds {
    /// Of the probe that `recipe` asks for, of a model with hidden size `hidden` whose largest pass takes `activations`
    /// bytes.
    pub fn of(recipe: &Recipe, hidden: usize, activations: u64) -> Self {
        let columns = hidden * recipe.places().len();
        let chunk = (4 * recipe.batch_size * Features::width(columns)) as u64;
        let chunks = Schedule::of(recipe).chunks();
        let samples = chunks.saturating_mul(recipe.batch_size as u64);
        let states = STATE_COPIES * 12 * columns as u64;
        let found = probe::memory_bytes(hidden, samples, recipe.probe.unwrap_or(1));
        let waiting = Backlog::MOST.min(chunks.saturating_mul(chunk));
        Self {
            disk: chunks.saturating_mul(chunk),
            coordinator: PROCESS + states + (CHUNK_COPIES * chunk + waiting).max(found),
            // Read from the model, as rows, and on their way to the coordinator.
            worker: PROCESS + states + CHUNK_COPIES * chunk + activations,
        }
    }

    /// Refuses a pass for which there is no room in `folder` or in memory.
    ///
    /// # Errors
    /// What is needed and what is free, in words.
    pub fn check(&self, folder: &Path) -> Result<(), String> {
        // A folder that is not there yet, or a system that does not say, refuses nothing: the pass itself finds out.
        if let Ok(disk) = rustix::fs::statvfs(folder) {
            enough_disk(self.disk, disk.f_bavail.saturating_mul(disk.f_frsize), folder)?;
        }
        match free_memory() {
            Some(free) if self.coordinator > free => Err(format!(
                "it takes up to {} of memory in the coordinator, and {} are free; choose fewer places (--taps)",
                gib(self.coordinator),
                gib(free)
            )),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for ProbeNeeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { disk, coordinator, worker } = self;
        write!(f, "{} of rows on disk, up to {} of memory in the coordinator", gib(*disk), gib(*coordinator))?;
        write!(f, " and {} in each worker beside the model", gib(*worker))
    }
}

/// Refuses rows of `needed` bytes beside `path` where `free` bytes are left.
pub(super) fn enough_disk(needed: u64, free: u64, path: &Path) -> Result<(), String> {
    if needed <= free {
        return Ok(());
    }
    Err(format!(
        "its rows need {} in {}, where {} are free; take fewer samples, layers or poolings",
        gib(needed),
        path.display(),
        gib(free)
    ))
}

/// Bytes for people.
pub(super) fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64)
}

#[cfg(test)]
mod tests {
    use numalign_config::{Config, Pooling, Tap};

    use super::*;

    fn needs(hidden: usize, layers: usize, samples: usize) -> ProbeNeeds {
        let batches = (samples / 32).to_string();
        let settings =
            [("num_epochs", "1"), ("num_batches", &batches), ("batch_size", "32"), ("micro_batch_size", "4")];
        let mut recipe = Config::with(&settings).unwrap().recipe;
        recipe.solver = numalign_config::Solver::Exact;
        let poolings = [Pooling::Last, Pooling::Mean, Pooling::Numbers];
        let layers = (0..layers).map(Some);
        let places: Vec<Tap> = layers.flat_map(|layer| poolings.map(|pooling| Tap { layer, pooling })).collect();
        recipe = recipe.reading(&places);
        recipe.probe = Some(6);
        ProbeNeeds::of(&recipe, hidden, 0)
    }

    #[test]
    fn a_large_model_stays_within_eight_gib_beside_its_weights() {
        let needs = needs(4096, 32, 4000);
        assert_eq!(needs.disk, 4000 * 4 * (96 * 4096 + 1));
        assert!(needs.coordinator + needs.worker < 8 << 30, "{needs}");
        assert!(needs.coordinator > 4 << 30, "{needs}");
    }

    #[test]
    fn what_has_no_room_is_refused_with_both_figures() {
        let needs = needs(576, 4, 4000);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(needs.check(folder.path()), Ok(()));
        let error = ProbeNeeds { disk: u64::MAX, ..needs }.check(folder.path()).unwrap_err();
        assert!(error.contains("fewer samples, layers or poolings"), "{error}");
        let error = ProbeNeeds { coordinator: u64::MAX, ..needs }.check(folder.path()).unwrap_err();
        assert!(error.contains("--taps"), "{error}");
    }
}
