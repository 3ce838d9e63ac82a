//! Checkpoints that every test of this crate shares.

use std::fs;
use std::path::Path;

use numalign_checkpoint::{Checkpoint, Identity};
use numalign_config::{Arithmetic, Config, Recipe};
use numalign_projector::State;

pub fn recipe() -> Recipe {
    Config::with(&[]).unwrap().recipe
}

/// A checkpoint after `steps` updates.
pub fn checkpoint(hidden: usize, steps: u64) -> Checkpoint {
    let recipe = recipe();
    let mut state = State::initial(hidden, 5);
    for step in 0..steps {
        let row: Vec<f32> = (0..state.layout().row_len()).map(|i| i as f32 * 0.37 - step as f32).collect();
        state.update(&row, &recipe).unwrap();
    }
    Checkpoint {
        identity: Identity {
            recipe,
            base_fingerprint: "0123456789abcdef".to_owned(),
            tokenizer_fingerprint: None,
            arithmetic: Arithmetic::F32,
            layer_norms: Vec::new(),
            dataset_digest: None,
            split: None,
            loaded_digest: Some("fedcba".to_owned()),
        },
        state,
        sample_digest: "5a5a".to_owned(),
        sums: None,
    }
}

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
