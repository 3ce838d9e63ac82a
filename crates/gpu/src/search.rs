//! Where NVIDIA's libraries may lie besides the loader's own paths: lists of names and paths, made from the environment
//! alone.

use std::path::{Path, PathBuf};

/// What the environment says about where to look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchPaths {
    /// `CUDA_PATH`
    pub cuda_path: Option<PathBuf>,
    /// `CUDA_HOME`
    pub cuda_home: Option<PathBuf>,
    /// `VIRTUAL_ENV`, `CONDA_PREFIX`
    pub prefixes: Vec<PathBuf>,
    /// `HOME`
    pub home: Option<PathBuf>,
    /// `PATH`
    pub path: Vec<PathBuf>,
}

impl SearchPaths {
    /// From this process's environment.
    pub fn from_env() -> Self {
        let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            cuda_path: folder("CUDA_PATH"),
            cuda_home: folder("CUDA_HOME"),
            prefixes: ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(folder).collect(),
            home: folder("HOME"),
            path: std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default(),
        }
    }

    /// Folders in which a CUDA toolkit is usually installed; `CUDA_PATH` alone if it is set, as cubecl has it.
    pub fn toolkits(&self) -> Vec<PathBuf> {
        if let Some(path) = &self.cuda_path {
            return vec![path.clone()];
        }
        let mut folders = vec![PathBuf::from("/usr/local/cuda"), PathBuf::from("/opt/cuda")];
        folders.extend(self.cuda_home.clone());
        folders.push(PathBuf::from("/usr"));
        folders
    }

    /// `nvidia` folders of Python's packages: of the active environment, of the `python3` of `PATH`, of the user, of the
    /// system. They come with PyTorch and hold NCCL, the run-time compiler and its headers.
    pub fn python_packages(&self) -> Vec<PathBuf> {
        let mut roots = self.prefixes.clone();
        if let Some(python) = self.path.iter().map(|folder| folder.join("python3")).find(|python| python.is_file()) {
            // A link such as venv/bin/python3 belongs to its folder, its target to another installation; both count.
            roots.extend(grandparent(&python));
            roots.extend(std::fs::canonicalize(&python).ok().as_deref().and_then(grandparent));
        }
        roots.extend(self.home.as_ref().map(|home| home.join(".local")));
        roots.extend(["/usr/local", "/usr"].map(PathBuf::from));
        let mut found: Vec<PathBuf> = Vec::new();
        for root in roots {
            for library in entries(&root.join("lib")) {
                let is_python = library.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"));
                if !is_python {
                    continue;
                }
                for packages in ["site-packages", "dist-packages"] {
                    let nvidia = library.join(packages).join("nvidia");
                    if nvidia.is_dir() && !found.contains(&nvidia) {
                        found.push(nvidia);
                    }
                }
            }
        }
        found
    }

    /// Names and paths for one library: what the loader finds by name first, then toolkits, then Python's packages, whose
    /// folder is `package` or, from CUDA 13 on, `cu13`.
    pub fn candidates(&self, names: &[&str], package: &str) -> Vec<PathBuf> {
        let mut list: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
        let mut folders = Vec::new();
        for toolkit in self.toolkits() {
            folders.extend(["lib64", "lib", "targets/x86_64-linux/lib"].map(|part| toolkit.join(part)));
        }
        for nvidia in self.python_packages() {
            folders.extend([package, "cu13"].map(|part| nvidia.join(part).join("lib")));
        }
        for folder in folders {
            for name in names {
                let path = folder.join(name);
                if path.is_file() {
                    list.push(path);
                }
            }
        }
        list
    }
}

/// `/a/b/c` → `/a`
fn grandparent(path: &Path) -> Option<PathBuf> {
    Some(path.parent()?.parent()?.to_owned())
}

/// The entries of a folder, sorted; none if it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wheel_of_the_active_environment_is_found_after_the_loaders_names() {
        let folder = tempfile::tempdir().unwrap();
        let lib = folder.path().join("lib/python3.12/site-packages/nvidia/nccl/lib");
        std::fs::create_dir_all(&lib).unwrap();
        std::fs::write(lib.join("libnccl.so.2"), b"").unwrap();
        let paths = SearchPaths { prefixes: vec![folder.path().to_owned()], ..SearchPaths::default() };
        let list = paths.candidates(&["libnccl.so.2", "libnccl.so"], "nccl");
        assert_eq!(list[..2], [PathBuf::from("libnccl.so.2"), PathBuf::from("libnccl.so")]);
        assert!(list.contains(&lib.join("libnccl.so.2")), "{list:?}");
        assert!(!list.contains(&lib.join("libnccl.so")), "only what is there is tried by path");
    }

    #[test]
    fn the_python_of_the_path_leads_to_its_packages() {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("bin");
        let nvidia = folder.path().join("lib/python3.11/site-packages/nvidia");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(&nvidia).unwrap();
        std::fs::write(bin.join("python3"), b"").unwrap();
        let paths = SearchPaths { path: vec![bin], ..SearchPaths::default() };
        assert_eq!(paths.python_packages().first(), Some(&nvidia));
    }

    #[test]
    fn cuda_path_is_the_only_toolkit_where_it_is_set() {
        let set = SearchPaths { cuda_path: Some("/a".into()), cuda_home: Some("/b".into()), ..SearchPaths::default() };
        assert_eq!(set.toolkits(), [PathBuf::from("/a")]);
        let home = SearchPaths { cuda_path: None, ..set };
        assert!(home.toolkits().contains(&PathBuf::from("/b")));
    }
}
