//! Names and sizes of the frozen model's layer norms, where they train. Used by the coordinator, which meets them first
//! in a worker's `Ready`, and by the checkpoint, which stores each under its name.

/// One tensor of a layer norm, in the model's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormTensor {
    /// The model's own name, such as `h.0.ln_1.weight`.
    pub name: String,
    /// Numbers in it.
    pub len: usize,
}

/// Numbers in all of them.
pub fn total_len(tensors: &[NormTensor]) -> usize {
    tensors.iter().map(|tensor| tensor.len).sum()
}
