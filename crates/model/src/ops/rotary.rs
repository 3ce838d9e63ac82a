//! The angles of rotary positions, on the device.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

/// Cosine and sine of every rotary angle, `[positions, head_size/2]`, on the device.
pub struct RotaryTable<B: Backend> {
    /// Cosines.
    pub cos: Tensor<B, 2>,
    /// Sines.
    pub sin: Tensor<B, 2>,
}

impl<B: Backend> RotaryTable<B> {
    /// Angles of positions `0..positions`, given radians per position. The platform's `cos` and `sin` are not used, since
    /// they differ between platforms.
    pub fn new(frequencies: &[f32], positions: usize, device: &B::Device) -> Self {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in 0..positions {
            for frequency in frequencies {
                // The product is rounded to `f32`, as `transformers` has it.
                let angle = f64::from(position as f32 * frequency);
                cos.push(libm::cos(angle) as f32);
                sin.push(libm::sin(angle) as f32);
            }
        }
        let tensor = |values| Tensor::from_data(TensorData::new(values, [positions, frequencies.len()]), device);
        Self { cos: tensor(cos), sin: tensor(sin) }
    }

    /// Positions that the table holds.
    pub fn positions(&self) -> usize {
        let [positions, _] = self.cos.dims();
        positions
    }
}
