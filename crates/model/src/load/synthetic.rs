//! Published shapes with random weights, for tests and benchmarks: `synthetic:<size>[:seed]`.
//!
//! The initialisation of `transformers`: normal with deviation 0.02, GPT-2's residual projections divided by √(2·n_layer),
//! norms 1 and 0, biases 0. The numbers are our own: each row of a tensor has its own random stream, so rows are made in
//! parallel and the result does not depend on how.

mod normal;
mod ziggurat;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;

use super::weights::TensorSource;
use crate::arch::{Architecture, Gpt2Config, LlamaConfig, TensorList};
use crate::error::ModelError;

/// Every size, as listed to the user.
pub const SIZES: &str = "small, medium, large, xl, llama-7b";

/// The shapes of a size: GPT-2's, or Llama's with 7 billion parameters.
pub fn architecture(size: &str) -> Option<Architecture> {
    match size {
        "llama-7b" => Some(Architecture::Llama(LlamaConfig::seven_billion())),
        _ => Gpt2Config::named(size).map(Architecture::Gpt2),
    }
}

/// A generator of one random model.
pub struct Synthetic {
    shapes: TensorList,
    residual_deviation: f32,
    seed: u64,
}

impl Synthetic {
    /// Weights for `architecture`; other seeds give other weights.
    pub fn new(architecture: &Architecture, seed: u64) -> Self {
        let residual_deviation = 0.02 / (2.0 * architecture.layers() as f32).sqrt();
        Self { shapes: architecture.tensors(), residual_deviation, seed }
    }
}

impl TensorSource for Synthetic {
    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let shape = self.shapes.iter().find(|(known, _)| known == name).map(|(_, shape)| shape.as_slice());
        let (rows, columns) = match shape {
            Some([n]) => (1, *n),
            Some([rows, columns]) => (*rows, *columns),
            _ => (0, 0),
        };
        if name.ends_with(".bias") {
            return Ok(vec![0.0; columns]);
        }
        // The only weights that are no matrix are those of norms.
        if shape.is_some_and(|shape| shape.len() == 1) {
            return Ok(vec![1.0; columns]);
        }
        let deviation = if name.ends_with("c_proj.weight") { self.residual_deviation } else { 0.02 };
        let mut hasher = blake3::Hasher::new_derive_key("numalign 2026-11 synthetic weights");
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(name.as_bytes());
        let key = *hasher.finalize().as_bytes();
        let mut values = vec![0.0f32; rows * columns];
        values.par_chunks_mut(columns).enumerate().for_each(|(row, out)| {
            let mut random = ChaCha8Rng::from_seed(key);
            random.set_stream(row as u64);
            for value in out {
                *value = normal::standard_normal(&mut random) as f32 * deviation;
            }
        });
        Ok(values)
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::load::tensor_loader::TensorLoader;
    use crate::ops::WeightStorage;

    /// The base fingerprint, tensor by tensor, without a model in memory.
    fn fingerprint(size: &str, seed: u64) -> String {
        let config = Gpt2Config::named(size).unwrap();
        let source = Synthetic::new(&Architecture::Gpt2(config.clone()), seed);
        let mut loader =
            TensorLoader::new(&source, &config.canonical(), WeightStorage { backward: false, ..WeightStorage::F32 });
        for (name, _) in config.tensors() {
            loader.read(&name).unwrap();
        }
        loader.fingerprint().to_hex().to_string()
    }

    /// Checkpoints name the fingerprint of the model they were trained on: these never change.
    #[test]
    fn the_published_sizes_have_fixed_fingerprints() {
        assert_eq!(fingerprint("small", 0), "d1c81b2e135c8ef663dbf74e9f888612d90021c33499813c92ed6bd2c0d852b8");
        assert_eq!(fingerprint("medium", 0), "df04f3b1afd9cda4b90a7dde5c9141e3e07b6a3d12634cd72b534865a1f900e2");
    }
}
