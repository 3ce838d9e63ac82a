//! Matrices in a GPU's memory as this crate's kernels take them: `f32`, rows of neighbouring numbers, and from row to row a stride
//! that may be larger than the width, so that a part of a wider matrix is one too.

use burn::tensor::{DType, Shape, Tensor, TensorPrimitive};
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::cuda::CudaRuntime;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::zspace::{Strides, metadata::Metadata};

use super::Cuda;

/// cubecl's name for NVIDIA's GPUs.
pub type Gpu = CudaRuntime;

/// Bytes of a number.
const F32: u64 = 4;

/// `[rows, columns]`, see above.
#[derive(Clone)]
pub struct Matrix {
    tensor: CubeTensor<Gpu>,
    /// Rows.
    pub rows: usize,
    /// Numbers of a row.
    pub columns: usize,
    /// From one row to the next, in numbers.
    pub stride: usize,
    /// Numbers before the first, within the memory that it is part of.
    offset: usize,
}

impl Matrix {
    /// A tensor's memory. It is copied where the numbers of a row are no neighbours.
    pub fn of(x: Tensor<Cuda, 2>) -> Self {
        Self::new(x.into_primitive().tensor())
    }

    fn new(tensor: CubeTensor<Gpu>) -> Self {
        let [rows, columns] = [tensor.meta.shape()[0], tensor.meta.shape()[1]];
        let tensor = if tensor.meta.strides()[1] == 1 || columns == 1 { tensor } else { into_contiguous(tensor) };
        let stride = if rows == 1 { columns } else { tensor.meta.strides()[0] };
        let offset = (tensor.handle.offset_start.unwrap_or(0) / F32) as usize;
        Self { tensor, rows, columns, stride, offset }
    }

    /// A tensor's memory, copied where its rows do not follow each other.
    pub fn dense(x: Tensor<Cuda, 2>) -> Self {
        let matrix = Self::of(x);
        if matrix.stride == matrix.columns { matrix } else { Self::new(into_contiguous(matrix.tensor)) }
    }

    /// A list's memory, as one row.
    pub fn list(x: Tensor<Cuda, 1>) -> Self {
        let [width] = x.dims();
        Self::dense(x.reshape([1, width]))
    }

    /// Memory that nothing was written to yet, where `self` is.
    pub fn empty(&self, rows: usize, columns: usize) -> Self {
        let (client, device) = (self.tensor.client.clone(), self.tensor.device.clone());
        let tensor = empty_device_contiguous_dtype(client, device, Shape::new([rows, columns]), DType::F32);
        Self { tensor, rows, columns, stride: columns, offset: 0 }
    }

    /// `count` columns from `from` on, in place.
    pub fn part(&self, from: usize, count: usize) -> Self {
        let mut part = self.clone();
        part.tensor.handle = part.tensor.handle.offset_start(from as u64 * F32);
        part.offset += from;
        part.columns = count;
        part.with_shape()
    }

    /// The tensor is told of its rows, columns and stride.
    fn with_shape(mut self) -> Self {
        let (shape, strides) = (Shape::new([self.rows, self.columns]), Strides::new(&[self.stride, 1]));
        self.tensor.meta = Box::new(Metadata::new(shape, strides));
        self
    }

    /// The first `rows` and `columns`, in place.
    pub fn corner(&self, rows: usize, columns: usize) -> Self {
        Self { rows, ..self.part(0, columns) }.with_shape()
    }

    /// How many numbers can be read at once anywhere in it.
    pub fn vector(&self) -> usize {
        let fits =
            |width: &usize| [self.columns, self.stride, self.offset].iter().all(|size| size.is_multiple_of(*width));
        [4, 2].into_iter().find(fits).unwrap_or(1)
    }

    /// The same memory as a tensor.
    pub fn tensor(self) -> Tensor<Cuda, 2> {
        Tensor::from_primitive(TensorPrimitive::Float(self.tensor))
    }

    /// The same memory as cubecl has it.
    pub fn primitive(self) -> CubeTensor<Gpu> {
        self.tensor
    }

    /// What kernels are launched on.
    pub fn client(&self) -> &ComputeClient<Gpu> {
        &self.tensor.client
    }

    /// The memory as an argument of a kernel.
    pub fn argument(&self) -> ArrayArg<Gpu> {
        let numbers = if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride + self.columns };
        // SAFETY: the memory holds that many numbers, from the handle's offset on.
        unsafe { ArrayArg::from_raw_parts(self.tensor.handle.clone(), numbers) }
    }
}

/// Threads of a block that works on one row, or on a stretch of one.
pub const ROW_THREADS: u32 = 256;

/// One block for each stretch of [`ROW_THREADS`] numbers of each row: `x` is the row.
pub fn stretches(rows: usize, columns: usize) -> (CubeCount, CubeDim) {
    let across = columns.div_ceil(ROW_THREADS as usize) as u32;
    (CubeCount::Static(rows as u32, across, 1), CubeDim::new_1d(ROW_THREADS))
}
