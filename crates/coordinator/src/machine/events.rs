//! Input and output of the machine: what happened (events), what has to be done (effects), and what a member is.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use numalign_config::Arithmetic;
use numalign_data::Unit;
use numalign_projector::{Features, Fit, NormTensor, State, StateDigest};

pub use numalign_protocol::{Generation, Timing};

use super::audit::{RowDigest, RowDigests};
use super::collective::{CollectiveDecision, Nccl};
use super::load_balancing::StepTimeEma;
use super::stall::Pace;

/// A worker's connection; a worker that comes back is another member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// A worker process, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Host name.
    pub host: String,
    /// Process id on that host.
    pub pid: u32,
    /// The PID namespace that the id is in; 0 where it is not known.
    pub namespace: u64,
}

/// What a permanent failure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The samples or the recipe: any worker would fail in the same way.
    Data,
    /// The worker's own machine, files or build.
    Machine,
}

/// A worker's first message.
#[derive(Debug, Clone, PartialEq)]
pub struct JoinRequest {
    /// Who it is.
    pub process: Process,
    /// How often the launcher restarted this worker.
    pub restarts: u32,
    /// The last committed state it holds, if it outlived another coordinator of this run.
    pub rejoin_state: Option<State>,
    /// A coordinator of this run committed that state: its MAC holds.
    pub mac_holds: bool,
    /// It has worked in this run before, whether its state still counts or not.
    pub returns: bool,
}

/// A worker's message that its model is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerReady {
    /// BLAKE3 of the frozen model, hex.
    pub base_fingerprint: String,
    /// BLAKE3 of its tokenizer, hex, where the stage reads texts.
    pub tokenizer_fingerprint: Option<String>,
    /// Bytes of the longest text that its model takes whatever it says; 0 if only tokenising tells.
    pub longest_text: u64,
    /// The model's hidden size `d`.
    pub hidden_size: usize,
    /// Parameters of the frozen model.
    pub model_parameters: u64,
    /// `trained` or `random`.
    pub weights: String,
    /// Device and instruction set.
    pub device: String,
    /// To what the factors of its matrix products are rounded.
    pub arithmetic: Arithmetic,
    /// BLAKE3 of the gradient row of the trial micro-batch.
    pub trial_digest: Vec<u8>,
    /// The model's layer norms if they train; else empty.
    pub layer_norms: Vec<NormTensor>,
    /// All their numbers, in the same order.
    pub layer_norm_values: Vec<f32>,
    /// What it could reduce with over NCCL, or why it could not.
    pub nccl: Nccl,
}

/// One rank's report of one unit: a training step, a chunk of the solver's round, or an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The generation it was made in.
    pub generation: Generation,
    /// Number of the unit, from 0; with `adam` the number of the update.
    pub unit: u64,
    /// Mean loss of the unit; NaN after a chunk or an evaluation.
    pub loss: f32,
    /// Digest of the state after the unit.
    pub digest: StateDigest,
    /// With rank 0's report only: the state after the unit. Over gRPC the coordinator made it out of the rows that came,
    /// over NCCL the rank sent it.
    pub state: Option<Arc<State>>,
    /// What a chunk gathered; with rank 0's report only.
    pub features: Option<Arc<Features>>,
    /// In an audited unit and over NCCL: every row this rank computed.
    pub rows: RowDigests,
    /// Over NCCL: the digest over all rows that this rank received.
    pub received: Option<RowDigest>,
    /// Where the time went.
    pub timing: Timing,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker connected.
    Joined(MemberId, JoinRequest),
    /// Its model is loaded.
    Ready(MemberId, WorkerReady),
    /// It finished a unit.
    Reported(MemberId, Report),
    /// It is alive.
    Heartbeat(MemberId),
    /// The stream ended, or the member said that it cannot go on.
    Left(MemberId, String),
    /// The member cannot go on, and a new process in its place could not either.
    PermanentFailure(MemberId, Cause, String),
    /// Rows of this unit are complete, and those of these micro-batches are not finite.
    NotFinite(Generation, u64, Vec<usize>),
    /// Rows that a rank of this generation must not send: of other micro-batches, of another length, or contradicting
    /// its own. The text says what is wrong.
    RowsRefused(MemberId, Generation, String),
    /// Rank 0 made the id of its generation's communicator.
    NcclId(MemberId, Generation, Vec<u8>),
    /// NCCL gave a rank of this generation no communicator or no sum; the text says why.
    NcclFailed(MemberId, Generation, String),
    /// This worker's model can take every sample of the data file, or not; the text says why.
    SamplesChecked(MemberId, Result<(), String>),
    /// The round that ends at this unit was solved, or cannot be; the text says why.
    Solved(u64, Result<Fit, String>),
    /// The digest of the state after a disputed unit, which the coordinator made itself, or none if it could not; the text
    /// says what the dispute is.
    StateMade((Generation, u64), Option<StateDigest>, String),
    /// Time passed.
    Tick,
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// The frozen model is known: announce it.
    BaseKnown(WorkerReady),
    /// Find out whether this worker's model can take every sample, and answer with [`Event::SamplesChecked`]. Texts up to
    /// so many bytes fit it anyway.
    CheckSamples(MemberId, u64),
    /// A generation begins.
    Begin(GenerationStart),
    /// Send every rank of the present generation the id of its communicator.
    BroadcastNcclId(Vec<MemberId>, Generation, Vec<u8>),
    /// The generation ended and none replaces it yet.
    Pause(Vec<MemberId>, String),
    /// Send no work past this step (exclusive), so that the generation comes to rest at a boundary.
    Quiesce(Generation),
    /// The run goes back to an earlier state, which is recorded in its folder before anything else happens.
    RollBack(RollBack),
    /// Make the state after this unit out of the rows received, and answer with [`Event::StateMade`] and the same text: the
    /// ranks contradict each other.
    MakeState(Generation, u64, String),
    /// Something that the user should know.
    Warn(String),
    /// Every rank agreed on a unit.
    Committed(Commit),
    /// Every chunk of the round is committed and its generation has come to rest: solve, and answer with
    /// [`Event::Solved`] of this unit.
    Solve(u64),
    /// The solution is committed.
    Solved(Arc<State>),
    /// Evict a member, with the reason; with `true` it must not come back.
    Evict(MemberId, bool, String),
    /// There is no place for a worker now: it may ask again.
    TurnAway(MemberId, String),
    /// Evict a member that is alive and does nothing, with the reason: its process is to end, another may come.
    Replace(MemberId, String),
    /// Every step is committed.
    Finished,
    /// The run cannot go on: why, and what to do.
    Failed(String, &'static str),
}

/// A new generation.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationStart {
    /// Its incarnation and number.
    pub generation: Generation,
    /// Member and micro-batches of each rank.
    pub ranks: Vec<(MemberId, Range<usize>)>,
    /// The committed state that it starts from.
    pub state: Arc<State>,
    /// How it reduces, and why.
    pub collective: CollectiveDecision,
    /// Every rank once: in this order they are audited.
    pub audit_order: Vec<usize>,
    /// First generation of this coordinator's life.
    pub first: bool,
}

/// The run goes back: what was committed after this state is void.
#[derive(Debug, Clone, PartialEq)]
pub struct RollBack {
    /// How often the run has gone back, this time among them.
    pub number: u64,
    /// The state that it goes on from.
    pub to: Arc<State>,
    /// What to tell.
    pub why: String,
}

/// A state that every rank of a generation agreed on.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    /// The unit that made it.
    pub unit: Unit,
    /// The state after that unit.
    pub state: Arc<State>,
    /// Mean loss of the unit.
    pub loss: f32,
    /// The slowest rank's figures.
    pub timing: Timing,
    /// World size.
    pub world: usize,
    /// What a chunk gathered; `None` after a training step.
    pub features: Option<Arc<Features>>,
    /// The state before the unit, or before its round, if a rank was audited in the unit: that rank's rows are known to be
    /// right up to there.
    pub audited: Option<Arc<State>>,
}

/// What a member is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum Activity {
    /// Loading its model.
    Loading,
    /// Ready since then, without micro-batches.
    Waiting(Instant),
    /// Training with this rank.
    Training(u32),
}

/// A connected worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Its first message.
    pub join_request: JoinRequest,
    /// What it said when its model was loaded.
    pub worker_ready: Option<WorkerReady>,
    /// What it is doing.
    pub activity: Activity,
    /// It has had a rank.
    pub has_trained: bool,
    /// It worked for an earlier coordinator of this run.
    pub is_from_before: bool,
    /// When its latest message came.
    pub last_seen: Instant,
    /// Where its time went in the latest unit.
    pub last_timing: Timing,
    /// Its time per micro-batch.
    pub step_time: StepTimeEma,
    /// How fast its process works.
    pub pace: Pace,
}
