//! Burn's CUDA backend as a home for frozen models, and the questions to ask before it is touched: cudarc and cubecl
//! panic where a library or a header is missing, so nothing of theirs runs before [`find`] said yes.
//! Called by the loader when the feature `cuda` is on. Not run on hardware yet; see the README's limits.

use std::path::PathBuf;

use crate::ops::generic;

/// `f32` on an NVIDIA GPU.
pub type Cuda = burn::backend::Cuda<f32, i32>;

generic::frozen_ops!(Cuda);

/// Burn's name for GPU `index`.
pub fn device(index: usize) -> burn::backend::cuda::CudaDevice {
    burn::backend::cuda::CudaDevice { index }
}

/// The GPU to use: `wanted`, or the first one. An error says what is missing and what to set.
pub fn find(wanted: Option<usize>) -> Result<usize, String> {
    // SAFETY: this only tries to load the library.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(
            "the NVIDIA driver's libcuda.so is not found; install the driver, or set LD_LIBRARY_PATH".to_owned()
        );
    }
    // SAFETY: as above.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return Err(
            "libnvrtc.so, which compiles kernels at run time, is not found; install the CUDA toolkit's runtime \
                    libraries, or set LD_LIBRARY_PATH"
                .to_owned(),
        );
    }
    let header = cuda_folder().join("include/cuda_runtime.h");
    if !header.is_file() {
        return Err(format!(
            "{} is not there, and the run-time compiler needs it; install the CUDA headers, or set CUDA_PATH",
            header.display()
        ));
    }
    cudarc::driver::result::init().map_err(|error| format!("the driver does not start: {error}"))?;
    let count =
        cudarc::driver::result::device::get_count().map_err(|error| format!("no GPU can be counted: {error}"))?;
    let index = wanted.unwrap_or(0);
    if index >= count.max(0) as usize {
        return Err(format!("there are {count} GPUs, numbered from 0; CUDA_VISIBLE_DEVICES hides others"));
    }
    Ok(index)
}

/// Where cubecl looks for the CUDA headers.
fn cuda_folder() -> PathBuf {
    if let Some(path) = std::env::var_os("CUDA_PATH") {
        return PathBuf::from(path);
    }
    for folder in ["/usr/local/cuda", "/opt/cuda"] {
        if PathBuf::from(folder).exists() {
            return PathBuf::from(folder);
        }
    }
    PathBuf::from("/usr")
}
