//! Burn's CUDA backend as a home for frozen models, and the questions to ask before it is touched: cudarc and cubecl
//! panic if a library or a header is missing, so nothing of theirs runs before [`find`] said yes.
//! Only with the feature `cuda`; what was run on hardware, and what on an emulated GPU: docs/GPUS.md.

use numalign_gpu::search::SearchPaths;
use numalign_gpu::{Driver, GpuError, toolkit};

use super::device_failure;
use crate::kernel_cache;

mod attend;
mod attention;
mod attention_backward;
mod finish;
mod finish_norm;
mod frozen;
mod functions;
mod gate;
mod linear;
mod mapped_products;
mod matrix;
mod mma_attention;
mod mma_attention_backward;
mod mma_tiles;
mod norm;
mod products;
mod rotary;
mod rows;
mod skinny;
mod sums;
mod tiles;
mod weight;

/// `f32` on an NVIDIA GPU.
pub type Cuda = burn::backend::Cuda<f32, i32>;

/// Burn's name for GPU `index`.
pub fn device(index: usize) -> burn::backend::cuda::CudaDevice {
    burn::backend::cuda::CudaDevice { index }
}

/// The GPU to use: `wanted`, or the first one. Everything that cubecl will load is loaded here first.
///
/// # Errors
/// There is no such GPU, or a library or header is missing.
pub fn find(wanted: Option<usize>) -> Result<usize, GpuError> {
    let driver = Driver::get()?;
    let gpu = driver.gpu(wanted.unwrap_or(0))?;
    let paths = SearchPaths::from_env();
    let compiler = toolkit::nvrtc(&paths)?.version;
    toolkit::headers(&paths)?;
    burn_finds("cuda")?;
    burn_finds("nvrtc")?;
    device_failure::watch();
    // Kernels of one GPU are none for another.
    let alike = driver.gpus()?.iter().all(|other| other.capability == gpu.capability);
    kernel_cache::start(alike.then_some(kernel_cache::Target { capability: gpu.capability, compiler }));
    Ok(gpu.index)
}

/// Whether GPU `index` reads tiles by tensor maps.
fn has_tensor_maps(index: usize) -> bool {
    Driver::get().and_then(|driver| driver.gpu(index)).is_ok_and(|gpu| gpu.tensor_maps)
}

/// The last word is cudarc's own: where it would not find a library by the names that it tries, it would panic.
fn burn_finds(name: &'static str) -> Result<(), GpuError> {
    // SAFETY: this only tries to load the libraries, which are loaded already where they were found.
    let present = unsafe {
        match name {
            "cuda" => cudarc::driver::sys::is_culib_present(),
            _ => cudarc::nvrtc::sys::is_culib_present(),
        }
    };
    match present {
        true => Ok(()),
        false => Err(GpuError::Missing {
            library: "a library under a name that Burn's backend knows",
            tried: cudarc::get_lib_name_candidates(name),
            advice: "install the version of CUDA that this build was made for (12 or 13), or set LD_LIBRARY_PATH to it",
        }),
    }
}
