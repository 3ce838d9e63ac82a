//! The start of a generation: checks what the coordinator sent, chooses where rows go, spawns the unit loop.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use numalign_config::Recipe;
use numalign_projector::{Layout, State};
use numalign_protocol as proto;

use crate::connection::Connection;
use crate::device::Loaded;
use crate::error::WorkerError;
use crate::link::Link;
use crate::session::{RANK, Worker};
use crate::steps::Steps;

impl Worker {
    /// Starts a generation's task; a running one is stopped first.
    pub(crate) fn begin(&mut self, connection: &mut Connection, begin: proto::Begin) -> Result<(), WorkerError> {
        connection.stop_steps();
        self.communicators.end();
        connection.generation = begin.generation.map_or(0, |generation| generation.number);
        let (Some(kept), Some(generation)) = (&self.kept, begin.generation) else {
            return Err(WorkerError::Protocol("a generation began before the model was loaded".to_owned()));
        };
        connection.rollback = generation.rollback;
        let state = Arc::new(State::from_bytes(&begin.state)?);
        check_begin(&begin, &state, &kept.config.recipe, &kept.loaded)?;
        kept.uncommitted.restart(state.clone(), begin.mac.clone(), generation.rollback);
        // Another generation's task may still hold the old one.
        connection.rows_until = Arc::default();
        RANK.store(i64::from(begin.rank), Ordering::Relaxed);
        tracing::info!(
            "generation {}: rank {} of {}, micro-batches {}..{}, from step {}",
            generation.number,
            begin.rank,
            begin.world,
            begin.first_micro_batch,
            begin.end_micro_batch,
            state.step()
        );
        let nccl = match begin.nccl {
            true => {
                let row_len = state.layout().row_len();
                Some(self.communicators.begin(&kept.config, &begin, generation, &kept.loaded.nccl, row_len)?)
            }
            false => None,
        };
        let ahead = kept.config.run.prefetch_steps as u32;
        let steps = Steps {
            config: kept.config.clone(),
            device: kept.device.clone(),
            link: Link::new(connection.client.clone(), generation, connection.member, ahead),
            nccl,
            generation,
            rank: begin.rank,
            part: begin.first_micro_batch as usize..begin.end_micro_batch as usize,
            state,
            uncommitted: kept.uncommitted.clone(),
            reports: connection.reports.clone(),
            rows_until: connection.rows_until.clone(),
        };
        connection.steps = Some(tokio::spawn(steps.run()));
        Ok(())
    }
}

/// A generation must fit the run and the model.
fn check_begin(begin: &proto::Begin, state: &State, recipe: &Recipe, loaded: &Loaded) -> Result<(), WorkerError> {
    let wrong = |reason: String| Err(WorkerError::Protocol(reason));
    let micro_batches = recipe.micro_batches();
    let (first, end) = (begin.first_micro_batch as usize, begin.end_micro_batch as usize);
    if first > end || end > micro_batches {
        return wrong(format!("a generation gives micro-batches {first}..{end} of {micro_batches}"));
    }
    if begin.rank >= begin.world {
        return wrong(format!("a generation gives rank {} of {}", begin.rank, begin.world));
    }
    let norms = loaded.layer_norms.iter().map(|norm| norm.values.len()).sum();
    let (found, wanted) = (state.layout(), Layout::of(recipe, loaded.hidden_size, norms));
    if found != wanted {
        return wrong(format!("a generation's state has the layout {found:?}, this model and recipe {wanted:?}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use numalign_config::{Arithmetic, Config};
    use numalign_model::Description;

    use super::*;

    const HIDDEN: usize = 4;

    fn recipe() -> Recipe {
        Config::with(&[("batch_size", "6"), ("micro_batch_size", "2")]).unwrap().recipe
    }

    fn loaded() -> Loaded {
        let name = "test".to_owned();
        Loaded {
            description: Description { device: name.clone(), weights: "test", arithmetic: Arithmetic::F32, name },
            nccl: Err("not asked for".to_owned()),
            fingerprint: String::new(),
            tokenizer_fingerprint: None,
            longest_text: 0,
            hidden_size: HIDDEN,
            parameters: 0,
            trial_digest: Vec::new(),
            layer_norms: Vec::new(),
        }
    }

    fn refusal(begin: &proto::Begin, hidden: usize) -> Option<String> {
        let recipe = recipe();
        let state = State::initial(Layout::of(&recipe, hidden, 0), 1);
        check_begin(begin, &state, &recipe, &loaded()).err().map(|error| error.to_string())
    }

    fn begin(rank: u32, world: u32, first_micro_batch: u32, end_micro_batch: u32) -> proto::Begin {
        proto::Begin { rank, world, first_micro_batch, end_micro_batch, ..proto::Begin::default() }
    }

    #[test]
    fn generations_that_fit_are_begun() {
        for part in [begin(0, 1, 0, 3), begin(1, 2, 1, 3), begin(2, 3, 3, 3)] {
            assert_eq!(refusal(&part, HIDDEN), None, "{part:?}");
        }
    }

    #[test]
    fn generations_that_do_not_fit_are_refused() {
        for (part, hidden, words) in [
            (begin(0, 1, 0, 4), HIDDEN, "micro-batches 0..4 of 3"),
            (begin(0, 1, 2, 1), HIDDEN, "micro-batches 2..1 of 3"),
            (begin(2, 2, 0, 3), HIDDEN, "rank 2 of 2"),
            (begin(0, 1, 0, 3), HIDDEN + 1, "layout"),
        ] {
            let refused = refusal(&part, hidden).unwrap_or_default();
            assert!(refused.contains(words), "{part:?}: {refused}");
        }
    }
}
