//! Which of the visible GPUs a worker takes. Pure.

/// What happens when there are more workers than GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Workers share GPUs in turn.
    Shared,
    /// A worker past the end keeps its number, which the driver refuses.
    Exclusive,
}

/// The first GPU of the worker with number `worker` on its machine, with `per_worker` GPUs to each and `visible` in all.
///
/// Exclusively, a process that sees as many as it needs (SLURM's `--gpus-per-task`) counts from 0, whatever its number.
pub fn first_gpu(worker: usize, per_worker: usize, visible: usize, sharing: Sharing) -> usize {
    match sharing {
        Sharing::Shared => worker % (visible / per_worker.max(1)).max(1) * per_worker,
        Sharing::Exclusive if visible == per_worker => 0,
        Sharing::Exclusive => worker * per_worker,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_rank_has_its_own_gpus() {
        let first_gpu = |rank, per_worker, visible| first_gpu(rank, per_worker, visible, Sharing::Exclusive);
        assert_eq!((0..3).map(|rank| first_gpu(rank, 1, 4)).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!((first_gpu(3, 2, 8), first_gpu(1, 2, 8)), (6, 2));
        assert_eq!((first_gpu(3, 1, 1), first_gpu(5, 2, 2)), (0, 0), "it sees only its own");
        assert_eq!(first_gpu(2, 1, 2), 2, "the driver refuses it");
        assert_eq!(first_gpu(0, 1, 0), 0);
    }

    #[test]
    fn workers_get_gpus_in_turn() {
        let firsts = |per_worker, gpus| {
            (0..5).map(|index| first_gpu(index, per_worker, gpus, Sharing::Shared)).collect::<Vec<_>>()
        };
        assert_eq!(firsts(1, 3), [0, 1, 2, 0, 1]);
        assert_eq!(firsts(2, 5), [0, 2, 0, 2, 0]);
        assert_eq!(firsts(1, 1), [0; 5]);
        assert_eq!(firsts(1, 0), [0; 5], "the driver says that there is none");
    }
}
