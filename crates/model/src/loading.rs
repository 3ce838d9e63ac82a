//! Reads a model's tensors one at a time, hashes them into the base fingerprint, and puts them on the device.
//! Called by each family's loader.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::error::ModelError;
use crate::ops::NormWeights;
use crate::weights::TensorSource;

/// Tensors in the order of the family's list; the fingerprint depends on that order.
pub struct Loader<'a> {
    source: &'a dyn TensorSource,
    hasher: blake3::Hasher,
}

impl<'a> Loader<'a> {
    /// `canonical` is the text of what determines the model's arithmetic.
    pub fn new(source: &'a dyn TensorSource, canonical: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("numalign 2026-11 base fingerprint");
        hasher.update(canonical.as_bytes());
        Self { source, hasher }
    }

    /// The tensor `name`, row-major.
    pub fn read(&mut self, name: &str) -> Result<Vec<f32>, ModelError> {
        let values = self.source.read(name)?;
        self.hasher.update(name.as_bytes());
        self.hasher.update(&(values.len() as u64).to_le_bytes());
        let mut bytes = Vec::with_capacity(1 << 16);
        for chunk in values.chunks(1 << 14) {
            bytes.clear();
            for value in chunk {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            self.hasher.update(&bytes);
        }
        Ok(values)
    }

    /// `name.weight` and `name.bias` of a layer norm.
    pub fn layer_norm<B: Backend>(
        &mut self,
        name: &str,
        eps: f32,
        device: &B::Device,
    ) -> Result<NormWeights<B>, ModelError> {
        let gamma = self.read(&format!("{name}.weight"))?;
        let beta = self.read(&format!("{name}.bias"))?;
        let width = gamma.len();
        Ok(NormWeights {
            name: name.to_owned(),
            gamma_d: Tensor::from_data(TensorData::new(gamma, [width]), device),
            beta_d: Some(Tensor::from_data(TensorData::new(beta, [width]), device)),
            eps,
        })
    }

    /// The base fingerprint of all that was read.
    pub fn fingerprint(&self) -> blake3::Hash {
        self.hasher.finalize()
    }
}
