//! Matrix products on the GPU, with the factors rounded as asked for and the sums in `f32`.
//!
//! cubek picks a kernel by shape and device alone, so the same product has the same bits everywhere on equal GPUs. Its
//! `Auto` takes the matrix units, which multiply `f32` in TF32; `SimpleUnit` does without them.

use burn::tensor::{DType, FloatDType, Tensor, TensorPrimitive};
use burn_cubecl::kernel::matmul::init_matmul_output;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::std::InputBinding;
use numalign_config::Arithmetic;

use super::cuda::Cuda;
use super::device_failure;

/// `a·b`, `[n, k] × [k, m]`, in `f32`. A product that cannot be started is a failure of the device.
pub fn product(a: Tensor<Cuda, 2>, b: Tensor<Cuda, 2>, arithmetic: Arithmetic) -> Tensor<Cuda, 2> {
    let (factor, strategy) = match arithmetic {
        Arithmetic::F32 => (FloatDType::F32, Strategy::SimpleUnit(Default::default())),
        Arithmetic::Tf32 => (FloatDType::F32, Strategy::Auto),
        Arithmetic::Bf16 => (FloatDType::BF16, Strategy::Auto),
        Arithmetic::F16 => (FloatDType::F16, Strategy::Auto),
    };
    let (a, b) = (rounded(a, factor).into_primitive().tensor(), rounded(b, factor).into_primitive().tensor());
    let out = init_matmul_output(&a, &b, DType::F32);
    let (client, factors) = (out.client.clone(), a.dtype);
    let mut dtypes = MatmulElems::from_globals(&MatmulGlobalElems {
        lhs: factors.into(),
        rhs: factors.into(),
        out: DType::F32.into(),
    });
    let a = InputBinding::new(a.binding(), factors.into());
    let b = InputBinding::new(b.binding(), factors.into());
    if let Err(error) = launch_ref(&strategy, &client, a, b, out.clone().binding(), &mut dtypes) {
        device_failure::record(&format!("a matrix product cannot be started: {error:?}"));
    }
    Tensor::from_primitive(TensorPrimitive::Float(out))
}

fn rounded(x: Tensor<Cuda, 2>, to: FloatDType) -> Tensor<Cuda, 2> {
    if x.dtype() == DType::from(to) { x } else { x.cast(to) }
}
