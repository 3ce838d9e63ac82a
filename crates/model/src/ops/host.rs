//! From a device to the host.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::error::ModelError;

/// A tensor's values, row-major.
pub(crate) fn to_host<B: Backend>(x: Tensor<B, 2>) -> Result<Vec<f32>, ModelError> {
    x.into_data().convert::<f32>().into_vec::<f32>().map_err(|error| ModelError::Device {
        device: "tensor".to_owned(),
        reason: format!("its result cannot be read: {error:?}"),
    })
}
