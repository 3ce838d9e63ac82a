//! Driver, GPUs, the run-time compiler with its headers, NCCL. Without a GPU all of it is missing by right: a warning that
//! says so. With one, a build with the feature `cuda` needs driver, compiler and headers; NCCL is optional, since rows can
//! go over gRPC.

use std::path::Path;

use numalign_collective::nccl::Nccl;
use numalign_gpu::search::SearchPaths;
use numalign_gpu::{Driver, Gpu, GpuError, memory, toolkit};

use super::{Check, Status};

const BUILT: bool = cfg!(feature = "cuda");

/// `CUDA_ERROR_NO_DEVICE`: a driver's library on a machine without a GPU, as many containers have it.
const NO_DEVICE: i32 = 100;

pub fn checks() -> Vec<Check> {
    let (mut checks, gpus) = driver_and_gpus();
    if gpus.len() > 1 {
        checks.push(peers(&gpus));
    }
    let needed = BUILT && !gpus.is_empty();
    let paths = SearchPaths::from_env();
    checks.push(compiler(&paths, needed));
    checks.push(headers(&paths, needed));
    checks.push(nccl(gpus.len()));
    checks
}

fn of_error(name: &'static str, status: Status, error: &GpuError) -> Check {
    Check::bad(name, status, error.to_string(), error.hint())
}

fn driver_and_gpus() -> (Vec<Check>, Vec<Gpu>) {
    let driver = match Driver::get() {
        Ok(driver) => driver,
        Err(error) => {
            // The kernel's module without its library is a broken installation; neither of them is a machine without a GPU.
            let has_module = Path::new("/proc/driver/nvidia/version").exists() || Path::new("/dev/nvidiactl").exists();
            let absent = matches!(error, GpuError::Missing { .. } | GpuError::Call { code: NO_DEVICE, .. });
            let status = if absent && !has_module { Status::Warning } else { Status::Failure };
            return (vec![of_error("driver", status, &error)], Vec::new());
        }
    };
    let mut checks = vec![match driver.cuda_version() {
        Ok((major, minor)) => {
            let module = module_version().map_or_else(String::new, |version| format!("NVIDIA driver {version}, "));
            Check::ok("driver", format!("{module}CUDA up to {major}.{minor} ({})", driver.path().display()))
        }
        Err(error) => of_error("driver", Status::Failure, &error),
    }];
    let gpus = match driver.gpus() {
        Ok(gpus) => gpus,
        Err(error) => {
            checks.push(of_error("gpu", Status::Failure, &error));
            return (checks, Vec::new());
        }
    };
    if gpus.is_empty() {
        checks.push(of_error("gpu", Status::Warning, &GpuError::NoGpu));
    }
    checks.extend(gpus.iter().map(one));
    if !BUILT && !gpus.is_empty() {
        let hint = "cargo build --release --features cuda; no CUDA toolkit is needed to build it";
        checks.push(Check::bad("replica", Status::Warning, "this build cannot put a model on a GPU", hint));
    }
    (checks, gpus)
}

/// Such as `550.54.14`, where the kernel's module tells it.
fn module_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

fn one(gpu: &Gpu) -> Check {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let (major, minor) = gpu.capability;
    let detail = format!(
        "cuda:{} {}, {:.1} GiB, compute capability {major}.{minor}, {}",
        gpu.index,
        gpu.name,
        gib(gpu.memory),
        gpu.uuid
    );
    match memory::free_bytes(gpu.index) {
        Ok(free) => Check::ok("gpu", format!("{detail}, {:.1} GiB free", gib(free))),
        Err(error) => Check::bad("gpu", Status::Failure, format!("{detail}: {error}"), error.hint()),
    }
}

fn peers(gpus: &[Gpu]) -> Check {
    let mut apart = Vec::new();
    for from in gpus {
        for to in gpus.iter().filter(|to| to.index != from.index) {
            let can = Driver::get().and_then(|driver| driver.can_access_peer(from.index, to.index));
            match can {
                Ok(true) => {}
                Ok(false) => apart.push(format!("{}→{}", from.index, to.index)),
                Err(error) => return of_error("peers", Status::Warning, &error),
            }
        }
    }
    match apart.is_empty() {
        true => Check::ok("peers", "every GPU reaches every other's memory"),
        false => Check::bad(
            "peers",
            Status::Warning,
            format!("no direct access between {}", apart.join(", ")),
            "NCCL goes through the host's memory there: right, but slower",
        ),
    }
}

fn severity(needed: bool) -> Status {
    if needed { Status::Failure } else { Status::Warning }
}

fn compiler(paths: &SearchPaths, needed: bool) -> Check {
    match toolkit::nvrtc(paths) {
        Ok(nvrtc) => {
            let (major, minor) = nvrtc.version;
            Check::ok("compiler", format!("NVRTC {major}.{minor} ({})", nvrtc.library.path.display()))
        }
        Err(error) => of_error("compiler", severity(needed), &error),
    }
}

fn headers(paths: &SearchPaths, needed: bool) -> Check {
    match toolkit::headers(paths) {
        Ok(folder) => Check::ok("headers", format!("{}", folder.join("include").display())),
        Err(error) => of_error("headers", severity(needed), &error),
    }
}

fn nccl(gpus: usize) -> Check {
    match Nccl::get() {
        Ok(nccl) => {
            let shared = if nccl.allows_shared_gpu() { ", ranks may share a GPU" } else { "" };
            Check::ok("nccl", format!("NCCL {} ({}){shared}", nccl.version, nccl.path().display()))
        }
        Err(error) => {
            let mut check = of_error("nccl", Status::Warning, &error);
            if gpus > 0 {
                check.detail.push_str("; rows go over gRPC");
            }
            check
        }
    }
}
