//! What several unit tests start from.

use numalign_config::Arithmetic;

use crate::machine::WorkerReady;

/// A worker on a CPU whose small model is loaded.
pub(crate) fn worker_ready() -> WorkerReady {
    WorkerReady {
        base_fingerprint: "0123456789abcdef0123".to_owned(),
        tokenizer_fingerprint: None,
        arithmetic: Arithmetic::F32,
        longest_text: 0,
        hidden_size: 2,
        model_parameters: 1_500_000,
        weights: "random".to_owned(),
        device: "cpu".to_owned(),
        trial_digest: vec![1],
        layer_norms: Vec::new(),
        layer_norm_values: Vec::new(),
        nccl: Err("no GPU".to_owned()),
    }
}
