//! GPT-2 over [`FrozenOps`]: forward to the hidden state of the read positions, and a hand-written backward
//! pass that yields the gradient of the embeddings and of nothing else.
//!
//! As in `transformers.GPT2Model`: pre-norm blocks, learnt positions, `Conv1D` weights stored `[input, output]`.
//! No head, no logits. In the last block only the read positions need a query and the feed-forward part.
//!
//! Shape suffixes: `r` rows (all positions of all sequences, one after another), `b` sequences, `d` hidden size,
//! `f` feed-forward size.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::architecture::Gpt2Config;
use crate::error::ModelError;
use crate::kernels::activation::Activation;
use crate::kernels::attention::Heads;
use crate::lm::{FrozenLm, LmInput, Piece, positions};
use crate::ops::{FrozenOps, HostLinear, NormWeights, Normed};
use crate::sequences::Sequences;
use crate::tokenizer::Tokenizer;
use crate::weights::TensorSource;

struct Block<B: FrozenOps> {
    norm_1: NormWeights<B>,
    query: B::Linear,
    key: B::Linear,
    value: B::Linear,
    output: B::Linear,
    norm_2: NormWeights<B>,
    expand: B::Linear,
    contract: B::Linear,
    heads: Heads,
}

/// What one block keeps for the backward pass.
struct SavedBlock<B: Backend> {
    norm_1: Normed<B>,
    /// Query and key; none where every sequence has one position and attention passes values through.
    query_key: Option<(Tensor<B, 2>, Tensor<B, 2>)>,
    value_rd: Tensor<B, 2>,
    norm_2: Normed<B>,
    hidden_rf: Tensor<B, 2>,
}

/// What a forward pass keeps for the backward pass.
struct Saved<B: Backend> {
    sequences: Sequences,
    blocks: Vec<SavedBlock<B>>,
    norm_f: Normed<B>,
    /// For each external embedding, the rows it fills, ascending.
    rows_of_embedding: Vec<Vec<usize>>,
}

/// The input of the first block.
struct Embedded {
    /// `[r, d]`
    x: Vec<f32>,
    sequences: Sequences,
    /// For each external embedding, the rows it fills, ascending.
    rows_of_embedding: Vec<Vec<usize>>,
}

/// A frozen GPT-2 on one device.
pub struct Gpt2<B: FrozenOps> {
    config: Gpt2Config,
    device: B::Device,
    tokenizer: Tokenizer,
    /// Token and position tables stay on the host: a step needs a few rows of them.
    wte: Vec<f32>,
    wpe: Vec<f32>,
    blocks: Vec<Block<B>>,
    norm_f: NormWeights<B>,
    fingerprint: blake3::Hash,
    can_go_back: bool,
    saved: Option<Saved<B>>,
}

/// Reads tensors one at a time and hashes what it reads, in the order of [`Gpt2Config::tensors`].
struct Loader<'a> {
    source: &'a dyn TensorSource,
    hasher: blake3::Hasher,
}

impl Loader<'_> {
    fn read(&mut self, name: &str) -> Result<Vec<f32>, ModelError> {
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

    fn norm<B: Backend>(&mut self, name: &str, eps: f32, device: &B::Device) -> Result<NormWeights<B>, ModelError> {
        let gamma = self.read(&format!("{name}.weight"))?;
        let beta = self.read(&format!("{name}.bias"))?;
        let width = gamma.len();
        Ok(NormWeights {
            gamma_d: Tensor::from_data(TensorData::new(gamma, [width]), device),
            beta_d: Tensor::from_data(TensorData::new(beta, [width]), device),
            eps,
        })
    }
}

impl<B: FrozenOps> Gpt2<B> {
    /// Loads the weights one tensor at a time. `backward` is false where no gradient will be asked for; it halves the memory.
    pub fn load(
        config: Gpt2Config,
        source: &dyn TensorSource,
        tokenizer: Tokenizer,
        device: B::Device,
        backward: bool,
    ) -> Result<Self, ModelError> {
        let mut hasher = blake3::Hasher::new_derive_key("numalign 2026-11 base fingerprint");
        hasher.update(config.canonical().as_bytes());
        let mut loader = Loader { source, hasher };
        let (d, f) = (config.n_embd, config.n_inner);
        let wte = loader.read("wte.weight")?;
        let wpe = loader.read("wpe.weight")?;
        let mut blocks = Vec::with_capacity(config.n_layer);
        for layer in 0..config.n_layer {
            let norm_1 = loader.norm(&format!("h.{layer}.ln_1"), config.layer_norm_epsilon, &device)?;
            let weight = loader.read(&format!("h.{layer}.attn.c_attn.weight"))?;
            let bias = loader.read(&format!("h.{layer}.attn.c_attn.bias"))?;
            let part = |from: usize| {
                let host = HostLinear {
                    weight: &weight,
                    input: d,
                    output: 3 * d,
                    columns: (from, from + d),
                    bias: Some(&bias),
                };
                B::prepare(host, backward, &device)
            };
            let (query, key, value) = (part(0), part(d), part(2 * d));
            drop((weight, bias));
            let dense = |loader: &mut Loader<'_>, name: &str, input: usize, output: usize| {
                let weight = loader.read(&format!("h.{layer}.{name}.weight"))?;
                let bias = loader.read(&format!("h.{layer}.{name}.bias"))?;
                let host = HostLinear { weight: &weight, input, output, columns: (0, output), bias: Some(&bias) };
                Ok::<_, ModelError>(B::prepare(host, backward, &device))
            };
            let output = dense(&mut loader, "attn.c_proj", d, d)?;
            let norm_2 = loader.norm(&format!("h.{layer}.ln_2"), config.layer_norm_epsilon, &device)?;
            let expand = dense(&mut loader, "mlp.c_fc", d, f)?;
            let contract = dense(&mut loader, "mlp.c_proj", f, d)?;
            let heads =
                Heads { heads: config.n_head, head_size: config.head_size(), scale: config.attention_scale(layer) };
            blocks.push(Block { norm_1, query, key, value, output, norm_2, expand, contract, heads });
        }
        let norm_f = loader.norm("ln_f", config.layer_norm_epsilon, &device)?;
        let fingerprint = loader.hasher.finalize();
        Ok(Self {
            config,
            device,
            tokenizer,
            wte,
            wpe,
            blocks,
            norm_f,
            fingerprint,
            can_go_back: backward,
            saved: None,
        })
    }

    fn activation(&self) -> Activation {
        self.config.activation
    }

    fn token_row(&self, id: u32) -> Result<&[f32], ModelError> {
        let d = self.config.n_embd;
        self.wte
            .get(id as usize * d..(id as usize + 1) * d)
            .ok_or(ModelError::UnknownToken { id, vocabulary: self.config.vocab_size })
    }

    /// Token and external embeddings plus positions.
    fn embed(&self, input: &LmInput) -> Result<Embedded, ModelError> {
        let d = self.config.n_embd;
        let rows_given = input.embeddings.len() / d;
        let mut lengths = Vec::with_capacity(input.sequences.len());
        let mut rows_of_embedding = vec![Vec::new(); rows_given];
        let mut x = Vec::new();
        for sequence in &input.sequences {
            let length = positions(sequence);
            if length == 0 {
                return Err(ModelError::Empty);
            }
            if length > self.config.n_positions {
                return Err(ModelError::TooLong { positions: length, most: self.config.n_positions });
            }
            lengths.push(length);
            let mut position = 0;
            for piece in sequence {
                match piece {
                    Piece::Tokens(ids) => {
                        for id in ids {
                            self.push_row(&mut x, self.token_row(*id)?, position);
                            position += 1;
                        }
                    }
                    Piece::Embedding { row, repeat } => {
                        let Some(embedding) = input.embeddings.get(row * d..(row + 1) * d) else {
                            return Err(ModelError::NoSuchEmbedding { row: *row, rows: rows_given });
                        };
                        for _ in 0..*repeat {
                            rows_of_embedding[*row].push(x.len() / d);
                            self.push_row(&mut x, embedding, position);
                            position += 1;
                        }
                    }
                }
            }
        }
        if lengths.is_empty() {
            return Err(ModelError::Empty);
        }
        Ok(Embedded { x, sequences: Sequences::all(lengths), rows_of_embedding })
    }

    fn push_row(&self, x: &mut Vec<f32>, embedding: &[f32], position: usize) {
        let d = self.config.n_embd;
        let place = &self.wpe[position * d..(position + 1) * d];
        x.extend(embedding.iter().zip(place).map(|(e, p)| e + p));
    }

    fn block_forward(
        &self,
        block: &Block<B>,
        x_rd: Tensor<B, 2>,
        sequences: &Sequences,
        last: bool,
        keep: bool,
    ) -> (Tensor<B, 2>, Option<SavedBlock<B>>) {
        let (h_rd, norm_1) = B::normalize(x_rd.clone(), &block.norm_1);
        let value_rd = B::project(h_rd.clone(), &block.value, None);
        let (attended, residual, query_key) = if sequences.single_positions() {
            (value_rd.clone(), x_rd, None)
        } else {
            let key_rd = B::project(h_rd.clone(), &block.key, None);
            let (h_query, residual, queries) = if last {
                let rows = sequences.last_rows();
                (B::gather_rows(h_rd, &rows), B::gather_rows(x_rd, &rows), sequences.read_positions())
            } else {
                (h_rd, x_rd, sequences.clone())
            };
            let query = B::project(h_query, &block.query, None);
            let attended = B::attend(query.clone(), key_rd.clone(), value_rd.clone(), &queries, block.heads);
            (attended, residual, Some((query, key_rd)))
        };
        let x_rd = B::project(attended, &block.output, Some(residual));
        let (h_rd, norm_2) = B::normalize(x_rd.clone(), &block.norm_2);
        let hidden_rf = B::project(h_rd, &block.expand, None);
        let active_rf = B::activate(self.activation(), hidden_rf.clone());
        let x_rd = B::project(active_rf, &block.contract, Some(x_rd));
        let saved = keep.then_some(SavedBlock { norm_1, query_key, value_rd, norm_2, hidden_rf });
        (x_rd, saved)
    }

    fn block_backward(
        &self,
        block: &Block<B>,
        saved: SavedBlock<B>,
        grad_rd: Tensor<B, 2>,
        sequences: &Sequences,
        last: bool,
    ) -> Tensor<B, 2> {
        let grad_rf = B::project_backward(grad_rd.clone(), &block.contract, None);
        let grad_rf = B::activate_backward(self.activation(), saved.hidden_rf, grad_rf);
        let grad_h = B::project_backward(grad_rf, &block.expand, None);
        let grad_rd = B::normalize_backward(grad_h, &saved.norm_2, &block.norm_2, Some(grad_rd));
        let grad_attended = B::project_backward(grad_rd.clone(), &block.output, None);
        let Some((query, key_rd)) = saved.query_key else {
            let grad_h = B::project_backward(grad_attended, &block.value, None);
            return B::normalize_backward(grad_h, &saved.norm_1, &block.norm_1, Some(grad_rd));
        };
        if !last {
            let grad = B::attend_backward(grad_attended, query, key_rd, saved.value_rd, sequences, block.heads);
            let grad_h = B::project_backward(grad.query_rd, &block.query, None);
            let grad_h = B::project_backward(grad.key_rd, &block.key, Some(grad_h));
            let grad_h = B::project_backward(grad.value_rd, &block.value, Some(grad_h));
            return B::normalize_backward(grad_h, &saved.norm_1, &block.norm_1, Some(grad_rd));
        }
        let queries = sequences.read_positions();
        let rows = sequences.last_rows();
        let grad = B::attend_backward(grad_attended, query, key_rd, saved.value_rd, &queries, block.heads);
        let grad_query = B::project_backward(grad.query_rd, &block.query, None);
        let grad_h = B::scatter_rows(grad_query, &rows, sequences.rows());
        let grad_h = B::project_backward(grad.key_rd, &block.key, Some(grad_h));
        let grad_h = B::project_backward(grad.value_rd, &block.value, Some(grad_h));
        let grad_rd = B::scatter_rows(grad_rd, &rows, sequences.rows());
        B::normalize_backward(grad_h, &saved.norm_1, &block.norm_1, Some(grad_rd))
    }

    /// The whole forward pass on the device; `x_rd` are embeddings plus positions.
    fn run(
        &self,
        x_rd: Tensor<B, 2>,
        sequences: &Sequences,
        keep: bool,
    ) -> (Tensor<B, 2>, Vec<SavedBlock<B>>, Normed<B>) {
        let mut x_rd = x_rd;
        let mut kept = Vec::with_capacity(if keep { self.blocks.len() } else { 0 });
        for (layer, block) in self.blocks.iter().enumerate() {
            let last = layer + 1 == self.blocks.len();
            let (next, saved) = self.block_forward(block, x_rd, sequences, last, keep);
            x_rd = next;
            kept.extend(saved);
        }
        let (hidden_bd, norm_f) = B::normalize(x_rd, &self.norm_f);
        (hidden_bd, kept, norm_f)
    }
}

impl<B: FrozenOps> FrozenLm for Gpt2<B> {
    fn hidden_size(&self) -> usize {
        self.config.n_embd
    }

    fn max_positions(&self) -> usize {
        self.config.n_positions
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.tokenizer.encode(text)
    }

    fn embed_tokens(&self, ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        let mut rows = Vec::with_capacity(ids.len() * self.config.n_embd);
        for id in ids {
            rows.extend_from_slice(self.token_row(*id)?);
        }
        Ok(rows)
    }

    fn forward(&mut self, input: &LmInput, keep: bool) -> Result<Vec<f32>, ModelError> {
        self.saved = None;
        let Embedded { x, sequences, rows_of_embedding } = self.embed(input)?;
        let x_rd = Tensor::from_data(TensorData::new(x, [sequences.rows(), self.config.n_embd]), &self.device);
        let (hidden_bd, blocks, norm_f) = self.run(x_rd, &sequences, keep);
        if keep {
            self.saved = Some(Saved { sequences, blocks, norm_f, rows_of_embedding });
        }
        to_host(hidden_bd)
    }

    fn backward_to_embeddings(&mut self, grad_hidden: &[f32]) -> Result<Vec<f32>, ModelError> {
        let d = self.config.n_embd;
        let Some(saved) = self.saved.take().filter(|_| self.can_go_back) else {
            return Err(ModelError::Empty);
        };
        let count = saved.sequences.count();
        let grad_bd = Tensor::from_data(TensorData::new(grad_hidden.to_vec(), [count, d]), &self.device);
        let mut grad_rd = B::normalize_backward(grad_bd, &saved.norm_f, &self.norm_f, None);
        let layers = self.blocks.len();
        for (layer, (block, kept)) in self.blocks.iter().zip(saved.blocks).enumerate().rev() {
            grad_rd = self.block_backward(block, kept, grad_rd, &saved.sequences, layer + 1 == layers);
        }
        let grad = to_host(grad_rd)?;
        let mut sums = vec![0.0f32; saved.rows_of_embedding.len() * d];
        for (sum, rows) in sums.chunks_exact_mut(d).zip(&saved.rows_of_embedding) {
            for row in rows {
                for (s, g) in sum.iter_mut().zip(&grad[row * d..(row + 1) * d]) {
                    *s += g;
                }
            }
        }
        Ok(sums)
    }

    fn batches_freely(&self) -> bool {
        B::RAGGED
    }

    fn fingerprint(&self) -> blake3::Hash {
        self.fingerprint
    }

    fn weight_bytes(&self) -> u64 {
        let tables = (self.wte.len() + self.wpe.len()) as u64;
        let blocks = self.config.parameters() - tables;
        4 * (tables + blocks * if self.can_go_back { 2 } else { 1 })
    }

    fn parameters(&self) -> u64 {
        self.config.parameters()
    }
}

fn to_host<B: Backend>(x: Tensor<B, 2>) -> Result<Vec<f32>, ModelError> {
    x.into_data().convert::<f32>().into_vec::<f32>().map_err(|error| ModelError::Device {
        device: "tensor".to_owned(),
        reason: format!("its result cannot be read: {error:?}"),
    })
}

#[cfg(test)]
#[path = "gpt2_oracle.rs"]
mod oracle;
