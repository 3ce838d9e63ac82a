//! The norms' scales and shifts as one flat list of numbers, and their gradients.
//! Called by the decoder; everything else about the model stays frozen.

use burn::tensor::backend::Backend;

use crate::error::ModelError;
use crate::kernels::norm;
use crate::ops::{NormWeights, Normed, to_host};

/// One parameter of a norm that may train.
#[derive(Debug, Clone, PartialEq)]
pub struct NormParameter {
    /// The tensor's name in the model's files, such as `h.0.ln_1.weight`.
    pub name: String,
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
        grad_rd: &burn::tensor::Tensor<B, 2>,
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
