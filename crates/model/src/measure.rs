//! How fast a device multiplies matrices with the operations that the model uses: what a step's speed is compared with.

use std::time::Instant;

use burn::tensor::{Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use numalign_config::{Arithmetic, CpuArithmetic, DeviceChoice, Dtype};

use crate::error::ModelError;
use crate::load::{Devices, ModelDevice};
use crate::ops::sequences::RowKind;
use crate::ops::{FrozenOps, HostLinear, WeightOrder, to_host};

/// Input and output features of the measured weight.
const WIDTH: usize = 1024;
const ROUNDS: usize = 8;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixRate {
    /// How the weight lies in memory.
    pub dtype: Dtype,
    /// To what a CPU rounds factors.
    pub arithmetic: CpuArithmetic,
    /// No rounded factors, on a GPU too.
    pub exact_f32: bool,
    /// Rows of the other factor; `None`: enough for the device's full speed.
    pub rows: Option<usize>,
}

impl MatrixRate {
    /// Floating-point operations per second of `[rows, 1024] × [1024, 1024]`, the best of a few rounds.
    ///
    /// # Errors
    /// The device cannot be used.
    pub fn on(self, choice: DeviceChoice) -> Result<f64, ModelError> {
        let devices = Devices::resolve(choice, 1)?;
        let arithmetic = devices.arithmetic(self.dtype, self.arithmetic, self.exact_f32)?;
        match devices.place() {
            ModelDevice::Cpu => rate::<Flex>(&FlexDevice, self.dtype, arithmetic, self.rows.unwrap_or(256)),
            #[cfg(feature = "cuda")]
            ModelDevice::Cuda { first } => {
                let device = crate::ops::cuda::device(first);
                rate::<crate::ops::cuda::Cuda>(&device, self.dtype, arithmetic, self.rows.unwrap_or(8192))
            }
            #[cfg(not(feature = "cuda"))]
            ModelDevice::Cuda { .. } => Ok(0.0),
        }
    }
}

fn rate<B: FrozenOps>(
    device: &B::Device,
    dtype: Dtype,
    arithmetic: Arithmetic,
    rows: usize,
) -> Result<f64, ModelError> {
    // Signs in turn and 1/√width: products neither grow nor vanish.
    let size = 1.0 / (WIDTH as f32).sqrt();
    let weight: Vec<f32> = (0..WIDTH * WIDTH).map(|i| if i % 3 == 0 { size } else { -size }).collect();
    let host = HostLinear {
        weight: &weight,
        order: WeightOrder::InputOutput,
        input: WIDTH,
        output: WIDTH,
        outputs: (0, WIDTH),
        bias: None,
        dtype,
        arithmetic,
        blocks: None,
    };
    let linear = B::prepare(host, device);
    let values: Vec<f32> = (0..rows * WIDTH).map(|i| (i % 7) as f32 - 3.0).collect();
    let x = Tensor::<B, 2>::from_data(TensorData::new(values, [rows, WIDTH]), device);
    let operations = 2.0 * rows as f64 * (WIDTH * WIDTH) as f64;
    let mut best = 0.0f64;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let y = B::frozen_linear(x.clone(), &linear, None, RowKind::Long);
        // Reading one number waits for all of them.
        to_host(y.narrow(0, rows - 1, 1).narrow(1, 0, 1))?;
        best = best.max(operations / started.elapsed().as_secs_f64());
    }
    Ok(best)
}
