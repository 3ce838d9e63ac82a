//! NCCL's all-reduce against the host's canonical sum: a rank and a thread for each visible GPU.

use std::time::Duration;

use numalign_collective::nccl::{self, Nccl};
use numalign_gpu::Driver;

use super::{Seen, Table};

const NAME: &str = "NCCL against the host's sum";

/// Floats of a gradient row of GPT-2 small, and how long the ranks may take to meet.
const ROW: usize = 3 * 768 + 2;
const DEADLINE: Duration = Duration::from_secs(30);

pub fn check(table: &mut Table) {
    let gpus = match Driver::get().and_then(Driver::count) {
        Ok(0) => return table.skip(NAME, "the driver shows no GPU"),
        Ok(count) => count,
        Err(error) => return table.skip(NAME, error.to_string()),
    };
    match Nccl::get() {
        Ok(nccl) => table.run(NAME, || all_reduce(gpus, nccl)),
        Err(error) => table.skip(NAME, error.to_string()),
    }
}

fn all_reduce(gpus: usize, nccl: &Nccl) -> Seen {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let all: Vec<usize> = (0..gpus).collect();
    runtime.block_on(nccl::check(&all, ROW, DEADLINE))?;
    Ok(format!("NCCL {}, {gpus} ranks, {ROW} floats each, every bit", nccl.version))
}
