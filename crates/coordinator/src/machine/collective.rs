//! Which collective a generation uses, and why: a pure decision from what its workers reported when they were ready.

use numalign_config::CollectiveChoice;

pub use numalign_protocol::NcclAbility;

/// Failures of NCCL without a commit in between, after which a run with `collective: auto` continues over gRPC, and one with
/// `collective: nccl` fails. A rank that dies is no failure of NCCL.
const MAX_FAILURES: u32 = 2;

/// A worker's NCCL, or why it has none.
pub type Nccl = Result<NcclAbility, String>;

/// One worker of a generation, for the decision and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Such as `worker 3 (gpu-host, pid 4711)`.
    pub name: String,
    /// Its host.
    pub host: &'a str,
    /// What it can do.
    pub nccl: &'a Nccl,
}

/// How rows are reduced in one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectiveBackend {
    /// Rows go to the coordinator.
    Grpc,
    /// Rows go from GPU to GPU.
    Nccl,
}

impl CollectiveBackend {
    /// As `status` shows it.
    pub fn name(self) -> &'static str {
        match self {
            CollectiveBackend::Grpc => "grpc",
            CollectiveBackend::Nccl => "nccl",
        }
    }
}

/// A decision and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectiveDecision {
    /// How rows are reduced.
    pub backend: CollectiveBackend,
    /// Why.
    pub reason: String,
}

/// Failures of NCCL in this run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NcclFailures {
    /// Since the last commit.
    count: u32,
    last: String,
}

impl NcclFailures {
    /// Notes one more.
    pub fn record(&mut self, reason: String) {
        self.count += 1;
        self.last = reason;
    }

    /// A step was committed: NCCL works. Once it was given up it stays so, since whatever was wrong would come back.
    pub fn reset(&mut self) {
        if self.count < MAX_FAILURES {
            self.count = 0;
        }
    }

    /// What was wrong the last time, once that was too often.
    fn given_up(&self) -> Option<&str> {
        (self.count >= MAX_FAILURES).then_some(self.last.as_str())
    }
}

/// The collective of a generation of `workers`.
///
/// # Errors
/// Why NCCL cannot be used, if `collective: nccl` asks for it.
pub fn choose(
    wanted: CollectiveChoice,
    workers: &[Candidate<'_>],
    failures: &NcclFailures,
) -> Result<CollectiveDecision, String> {
    if wanted == CollectiveChoice::Grpc {
        return Ok(CollectiveDecision { backend: CollectiveBackend::Grpc, reason: "collective: grpc".to_owned() });
    }
    let incompatibility = match failures.given_up() {
        Some(reason) => Some(format!("NCCL failed {MAX_FAILURES} times without a step in between: {reason}")),
        None => incompatibility(workers, wanted == CollectiveChoice::Auto),
    };
    match (incompatibility, wanted) {
        (None, _) => Ok(CollectiveDecision { backend: CollectiveBackend::Nccl, reason: describe(workers) }),
        (Some(why), CollectiveChoice::Nccl) => Err(why),
        (Some(reason), _) => Ok(CollectiveDecision { backend: CollectiveBackend::Grpc, reason }),
    }
}

/// Why these workers cannot share a communicator. With `on_replicas` each must have its model on the GPU: only then are
/// the rows there anyway, and NCCL is worth it.
fn incompatibility(workers: &[Candidate<'_>], on_replicas: bool) -> Option<String> {
    let mut first: Option<(&Candidate<'_>, &NcclAbility)> = None;
    for (place, worker) in workers.iter().enumerate() {
        let ability = match worker.nccl {
            Ok(ability) => ability,
            Err(why) => return Some(format!("{}: {why}", worker.name)),
        };
        if on_replicas && !ability.replica {
            return Some(format!("{}: its replica is not on a GPU", worker.name));
        }
        let (known, its) = *first.get_or_insert((worker, ability));
        if its.version != ability.version {
            return Some(format!(
                "{} has NCCL {}, {} has {}",
                known.name,
                version(its.version),
                worker.name,
                version(ability.version)
            ));
        }
        for other in &workers[..place] {
            let Ok(its) = other.nccl else {
                continue;
            };
            let shared = other.host == worker.host && its.gpu == ability.gpu;
            if shared && !(its.shares_gpu && ability.shares_gpu) {
                return Some(format!("{} and {} share a GPU ({})", other.name, worker.name, ability.gpu));
            }
        }
    }
    None
}

/// Such as `NCCL 2.30.7 between 4 GPUs`.
fn describe(workers: &[Candidate<'_>]) -> String {
    let known = workers.first().and_then(|worker| worker.nccl.as_ref().ok());
    let version = known.map_or_else(String::new, |ability| version(ability.version));
    match workers.len() {
        1 => format!("NCCL {version} on one GPU"),
        count => format!("NCCL {version} between {count} ranks"),
    }
}

/// NCCL's version code as NVIDIA writes it.
fn version(code: u32) -> String {
    format!("{}.{}.{}", code / 10_000, code / 100 % 100, code % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: NcclFailures = NcclFailures { count: 0, last: String::new() };

    fn able(gpu: &str) -> Nccl {
        Ok(NcclAbility { version: 23_007, gpu: gpu.to_owned(), replica: true, shares_gpu: false })
    }

    fn changed(gpu: &str, change: impl FnOnce(&mut NcclAbility)) -> Nccl {
        let mut ability = able(gpu).unwrap();
        change(&mut ability);
        Ok(ability)
    }

    fn decide(
        wanted: CollectiveChoice,
        workers: &[(&str, Nccl)],
        failures: &NcclFailures,
    ) -> Result<(CollectiveBackend, String), String> {
        let named = |place: usize| format!("worker {}", place + 1);
        let candidates: Vec<Candidate<'_>> = workers
            .iter()
            .enumerate()
            .map(|(place, (host, nccl))| Candidate { name: named(place), host, nccl })
            .collect();
        choose(wanted, &candidates, failures).map(|choice| (choice.backend, choice.reason))
    }

    #[test]
    fn nccl_needs_the_same_version_and_a_gpu_each() {
        use CollectiveChoice::{Auto, Nccl as Explicit};
        let good = [("a", able("GPU-1")), ("a", able("GPU-2")), ("b", able("GPU-1"))];
        let nccl = (CollectiveBackend::Nccl, "NCCL 2.30.7 between 3 ranks".to_owned());
        assert_eq!(decide(Auto, &good, &WELL), Ok(nccl.clone()));
        assert_eq!(decide(Explicit, &good, &WELL), Ok(nccl));
        assert_eq!(decide(Auto, &good[..1], &WELL), Ok((CollectiveBackend::Nccl, "NCCL 2.30.7 on one GPU".to_owned())));
        let missing = Err("libnccl.so.2 is not found".to_owned());
        for (workers, why) in [
            (vec![("a", able("GPU-1")), ("a", missing)], "worker 2: libnccl.so.2 is not found"),
            (vec![("a", able("GPU-1")), ("a", able("GPU-1"))], "worker 1 and worker 2 share a GPU (GPU-1)"),
            (
                vec![("a", able("GPU-1")), ("b", changed("GPU-2", |its| its.version = 21_903))],
                "worker 1 has NCCL 2.30.7, worker 2 has 2.19.3",
            ),
        ] {
            assert_eq!(decide(Auto, &workers, &WELL), Ok((CollectiveBackend::Grpc, why.to_owned())));
            assert_eq!(decide(Explicit, &workers, &WELL), Err(why.to_owned()));
        }
        let shared = [("a", changed("GPU-1", |its| its.shares_gpu = true)), ("a", able("GPU-1"))];
        assert_eq!(decide(Auto, &shared, &WELL).unwrap().0, CollectiveBackend::Grpc, "both have to allow it");
        let shared = [("a", shared[0].1.clone()), ("a", shared[0].1.clone())];
        assert_eq!(decide(Auto, &shared, &WELL).unwrap().0, CollectiveBackend::Nccl);
    }

    #[test]
    fn rows_of_cpu_replicas_go_over_nccl_only_when_asked_for() {
        let workers = [("a", changed("GPU-1", |its| its.replica = false))];
        let auto = decide(CollectiveChoice::Auto, &workers, &WELL).unwrap();
        assert_eq!(auto, (CollectiveBackend::Grpc, "worker 1: its replica is not on a GPU".to_owned()));
        assert_eq!(decide(CollectiveChoice::Nccl, &workers, &WELL).unwrap().0, CollectiveBackend::Nccl);
        assert_eq!(decide(CollectiveChoice::Grpc, &[("a", able("GPU-1"))], &WELL).unwrap().0, CollectiveBackend::Grpc);
    }

    #[test]
    fn nccl_that_fails_again_and_again_is_given_up() {
        let workers = [("a", able("GPU-1"))];
        let mut failures = NcclFailures::default();
        failures.record("first".to_owned());
        assert_eq!(decide(CollectiveChoice::Auto, &workers, &failures).unwrap().0, CollectiveBackend::Nccl);
        failures.reset();
        failures.record("second".to_owned());
        assert_eq!(
            decide(CollectiveChoice::Auto, &workers, &failures).unwrap().0,
            CollectiveBackend::Nccl,
            "a commit lay between"
        );
        failures.record("third".to_owned());
        let (way, reason) = decide(CollectiveChoice::Auto, &workers, &failures).unwrap();
        assert!(way == CollectiveBackend::Grpc && reason.ends_with("in between: third"), "{reason}");
        assert!(decide(CollectiveChoice::Nccl, &workers, &failures).unwrap_err().contains("third"));
        failures.reset();
        assert_eq!(
            decide(CollectiveChoice::Auto, &workers, &failures).unwrap().0,
            CollectiveBackend::Grpc,
            "it stays given up"
        );
    }
}
