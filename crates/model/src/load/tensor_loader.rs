//! Reads a model's tensors one at a time, hashes them into the base fingerprint, and puts them on their devices.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use numalign_projector::bytes::le_bytes;

use super::weights::TensorSource;
use crate::decoder::embedding_table::EmbeddingTable;
use crate::error::ModelError;
use crate::ops::norms::NormWeights;
use crate::ops::{FrozenOps, HostBlocks, HostLinear, WeightOrder, WeightStorage};

/// A dense weight's sizes and layout.
#[derive(Debug, Clone, Copy)]
pub struct Dense {
    /// Input features.
    pub input: usize,
    /// Output features.
    pub output: usize,
    /// How the file holds it.
    pub order: WeightOrder,
    /// Whether a bias belongs to it.
    pub bias: bool,
}

/// A weight that was read, and the same in blocks where these are kept.
pub struct Weight {
    values: Vec<f32>,
    blocks: Option<HostBlocks>,
}

/// Tensors in the order of the family's list; the fingerprint depends on that order.
pub struct TensorLoader<'a> {
    source: &'a dyn TensorSource,
    hasher: blake3::Hasher,
    /// How weights are held.
    pub storage: WeightStorage,
}

impl<'a> TensorLoader<'a> {
    /// `canonical` is the text of what determines the model's arithmetic.
    pub fn new(source: &'a dyn TensorSource, canonical: &str, storage: WeightStorage) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("numalign 2026-11 base fingerprint");
        hasher.update(canonical.as_bytes());
        Self { source, hasher, storage }
    }

    /// The tensor `name`, row-major.
    ///
    /// # Errors
    /// The source cannot be read, or holds NaN or infinity there.
    pub fn read(&mut self, name: &str) -> Result<Vec<f32>, ModelError> {
        let values = self.source.read(name)?;
        if let Some(at) = first_not_finite(&values) {
            return Err(self.not_finite(name, at, values[at]));
        }
        self.name(name, values.len());
        self.numbers(&values);
        Ok(values)
    }

    /// The weight `name` of a product.
    ///
    /// # Errors
    /// As [`TensorLoader::read`].
    pub fn weight(&mut self, name: &str) -> Result<Weight, ModelError> {
        let blocks = if self.storage.dtype.is_quantised() { self.source.blocks(name)? } else { None };
        Ok(Weight { values: self.read(name)?, blocks })
    }

    /// The tensor `name [rows, width]` as a table, a part at a time.
    ///
    /// # Errors
    /// The source cannot be read, or holds NaN or infinity there.
    pub fn table(&mut self, name: &str, rows: usize, width: usize) -> Result<EmbeddingTable, ModelError> {
        let mut table = EmbeddingTable::with_capacity(rows, width, self.storage.dtype);
        self.name(name, rows * width);
        let source = self.source;
        let (mut read, mut not_finite) = (0, None);
        source.read_parts(name, &mut |part| {
            if not_finite.is_none() {
                not_finite = first_not_finite(part).map(|at| (read + at, part[at]));
            }
            read += part.len();
            self.numbers(part);
            table.extend(part);
        })?;
        match not_finite {
            Some((at, value)) => Err(self.not_finite(name, at, value)),
            None => Ok(table),
        }
    }

    fn not_finite(&self, name: &str, at: usize, value: f32) -> ModelError {
        let index = index_of(at, &self.source.shape(name));
        ModelError::NotFinite { tensor: name.to_owned(), index, value }
    }

    fn name(&mut self, name: &str, count: usize) {
        self.hasher.update(name.as_bytes());
        self.hasher.update(&(count as u64).to_le_bytes());
    }

    fn numbers(&mut self, values: &[f32]) {
        self.hasher.update(le_bytes(values));
    }

    /// `name.weight` and `name.bias` of a layer norm.
    ///
    /// # Errors
    /// The source cannot be read.
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

    /// `name.weight` of an RMS norm.
    ///
    /// # Errors
    /// The source cannot be read.
    pub fn rms_norm<B: Backend>(
        &mut self,
        name: &str,
        eps: f32,
        device: &B::Device,
    ) -> Result<NormWeights<B>, ModelError> {
        let gamma = self.read(&format!("{name}.weight"))?;
        let width = gamma.len();
        let gamma_d = Tensor::from_data(TensorData::new(gamma, [width]), device);
        Ok(NormWeights { name: name.to_owned(), gamma_d, beta_d: None, eps })
    }

    /// `name.weight`, and `name.bias` if `dense` says so.
    ///
    /// # Errors
    /// The source cannot be read.
    pub fn dense<B: FrozenOps>(
        &mut self,
        name: &str,
        dense: Dense,
        device: &B::Device,
    ) -> Result<B::Linear, ModelError> {
        let weight = self.weight(&format!("{name}.weight"))?;
        let bias = if dense.bias { Some(self.read(&format!("{name}.bias"))?) } else { None };
        Ok(self.prepare::<B>(&weight, bias.as_deref(), dense, (0, dense.output), device))
    }

    /// Outputs `outputs` of a weight that was read.
    pub fn prepare<B: FrozenOps>(
        &self,
        weight: &Weight,
        bias: Option<&[f32]>,
        dense: Dense,
        outputs: (usize, usize),
        device: &B::Device,
    ) -> B::Linear {
        let Dense { input, output, order, .. } = dense;
        let WeightStorage { dtype, arithmetic, .. } = self.storage;
        let (weight, blocks) = (&weight.values, weight.blocks.as_ref());
        let host = HostLinear { weight, order, input, output, outputs, bias, dtype, arithmetic, blocks };
        B::prepare(host, device)
    }

    /// The base fingerprint of all that was read. It is the files', whatever type the weights are held in.
    pub fn fingerprint(&self) -> blake3::Hash {
        self.hasher.finalize()
    }
}

/// Where the first NaN or infinity of `values` is.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    const EXPONENT: u32 = 0x7f80_0000;
    const RUN: usize = 4096;
    // No early exit within a run, so that it compiles to vector code.
    let run = values
        .chunks(RUN)
        .position(|run| run.iter().fold(false, |found, value| found | (value.to_bits() & EXPONENT == EXPONENT)))?;
    let start = run * RUN;
    values[start..].iter().position(|value| !value.is_finite()).map(|at| start + at)
}

/// The index of the number at `at` in a row-major tensor of `shape`; `at` itself where the shape is not known.
fn index_of(at: usize, shape: &[usize]) -> Vec<usize> {
    if shape.is_empty() {
        return vec![at];
    }
    let mut rest = at;
    let mut index = vec![0; shape.len()];
    for (axis, size) in shape.iter().enumerate().rev() {
        index[axis] = rest % (*size).max(1);
        rest /= (*size).max(1);
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_that_is_not_finite_is_found_wherever_it_is() {
        for at in [0, 1, 4095, 4096, 9_999] {
            for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = vec![f32::MAX; 10_000];
                assert_eq!(first_not_finite(&values), None);
                values[at] = value;
                assert_eq!(first_not_finite(&values), Some(at));
                values[9_999] = value;
                assert_eq!(first_not_finite(&values), Some(at));
            }
        }
        assert_eq!(first_not_finite(&[]), None);
    }

    #[test]
    fn indices_are_row_major() {
        assert_eq!(index_of(23, &[2, 3, 4]), [1, 2, 3]);
        assert_eq!(index_of(5, &[7]), [5]);
        assert_eq!(index_of(5, &[]), [5]);
    }
}
