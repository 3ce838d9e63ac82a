//! Tensor names and layouts: what a tensor of a Hugging Face folder is called in a GGUF file, and how it lies there.
//!
//! As llama.cpp's `convert_hf_to_gguf.py` writes them.

/// A `general.architecture` that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufArchitecture {
    /// GPT-2.
    Gpt2,
    /// Llama and Mistral.
    Llama,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3.
    Qwen3,
}

impl GgufArchitecture {
    /// Names of all architectures, for messages.
    pub const NAMES: &'static str = "gpt2, llama, qwen2, qwen3";

    /// The architecture of a `general.architecture`.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "gpt2" => Self::Gpt2,
            "llama" => Self::Llama,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            _ => return None,
        })
    }

    /// Its name, the prefix of its metadata keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// How a tensor lies in the file, seen from its Hugging Face layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As it is.
    Plain,
    /// Rows and columns exchanged: GPT-2's `Conv1D` weights are `[input, output]`, the file has `[output, input]`.
    Transposed,
    /// The rows of each head's two halves interleaved, as llama.cpp rotates Llama's queries and keys.
    Interleaved,
}

/// A folder's name of a tensor without its part, and GGML's.
type Pair = (&'static str, &'static str);

/// Tensors of the whole model.
const GPT2_WHOLE: [Pair; 3] = [("wte", "token_embd"), ("wpe", "position_embd"), ("ln_f", "output_norm")];
const LLAMA_WHOLE: [Pair; 2] = [("embed_tokens", "token_embd"), ("norm", "output_norm")];

/// Tensors of a block.
const GPT2_BLOCK: [Pair; 6] = [
    ("ln_1", "attn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("ln_2", "ffn_norm"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
];
const LLAMA_BLOCK: [Pair; 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The GGUF name of the tensor that a folder calls `name`, without a prefix; none where there is no such tensor.
pub fn gguf_name(architecture: GgufArchitecture, name: &str) -> Option<String> {
    let (whole, block): (&[Pair], &[Pair]) = match architecture {
        GgufArchitecture::Gpt2 => (&GPT2_WHOLE, &GPT2_BLOCK),
        _ => (&LLAMA_WHOLE, &LLAMA_BLOCK),
    };
    // `weight` or `bias`.
    let (stem, part) = name.rsplit_once('.')?;
    let find = |pairs: &[Pair], stem: &str| pairs.iter().find(|pair| pair.0 == stem).map(|pair| pair.1);
    match stem.strip_prefix("h.").or_else(|| stem.strip_prefix("layers.")) {
        None => Some(format!("{}.{part}", find(whole, stem)?)),
        Some(rest) => {
            let (layer, stem) = rest.split_once('.')?;
            Some(format!("blk.{layer}.{}.{part}", find(block, stem)?))
        }
    }
}

/// How the tensor `name` of a folder lies in the file.
pub fn layout(architecture: GgufArchitecture, name: &str) -> Layout {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    match architecture {
        GgufArchitecture::Gpt2 if stem.contains(".c_") && name.ends_with(".weight") => Layout::Transposed,
        GgufArchitecture::Llama if stem.ends_with(".q_proj") || stem.ends_with(".k_proj") => Layout::Interleaved,
        _ => Layout::Plain,
    }
}

/// Tensors that the hidden state does not need: the head, and tables of rotary frequencies, which the loader has checked
/// or old files carry beside the metadata that give the same.
pub fn is_ignorable(name: &str) -> bool {
    const ENDS: [&str; 2] = [".attn_rot_embd", ".attention.rotary_emb.inv_freq"];
    matches!(name, "output.weight" | "rope_freqs.weight") || ENDS.iter().any(|end| name.ends_with(end))
}

/// Rows and columns exchanged: `values [rows, columns]` to `[columns, rows]`.
pub fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for column in 0..columns {
        out.extend((0..rows).map(|row| values[row * columns + column]));
    }
    out
}

/// Rows `[heads, size / 2, 2]` of `width` numbers, or bytes of blocks, to `[heads, 2, size / 2]`.
pub fn uninterleaved<T: Copy>(values: &[T], heads: usize, width: usize) -> Vec<T> {
    let rows = values.len() / width;
    let size = rows / heads;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for row in 0..size {
            let from = head * size + 2 * (row % (size / 2)) + row / (size / 2);
            out.extend_from_slice(&values[from * width..(from + 1) * width]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_folder_become_ggml_names() {
        for (architecture, folder, gguf) in [
            (GgufArchitecture::Gpt2, "wpe.weight", "position_embd.weight"),
            (GgufArchitecture::Gpt2, "ln_f.bias", "output_norm.bias"),
            (GgufArchitecture::Gpt2, "h.11.attn.c_attn.bias", "blk.11.attn_qkv.bias"),
            (GgufArchitecture::Llama, "norm.weight", "output_norm.weight"),
            (GgufArchitecture::Qwen3, "layers.3.self_attn.q_norm.weight", "blk.3.attn_q_norm.weight"),
            (GgufArchitecture::Qwen2, "layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ] {
            assert_eq!(gguf_name(architecture, folder).as_deref(), Some(gguf));
        }
        assert_eq!(gguf_name(GgufArchitecture::Llama, "layers.0.mlp.experts.weight"), None);
    }

    #[test]
    fn only_some_tensors_lie_otherwise() {
        for (architecture, name, wanted) in [
            (GgufArchitecture::Gpt2, "h.0.attn.c_attn.weight", Layout::Transposed),
            (GgufArchitecture::Gpt2, "h.0.mlp.c_proj.weight", Layout::Transposed),
            (GgufArchitecture::Gpt2, "h.0.mlp.c_proj.bias", Layout::Plain),
            (GgufArchitecture::Gpt2, "wte.weight", Layout::Plain),
            (GgufArchitecture::Llama, "layers.0.self_attn.q_proj.weight", Layout::Interleaved),
            (GgufArchitecture::Llama, "layers.0.self_attn.k_proj.bias", Layout::Interleaved),
            (GgufArchitecture::Llama, "layers.0.self_attn.v_proj.weight", Layout::Plain),
            (GgufArchitecture::Qwen2, "layers.0.self_attn.q_proj.weight", Layout::Plain),
        ] {
            assert_eq!(layout(architecture, name), wanted, "{name}");
        }
    }

    #[test]
    fn halves_of_heads_come_apart() {
        // Two heads of four rows of one number: pairs (0, 2), (1, 3) lie interleaved.
        let file = [0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0];
        assert_eq!(uninterleaved(&file, 2, 1), [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
