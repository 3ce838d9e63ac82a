//! What `transformers` computes with the embedded demo model: hidden states, and the gradient of the embeddings.
//! `assets/demo-gpt2/make_reference.py` writes the file.

use serde::Deserialize;

const TEXT: &str = include_str!("../assets/demo-gpt2/reference.json");

/// Stored values.
#[derive(Debug, Clone, Deserialize)]
pub struct Reference {
    /// Hidden states of several inputs.
    pub cases: Vec<Case>,
    /// The gradient of one of them.
    pub gradient: Gradient,
}

/// The last position's hidden state after some tokens.
#[derive(Debug, Clone, Deserialize)]
pub struct Case {
    /// Token ids.
    pub ids: Vec<u32>,
    /// `[d]`
    pub hidden_last: Vec<f32>,
}

/// The gradient of `Σ cos(i)·hidden_last[i]` with respect to the tokens' embeddings.
#[derive(Debug, Clone, Deserialize)]
pub struct Gradient {
    /// Token ids.
    pub ids: Vec<u32>,
    /// `[d]`
    pub hidden_last: Vec<f32>,
    /// A row per token.
    pub grad_embeddings: Vec<Vec<f32>>,
}

/// The demo model's reference.
///
/// # Errors
/// The file is damaged, which a build cannot be.
pub fn demo() -> Result<Reference, serde_json::Error> {
    serde_json::from_str(TEXT)
}

/// `cos(i)`, what the gradient starts from.
pub fn cotangent(width: usize) -> Vec<f32> {
    (0..width).map(|i| libm::cos(i as f64) as f32).collect()
}
