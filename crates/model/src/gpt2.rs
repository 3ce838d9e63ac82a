//! GPT-2: from its tensors to a [`Decoder`]. Called by the loader.
//!
//! As in `transformers.GPT2Model`: pre-norm blocks, learnt positions, `Conv1D` weights stored `[input, output]`, and one
//! fused weight for query, key and value.

use crate::architecture::Gpt2Config;
use crate::block::Block;
use crate::decoder::{Decoder, Parts};
use crate::error::ModelError;
use crate::kernels::attention::Heads;
use crate::loading::Loader;
use crate::ops::{FrozenOps, HostLinear};
use crate::tokenizer::Tokenizer;
use crate::weights::TensorSource;

/// Loads the weights one tensor at a time. `backward` is false where no gradient will be asked for; it halves the memory.
pub fn load<B: FrozenOps>(
    config: Gpt2Config,
    source: &dyn TensorSource,
    tokenizer: Tokenizer,
    device: B::Device,
    backward: bool,
) -> Result<Decoder<B>, ModelError> {
    let mut loader = Loader::new(source, &config.canonical());
    let token_table = loader.read("wte.weight")?;
    let position_table = loader.read("wpe.weight")?;
    let mut blocks = Vec::with_capacity(config.n_layer);
    for layer in 0..config.n_layer {
        blocks.push(block(&config, &mut loader, layer, &device, backward)?);
    }
    let norm_f = loader.layer_norm("ln_f", config.layer_norm_epsilon, &device)?;
    let parts = Parts {
        tokenizer,
        hidden_size: config.n_embd,
        max_positions: config.n_positions,
        vocabulary: config.vocab_size,
        token_table,
        position_table: Some(position_table),
        blocks,
        norm_f,
        tied_head: true,
        fingerprint: loader.fingerprint(),
        parameters: config.parameters(),
        backward,
    };
    Ok(Decoder::new(parts, device))
}

fn block<B: FrozenOps>(
    config: &Gpt2Config,
    loader: &mut Loader<'_>,
    layer: usize,
    device: &B::Device,
    backward: bool,
) -> Result<Block<B>, ModelError> {
    let (d, f) = (config.n_embd, config.n_inner);
    let norm_1 = loader.layer_norm(&format!("h.{layer}.ln_1"), config.layer_norm_epsilon, device)?;
    let weight = loader.read(&format!("h.{layer}.attn.c_attn.weight"))?;
    let bias = loader.read(&format!("h.{layer}.attn.c_attn.bias"))?;
    let part = |from: usize| {
        let columns = (from, from + d);
        let host = HostLinear { weight: &weight, input: d, output: 3 * d, columns, bias: Some(&bias) };
        B::prepare(host, backward, device)
    };
    let (query, key, value) = (part(0), part(d), part(2 * d));
    drop((weight, bias));
    let dense = |loader: &mut Loader<'_>, name: &str, input: usize, output: usize| {
        let weight = loader.read(&format!("h.{layer}.{name}.weight"))?;
        let bias = loader.read(&format!("h.{layer}.{name}.bias"))?;
        let host = HostLinear { weight: &weight, input, output, columns: (0, output), bias: Some(&bias) };
        Ok::<_, ModelError>(B::prepare(host, backward, device))
    };
    let output = dense(loader, "attn.c_proj", d, d)?;
    let norm_2 = loader.layer_norm(&format!("h.{layer}.ln_2"), config.layer_norm_epsilon, device)?;
    let expand = dense(loader, "mlp.c_fc", d, f)?;
    let contract = dense(loader, "mlp.c_proj", f, d)?;
    let heads = Heads { heads: config.n_head, head_size: config.head_size(), scale: config.attention_scale(layer) };
    let activation = config.activation;
    Ok(Block { norm_1, query, key, value, output, norm_2, expand, contract, heads, activation })
}
