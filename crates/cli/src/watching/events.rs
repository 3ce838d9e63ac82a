//! Keeps a run's event files for TensorBoard up to date, beside the run: from `metrics.jsonl` alone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use numalign_config::{Config, RUNS_FOLDER};
use numalign_dashboard::RunSource;
use numalign_dashboard::tensorboard::EventFile;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::WatchedRun;
use crate::console::note;
use crate::plot::Picture;

/// Time between two looks at the record.
const LOOK: Duration = Duration::from_secs(2);

/// The event file of a run that goes on.
pub struct EventWriter {
    stop: Arc<Notify>,
    task: JoinHandle<EventFile>,
}

impl EventWriter {
    /// Begins to follow the run; none unless it wants that. Needs the context of a runtime.
    pub fn start(config: &Config) -> Option<Self> {
        if !config.run.tensorboard {
            return None;
        }
        let settings = WatchedRun::of_config(config).facts().settings.clone();
        let folder = Path::new(RUNS_FOLDER).join(&config.run.run_id);
        let stop = Arc::new(Notify::new());
        let task = tokio::spawn(follow(EventFile::of_run(&folder, settings), stop.clone()));
        Some(Self { stop, task })
    }

    /// The training is over, and its record complete.
    pub async fn finish(self) -> Option<FinishedEvents> {
        self.stop.notify_one();
        self.task.await.ok().map(FinishedEvents)
    }
}

async fn follow(mut file: EventFile, stop: Arc<Notify>) -> EventFile {
    let mut is_told = false;
    loop {
        let is_last = tokio::time::timeout(LOOK, stop.notified()).await.is_ok();
        let looked = tokio::task::spawn_blocking(move || {
            let result = file.catch_up();
            (file, result)
        });
        let result;
        (file, result) = match looked.await {
            Ok(looked) => looked,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        if let Err(error) = result
            && !is_told
        {
            is_told = true;
            note!("warning: the event files for TensorBoard have gaps: {error}");
        }
        if is_last {
            return file;
        }
    }
}

/// The event file of a run whose training is over.
pub struct FinishedEvents(EventFile);

impl FinishedEvents {
    /// Adds the picture of the closing evaluation, if there is one, and ends the file. A failure is a warning.
    pub fn close(mut self, step: u64, picture: Option<&Picture>) {
        if let Some(picture) = picture {
            let size = (picture.width as u32, picture.height as u32);
            match picture.png() {
                Ok(png) => warn(self.0.image("evaluation", step, size, png)),
                Err(error) => note!("warning: {error}"),
            }
        }
        warn(self.0.close());
    }
}

fn warn(result: std::io::Result<()>) {
    if let Err(error) = result {
        note!("warning: the event file for TensorBoard cannot be written: {error}");
    }
}
