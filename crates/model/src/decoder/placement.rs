//! Where a model's blocks lie: consecutive ranges of them on one or several devices of a worker.

use std::ops::Range;

use burn::tensor::backend::Backend;

use crate::error::ModelError;

/// One device and the blocks on it.
pub struct DeviceBlocks<B: Backend> {
    /// The device.
    pub device: B::Device,
    /// The blocks on it.
    pub blocks: Range<usize>,
    threads: Threads,
}

/// The threads that compute at a place.
enum Threads {
    /// The caller's.
    Callers,
    /// Those that the program shares.
    Shared,
    /// Its own.
    Own(rayon::ThreadPool),
}

impl<B: Backend> DeviceBlocks<B> {
    /// Runs `work` on the device's threads.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.threads {
            Threads::Callers => work(),
            // Within the pool the operations' parts are one thread's next work. From outside, every operation would wake a
            // thread and wait for it: with a small model longer than it computes.
            Threads::Shared => rayon::scope(|_| work()),
            Threads::Own(pool) => pool.install(work),
        }
    }
}

/// All places of one model, in the order of its blocks; at least one.
pub struct Placement<B: Backend> {
    places: Vec<DeviceBlocks<B>>,
}

impl<B: Backend> Placement<B> {
    /// All blocks on one device.
    pub fn single(device: B::Device, blocks: usize) -> Self {
        Self { places: vec![DeviceBlocks { device, blocks: 0..blocks, threads: Threads::Callers }] }
    }

    /// Blocks spread over `devices` as evenly as they go. With `on_threads`, for devices that are this machine's processors, each of
    /// several places has as many threads as the machine has, since the devices of one worker take turns.
    ///
    /// # Errors
    /// More devices than blocks, or threads that cannot be started.
    pub fn spread(devices: Vec<B::Device>, blocks: usize, on_threads: bool) -> Result<Self, ModelError> {
        let count = devices.len();
        if count == 0 || count > blocks {
            let reason = format!("{blocks} blocks cannot be spread over {count} devices");
            return Err(ModelError::Device { device: format!("{count} devices"), reason });
        }
        let mut places = Vec::with_capacity(count);
        for (device, blocks) in devices.into_iter().zip(block_ranges(blocks, count)) {
            let threads = match (on_threads, count) {
                (false, _) => Threads::Callers,
                (true, 1) => Threads::Shared,
                (true, _) => {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).build();
                    Threads::Own(pool.map_err(|error| ModelError::Device {
                        device: format!("{device:?}"),
                        reason: format!("its threads cannot be started: {error}"),
                    })?)
                }
            };
            places.push(DeviceBlocks { device, blocks, threads });
        }
        Ok(Self { places })
    }

    /// The devices with their blocks, in the order of the blocks.
    pub fn places(&self) -> &[DeviceBlocks<B>] {
        &self.places
    }

    /// The device of block `block`.
    pub fn device(&self, block: usize) -> &B::Device {
        let place = self.places.iter().find(|place| place.blocks.contains(&block));
        place.map_or_else(|| self.last_device(), |place| &place.device)
    }

    /// Where the final norm is.
    pub fn last_device(&self) -> &B::Device {
        &self.places[self.places.len() - 1].device
    }
}

/// `blocks` cut into `count` consecutive ranges whose sizes differ by at most one.
pub fn block_ranges(blocks: usize, count: usize) -> Vec<Range<usize>> {
    (0..count).map(|i| blocks * i / count..blocks * (i + 1) / count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_all_blocks_in_order() {
        assert_eq!(block_ranges(12, 2), [0..6, 6..12]);
        assert_eq!(block_ranges(7, 3), [0..2, 2..4, 4..7]);
        assert_eq!(block_ranges(3, 3), [0..1, 1..2, 2..3]);
    }
}
