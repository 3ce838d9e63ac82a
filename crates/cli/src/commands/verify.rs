//! `numalign verify`: proves from a checkpoint alone that it is whole and that its run took exactly the samples
//! 0…n−1 once each, in order, and none of the rows that were held out; and that it belongs to the frozen model it names, where that model is at hand.

use std::path::Path;
use std::sync::Arc;

use clap::ArgMatches;
use numalign_checkpoint::Checkpoint;
use numalign_config::DeviceChoice;
use numalign_coordinator::split_of;
use numalign_data::table::TableOptions;
use numalign_data::{Dataset, SampleDigest, SampleStream, Side};
use numalign_engine::{Purpose, training_stream};
use numalign_model::load::name::ModelName;

use crate::args::text;
use crate::checkpointed::engine_of;
use crate::error::CliError;
use crate::output::outln;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let path = Path::new(text(matches, "file").unwrap_or_default());
    let json = matches.get_flag("json");
    match verify(matches, path) {
        Ok(proof) if json => outln!("{}", proof.as_json(path))?,
        Ok(proof) => outln!("{}", proof.line(path))?,
        Err(failure) => {
            if json {
                let why = failure.to_string();
                let why = why.strip_prefix("error: ").unwrap_or(&why);
                outln!("{}", serde_json::json!({ "path": path, "ok": false, "why": why }))?;
            }
            return Err(failure);
        }
    }
    Ok(())
}

/// What is known of the frozen model.
enum Base {
    Matches(String),
    NotAtHand(String),
    Skipped,
}

/// Everything that was checked.
struct Proof {
    step: u64,
    samples: u64,
    ledger: String,
    state_digest: String,
    held_out: Option<HeldOut>,
    /// How another program that saved the file again changed it.
    rearranged: Option<&'static str>,
    base: Base,
}

/// What is known of a run's held-out rows.
enum HeldOut {
    /// None of so many was trained on.
    Proven(u64),
    /// They are in another file, which was not given.
    Unproven(u64),
}

fn verify(matches: &ArgMatches, path: &Path) -> Result<Proof, CliError> {
    // Reading compares the digest over the whole file and the state's own.
    let checkpoint = Checkpoint::read(path)?;
    let rearranged = checkpoint.rearranged(&std::fs::read(path)?);
    let recipe = &checkpoint.identity.recipe;
    let stream = training_stream(&checkpoint, path, text(matches, "dataset").map(Path::new))?;
    let (step, samples) = (checkpoint.state.step(), checkpoint.samples());
    let mut ledger = SampleDigest::start();
    ledger.extend(&stream, recipe, 0..step);
    let ledger = ledger.to_hex();
    if ledger != checkpoint.sample_digest {
        return Err(CliError::new(format!(
            "{}: samples 0 to {samples} (exclusive), once each and in order, give the digest {ledger:.16}; the run's is {:.16}",
            path.display(),
            checkpoint.sample_digest
        ))
        .with_hint("the run repeated, lost or changed samples, or another version of numalign generated them"));
    }
    let held_out = held_out_of(&checkpoint, path, &stream, text(matches, "eval-file").map(Path::new))?;
    let base = match matches.get_flag("no-base") {
        true => Base::Skipped,
        false => base_of(&checkpoint, path, text(matches, "model"))?,
    };
    Ok(Proof { step, samples, ledger, state_digest: checkpoint.state.digest().to_hex(), held_out, rearranged, base })
}

/// Compares the two parts of the data with what the checkpoint says of them, and with each other. `training` gives the
/// ledger's samples, so that what is not among its rows was never trained on.
fn held_out_of(
    checkpoint: &Checkpoint,
    path: &Path,
    training: &SampleStream,
    eval_file: Option<&Path>,
) -> Result<Option<HeldOut>, CliError> {
    let (Some(stored), Some(dataset)) = (&checkpoint.identity.split, training.dataset()) else {
        return Ok(None);
    };
    let held_out = match (stored.held_out_file, eval_file) {
        (false, _) => dataset.clone(),
        (true, Some(file)) => {
            Arc::new(Dataset::open_held_out(file, &checkpoint.identity.recipe, &TableOptions::default())?)
        }
        (true, None) => return Ok(Some(HeldOut::Unproven(stored.held_out_rows))),
    };
    if split_of(dataset, &held_out, stored.held_out_file) != *stored {
        return Err(CliError::new(format!("{}: the held-out rows are not those of its run", path.display()))
            .with_hint("give the run's own files with --dataset and --eval-file"));
    }
    match held_out.shared_with_training(Side::HeldOut, dataset) {
        0 => Ok(Some(HeldOut::Proven(stored.held_out_rows))),
        shared => Err(CliError::new(format!(
            "{}: {shared} of its {} held-out rows were trained on",
            path.display(),
            stored.held_out_rows
        ))
        .with_hint("they are in both files: take them out of one, and train again")),
    }
}

/// Compares fingerprints where the model can be loaded without the network; a model named with --model must be there.
fn base_of(checkpoint: &Checkpoint, path: &Path, model: Option<&str>) -> Result<Base, CliError> {
    let name = model.unwrap_or(&checkpoint.identity.recipe.model_name);
    let at_hand = match (ModelName::parse(name), model) {
        (Ok(parsed), None) => parsed.is_at_hand(),
        (Ok(_), Some(_)) => true,
        (Err(_), None) => false,
        (Err(error), Some(_)) => return Err(error.into()),
    };
    if !at_hand {
        return Ok(Base::NotAtHand(name.to_owned()));
    }
    engine_of(checkpoint, path, model, DeviceChoice::Cpu, Purpose::Predict)?;
    Ok(Base::Matches(name.to_owned()))
}

impl Proof {
    fn line(&self, path: &Path) -> String {
        let base = match &self.base {
            Base::Matches(name) => format!("frozen model {name} matches"),
            Base::NotAtHand(name) => format!("frozen model {name} is not at hand and was not compared"),
            Base::Skipped => "frozen model not compared".to_owned(),
        };
        let held_out = match self.held_out {
            Some(HeldOut::Proven(rows)) => format!("; none of the {rows} held-out rows was trained on"),
            Some(HeldOut::Unproven(rows)) => {
                format!("; without --eval-file it stays unproven that none of the {rows} held-out rows was trained on")
            }
            None => String::new(),
        };
        let rearranged = self.rearranged.map_or_else(String::new, |how| {
            format!("; another program saved the file again: {how}, its content is the same")
        });
        format!(
            "{}: file and state are whole (state {:.16}){rearranged}; {} steps took samples 0 to {} (exclusive) once each, \
             in order (ledger {:.16}){held_out}; {base}",
            path.display(),
            self.state_digest,
            self.step,
            self.samples,
            self.ledger
        )
    }

    fn as_json(&self, path: &Path) -> serde_json::Value {
        let (base, name) = match &self.base {
            Base::Matches(name) => ("matches", Some(name)),
            Base::NotAtHand(name) => ("not at hand", Some(name)),
            Base::Skipped => ("skipped", None),
        };
        let mut json = serde_json::json!({
            "path": path, "ok": true, "step": self.step, "samples": self.samples, "sample_digest": self.ledger,
            "state_digest": self.state_digest, "base": base, "base_model": name,
            "rearranged": self.rearranged,
        });
        if let Some(held_out) = &self.held_out {
            let (said, rows) = match held_out {
                HeldOut::Proven(rows) => ("not trained on", rows),
                HeldOut::Unproven(rows) => ("unproven", rows),
            };
            (json["held_out"], json["held_out_rows"]) = (said.into(), (*rows).into());
        }
        json
    }
}
