//! GPT-2: from its tensors to a [`Decoder`].
//!
//! As in `transformers.GPT2Model`: pre-norm blocks, learnt positions, `Conv1D` weights stored `[input, output]`, and one
//! fused weight for query, key and value.

use super::tensor_loader::{Dense, TensorLoader};
use super::weights::TensorSource;
use crate::arch::{Gpt2Config, numbers};
use crate::decoder::block::{Block, Expand};
use crate::decoder::placement::Placement;
use crate::decoder::{Decoder, Parts};
use crate::error::ModelError;
use crate::kernels::attention::Heads;
use crate::ops::{FrozenOps, WeightOrder, WeightStorage};
use crate::tokenizer::Tokenizer;

/// Loads the weights one tensor at a time.
///
/// # Errors
/// A tensor cannot be read.
pub fn load<B: FrozenOps>(
    config: Gpt2Config,
    source: &dyn TensorSource,
    tokenizer: Tokenizer,
    placement: Placement<B>,
    storage: WeightStorage,
) -> Result<Decoder<B>, ModelError> {
    let mut loader = TensorLoader::new(source, &config.canonical(), storage);
    let token_table = loader.table("wte.weight", config.vocab_size, config.n_embd)?;
    let position_table = loader.table("wpe.weight", config.n_positions, config.n_embd)?;
    let mut blocks = Vec::with_capacity(config.n_layer);
    for layer in 0..config.n_layer {
        blocks.push(block(&config, &mut loader, layer, placement.device(layer))?);
    }
    let norm_f = loader.layer_norm("ln_f", config.layer_norm_epsilon, placement.last_device())?;
    let parts = Parts {
        tokenizer,
        hidden_size: config.n_embd,
        max_positions: config.n_positions,
        token_table,
        position_table: Some(position_table),
        blocks,
        norm_f,
        rotary_frequencies: None,
        tied_head: true,
        fingerprint: loader.fingerprint(),
        parameters: numbers(&config.tensors()),
        storage,
    };
    Ok(Decoder::new(parts, placement))
}

fn block<B: FrozenOps>(
    config: &Gpt2Config,
    loader: &mut TensorLoader<'_>,
    layer: usize,
    device: &B::Device,
) -> Result<Block<B>, ModelError> {
    let (d, f) = (config.n_embd, config.n_inner);
    let dense = |input: usize, output: usize| Dense { input, output, order: WeightOrder::InputOutput, bias: true };
    let norm_1 = loader.layer_norm(&format!("h.{layer}.ln_1"), config.layer_norm_epsilon, device)?;
    let weight = loader.weight(&format!("h.{layer}.attn.c_attn.weight"))?;
    let bias = loader.read(&format!("h.{layer}.attn.c_attn.bias"))?;
    let part = |from: usize| loader.prepare::<B>(&weight, Some(&bias), dense(d, 3 * d), (from, from + d), device);
    let query_key_value = B::join(vec![part(0), part(d), part(2 * d)]);
    drop((weight, bias));
    let output = loader.dense::<B>(&format!("h.{layer}.attn.c_proj"), dense(d, d), device)?;
    let norm_2 = loader.layer_norm(&format!("h.{layer}.ln_2"), config.layer_norm_epsilon, device)?;
    let expand = loader.dense::<B>(&format!("h.{layer}.mlp.c_fc"), dense(d, f), device)?;
    let contract = loader.dense::<B>(&format!("h.{layer}.mlp.c_proj"), dense(f, d), device)?;
    let scale = config.attention_scale(layer);
    Ok(Block {
        norm_1,
        query_key_value,
        head_norms: None,
        output,
        norm_2,
        expand: Expand::Plain(expand),
        contract,
        heads: Heads { heads: config.n_head, kv_heads: config.n_head, head_size: config.head_size(), scale },
        activation: config.activation,
        arithmetic: loader.storage.arithmetic,
    })
}
