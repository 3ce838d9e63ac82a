//! A frozen decoder of any family over [`FrozenOps`]: embeddings, a stack of blocks, the final norm, and what is read.
//! It implements [`FrozenLm`]; [`crate::load`] builds it.
//!
//! No head: only hidden states are wanted. Where the last positions alone are read, the last block computes queries and
//! the feed-forward part for these only. The backward pass is written by hand and yields the gradients of the external
//! embeddings and, where asked, of the norms.
//!
//! Shape suffixes: `r` rows (all positions of all sequences, one after another), `b` sequences, `d` hidden size.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::error::ModelError;
use crate::lm::{FrozenLm, LmInput, PASS_POSITIONS};
use crate::ops::norms::{NormGradients, NormParameter, NormSums, NormWeights, Normed};
use crate::ops::sequences::Sequences;
use crate::ops::{FrozenOps, RotaryTable, WeightStorage, move_to_device, to_host};
use crate::tokenizer::Tokenizer;

#[cfg(test)]
mod bf16_oracle;
pub mod block;
pub mod embedding_table;
mod inputs;
#[cfg(test)]
mod llama_oracle;
#[cfg(test)]
mod oracle;
pub mod placement;
mod pooling;

use block::{Block, Rows, SavedBlock};
use embedding_table::EmbeddingTable;
use inputs::{Embedded, Inputs};
use placement::Placement;
use pooling::PoolingPlan;

/// What a family's loader returns.
pub struct Parts<B: FrozenOps> {
    /// Text to token ids.
    pub tokenizer: Tokenizer,
    /// `d`
    pub hidden_size: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// `[vocabulary, d]`
    pub token_table: EmbeddingTable,
    /// `[max_positions, d]`, where positions are learnt.
    pub position_table: Option<EmbeddingTable>,
    /// Radians per position of each pair of a head's numbers, where positions are rotary.
    pub rotary_frequencies: Option<Vec<f32>>,
    /// In the order in which they run.
    pub blocks: Vec<Block<B>>,
    /// The final norm.
    pub norm_f: NormWeights<B>,
    /// Whether the model's own head is its token table.
    pub tied_head: bool,
    /// Of every weight and the configuration.
    pub fingerprint: blake3::Hash,
    /// Numbers in the model.
    pub parameters: u64,
    /// How the weights are held.
    pub storage: WeightStorage,
}

/// What a forward pass keeps for the backward pass.
struct Saved<B: Backend> {
    sequences: Sequences,
    plan: PoolingPlan,
    blocks: Vec<SavedBlock<B>>,
    norm_f: Option<Normed<B>>,
    /// For each external embedding, the rows it fills, ascending.
    rows_of_embedding: Vec<Vec<usize>>,
    /// As [`Inputs::Repeated`].
    repeated: Option<usize>,
}

/// A frozen decoder on the devices of one worker.
pub struct Decoder<B: FrozenOps> {
    parts: Parts<B>,
    placement: Placement<B>,
    /// One for each place, with as many positions as the longest sequence so far needed; empty where nothing is rotary.
    rotary: Vec<RotaryTable<B>>,
    /// Rows of the position table on the first device, as many as the longest sequence of [`Inputs::Repeated`] needed.
    positions: Option<Tensor<B, 2>>,
    pass_positions: usize,
    saved: Option<Saved<B>>,
}

impl<B: FrozenOps> Decoder<B> {
    /// A decoder of `parts`, whose blocks lie on `placement`.
    pub fn new(parts: Parts<B>, placement: Placement<B>) -> Self {
        let pass_positions = PASS_POSITIONS;
        Self { parts, placement, rotary: Vec::new(), positions: None, pass_positions, saved: None }
    }

    /// The same with passes of so many positions.
    pub fn passing(self, pass_positions: usize) -> Self {
        Self { pass_positions, ..self }
    }

    fn copy_token_row(&self, id: u32, out: &mut [f32]) -> Result<(), ModelError> {
        let table = &self.parts.token_table;
        if table.copy_row(id as usize, out) {
            return Ok(());
        }
        Err(ModelError::UnknownToken { id, vocabulary: table.rows() })
    }

    /// Makes the table of rotary angles long enough.
    fn extend_rotary(&mut self, longest: usize) {
        let Some(frequencies) = &self.parts.rotary_frequencies else {
            return;
        };
        if self.rotary.first().is_none_or(|table| table.positions() < longest) {
            let positions = longest.next_power_of_two().min(self.parts.max_positions);
            let places = self.placement.places().iter();
            self.rotary = places.map(|place| RotaryTable::new(frequencies, positions, &place.device)).collect();
        }
    }

    /// The forward pass on the devices; `x_rd` are the embeddings. `read` gets the states after each block, and after the
    /// final norm (`None`), that the plan reads.
    #[allow(clippy::type_complexity)]
    fn run(
        &self,
        x_rd: Tensor<B, 2>,
        sequences: &Sequences,
        plan: &PoolingPlan,
        keep: bool,
        read: &mut (dyn FnMut(Option<usize>, Tensor<B, 2>) -> Result<(), ModelError> + Send),
    ) -> Result<(Vec<SavedBlock<B>>, Option<Normed<B>>), ModelError> {
        let mut x_rd = x_rd;
        let mut kept = Vec::with_capacity(if keep { plan.layers } else { 0 });
        if plan.reads(Some(0)) {
            read(Some(0), x_rd.clone())?;
        }
        for (index, place) in self.placement.places().iter().enumerate() {
            if place.blocks.start >= plan.layers {
                break;
            }
            x_rd = place.run(|| {
                let mut x_rd = move_to_device(x_rd, &place.device)?;
                for layer in place.blocks.start..place.blocks.end.min(plan.layers) {
                    let rows = self.rows(sequences, plan, layer, index);
                    let (next, saved) = self.parts.blocks[layer].forward(x_rd, &rows, keep);
                    x_rd = next;
                    kept.extend(saved);
                    if plan.reads(Some(layer + 1)) {
                        read(Some(layer + 1), x_rd.clone())?;
                    }
                }
                Ok::<_, ModelError>(x_rd)
            })?;
        }
        if !plan.final_norm {
            return Ok((kept, None));
        }
        let (hidden, norm_f) = B::normalize(x_rd, &self.parts.norm_f);
        read(None, hidden)?;
        Ok((kept, Some(norm_f)))
    }

    /// The backward pass through the blocks that ran: from the gradient of the last one's output to that of the first
    /// one's input. `grad_read` is the gradient of everything that was read; on the way down each place adds its own.
    fn run_back(
        &self,
        grad_rd: Tensor<B, 2>,
        grad_read: &[f32],
        saved: Vec<SavedBlock<B>>,
        sequences: &Sequences,
        plan: &PoolingPlan,
        sums: &mut Option<NormSums<'_>>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let mut grad_rd = grad_rd;
        let mut saved = saved;
        let mut norms_at: usize = self.parts.blocks.iter().take(plan.layers).map(Block::norm_numbers).sum();
        for (index, place) in self.placement.places().iter().enumerate().rev() {
            if place.blocks.start >= plan.layers {
                continue;
            }
            let of_place = saved.split_off(place.blocks.start);
            grad_rd = place.run(|| {
                let mut grad_rd = move_to_device(grad_rd, &place.device)?;
                for (index_in_place, kept) in of_place.into_iter().enumerate().rev() {
                    let layer = place.blocks.start + index_in_place;
                    let block = &self.parts.blocks[layer];
                    norms_at -= block.norm_numbers();
                    let rows = self.rows(sequences, plan, layer, index);
                    grad_rd = block.backward(kept, grad_rd, &rows, norms_at, sums)?;
                    if let Some(own) = self.grad_of_read(Some(layer), grad_read, sequences, plan, &place.device) {
                        grad_rd = grad_rd + own;
                    }
                }
                Ok::<_, ModelError>(grad_rd)
            })?;
        }
        Ok(grad_rd)
    }

    /// The gradient of the states after block `layer` (`None`: after the final norm) from what was read of them; `None`
    /// where nothing was.
    fn grad_of_read(
        &self,
        layer: Option<usize>,
        grad_read: &[f32],
        sequences: &Sequences,
        plan: &PoolingPlan,
        device: &B::Device,
    ) -> Option<Tensor<B, 2>> {
        let d = self.parts.hidden_size;
        let grad = plan.spread(layer, grad_read, d, sequences.rows())?;
        let rows = grad.len() / d;
        Some(Tensor::from_data(TensorData::new(grad, [rows, d]), device))
    }

    /// The rows that block `layer` of place `place` works on.
    fn rows<'a>(&'a self, sequences: &'a Sequences, plan: &PoolingPlan, layer: usize, place: usize) -> Rows<'a, B> {
        let last_only = plan.last_only && layer + 1 == plan.layers;
        Rows { sequences, last_only, rotary: self.rotary.get(place) }
    }

    /// Every norm in the order of the forward pass.
    fn norms(&self) -> impl Iterator<Item = &NormWeights<B>> {
        let blocks = self.parts.blocks.iter().flat_map(|block| [&block.norm_1, &block.norm_2]);
        blocks.chain(std::iter::once(&self.parts.norm_f))
    }
}

impl<B: FrozenOps> FrozenLm for Decoder<B> {
    fn hidden_size(&self) -> usize {
        self.parts.hidden_size
    }

    fn layers(&self) -> usize {
        self.parts.blocks.len()
    }

    fn max_positions(&self) -> usize {
        self.parts.max_positions
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.parts.tokenizer
    }

    fn embed_tokens(&self, ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        let d = self.parts.hidden_size;
        let mut rows = vec![0.0f32; ids.len() * d];
        for (id, row) in ids.iter().zip(rows.chunks_exact_mut(d)) {
            self.copy_token_row(*id, row)?;
        }
        Ok(rows)
    }

    fn forward(&mut self, input: &LmInput, keep: bool) -> Result<Vec<f32>, ModelError> {
        self.saved = None;
        let d = self.parts.hidden_size;
        let Embedded { inputs, sequences, rows_of_embedding, external } = self.embed(input)?;
        self.extend_rotary(sequences.lengths().iter().copied().max().unwrap_or(0));
        let plan = PoolingPlan::new(&input.reads, self.layers(), sequences.lengths(), &external)?;
        let repeated = if let Inputs::Repeated(each) = inputs { Some(each) } else { None };
        let x_rd = self.first_rows(inputs, &input.embeddings);
        let mut pooled = plan.unread(d);
        let (blocks, norm_f) = self.run(x_rd, &sequences, &plan, keep, &mut |layer, states| {
            plan.pool(layer, &to_host(states)?, d, &mut pooled);
            Ok(())
        })?;
        if keep {
            self.saved = Some(Saved { sequences, plan, blocks, norm_f, rows_of_embedding, repeated });
        }
        Ok(pooled)
    }

    fn backward(&mut self, grad_hidden: &[f32], norms: Option<NormGradients<'_>>) -> Result<Vec<f32>, ModelError> {
        let d = self.parts.hidden_size;
        let Some(saved) = self.saved.take().filter(|_| self.parts.storage.backward) else {
            return Err(ModelError::Empty);
        };
        let Saved { sequences, plan, blocks, norm_f, rows_of_embedding, repeated } = saved;
        let mut sums = None;
        if let Some(target) = norms {
            target.check(sequences.count(), self.norms().map(NormWeights::numbers).sum())?;
            let group_of_row = sequences.of_each_row(target.group_of_sequence);
            sums = Some(NormSums { target, group_of_row });
        }
        if grad_hidden.len() != plan.unread(d).len() {
            return Err(ModelError::Empty);
        }
        let device = self.placement.device(plan.layers.saturating_sub(1));
        let of_read = |layer| self.grad_of_read(layer, grad_hidden, &sequences, &plan, device);
        let mut grad_rd = of_read(Some(plan.layers));
        if let (Some(normed), Some(grad_norm)) = (&norm_f, of_read(None)) {
            if let Some(sums) = &mut sums {
                let norms_at = self.parts.blocks.iter().map(Block::norm_numbers).sum();
                sums.add(norms_at, &self.parts.norm_f, &grad_norm, normed)?;
            }
            let through = B::normalize_backward(grad_norm, normed, &self.parts.norm_f, None);
            grad_rd = Some(match grad_rd {
                Some(own) => through + own,
                None => through,
            });
        }
        // The deepest place that was read is the last block's output or the final norm.
        let grad_rd = grad_rd.ok_or(ModelError::Empty)?;
        let grad_rd = self.run_back(grad_rd, grad_hidden, blocks, &sequences, &plan, &mut sums)?;
        if let Some(each) = repeated {
            return to_host(B::sum_rows(grad_rd, each));
        }
        let grad = to_host(grad_rd)?;
        let mut totals = vec![0.0f32; rows_of_embedding.len() * d];
        for (total, rows) in totals.chunks_exact_mut(d).zip(&rows_of_embedding) {
            for row in rows {
                for (t, g) in total.iter_mut().zip(&grad[row * d..(row + 1) * d]) {
                    *t += g;
                }
            }
        }
        Ok(totals)
    }

    fn norm_parameters(&self) -> Result<Vec<NormParameter>, ModelError> {
        let mut list = Vec::new();
        for norm in self.norms() {
            norm.parameters(&mut list)?;
        }
        Ok(list)
    }

    fn set_norm_parameters(&mut self, values: &[f32]) -> Result<(), ModelError> {
        let wanted: usize = self.norms().map(NormWeights::numbers).sum();
        if values.len() != wanted {
            let reason = format!("{} numbers were given for {wanted}", values.len());
            return Err(ModelError::NormParameters { reason });
        }
        self.saved = None;
        let mut rest = values;
        let parts = &mut self.parts;
        for block in &mut parts.blocks {
            rest = block.norm_1.set(rest);
            rest = block.norm_2.set(rest);
        }
        parts.norm_f.set(rest);
        Ok(())
    }

    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>, ModelError> {
        if !self.parts.tied_head {
            return Err(ModelError::NoHead);
        }
        Ok(self.parts.token_table.scores(hidden))
    }

    fn pass_positions(&self) -> usize {
        self.pass_positions
    }

    fn batches_freely(&self) -> bool {
        B::RAGGED
    }

    fn fingerprint(&self) -> blake3::Hash {
        self.parts.fingerprint
    }

    fn weight_bytes(&self) -> u64 {
        let dtype = self.parts.storage.of_products();
        let tables = || std::iter::once(&self.parts.token_table).chain(&self.parts.position_table);
        let in_tables: u64 = tables().map(EmbeddingTable::numbers).sum();
        let bytes: u64 = tables().map(EmbeddingTable::bytes).sum();
        bytes + dtype.bytes(self.parts.parameters - in_tables)
    }

    fn parameters(&self) -> u64 {
        self.parts.parameters
    }
}
