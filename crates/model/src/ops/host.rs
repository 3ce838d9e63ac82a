//! Between host and device: dense weights on their way there, and results on their way back.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use numalign_config::Dtype;

use crate::error::ModelError;

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

/// A tensor's values, row-major.
pub(crate) fn to_host<B: Backend>(x: Tensor<B, 2>) -> Result<Vec<f32>, ModelError> {
    x.into_data().convert::<f32>().into_vec::<f32>().map_err(|error| ModelError::Device {
        device: "tensor".to_owned(),
        reason: format!("its result cannot be read: {error:?}"),
    })
}
