//! A tensor as it lies in the file. Used by [`crate::file`] and [`crate::solve`].

use safetensors::Dtype;

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
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { name, dtype: Dtype::F32, shape, bytes }
    }

    pub(crate) fn of_f64(name: String, shape: Vec<usize>, values: &[f64]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { name, dtype: Dtype::F64, shape, bytes }
    }

    /// The type as safetensors writes it.
    pub(crate) fn dtype_name(&self) -> &'static str {
        if self.dtype == Dtype::F64 { "F64" } else { "F32" }
    }

    /// The values; none where the tensor is of the other type.
    pub(crate) fn f32s(&self) -> Option<Vec<f32>> {
        let values = self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        (self.dtype == Dtype::F32).then(|| values.collect())
    }

    /// The values; none where the tensor is of the other type.
    pub(crate) fn f64s(&self) -> Option<Vec<f64>> {
        let values =
            self.bytes.chunks_exact(8).map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
        (self.dtype == Dtype::F64).then(|| values.collect())
    }
}
