//! Whether a model fits into memory, asked before it is loaded.
//!
//! The estimate counts weights as they will be held, and the larger of two things that come after each other: the tensor in
//! transit while loading, and the activations of the largest pass. Allocator overhead and the process itself are not
//! counted; free memory is what the kernel would give without swapping, or what the driver says of a GPU.

use std::path::{Path, PathBuf};

use numalign_config::{Arithmetic, Dtype};

use crate::arch::Footprint;
use crate::error::ModelError;
use crate::lm::PASS_POSITIONS;
use crate::ops::WeightStorage;

/// Which memory a model is to fit into. Each holds it in another way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// Weights and tables; attention's scores never exist as a whole.
    Host,
    /// Weights lie once, tables stay on the host. While a model is loaded, a tensor lies there in `f32` too, and the parts of
    /// a joined weight beside the whole. Operations leave temporaries behind, which the backend's pool keeps.
    Gpu,
}

/// Bytes that a model needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Weights and tables.
    pub weights: u64,
    /// Activations of the largest pass, or the largest tensor while it is loaded.
    pub working: u64,
}

impl Estimate {
    /// For weights held as `storage` says, and passes of at most `positions` positions.
    pub fn new(kind: MemoryKind, footprint: &Footprint, storage: WeightStorage, positions: usize) -> Self {
        match kind {
            MemoryKind::Host => Self::on_host(footprint, storage, positions),
            MemoryKind::Gpu => Self::on_gpu(footprint, storage, positions),
        }
    }

    fn on_gpu(footprint: &Footprint, storage: WeightStorage, positions: usize) -> Self {
        let positions = positions as u64;
        let per_position = 2 * footprint.passing + if storage.backward { footprint.kept } else { 0 };
        let loading = footprint.largest_tensor * (4 + 2 * storage.dtype.bytes(1));
        let working = (4 * per_position * positions).max(loading);
        Self { weights: storage.dtype.bytes(footprint.in_blocks), working }
    }

    fn on_host(footprint: &Footprint, storage: WeightStorage, positions: usize) -> Self {
        let tables = storage.dtype.of_tables().bytes(footprint.in_tables);
        let weights = tables + storage.of_products().bytes(footprint.in_blocks);
        let per_position = footprint.passing + if storage.backward { footprint.kept } else { 0 };
        let activations = 4 * per_position * positions as u64;
        Self { weights, working: activations.max(4 * footprint.largest_tensor) }
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.weights + self.working
    }
}

/// Memory that may be used, and where the number comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreeMemory {
    /// Bytes.
    pub bytes: u64,
    /// Who says so, such as `MemAvailable`.
    pub source: String,
    /// Whose memory it is.
    pub kind: MemoryKind,
}

/// Positions that should pass through a model at once: on a GPU as many, up to a limit, as half of the free memory has room for.
/// A large GPU needs that many to be busy, and each kernel is started once for all of them.
pub fn pass_positions(footprint: &Footprint, storage: WeightStorage, free: &FreeMemory) -> usize {
    if free.kind == MemoryKind::Host {
        return PASS_POSITIONS;
    }
    let fits = |positions: &usize| Estimate::new(free.kind, footprint, storage, *positions).total() <= free.bytes / 2;
    [4 * PASS_POSITIONS, 2 * PASS_POSITIONS].into_iter().find(fits).unwrap_or(PASS_POSITIONS)
}

/// Refuses a model that does not fit into `free`, with the settings that would.
///
/// # Errors
/// It does not fit.
pub fn check(
    name: &str,
    footprint: &Footprint,
    storage: WeightStorage,
    positions: usize,
    free: &FreeMemory,
) -> Result<(), ModelError> {
    let estimate = Estimate::new(free.kind, footprint, storage, positions);
    if estimate.total() <= free.bytes {
        return Ok(());
    }
    let sizes = format!(
        "{} GiB of memory (weights {}, activations and loading {}), and {} GiB are free ({})",
        gib(estimate.total()),
        gib(estimate.weights),
        gib(estimate.working),
        gib(free.bytes),
        free.source
    );
    let advice = advice(footprint, storage, positions, free);
    Err(ModelError::TooLarge { name: name.to_owned(), sizes, advice })
}

/// The setting that would fit.
fn advice(footprint: &Footprint, storage: WeightStorage, positions: usize, free: &FreeMemory) -> String {
    let (kind, free) = (free.kind, free.bytes);
    let estimate = |storage: WeightStorage, positions: usize| Estimate::new(kind, footprint, storage, positions);
    let one = estimate(storage, 1);
    if one.total() <= free && positions > 1 {
        let per_position = (estimate(storage, positions).working / positions as u64).max(1);
        let most = ((free - one.weights) / per_position).max(1);
        return format!("lower batch_size or numeric_positions: passes of at most {most} positions fit");
    }
    // What costs the least accuracy comes first; GPUs hold no blocks.
    let smaller = match kind {
        MemoryKind::Host => &[Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0][..],
        MemoryKind::Gpu => &[Dtype::Bf16][..],
    };
    let present = storage.of_products().bytes(footprint.in_blocks);
    // What is smaller than bf16 is multiplied in f32.
    let (storage, besides) = match storage.arithmetic {
        Arithmetic::Bf16 if kind == MemoryKind::Host => {
            (WeightStorage { arithmetic: Arithmetic::F32, ..storage }, " and arithmetic: f32")
        }
        _ => (storage, ""),
    };
    for dtype in smaller.iter().copied().filter(|dtype| dtype.bytes(footprint.in_blocks) < present) {
        let needed = Estimate::new(kind, footprint, WeightStorage { dtype, ..storage }, positions);
        if needed.total() <= free {
            return format!("dtype: {dtype}{besides} needs {} GiB", gib(needed.total()));
        }
        let least = Estimate::new(kind, footprint, WeightStorage { dtype, ..storage }, 1);
        if least.total() <= free {
            let needed = gib(least.total());
            return format!(
                "dtype: {dtype}{besides} with a smaller batch_size or fewer numeric_positions needs {needed} GiB"
            );
        }
    }
    match kind {
        MemoryKind::Host => "no setting makes it fit; take a smaller model or a machine with more memory".to_owned(),
        MemoryKind::Gpu => {
            "no setting makes it fit on one GPU; take a smaller model, or more GPUs for each worker (devices_per_worker)"
                .to_owned()
        }
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 30))
}

/// Free memory of this machine, or of the container if that is less; `None` if the kernel does not tell.
pub fn free_memory() -> Option<FreeMemory> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    let machine = machine.map(|bytes| FreeMemory { bytes, source: "MemAvailable".to_owned(), kind: MemoryKind::Host });
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut all: Vec<FreeMemory> = machine.into_iter().collect();
    for group in group_folders(&cgroups) {
        all.extend(free_in_group(&group));
    }
    all.into_iter().min_by_key(|free| free.bytes)
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

/// The folders of this process's control groups and of those above them, from `/proc/self/cgroup`.
fn group_folders(cgroup: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let root = match controllers {
            "" => Path::new("/sys/fs/cgroup"),
            list if list.split(',').any(|name| name == "memory") => Path::new("/sys/fs/cgroup/memory"),
            _ => continue,
        };
        // Inside a container the path may name a folder that only the host sees; the root is then the container's.
        for ancestor in Path::new(path.trim_start_matches('/')).ancestors() {
            folders.push(root.join(ancestor));
        }
    }
    folders
}

/// What is left of a control group's limit: version 2's files, or version 1's. Cached file pages can be taken back.
fn free_in_group(folder: &Path) -> Option<FreeMemory> {
    let number = |file: &str| std::fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let (limit, used, cached) = match number("memory.max") {
        Some(limit) => (limit, number("memory.current")?, "inactive_file"),
        None => (number("memory.limit_in_bytes")?, number("memory.usage_in_bytes")?, "total_inactive_file"),
    };
    let cached = stat.lines().find_map(|line| line.strip_prefix(cached)?.trim().parse::<u64>().ok()).unwrap_or(0);
    let bytes = limit.saturating_sub(used.saturating_sub(cached));
    Some(FreeMemory { bytes, source: format!("the memory limit of {}", folder.display()), kind: MemoryKind::Host })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Footprint = Footprint {
        in_tables: 100 << 20,
        in_blocks: 1 << 30,
        largest_tensor: 1 << 20,
        kept: 1 << 10,
        passing: 1 << 9,
        heads: 8,
        max_positions: 100,
    };
    const BOTH: WeightStorage = WeightStorage::F32;

    fn refusal(positions: usize, free: u64) -> Option<String> {
        let free = FreeMemory { bytes: free, source: "a test".to_owned(), kind: MemoryKind::Host };
        check("big", &SHAPE, BOTH, positions, &free).err().map(|error| format!("{error} | {}", error.hint().unwrap()))
    }

    #[test]
    fn weights_and_activations_are_counted() {
        let estimate = Estimate::new(MemoryKind::Host, &SHAPE, BOTH, 1000);
        assert_eq!(estimate.weights, 4 * ((100 << 20) + (1 << 30)));
        assert_eq!(estimate.working, 4 * 1000 * (1024 + 512));
        let half =
            Estimate::new(MemoryKind::Host, &SHAPE, WeightStorage { backward: false, dtype: Dtype::Bf16, ..BOTH }, 1);
        assert_eq!((half.weights, half.working), (2 * ((100 << 20) + (1 << 30)), 4 << 20));
    }

    #[test]
    fn a_refusal_names_the_numbers_and_the_setting_that_fits() {
        let needed = Estimate::new(MemoryKind::Host, &SHAPE, BOTH, 1000).total();
        assert_eq!(refusal(1000, needed), None);
        let text = refusal(1000, needed - 1).unwrap();
        assert!(text.contains("`big` needs 4.4 GiB") && text.contains("at most 999 positions"), "{text}");
        let text = refusal(1000, 3 << 30).unwrap();
        assert!(text.contains("3.0 GiB are free (a test)") && text.contains("dtype: bf16 needs 2.2 GiB"), "{text}");
        let text = refusal(1000, 1800 << 20).unwrap();
        assert!(text.contains("dtype: q8_0 needs 1.5 GiB"), "{text}");
        let text = refusal(1000, 1 << 30).unwrap();
        assert!(text.contains("dtype: q4_0 needs 1.0 GiB"), "{text}");
        assert!(refusal(1000, 1 << 29).unwrap().contains("no setting"));
    }

    #[test]
    fn a_gpu_holds_weights_once() {
        let estimate = Estimate::new(MemoryKind::Gpu, &SHAPE, BOTH, 10_000);
        assert_eq!(estimate.weights, 4 << 30);
        assert_eq!(estimate.working, 4 * 10_000 * (1024 + 1024));
        let narrow =
            Estimate::new(MemoryKind::Gpu, &SHAPE, WeightStorage { backward: false, dtype: Dtype::Bf16, ..BOTH }, 1);
        assert_eq!((narrow.weights, narrow.working), (2 << 30, 8 << 20));
        let halves = SHAPE.share(2);
        assert_eq!(Estimate::new(MemoryKind::Gpu, &halves, BOTH, 1).weights, 2 << 30);
        let free = FreeMemory { bytes: 1 << 30, source: "cuda:0".to_owned(), kind: MemoryKind::Gpu };
        let error = check("big", &SHAPE, BOTH, 1000, &free).unwrap_err();
        assert!(error.to_string().contains("1.0 GiB are free (cuda:0)"), "{error}");
        assert!(error.hint().unwrap().contains("devices_per_worker"), "{error}");
    }

    #[test]
    fn the_kernels_files_are_understood() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   12345 kB\n"), Some(12345 * 1024));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
        let folders = group_folders("0::/a/b\n");
        let names: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        assert_eq!(names, ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup/"]);
        assert_eq!(group_folders("7:cpu,memory:/x\n3:pids:/y\n").len(), 2);
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(free_in_group(folder.path()), None);
        write("memory.max", "max\n");
        assert_eq!(free_in_group(folder.path()), None);
        write("memory.max", "1000\n");
        write("memory.current", "700\n");
        write("memory.stat", "anon 300\ninactive_file 200\n");
        assert_eq!(free_in_group(folder.path()).unwrap().bytes, 500);
    }
}
