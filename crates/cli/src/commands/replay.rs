//! `numalign replay`: recomputes the steps after a checkpoint in this process, to compare two builds or machines, or to
//! find the step where a run went astray.

use std::path::Path;

use clap::ArgMatches;
use numalign_checkpoint::Checkpoint;
use numalign_config::{DeviceChoice, Solver};
use numalign_data::{Schedule, Unit};
use numalign_engine::{LocalRun, Purpose, training_stream};

use crate::args::text;
use crate::checkpointed::engine_of;
use crate::console::note;
use crate::error::CliError;
use crate::output::{self, outln};
use crate::settings;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let path = Path::new(text(matches, "checkpoint").unwrap_or_default());
    let checkpoint = Checkpoint::read(path)?;
    let from = checkpoint.state.step();
    let asked = *matches.get_one::<u64>("steps").unwrap_or(&1);
    let steps = steps_ahead(&checkpoint, asked);
    if steps == 0 {
        let reason = match checkpoint.state.position().gathered {
            Some(_) => "is in a round of the solver, which makes no steps".to_owned(),
            None => format!("holds the last of {} steps", checkpoint.identity.recipe.total_steps()),
        };
        return Err(CliError::new(format!("{} {reason}", path.display()))
            .with_hint("give another checkpoint of the run, chk/<run-id>/step-*.safetensors"));
    }
    if steps < asked {
        let what = match checkpoint.identity.recipe.solver {
            Solver::Adam => "the run ends",
            Solver::Exact | Solver::Alternate => "the run ends or its projector is solved for",
        };
        note!("{what} after {steps} more steps");
    }
    let stream = training_stream(&checkpoint, path, text(matches, "dataset").map(Path::new))?;
    let evaluations = Evaluations::of(matches, &checkpoint);
    let device = settings::device(matches)?.unwrap_or(DeviceChoice::Auto);
    let engine = engine_of(&checkpoint, path, text(matches, "model"), device, Purpose::Train)?;
    let json = matches.get_flag("json");
    let mut run = LocalRun::new(engine, stream, checkpoint.state)?;
    let mut lines = Vec::new();
    for _ in 0..steps {
        let loss = run.step()?;
        if evaluations.due(run.state().step()) {
            run.evaluate(evaluations.samples)?;
        }
        let (step, digest) = (run.state().step(), run.state().digest().to_hex());
        if json {
            lines.push(serde_json::json!({ "step": step, "loss": loss, "state_digest": digest }));
        } else {
            if output::reader_gone() {
                break;
            }
            outln!("step {step:>8}  loss {loss:<14}  state {digest}")?;
        }
    }
    if json {
        outln!("{}", serde_json::json!({ "checkpoint": path, "from_step": from, "steps": lines }))?;
    }
    Ok(())
}

/// When the run was evaluated, and on how many samples: its states hold what was found.
struct Evaluations {
    /// Steps between two; 0 where there were none.
    every: u64,
    samples: u64,
}

impl Evaluations {
    /// As asked for, else as the checkpoint's own history shows.
    fn of(matches: &ArgMatches, checkpoint: &Checkpoint) -> Self {
        let made = checkpoint.state.evaluations().list();
        let shown = made.first().map_or((0, 200), |first| (first.step, first.samples));
        let epochs = matches.get_one::<u64>("eval-every");
        let every = epochs.map(|epochs| epochs.saturating_mul(checkpoint.identity.recipe.num_batches));
        Self { every: every.unwrap_or(shown.0), samples: *matches.get_one("eval-samples").unwrap_or(&shown.1) }
    }

    fn due(&self, step: u64) -> bool {
        self.every > 0 && step.is_multiple_of(self.every)
    }
}

/// Training steps from the checkpoint to the next round of the solver or the end of the run, `most` at most.
fn steps_ahead(checkpoint: &Checkpoint, most: u64) -> u64 {
    let units = Schedule::of(&checkpoint.identity.recipe);
    let next = units.index(checkpoint.state.position());
    let mut steps = 0;
    while steps < most && matches!(units.unit(next + steps), Unit::Step(_)) {
        steps += 1;
    }
    steps
}
