//! A frozen weight in a GPU's memory, as both passes and both kinds of products read it.

use burn::tensor::{DType, FloatDType, Shape, Tensor, TensorData};
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use cubecl::zspace::{Strides, metadata::Metadata};
use numalign_config::Dtype;

use super::Cuda;
use super::matrix::Gpu;
use crate::ops::{HostLinear, WeightOrder};

/// `[inner, columns]`: a product with it sums over `inner`. In memory it is lines of neighbouring numbers, which run along
/// the columns or along `inner`.
#[derive(Clone)]
pub struct Weight {
    /// The lines.
    tensor: CubeTensor<Gpu>,
    /// Length of the sums.
    pub inner: usize,
    /// Results of a row.
    pub columns: usize,
    /// From one line to the next, in numbers.
    pub stride: usize,
    /// Whether lines run along the columns.
    pub along_columns: bool,
    /// Numbers before the first, within the memory that it is part of.
    offset: usize,
}

impl Weight {
    /// Moves a weight to `device`.
    pub fn new(host: &HostLinear<'_>, device: &burn::backend::cuda::CudaDevice) -> Self {
        let (from, to) = host.outputs;
        let width = to - from;
        let along_columns = host.order == WeightOrder::InputOutput;
        let (part, lines) = if along_columns {
            let rows = host.weight.chunks_exact(host.output).flat_map(|row| &row[from..to]);
            (rows.copied().collect::<Vec<f32>>(), [host.input, width])
        } else {
            (host.weight[from * host.input..to * host.input].to_vec(), [width, host.input])
        };
        let lines: Tensor<Cuda, 2> = Tensor::from_data(TensorData::new(part, lines), device);
        let lines = match host.dtype {
            Dtype::Bf16 => lines.cast(FloatDType::BF16),
            Dtype::F16 => lines.cast(FloatDType::F16),
            // Blocks are the CPU's: `load` refuses them elsewhere.
            _ => lines,
        };
        Self::of(lines, along_columns)
    }

    fn of(lines: Tensor<Cuda, 2>, along_columns: bool) -> Self {
        let [count, length] = lines.dims();
        let tensor = lines.into_primitive().tensor();
        let stride = if count == 1 { length } else { tensor.meta.strides()[0] };
        let (inner, columns) = if along_columns { (count, length) } else { (length, count) };
        Self { tensor, inner, columns, stride, along_columns, offset: 0 }
    }

    fn lines(self) -> Tensor<Cuda, 2> {
        Tensor::from_primitive(burn::tensor::TensorPrimitive::Float(self.tensor))
    }

    /// Weights with the same `inner`, side by side.
    pub fn side_by_side(weights: Vec<Self>) -> Self {
        let along_columns = weights.iter().all(|weight| weight.along_columns);
        let lines = weights.into_iter().map(Self::lines).collect();
        Self::of(Tensor::cat(lines, if along_columns { 1 } else { 0 }), along_columns)
    }

    /// `count` columns from `from` on, in place.
    pub fn part(&self, from: usize, count: usize) -> Self {
        let skipped = if self.along_columns { from } else { from * self.stride };
        let mut part = self.clone();
        part.tensor.handle = part.tensor.handle.offset_start((skipped * self.tensor.dtype.size()) as u64);
        part.offset += skipped;
        part.columns = count;
        part
    }

    /// The same numbers as `[columns, inner]`.
    pub fn turned(&self) -> Self {
        Self { inner: self.columns, columns: self.inner, along_columns: !self.along_columns, ..self.clone() }
    }

    /// Numbers before the first, within the memory that it is part of.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Type of the numbers.
    pub fn dtype(&self) -> DType {
        self.tensor.dtype
    }

    /// How many numbers can be read at once anywhere in it.
    pub fn vector(&self) -> usize {
        let line = if self.along_columns { self.columns } else { self.inner };
        let fits = |width: &usize| [line, self.stride, self.offset].iter().all(|size| size.is_multiple_of(*width));
        [4, 2].into_iter().find(fits).unwrap_or(1)
    }

    /// The memory as an argument of a kernel.
    pub fn argument(&self) -> ArrayArg<Gpu> {
        let (lines, length) = if self.along_columns { (self.inner, self.columns) } else { (self.columns, self.inner) };
        let numbers = lines.saturating_sub(1) * self.stride + length;
        // SAFETY: the memory holds that many numbers, from the handle's offset on.
        unsafe { ArrayArg::from_raw_parts(self.tensor.handle.clone(), numbers) }
    }

    /// `[inner, columns]` as cubecl has it, a view.
    pub fn primitive(&self) -> CubeTensor<Gpu> {
        let strides = if self.along_columns { [self.stride, 1] } else { [1, self.stride] };
        let mut tensor = self.tensor.clone();
        tensor.meta = Box::new(Metadata::new(Shape::new([self.inner, self.columns]), Strides::new(&strides)));
        tensor
    }
}
