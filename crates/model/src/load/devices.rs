//! Which device a model goes to: the choice among the visible ones, and what is known of those that were chosen.

use numalign_config::{Arithmetic, CpuArithmetic, DeviceChoice, Dtype};
use numalign_gpu::assignment::{Sharing, first_gpu};
use numalign_gpu::driver::visible_gpus;

use super::budget;
use crate::decoder::placement;
use crate::error::ModelError;
#[cfg(feature = "cuda")]
use crate::ops::cuda;

/// The kind of device that a model is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelDevice {
    /// The CPU, as one device or several.
    Cpu,
    /// On GPUs from `first` on, numbered among the visible ones.
    Cuda {
        /// The first GPU.
        first: usize,
    },
}

/// The device that a worker takes: the local rank chooses among the visible GPUs, `per_worker` to each. `cuda` never
/// becomes the CPU; `auto` says why it does, and shares GPUs where there are more workers.
pub fn choose_device(choice: DeviceChoice, local_rank: Option<usize>, per_worker: usize) -> DeviceChoice {
    let rank = local_rank.unwrap_or(0);
    match choice {
        DeviceChoice::Cpu | DeviceChoice::Cuda(Some(_)) => choice,
        DeviceChoice::Cuda(None) => {
            DeviceChoice::Cuda(Some(first_gpu(rank, per_worker, visible_gpus(), Sharing::Exclusive)))
        }
        DeviceChoice::Auto => Devices::auto(rank, per_worker),
    }
}

/// The kind of device that `choice` comes to.
///
/// # Errors
/// There is no such device, or it cannot be used.
pub fn place_of(choice: DeviceChoice) -> Result<ModelDevice, ModelError> {
    Ok(Devices::resolve(choice, 1)?.place())
}

/// Devices that exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Devices {
    /// The CPU, as so many devices.
    Cpu { count: usize },
    #[cfg(feature = "cuda")]
    Cuda { first: usize, count: usize },
}

impl Devices {
    pub(crate) fn resolve(choice: DeviceChoice, count: usize) -> Result<Self, ModelError> {
        match choice {
            DeviceChoice::Cpu => Ok(Self::Cpu { count }),
            DeviceChoice::Auto => Self::resolve(Self::auto(0, count), count),
            DeviceChoice::Cuda(first) => Self::cuda(first, count),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn auto(_rank: usize, _count: usize) -> DeviceChoice {
        DeviceChoice::Cpu
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(first: Option<usize>, _count: usize) -> Result<Self, ModelError> {
        Err(ModelError::Device {
            device: first.map_or_else(|| "cuda".to_owned(), |index| format!("cuda:{index}")),
            reason: "this binary was built without CUDA (cargo build --release --features cuda)".to_owned(),
        })
    }

    #[cfg(feature = "cuda")]
    fn auto(rank: usize, count: usize) -> DeviceChoice {
        let first = first_gpu(rank, count, visible_gpus(), Sharing::Shared);
        match Self::cuda(Some(first), count) {
            Ok(_) => DeviceChoice::Cuda(Some(first)),
            Err(error) => {
                tracing::info!("device auto takes the CPU: {error}");
                DeviceChoice::Cpu
            }
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda(first: Option<usize>, count: usize) -> Result<Self, ModelError> {
        let find = |index: Option<usize>| {
            cuda::find(index).map_err(|source| ModelError::Gpu {
                device: index.map_or_else(|| "cuda".to_owned(), |index| format!("cuda:{index}")),
                source,
            })
        };
        let first = find(first)?;
        for index in first + 1..first + count {
            find(Some(index))?;
        }
        Ok(Self::Cuda { first, count })
    }

    /// The memories that the model has to fit into; empty if nothing is known.
    pub(super) fn free_memory(&self) -> Result<Vec<budget::FreeMemory>, ModelError> {
        match self {
            Self::Cpu { .. } => Ok(budget::free_memory().into_iter().collect()),
            #[cfg(feature = "cuda")]
            Self::Cuda { first, count } => {
                let mut all = Vec::with_capacity(*count);
                for index in *first..first + count {
                    let source = format!("cuda:{index}");
                    let free = numalign_gpu::memory::free_bytes(index);
                    let bytes = free.map_err(|error| ModelError::Gpu { device: source.clone(), source: error })?;
                    all.push(budget::FreeMemory { bytes, source, kind: budget::MemoryKind::Gpu });
                }
                Ok(all)
            }
        }
    }

    /// To what the factors of products are rounded on these devices.
    ///
    /// # Errors
    /// GPUs that differ, or that are asked for a CPU's `bf16`.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "the CPU does as it is asked"))]
    pub(crate) fn arithmetic(
        &self,
        dtype: Dtype,
        on_cpu: CpuArithmetic,
        exact_f32: bool,
    ) -> Result<Arithmetic, ModelError> {
        match self {
            Self::Cpu { .. } => Ok(on_cpu.into()),
            #[cfg(feature = "cuda")]
            Self::Cuda { first, .. } if on_cpu != CpuArithmetic::F32 => Err(ModelError::Device {
                device: format!("cuda:{first}"),
                reason: format!(
                    "arithmetic: {on_cpu} is a CPU's; on a GPU dtype: bf16 rounds the factors of products, so take that \
                     instead, or device: cpu"
                ),
            }),
            #[cfg(feature = "cuda")]
            Self::Cuda { first, count } => {
                let of = |index: usize| {
                    let gpu = numalign_gpu::Driver::get().and_then(|driver| driver.gpu(index));
                    let gpu = gpu.map_err(|source| ModelError::Gpu { device: format!("cuda:{index}"), source })?;
                    Ok(of_gpu(gpu.capability, dtype, exact_f32))
                };
                let arithmetic = of(*first)?;
                for index in first + 1..first + count {
                    let other = of(index)?;
                    if other != arithmetic {
                        let reason = format!(
                            "its products are in {other}, those of cuda:{first} in {arithmetic}; exact_f32: true makes \
                             both f32"
                        );
                        return Err(ModelError::Device { device: format!("cuda:{index}"), reason });
                    }
                }
                Ok(arithmetic)
            }
        }
    }

    /// Memories over which the blocks are spread: the CPU's devices share one.
    pub(super) fn sharing(&self) -> usize {
        match self {
            Self::Cpu { .. } => 1,
            #[cfg(feature = "cuda")]
            Self::Cuda { count, .. } => *count,
        }
    }

    /// A silent minute would look like a hang.
    pub(super) fn announce(&self, _name: &str) {
        #[cfg(feature = "cuda")]
        if let Self::Cuda { .. } = self {
            tracing::info!("{_name}: kernels are compiled at their first use, which can take a minute");
        }
    }

    pub(crate) fn place(&self) -> ModelDevice {
        match self {
            Self::Cpu { .. } => ModelDevice::Cpu,
            #[cfg(feature = "cuda")]
            Self::Cuda { first, .. } => ModelDevice::Cuda { first: *first },
        }
    }

    /// For people, such as `cpu (avx512, 2 threads)`; with the ranges of blocks if there are several devices.
    pub(super) fn describe(&self, layers: usize) -> String {
        let (text, count) = match self {
            Self::Cpu { count } => {
                let isa = format!("{:?}", crate::kernels::dispatch::isa()).to_lowercase();
                let threads = rayon::current_num_threads();
                let plural = if threads == 1 { "" } else { "s" };
                let times = if *count > 1 { format!("{count} × ") } else { String::new() };
                (format!("{times}cpu ({isa}, {threads} thread{plural})"), *count)
            }
            #[cfg(feature = "cuda")]
            Self::Cuda { first, count: 1 } => (format!("cuda:{first}"), 1),
            #[cfg(feature = "cuda")]
            Self::Cuda { first, count } => (format!("cuda:{first}–{}", first + count - 1), *count),
        };
        if count == 1 {
            return text;
        }
        let ranges = placement::block_ranges(layers, count).into_iter();
        let blocks: Vec<String> = ranges.map(|blocks| format!("{}–{}", blocks.start + 1, blocks.end)).collect();
        format!("{text}, blocks {}", blocks.join(" | "))
    }
}

/// What a GPU's matrix units do: f16 since Volta (7.0), bf16 and TF32 since Ampere (8.0). Without one for `dtype` products
/// are in `f32`, whatever the weights are held in.
#[cfg(any(test, feature = "cuda"))]
fn of_gpu(capability: (u32, u32), dtype: Dtype, exact_f32: bool) -> Arithmetic {
    const VOLTA: (u32, u32) = (7, 0);
    const AMPERE: (u32, u32) = (8, 0);
    match dtype {
        _ if exact_f32 => Arithmetic::F32,
        Dtype::F32 if capability >= AMPERE => Arithmetic::Tf32,
        Dtype::Bf16 if capability >= AMPERE => Arithmetic::Bf16,
        Dtype::F16 if capability >= VOLTA => Arithmetic::F16,
        _ => Arithmetic::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_rounded_where_a_gpu_has_units_for_it_and_nothing_forbids_it() {
        use Arithmetic::{Bf16, F16, F32, Tf32};
        for (capability, wanted) in [
            ((6, 1), [F32, F32, F32]),
            ((7, 5), [F32, F32, F16]),
            ((8, 0), [Tf32, Bf16, F16]),
            ((9, 0), [Tf32, Bf16, F16]),
        ] {
            let all = [Dtype::F32, Dtype::Bf16, Dtype::F16];
            assert_eq!(all.map(|dtype| of_gpu(capability, dtype, false)), wanted, "{capability:?}");
            assert_eq!(all.map(|dtype| of_gpu(capability, dtype, true)), [F32; 3], "{capability:?}");
        }
    }

    #[test]
    fn a_named_device_is_left_alone() {
        for choice in [DeviceChoice::Cpu, DeviceChoice::Cuda(Some(7))] {
            assert_eq!(choose_device(choice, Some(3), 1), choice);
        }
    }
}
