//! Kernels that were compiled once, for the next process: NVIDIA's run-time compiler takes a tenth of a second for each of
//! some two hundred, in every worker and after every restart.
//!
//! cubecl 0.10 has a cache of its own, which appends to one file from all processes, without a digest, and knows a kernel by
//! its name and settings alone. So each process gives it a private folder, which it fills from a shared file before cubecl
//! starts; what cubecl adds there goes into the shared file after a result was read, when no kernel is being compiled. The
//! file's name holds what else decides the compiled code: this very program, the GPU's compute capability and the compiler's
//! version.

#[cfg(feature = "cuda")]
use std::sync::{Mutex, OnceLock};

#[cfg(feature = "cuda")]
use burn_cubecl::cubecl::config::cache::CacheConfig;
#[cfg(feature = "cuda")]
use burn_cubecl::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

mod file;
mod store;

#[cfg(feature = "cuda")]
use store::KernelCache;
#[cfg(feature = "cuda")]
pub use store::Target;

#[cfg(feature = "cuda")]
static CACHE: OnceLock<Option<Mutex<KernelCache>>> = OnceLock::new();

/// Tells cubecl where compiled kernels are, once for each process and before cubecl does anything. Without a folder
/// for it, or with several kinds of GPU, kernels are compiled in each process.
#[cfg(feature = "cuda")]
pub fn start(target: Option<Target>) {
    CACHE.get_or_init(|| {
        let mut config = CubeClRuntimeConfig::default();
        let opened = store::folder().zip(target).and_then(|(folder, target)| match store::open(&folder, target) {
            Ok(opened) => Some(opened),
            Err(error) => {
                tracing::debug!("no cache of compiled kernels in {}: {error}", folder.display());
                None
            }
        });
        let cache = opened.map(|(root, cache)| {
            config.compilation.cache = Some(CacheConfig::File(root));
            Mutex::new(cache)
        });
        // A cubecl.toml somewhere above the working directory must not decide what is computed.
        CubeClRuntimeConfig::set(config);
        cache
    });
}

/// Gives what this process has compiled to those that come after it. To be called when the device is idle.
#[cfg(feature = "cuda")]
pub fn share() {
    let Some(Some(cache)) = CACHE.get() else {
        return;
    };
    let Ok(mut cache) = cache.try_lock() else {
        return;
    };
    if let Err(error) = cache.share() {
        tracing::debug!("compiled kernels are not kept in {}: {error}", cache.shared.display());
    }
}
