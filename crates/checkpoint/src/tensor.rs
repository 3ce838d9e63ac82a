//! A tensor as it lies in the file.

use std::collections::BTreeMap;

use numalign_projector::bytes::{floats_from_le, le_bytes};
use safetensors::{Dtype, SafeTensors};

/// The tensors of a file by name.
pub(crate) type TensorMap = BTreeMap<String, Tensor>;

/// Copies the tensors of a file whose names are `wanted`; only `F32` and `F64` are known.
pub(crate) fn read_tensors(parsed: &SafeTensors<'_>, wanted: impl Fn(&str) -> bool) -> Result<TensorMap, String> {
    let mut map = BTreeMap::new();
    for (name, view) in parsed.tensors() {
        if !wanted(&name) {
            continue;
        }
        if !matches!(view.dtype(), Dtype::F32 | Dtype::F64) {
            return Err(format!("tensor {name} is {:?}, not f32", view.dtype()));
        }
        let (shape, bytes) = (view.shape().to_vec(), view.data().to_vec());
        map.insert(name.clone(), Tensor { name, dtype: view.dtype(), shape, bytes });
    }
    Ok(map)
}

/// Name, type, shape and little-endian bytes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// `F32` or `F64`.
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn of_f32(name: String, shape: Vec<usize>, values: &[f32]) -> Self {
        Self { name, dtype: Dtype::F32, shape, bytes: le_bytes(values).to_vec() }
    }

    pub(crate) fn of_f64(name: String, shape: Vec<usize>, values: &[f64]) -> Self {
        Self { name, dtype: Dtype::F64, shape, bytes: le_bytes(values).to_vec() }
    }

    /// The type as safetensors writes it.
    pub(crate) fn dtype_name(&self) -> &'static str {
        if self.dtype == Dtype::F64 { "F64" } else { "F32" }
    }

    /// The values; none if the tensor has the other type.
    pub(crate) fn f32s(&self) -> Option<Vec<f32>> {
        (self.dtype == Dtype::F32).then(|| floats_from_le(&self.bytes))
    }

    /// The values; none if the tensor has the other type.
    pub(crate) fn f64s(&self) -> Option<Vec<f64>> {
        (self.dtype == Dtype::F64).then(|| floats_from_le(&self.bytes))
    }
}
