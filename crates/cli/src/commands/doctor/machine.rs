//! The build, the processor and the memory.

use numalign_model::kernels::dispatch::{Isa, isa};
use numalign_model::load::budget;

use super::{Check, Status};

/// Below this a small model with its activations hardly fits.
const LITTLE_MEMORY: u64 = 1 << 30;

pub fn checks() -> Vec<Check> {
    vec![build(), processor(), memory()]
}

fn build() -> Check {
    let features = if cfg!(feature = "cuda") { "with the feature cuda" } else { "without the feature cuda" };
    let profile = if cfg!(debug_assertions) { ", not a release build" } else { "" };
    Check::ok("build", format!("numalign {} {features}{profile}", env!("CARGO_PKG_VERSION")))
}

fn processor() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let plural = if cores == 1 { "" } else { "s" };
    let set = format!("{:?}", isa()).to_lowercase();
    let name = model_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let detail = format!("{name}, {cores} core{plural} for this process, kernels for {set}");
    match isa() {
        Isa::Portable => {
            let hint = "plain loops compute the same bits, several times slower; use a processor with AVX2";
            Check::bad("cpu", Status::Warning, detail, hint)
        }
        #[cfg(target_arch = "x86_64")]
        _ => Check::ok("cpu", detail),
    }
}

fn model_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory() -> Check {
    let Some(free) = budget::free_memory() else {
        return Check::bad("memory", Status::Warning, "the kernel does not say how much is free", "");
    };
    let detail = format!("{:.1} GiB free ({})", free.bytes as f64 / f64::from(1 << 30), free.source);
    if free.bytes < LITTLE_MEMORY {
        let hint = "end other programs, raise the container's limit, or take dtype: bf16 and a small model";
        return Check::bad("memory", Status::Warning, detail, hint);
    }
    Check::ok("memory", detail)
}
