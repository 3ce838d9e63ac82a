//! What this worker could reduce with over NCCL, and its communicators, one generation after the other.

use std::time::Duration;

use numalign_collective::nccl::{Formation, Formations, MadeId, Nccl, NcclError, NcclRows, UniqueId, Wanted};
use numalign_config::{CollectiveChoice, Config};
use numalign_gpu::{Driver, GpuError};
use numalign_model::load::ModelDevice;
use numalign_protocol as proto;
use tokio::sync::oneshot;

use crate::error::WorkerError;

/// Time that a communicator gets to end before its process does.
const FAREWELL: Duration = Duration::from_secs(2);

/// A GPU and an NCCL that works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ability {
    /// Number of the GPU among the visible ones.
    pub gpu: usize,
    /// Of the GPU.
    pub uuid: String,
    /// NCCL's version code.
    pub version: u32,
    /// The model lies on that GPU.
    pub replica: bool,
    /// Several ranks may share the GPU.
    pub shares_gpu: bool,
}

/// The same questions for every caller: driver, GPU, NCCL.
///
/// # Errors
/// The first thing that is missing, by name.
pub fn ability_on(gpu: usize, replica: bool) -> Result<Ability, GpuError> {
    let found = Driver::get()?.gpu(gpu)?;
    let nccl = Nccl::get()?;
    Ok(Ability { gpu, uuid: found.uuid, version: nccl.version.0, replica, shares_gpu: nccl.allows_shared_gpu() })
}

/// What a worker of this run could reduce with: a model on the CPU reduces over NCCL only if `collective: nccl` asks for
/// it, on the GPU that the local rank gives it.
///
/// # Errors
/// Why it could not, as the coordinator shows it.
pub fn ability(wanted: CollectiveChoice, place: ModelDevice, local_rank: Option<usize>) -> Result<Ability, String> {
    let said = |error: GpuError| format!("{error}; {}", error.hint());
    match (wanted, place) {
        (CollectiveChoice::Grpc, _) => Err("collective: grpc".to_owned()),
        (_, ModelDevice::Cuda { first }) => ability_on(first, true).map_err(said),
        (CollectiveChoice::Auto, ModelDevice::Cpu) => Err("its replica is not on a GPU".to_owned()),
        (CollectiveChoice::Nccl, ModelDevice::Cpu) => {
            let count = numalign_gpu::driver::visible_gpus();
            let gpu = local_rank.unwrap_or(0) % count.max(1);
            ability_on(gpu, false).map_err(said)
        }
    }
}

/// [`ability`] as a message.
pub(crate) fn to_proto(ability: &Result<Ability, String>) -> (Option<proto::NcclAbility>, String) {
    let ability = ability.clone().map(|its| proto::NcclAbility {
        version: its.version,
        gpu: its.uuid,
        replica: its.replica,
        shares_gpu: its.shares_gpu,
    });
    proto::NcclAbility::to_fields(ability)
}

/// The communicators of this process.
#[derive(Default)]
pub(crate) struct Communicators {
    formations: Formations,
    /// Of the present generation, if it reduces over NCCL.
    present: Option<Present>,
}

struct Present {
    generation: proto::Generation,
    formation: Formation,
    made: Option<MadeId>,
}

/// What rank 0 has to tell the coordinator.
pub(crate) enum News {
    Made(proto::NcclId),
    Failed(NcclError),
}

impl Communicators {
    /// A generation begins over NCCL; the communicator of the one before is ended first.
    pub(crate) fn begin(
        &mut self,
        config: &Config,
        begin: &proto::Begin,
        generation: proto::Generation,
        ability: &Result<Ability, String>,
        row_len: usize,
    ) -> Result<NcclRows, WorkerError> {
        self.end();
        let ability = ability.as_ref().map_err(|why| {
            WorkerError::Protocol(format!("it began a generation over NCCL, and there is none: {why}"))
        })?;
        let wanted = Wanted {
            gpu: ability.gpu,
            rank: begin.rank as usize,
            world: begin.world as usize,
            deadline: config.run.coordinator_wait,
        };
        let begun = self.formations.begin(wanted, config.recipe.micro_batches(), row_len);
        let (formation, rows, made) = begun.map_err(|error| WorkerError::Device(error.to_string()))?;
        let made = (wanted.rank == 0).then_some(made);
        self.present = Some(Present { generation, formation, made });
        Ok(rows)
    }

    /// The generation is over: its communicator is aborted by its own thread.
    pub(crate) fn end(&mut self) {
        self.present = None;
    }

    /// The process is about to end.
    pub(crate) async fn finish(&mut self) {
        self.end();
        self.formations.finish(FAREWELL).await;
    }

    /// The coordinator broadcast an id; one of another generation is late and ignored.
    pub(crate) fn form(&self, message: &proto::NcclId) -> Result<(), WorkerError> {
        let Some(present) = self.present.as_ref().filter(|present| message.generation == Some(present.generation))
        else {
            return Ok(());
        };
        let Some(id) = UniqueId::from_bytes(&message.id) else {
            return Err(WorkerError::Protocol(format!("it handed out an NCCL id of {} bytes", message.id.len())));
        };
        present.formation.form(id);
        Ok(())
    }

    /// Resolves once rank 0 has an id for the others, or knows why there will be none.
    pub(crate) async fn news(&mut self) -> News {
        let Some(Present { generation, made: made @ Some(_), .. }) = &mut self.present else {
            return std::future::pending().await;
        };
        let answer = wait_for(made).await;
        *made = None;
        match answer {
            Ok(Ok(id)) => News::Made(proto::NcclId { generation: Some(*generation), id: id.as_bytes().to_vec() }),
            Ok(Err(error)) => News::Failed(error),
            Err(_) => News::Failed(NcclError::Cancelled),
        }
    }
}

async fn wait_for(made: &mut Option<MadeId>) -> Result<Result<UniqueId, NcclError>, oneshot::error::RecvError> {
    match made {
        Some(made) => made.await,
        None => std::future::pending().await,
    }
}

/// NCCL's failure as a message.
pub(crate) fn failed(generation: proto::Generation, error: &NcclError) -> proto::NcclFailed {
    proto::NcclFailed { generation: Some(generation), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nccl_is_not_looked_for_unless_it_is_wanted() {
        let why = |wanted, place| ability(wanted, place, None).unwrap_err();
        assert_eq!(why(CollectiveChoice::Grpc, ModelDevice::Cuda { first: 0 }), "collective: grpc");
        assert_eq!(why(CollectiveChoice::Auto, ModelDevice::Cpu), "its replica is not on a GPU");
    }
}
