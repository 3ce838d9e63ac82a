//! The norms of a model: their weights on the device, as one flat list of numbers, and their gradients. Everything else
//! about the model stays frozen.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::host::to_host;
use crate::error::ModelError;
use crate::kernels::norm;

/// What a norm keeps for its backward pass.
pub struct Normed<B: Backend> {
    /// `(x − mean)·rstd`, `[r, d]`; an RMS norm has no mean
    pub normed_rd: Tensor<B, 2>,
    /// `1/√(var + eps)`, `[r, 1]`
    pub rstd_r1: Tensor<B, 2>,
}

/// Scale and shift of a norm, on the device.
pub struct NormWeights<B: Backend> {
    /// The tensors' common name in the model's files, without `.weight`.
    pub name: String,
    /// The scale `γ`.
    pub gamma_d: Tensor<B, 1>,
    /// A layer norm's shift. `None` is an RMS norm, which does not centre its input either.
    pub beta_d: Option<Tensor<B, 1>>,
    /// Added to the variance.
    pub eps: f32,
}

impl<B: Backend> NormWeights<B> {
    /// Numbers that the norm has.
    pub fn numbers(&self) -> usize {
        let [width] = self.gamma_d.dims();
        if self.beta_d.is_some() { 2 * width } else { width }
    }

    /// Appends the norm's parameters to `list`: the scale, then the shift if there is one.
    ///
    /// # Errors
    /// The device does not return them.
    pub fn parameters(&self, list: &mut Vec<NormParameter>) -> Result<(), ModelError> {
        let named = |kind: &str, values: &Tensor<B, 1>| {
            let values = to_host(values.clone().unsqueeze::<2>())?;
            Ok::<_, ModelError>(NormParameter { name: format!("{}.{kind}", self.name), values })
        };
        list.push(named("weight", &self.gamma_d)?);
        if let Some(beta_d) = &self.beta_d {
            list.push(named("bias", beta_d)?);
        }
        Ok(())
    }

    /// Takes the norm's numbers from the front of `values`, which has at least as many; returns the rest.
    pub fn set<'a>(&mut self, values: &'a [f32]) -> &'a [f32] {
        let [width] = self.gamma_d.dims();
        let device = self.gamma_d.device();
        let tensor = |part: &[f32]| Tensor::from_data(TensorData::new(part.to_vec(), [width]), &device);
        let (gamma, mut rest) = values.split_at(width);
        self.gamma_d = tensor(gamma);
        if let Some(beta_d) = &mut self.beta_d {
            let (beta, tail) = rest.split_at(width);
            *beta_d = tensor(beta);
            rest = tail;
        }
        rest
    }
}

/// One parameter of a norm that may train.
#[derive(Debug, Clone, PartialEq)]
pub struct NormParameter {
    /// The tensor's name in the model's files, such as `h.0.ln_1.weight`.
    pub name: String,
    /// Row-major.
    pub values: Vec<f32>,
}

/// Where the gradients of the norms go. Sequences of one group (a micro-batch) are added into one list of sums, row by
/// row in the order of the batch, onto what is there: a group's sums do not depend on the other groups, nor on how its
/// sequences are cut into passes.
pub struct NormGradients<'a> {
    /// Place in `sums` for each sequence of the last forward.
    pub group_of_sequence: &'a [usize],
    /// One list per group, as long as all of [`crate::FrozenLm::norm_parameters`] together and in that order.
    pub sums: &'a mut [Vec<f32>],
}

impl NormGradients<'_> {
    /// Refuses what does not fit the batch.
    pub(crate) fn check(&self, sequences: usize, parameters: usize) -> Result<(), ModelError> {
        let wrong = |reason: String| Err(ModelError::NormParameters { reason });
        if self.group_of_sequence.len() != sequences {
            return wrong(format!("{} groups for {sequences} sequences", self.group_of_sequence.len()));
        }
        if let Some(group) = self.group_of_sequence.iter().find(|group| **group >= self.sums.len()) {
            return wrong(format!("group {group} of {}", self.sums.len()));
        }
        match self.sums.iter().find(|sums| sums.len() != parameters) {
            Some(sums) => wrong(format!("{} sums for {parameters} numbers", sums.len())),
            None => Ok(()),
        }
    }
}

/// [`NormGradients`] on their way through the backward pass.
pub(crate) struct NormSums<'a> {
    /// Where the sums are.
    pub target: NormGradients<'a>,
    /// Group of each row, all positions of all sequences.
    pub group_of_row: Vec<usize>,
}

impl NormSums<'_> {
    /// Adds the gradients of one norm, whose numbers begin at `at`, given the gradient of its output.
    pub fn add<B: Backend>(
        &mut self,
        at: usize,
        weights: &NormWeights<B>,
        grad_rd: &Tensor<B, 2>,
        saved: &Normed<B>,
    ) -> Result<(), ModelError> {
        let [rows, d] = grad_rd.dims();
        // A norm sees all rows, or one for each sequence where only the last positions are left.
        let groups = if rows == self.group_of_row.len() { &self.group_of_row } else { self.target.group_of_sequence };
        let (grad, normed) = (to_host(grad_rd.clone())?, to_host(saved.normed_rd.clone())?);
        let (scale, shift) = (at..at + d, weights.beta_d.is_some().then_some(at + d..at + 2 * d));
        norm::parameter_gradients(&grad, &normed, groups, scale, shift, self.target.sums);
        Ok(())
    }
}
