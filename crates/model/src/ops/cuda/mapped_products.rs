//! Matrix products of many rows by cubek, on GPUs whose copy engine reads tiles by tensor maps (Hopper and later): there its
//! `SpecializedTmaMma` is about twice as fast as kernels that copy with their threads.
//!
//! The kernel depends on shape and device alone. On an H100, a row's bits were the same with 8, 64, 1,024 and 8,192 rows.

use burn::tensor::{DType, FloatDType, Tensor, TensorPrimitive};
use burn_cubecl::tensor::CubeTensor;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::std::InputBinding;
use numalign_config::Arithmetic;

use super::Cuda;
use super::matrix::{Gpu, Matrix};
use super::weight::Weight;

/// Tensor maps want addresses and strides in units of so many bytes.
const UNIT: usize = 16;
/// Sums and results a row come in whole tiles of this size.
const TILE: usize = 64;

/// `x·weight` with the factors in `arithmetic`; `None` for shapes that this is not for.
pub fn product(x: &Matrix, weight: &Weight, arithmetic: Arithmetic) -> Option<Matrix> {
    let factor = match arithmetic {
        Arithmetic::F32 => return None,
        Arithmetic::Tf32 => FloatDType::F32,
        Arithmetic::Bf16 => FloatDType::BF16,
        Arithmetic::F16 => FloatDType::F16,
    };
    if weight.dtype() != DType::from(factor) || !fits(x, weight) {
        return None;
    }
    let out = x.empty(x.rows, weight.columns);
    let a = rounded(x.clone().primitive(), factor);
    let factors = a.dtype;
    let mut dtypes = MatmulElems::from_globals(&MatmulGlobalElems {
        lhs: factors.into(),
        rhs: factors.into(),
        out: DType::F32.into(),
    });
    let a = InputBinding::new(a.binding(), factors.into());
    let b = InputBinding::new(weight.primitive().binding(), factors.into());
    let strategy = Strategy::SpecializedTmaMma(Default::default());
    launch_ref(&strategy, out.client(), a, b, out.clone().primitive().binding(), &mut dtypes).ok()?;
    Some(out)
}

fn fits(x: &Matrix, weight: &Weight) -> bool {
    let size = weight.dtype().size();
    weight.inner.is_multiple_of(TILE)
        && weight.columns.is_multiple_of(TILE)
        && x.vector() == 4
        && (weight.stride * size).is_multiple_of(UNIT)
        && (weight.offset() * size).is_multiple_of(UNIT)
}

fn rounded(x: CubeTensor<Gpu>, to: FloatDType) -> CubeTensor<Gpu> {
    if x.dtype == DType::from(to) {
        return x;
    }
    let x: Tensor<Cuda, 2> = Tensor::from_primitive(TensorPrimitive::Float(x));
    x.cast(to).into_primitive().tensor()
}
