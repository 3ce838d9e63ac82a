//! What can be wrong with NVIDIA's libraries on this machine, and what to do about it.

/// Errors of this crate; each names the library, the call or the number concerned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum GpuError {
    #[error("{library} is not found (tried {})", tried.join(", "))]
    Missing {
        /// What it is, with its usual file name.
        library: &'static str,
        /// Names and paths, each with the loader's reason where that is more than "not there".
        tried: Vec<String>,
        /// What to install or to set.
        advice: &'static str,
    },
    #[error("{library} has no function {symbol}: it is too old for numalign, or not what its name says")]
    NoSymbol { library: String, symbol: &'static str },
    #[error("{library} {version} is too old: numalign needs {needed} or later")]
    TooOld { library: &'static str, version: String, needed: &'static str },
    #[error("the CUDA headers, which the run-time compiler needs, are not found (tried {})", tried.join(", "))]
    NoHeaders { tried: Vec<String> },
    #[error("{call} failed: {reason} (code {code})")]
    Call { call: &'static str, code: i32, reason: String },
    #[error("the driver shows no GPU")]
    NoGpu,
    #[error("GPU {wanted} is not there: the driver shows {count}, numbered from 0")]
    NoSuchGpu { wanted: usize, count: usize },
}

impl GpuError {
    /// What the person at the keyboard can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            GpuError::Missing { advice, .. } => advice,
            GpuError::NoSymbol { .. } => "install a current version, and look for an older one in LD_LIBRARY_PATH",
            GpuError::TooOld { .. } => "install a newer version, for example the Python package nvidia-nccl-cu12",
            GpuError::NoHeaders { .. } => {
                "install the CUDA toolkit's headers (Debian: nvidia-cuda-toolkit; Python, CUDA 13: nvidia-cuda-runtime with \
                 nvidia-cuda-crt), or set CUDA_PATH to the folder that holds include/cuda_runtime.h and include/crt/mma.h"
            }
            GpuError::Call { .. } => "see `nvidia-smi` and the kernel's log; a driver that was updated wants a restart",
            GpuError::NoGpu => "check CUDA_VISIBLE_DEVICES, and in a container its access to the GPUs (--gpus all)",
            GpuError::NoSuchGpu { .. } => "CUDA_VISIBLE_DEVICES hides and renumbers GPUs",
        }
    }
}
