//! Writes small GGUF files, sound or broken on purpose.

#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};

/// A metadata value as its type code and bytes.
#[derive(Clone)]
pub struct Meta(pub u32, pub Vec<u8>);

pub fn u32(value: u32) -> Meta {
    Meta(4, value.to_le_bytes().to_vec())
}

pub fn f32(value: f32) -> Meta {
    Meta(6, value.to_le_bytes().to_vec())
}

pub fn flag(value: bool) -> Meta {
    Meta(7, vec![u8::from(value)])
}

pub fn text(value: &str) -> Meta {
    Meta(8, string(value))
}

pub fn texts(values: &[&str]) -> Meta {
    let mut bytes = 8u32.to_le_bytes().to_vec();
    bytes.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| bytes.extend(string(value)));
    Meta(9, bytes)
}

pub fn integers(values: &[i32]) -> Meta {
    let mut bytes = 5u32.to_le_bytes().to_vec();
    bytes.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    Meta(9, bytes)
}

pub fn string(value: &str) -> Vec<u8> {
    let mut bytes = (value.len() as u64).to_le_bytes().to_vec();
    bytes.extend(value.as_bytes());
    bytes
}

/// A tensor; the shape is in the file's order, fastest dimension first.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<u64>,
    pub kind: u32,
    pub data: Vec<u8>,
    /// In the place of the right one.
    pub offset: Option<u64>,
}

/// A file, part by part.
#[derive(Clone)]
pub struct File {
    pub version: u32,
    pub alignment: usize,
    pub metadata: Vec<(String, Meta)>,
    pub tensors: Vec<Tensor>,
    /// In the place of the right ones.
    pub tensor_count: Option<u64>,
    pub entry_count: Option<u64>,
}

impl File {
    /// A Llama of one block with two heads, all numbers different.
    pub fn llama() -> Self {
        let metadata = [
            ("general.architecture", text("llama")),
            ("llama.context_length", u32(16)),
            ("llama.embedding_length", u32(8)),
            ("llama.block_count", u32(1)),
            ("llama.feed_forward_length", u32(6)),
            ("llama.attention.head_count", u32(2)),
            ("llama.attention.head_count_kv", u32(1)),
            ("llama.attention.layer_norm_rms_epsilon", f32(1e-5)),
            ("llama.rope.freq_base", f32(1000.0)),
        ];
        let mut file = Self {
            version: 3,
            alignment: 32,
            metadata: metadata.map(|(key, value)| (key.to_owned(), value)).to_vec(),
            tensors: Vec::new(),
            tensor_count: None,
            entry_count: None,
        };
        file.tensor("token_embd.weight", &[8, 5]);
        file.tensor("output_norm.weight", &[8]);
        for (name, shape) in [
            ("attn_norm", &[8][..]),
            ("attn_q", &[8, 8]),
            ("attn_k", &[8, 4]),
            ("attn_v", &[8, 4]),
            ("attn_output", &[8, 8]),
            ("ffn_norm", &[8]),
            ("ffn_gate", &[8, 6]),
            ("ffn_up", &[8, 6]),
            ("ffn_down", &[6, 8]),
        ] {
            file.tensor(&format!("blk.0.{name}.weight"), shape);
        }
        file
    }

    /// Appends an F32 tensor.
    pub fn tensor(&mut self, name: &str, shape: &[u64]) -> &mut Self {
        let first = self.tensors.len() as u64;
        let count = shape.iter().product();
        let data = (0..count).flat_map(|i| (((i * 7 + first) % 13) as f32 * 0.1 - 0.6).to_le_bytes()).collect();
        self.tensors.push(Tensor { name: name.to_owned(), shape: shape.to_vec(), kind: 0, data, offset: None });
        self
    }

    /// Sets a metadata value.
    pub fn set(&mut self, key: &str, value: Meta) -> &mut Self {
        self.remove(key);
        self.metadata.push((key.to_owned(), value));
        self
    }

    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(other, _)| other != key);
        self
    }

    /// A byte-level tokenizer of the 256 bytes, one merge and one special token.
    pub fn tokenizer(&mut self) -> &mut Self {
        let mut tokens: Vec<String> = vec!["<|end|>".to_owned()];
        let mut other = 256;
        for byte in 0..=255u8 {
            let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let code = if printable { u32::from(byte) } else { other };
            other += u32::from(!printable);
            tokens.push(char::from_u32(code).unwrap().to_string());
        }
        tokens.push("ab".to_owned());
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let mut kinds = vec![1; tokens.len()];
        kinds[0] = 3;
        self.set("tokenizer.ggml.model", text("gpt2"));
        self.set("tokenizer.ggml.pre", text("gpt-2"));
        self.set("tokenizer.ggml.tokens", texts(&tokens));
        self.set("tokenizer.ggml.token_type", integers(&kinds));
        self.set("tokenizer.ggml.merges", texts(&["a b"]))
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.entry_count.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for (key, Meta(code, bytes)) in &self.metadata {
            out.extend(string(key));
            out.extend(code.to_le_bytes());
            out.extend(bytes);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            out.extend(string(&tensor.name));
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|length| out.extend(length.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }
}

/// The folder of what `tools/fixtures/make_gguf.py` wrote.
pub fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/gguf")
}

/// Every GGUF file in it.
pub fn files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(testdata()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    files.sort();
    assert!(files.len() > 10, "{files:?}");
    files
}
