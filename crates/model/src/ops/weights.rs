//! Dense weights on their way from a model's files to a device.

use numalign_config::Dtype;

/// How a dense weight lies in a model's files, row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightOrder {
    /// `[input, output]`: GPT-2's `Conv1D`.
    InputOutput,
    /// `[output, input]`: `torch.nn.Linear`.
    OutputInput,
}

/// How weights are held on a device.
#[derive(Debug, Clone, Copy)]
pub struct WeightStorage {
    /// For both directions; false if no gradient will be asked for, which halves the memory on the CPU.
    pub backward: bool,
    /// The type of weights and tables.
    pub dtype: Dtype,
}

/// A dense weight on the host, and its bias.
#[derive(Debug, Clone, Copy)]
pub struct HostLinear<'a> {
    /// `[input, output]` or `[output, input]`, as `order` says.
    pub weight: &'a [f32],
    /// How `weight` lies.
    pub order: WeightOrder,
    /// Input features.
    pub input: usize,
    /// Output features of the whole weight.
    pub output: usize,
    /// Range of outputs to use: the parts of GPT-2's fused query-key-value weight are told apart this way.
    pub outputs: (usize, usize),
    /// `[output]`
    pub bias: Option<&'a [f32]>,
    /// How the weight is held on the device. Biases and norms stay `f32`.
    pub dtype: Dtype,
}
