//! Loads a shared library from the first place that has it, and looks up its functions.

use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::error::GpuError;

/// A library that is loaded for the rest of the process's life: NVIDIA's libraries cannot be unloaded safely.
#[derive(Debug)]
pub struct Loaded {
    library: Library,
    /// The name or path by which the loader found it.
    pub path: PathBuf,
}

impl Loaded {
    /// Loads the first of `candidates` that can be. Its symbols are visible to whatever is loaded later, so a library that
    /// lies outside every search path is found by name from then on.
    ///
    /// # Errors
    /// None can be loaded.
    pub fn first(library: &'static str, candidates: &[PathBuf], advice: &'static str) -> Result<Self, GpuError> {
        let mut tried = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            match open(candidate) {
                Ok(loaded) => return Ok(Self { library: loaded, path: real_path(candidate) }),
                Err(reason) if is_absence(candidate, &reason) => tried.push(candidate.display().to_string()),
                Err(reason) => tried.push(format!("{}: {reason}", candidate.display())),
            }
        }
        Err(GpuError::Missing { library, tried, advice })
    }

    /// The function `symbol` as `F`.
    ///
    /// # Errors
    /// The library does not have it.
    ///
    /// # Safety
    /// `F` must be a function pointer of the type that the library gives `symbol`.
    pub unsafe fn function<F: Copy>(&self, symbol: &'static str) -> Result<F, GpuError> {
        // SAFETY: the caller's promise.
        let found = unsafe { self.library.get::<F>(symbol) };
        match found {
            Ok(function) => Ok(*function),
            Err(_) => Err(GpuError::NoSymbol { library: self.path.display().to_string(), symbol }),
        }
    }
}

fn open(candidate: &Path) -> Result<Library, String> {
    let Some(name) = candidate.to_str() else {
        return Err("its path is not UTF-8".to_owned());
    };
    // SAFETY: NVIDIA's libraries do nothing of note when they are loaded; what a file of their name does is its owner's
    // business, as with every program that loads them.
    unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) }.map_err(|error| innermost(&error))
}

/// The loader's own words, which libloading keeps as the cause.
fn innermost(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Whether the loader only says that the candidate itself is not there.
fn is_absence(candidate: &Path, reason: &str) -> bool {
    let name = candidate.to_string_lossy();
    reason.starts_with(&*name) && reason.contains("No such file")
}

/// Where a library that was found by name lies, for messages; the name itself where the kernel does not tell.
fn real_path(candidate: &Path) -> PathBuf {
    if candidate.is_absolute() {
        return candidate.to_owned();
    }
    let name = candidate.to_string_lossy();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for line in maps.lines() {
        let Some(start) = line.find('/') else {
            continue;
        };
        let path = Path::new(&line[start..]);
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        // `libcuda.so.1` is usually a link to `libcuda.so.550.54`.
        let stem = name.split(".so").next().unwrap_or(&name);
        if file == name || file.starts_with(&format!("{stem}.so")) {
            return path.to_owned();
        }
    }
    candidate.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_names_everything_that_was_tried() {
        let candidates = ["libno-such-thing.so.1", "/nowhere/libno-such-thing.so"].map(PathBuf::from);
        let error = Loaded::first("libno-such-thing.so", &candidates, "install it").unwrap_err();
        let said = error.to_string();
        assert_eq!(
            said,
            "libno-such-thing.so is not found (tried libno-such-thing.so.1, /nowhere/libno-such-thing.so)"
        );
        assert_eq!(error.hint(), "install it");
    }

    #[test]
    fn a_file_that_is_no_library_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libbroken.so");
        std::fs::write(&path, b"not a library").unwrap();
        let said = Loaded::first("libbroken.so", &[path], "").unwrap_err().to_string();
        assert!(said.contains("libbroken.so: ") && said.len() > 60, "{said}");
    }

    #[test]
    fn functions_are_looked_up_by_name() {
        let library = Loaded::first("libm", &[PathBuf::from("libm.so.6")], "").unwrap();
        // SAFETY: this is libm's `cos`.
        let cos = unsafe { library.function::<unsafe extern "C" fn(f64) -> f64>("cos") }.unwrap();
        // SAFETY: `cos` takes any number.
        assert_eq!(unsafe { cos(0.0) }, 1.0);
        // SAFETY: there is no such function, so nothing is called.
        let missing = unsafe { library.function::<unsafe extern "C" fn()>("no_such_function") };
        assert!(matches!(missing, Err(GpuError::NoSymbol { symbol: "no_such_function", .. })));
        assert!(library.path.is_absolute(), "{}", library.path.display());
    }
}
