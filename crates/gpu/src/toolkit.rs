//! What Burn's CUDA backend needs besides the driver: the run-time compiler and CUDA's headers.

use std::ffi::c_int;
use std::path::{Path, PathBuf};

use crate::error::GpuError;
use crate::library::Loaded;
use crate::search::SearchPaths;

/// Names that cudarc, which loads the compiler for Burn, tries too: what is loaded here, from wherever, it finds by name.
const NVRTC: &[&str] = &["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"];
const NVRTC_LIBRARY: &str = "the run-time compiler (libnvrtc.so)";
const NVRTC_ADVICE: &str = "install the CUDA toolkit's NVRTC (Debian: libnvrtc12; Python: nvidia-cuda-nvrtc), or set \
                            LD_LIBRARY_PATH to its folder";

/// The run-time compiler.
#[derive(Debug)]
pub struct Nvrtc {
    /// The loaded library.
    pub library: Loaded,
    /// Such as (12, 4).
    pub version: (u32, u32),
}

/// Loads the run-time compiler.
///
/// # Errors
/// It is not found, or does not tell its version.
pub fn nvrtc(paths: &SearchPaths) -> Result<Nvrtc, GpuError> {
    let library = Loaded::first(NVRTC_LIBRARY, &paths.candidates(NVRTC, "cuda_nvrtc"), NVRTC_ADVICE)?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the type is that of nvrtc.h, and it writes two integers.
    let code = unsafe {
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = library.function("nvrtcVersion")?;
        version(&mut major, &mut minor)
    };
    if code != 0 {
        return Err(GpuError::Call { call: "nvrtcVersion", code, reason: "see nvrtc.h".to_owned() });
    }
    Ok(Nvrtc { library, version: (major.max(0) as u32, minor.max(0) as u32) })
}

/// What cubecl's kernels include, and what that includes in turn: matrix products need `mma.h`, whose other half comes in
/// a separate package for Python.
const HEADERS: &[&str] = &["cuda_runtime.h", "mma.h", "crt/mma.h"];

/// The folder whose `include/` holds CUDA's headers.
///
/// # Errors
/// No folder holds all of them.
pub fn headers(paths: &SearchPaths) -> Result<PathBuf, GpuError> {
    let mut folders = paths.toolkits();
    if paths.cuda_path.is_none() {
        for nvidia in paths.python_packages() {
            folders.extend(["cuda_runtime", "cu13"].map(|package| nvidia.join(package)));
        }
    }
    let mut tried = Vec::with_capacity(folders.len());
    for folder in folders {
        let missing = HEADERS.iter().map(|header| folder.join("include").join(header)).find(|header| !header.is_file());
        match missing {
            None => return Ok(folder),
            Some(header) => tried.push(header.display().to_string()),
        }
    }
    Err(GpuError::NoHeaders { tried })
}

/// `CUDA_PATH` as cubecl needs it, where it would not find the headers by itself: it looks at `CUDA_PATH`,
/// `/usr/local/cuda`, `/opt/cuda`, and at `/usr` where `/usr/bin/nvcc` is.
pub fn needed_cuda_path(paths: &SearchPaths) -> Option<PathBuf> {
    if paths.cuda_path.is_some() {
        return None;
    }
    let found = headers(paths).ok()?;
    let known = ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from);
    let cubecls = known.iter().find(|folder| folder.exists());
    match cubecls {
        Some(folder) if *folder == found => None,
        None if found == Path::new("/usr") && Path::new("/usr/bin/nvcc").exists() => None,
        _ => Some(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_by_cuda_path_and_in_wheels() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("lib/python3.12/site-packages/nvidia/cu13");
        for root in [folder.path().join("toolkit"), wheel.clone()] {
            std::fs::create_dir_all(root.join("include/crt")).unwrap();
            for header in HEADERS {
                std::fs::write(root.join("include").join(header), b"").unwrap();
            }
        }
        let set = SearchPaths { cuda_path: Some(folder.path().join("toolkit")), ..SearchPaths::default() };
        assert_eq!(headers(&set).unwrap(), folder.path().join("toolkit"));
        assert_eq!(needed_cuda_path(&set), None, "what the user set stays");
        std::fs::remove_file(folder.path().join("toolkit/include/crt/mma.h")).unwrap();
        let said = headers(&set).unwrap_err().to_string();
        assert!(said.contains("toolkit/include/crt/mma.h"), "the runtime's wheel alone is not enough: {said}");
        let prefixes = vec![folder.path().to_owned()];
        let wrong = SearchPaths { cuda_path: Some("/nowhere".into()), prefixes, ..set };
        let said = headers(&wrong).unwrap_err().to_string();
        assert!(said.contains("/nowhere/include/cuda_runtime.h"), "{said}");
        if !PathBuf::from("/usr/local/cuda").exists() && !PathBuf::from("/opt/cuda").exists() {
            let wheels = SearchPaths { cuda_path: None, ..wrong };
            if !PathBuf::from("/usr/include/cuda_runtime.h").exists() {
                assert_eq!(headers(&wheels).unwrap(), wheel);
                assert_eq!(needed_cuda_path(&wheels), Some(wheel));
            }
        }
    }
}
