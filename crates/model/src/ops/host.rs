//! Between host and device: dense weights on their way there, and results on their way back.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use numalign_config::{Arithmetic, Dtype};

use super::device_failure;
use crate::error::ModelError;
use crate::load::gguf::kind::Kind;

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
    /// Whether gradients will be asked for.
    pub backward: bool,
    /// The type of weights and tables.
    pub dtype: Dtype,
    /// To what the factors of products are rounded.
    pub arithmetic: Arithmetic,
}

impl WeightStorage {
    /// `f32` throughout, for both directions.
    pub const F32: Self = Self { backward: true, dtype: Dtype::F32, arithmetic: Arithmetic::F32 };

    /// The type of the weights of products, which are rounded once where their products would round them each time.
    pub fn of_products(self) -> Dtype {
        match self.arithmetic {
            Arithmetic::Bf16 => Dtype::Bf16,
            Arithmetic::F32 | Arithmetic::Tf32 | Arithmetic::F16 => self.dtype,
        }
    }
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
    /// To what the factors of its products are rounded.
    pub arithmetic: Arithmetic,
    /// The same weight as a file of blocks has it, where `dtype` keeps these.
    pub blocks: Option<&'a HostBlocks>,
}

/// A weight `[output, input]` in GGML's blocks, row after row.
#[derive(Debug, Clone)]
pub struct HostBlocks {
    /// The kind of blocks.
    pub kind: Kind,
    /// Blocks as the file has them; empty for the kinds that have none.
    pub bytes: Vec<u8>,
}

/// A tensor's values, row-major.
///
/// # Errors
/// The device cannot hand them out, or something failed on it before: see [`device_failure`].
pub(crate) fn to_host<B: Backend>(x: Tensor<B, 2>) -> Result<Vec<f32>, ModelError> {
    let data = x.try_into_data();
    // First: a read after a failed task may succeed, and its error is seldom the cause.
    device_failure::check()?;
    #[cfg(feature = "cuda")]
    crate::kernel_cache::share();
    let data = data
        .map_err(|error| ModelError::DeviceTask { reason: device_failure::shortened(&error.to_string()) })?
        .convert::<f32>();
    data.into_vec::<f32>().map_err(|error| ModelError::DeviceTask { reason: format!("a result is no f32: {error:?}") })
}

/// A tensor on another device, by way of the host. Between GPUs Burn's own way is a communicator of NCCL, which it makes
/// without a timeout and only where a `libnccl.so` lies under that very name; one activation per step is little to copy.
///
/// # Errors
/// As [`to_host`].
pub(crate) fn move_to_device<B: Backend>(x: Tensor<B, 2>, device: &B::Device) -> Result<Tensor<B, 2>, ModelError> {
    if x.device() == *device {
        return Ok(x);
    }
    let shape = x.dims();
    Ok(Tensor::from_data(TensorData::new(to_host(x)?, shape), device))
}
