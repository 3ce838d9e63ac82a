//! Llama-style decoders (Llama, Mistral, Qwen): from their tensors to a [`Decoder`].
//!
//! As in `transformers.LlamaModel` and its relatives: RMS norms, rotary positions, grouped-query attention, a gated
//! feed-forward part, weights stored `[output, input]`.

use super::tensor_loader::{Dense, TensorLoader};
use super::weights::TensorSource;
use crate::arch::LlamaConfig;
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
    config: LlamaConfig,
    source: &dyn TensorSource,
    tokenizer: Tokenizer,
    placement: Placement<B>,
    storage: WeightStorage,
) -> Result<Decoder<B>, ModelError> {
    let mut loader = TensorLoader::new(source, &config.canonical(), storage);
    let token_table = loader.table("embed_tokens.weight", config.vocabulary, config.hidden_size)?;
    let mut blocks = Vec::with_capacity(config.layers);
    for layer in 0..config.layers {
        blocks.push(block(&config, &mut loader, layer, placement.device(layer))?);
    }
    let norm_f = loader.rms_norm("norm", config.rms_norm_eps, placement.last_device())?;
    let parts = Parts {
        tokenizer,
        hidden_size: config.hidden_size,
        max_positions: config.positions,
        token_table,
        position_table: None,
        rotary_frequencies: Some(config.rope.frequencies(config.head_size)),
        blocks,
        norm_f,
        tied_head: config.tied_head,
        fingerprint: loader.fingerprint(),
        parameters: config.parameters(),
        storage,
    };
    Ok(Decoder::new(parts, placement))
}

fn block<B: FrozenOps>(
    config: &LlamaConfig,
    loader: &mut TensorLoader<'_>,
    layer: usize,
    device: &B::Device,
) -> Result<Block<B>, ModelError> {
    let (d, f) = (config.hidden_size, config.inner);
    let (q, kv) = (config.heads * config.head_size, config.kv_heads * config.head_size);
    let named = |name: &str| format!("layers.{layer}.{name}");
    let norm = |loader: &mut TensorLoader<'_>, name: &str| loader.rms_norm(&named(name), config.rms_norm_eps, device);
    let dense = |loader: &mut TensorLoader<'_>, name: &str, (input, output): (usize, usize), bias: bool| {
        loader.dense::<B>(&named(name), Dense { input, output, order: WeightOrder::OutputInput, bias }, device)
    };
    // Fields are evaluated in this order, which is that of `LlamaConfig::tensors` and of the fingerprint.
    Ok(Block {
        norm_1: norm(loader, "input_layernorm")?,
        query_key_value: B::join(vec![
            dense(loader, "self_attn.q_proj", (d, q), config.qkv_bias)?,
            dense(loader, "self_attn.k_proj", (d, kv), config.qkv_bias)?,
            dense(loader, "self_attn.v_proj", (d, kv), config.qkv_bias)?,
        ]),
        head_norms: if config.head_norms {
            Some((norm(loader, "self_attn.q_norm")?, norm(loader, "self_attn.k_norm")?))
        } else {
            None
        },
        output: dense(loader, "self_attn.o_proj", (q, d), config.output_bias)?,
        norm_2: norm(loader, "post_attention_layernorm")?,
        expand: Expand::Gated(B::join(vec![
            dense(loader, "mlp.gate_proj", (d, f), config.mlp_bias)?,
            dense(loader, "mlp.up_proj", (d, f), config.mlp_bias)?,
        ])),
        contract: dense(loader, "mlp.down_proj", (f, d), config.mlp_bias)?,
        heads: Heads {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_size: config.head_size,
            scale: 1.0 / (config.head_size as f32).sqrt(),
        },
        activation: config.activation,
        arithmetic: loader.storage.arithmetic,
    })
}
