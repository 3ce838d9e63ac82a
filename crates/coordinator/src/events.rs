//! The vocabulary of the coordinator's decisions: what happened (events), what has to be done (effects), and what a
//! member is. Spoken between the machine, which decides, and the shell and the service, which carry out.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numalign_config::Unit;
use numalign_projector::{Features, Fit, NormTensor, State, StateDigest};

use crate::audit::RowDigests;
use crate::collective::{Choice, Nccl};
use crate::shares::Pace;

/// A worker's connection; a worker that comes back is another member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// One fixed membership: the coordinator's incarnation and a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Generation {
    pub incarnation: u64,
    pub number: u64,
}

/// What a worker says about itself when it connects.
#[derive(Debug, Clone, PartialEq)]
pub struct Introduction {
    pub host: String,
    pub pid: u32,
    /// How often a worker was started in this one's place before.
    pub restarts: u32,
    /// The last committed state it holds, when it outlived another coordinator of this run.
    pub rejoin_state: Option<State>,
}

/// What a worker says when its model is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Readiness {
    pub base_fingerprint: String,
    pub hidden_size: usize,
    pub model_parameters: u64,
    /// `trained` or `random`.
    pub weights: String,
    pub device: String,
    pub probe_digest: Vec<u8>,
    /// The model's layer norms and all their numbers, where they train; empty elsewhere.
    pub layer_norms: Vec<NormTensor>,
    pub layer_norm_values: Vec<f32>,
    /// What it could reduce with over NCCL, or why it could not.
    pub nccl: Nccl,
}

/// One rank's report of one unit: a training step, a chunk of the solver's round, or an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub generation: Generation,
    /// Number of the unit, from 0; with `adam` the number of the update.
    pub unit: u64,
    pub loss: f32,
    pub digest: StateDigest,
    /// From rank 0 only.
    pub state: Option<State>,
    /// What a chunk gathered; with rank 0's report only.
    pub features: Option<Arc<Features>>,
    /// In an audited unit: every row this rank computed.
    pub rows: RowDigests,
    pub timing: Timing,
}

/// Where a rank's time went in one step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Timing {
    pub compute: Duration,
    pub data_wait: Duration,
    pub reduce: Duration,
    pub peak_rss_mib: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Joined(MemberId, Introduction),
    Ready(MemberId, Readiness),
    Reported(MemberId, Report),
    Heartbeat(MemberId),
    /// The stream ended, or the member said that it cannot go on.
    Left(MemberId, String),
    /// A failure that another worker of the same kind would meet too.
    FailedForGood(MemberId, String),
    /// Rank 0 made the id of its generation's communicator.
    NcclId(MemberId, Generation, Vec<u8>),
    /// NCCL gave a rank of this generation no communicator or no sum; why, in words.
    NcclFailed(MemberId, Generation, String),
    /// The round that ends at this unit was solved, or cannot be; why, in words.
    Solved(u64, Result<Fit, String>),
    /// Time passed.
    Tick,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// The frozen model is known: announce it.
    BaseKnown(Readiness),
    Begin(Beginning),
    /// Every rank of the present generation gets the id of its communicator.
    HandOut(Vec<MemberId>, Generation, Vec<u8>),
    /// The generation ended and none replaces it yet.
    Pause(Vec<MemberId>, String),
    /// Send no work past this step (exclusive), so that the generation comes to rest at a boundary.
    Quiesce(Generation),
    Committed(Commit),
    /// Every chunk of the round is committed and its generation has come to rest: solve, and answer with
    /// [`Event::Solved`] of this unit.
    Solve(u64),
    /// The solution is committed.
    Solved(Arc<State>),
    /// Tell a member that it is out, in words; with `true` it must not come back.
    Dismiss(MemberId, bool, String),
    /// Every step is committed.
    Finished,
    /// The run cannot go on: why, and what to do.
    Failed(String, &'static str),
}

/// A new generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Beginning {
    pub generation: Generation,
    /// Member and micro-batches of each rank.
    pub ranks: Vec<(MemberId, Range<usize>)>,
    pub state: Arc<State>,
    pub collective: Choice,
    /// First generation of this coordinator's life.
    pub first: bool,
}

/// A state that every rank of a generation agreed on.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    /// What it was made by.
    pub unit: Unit,
    pub state: Arc<State>,
    pub loss: f32,
    /// The slowest rank's figures.
    pub timing: Timing,
    pub world: usize,
    /// What a chunk gathered; none after a training step.
    pub features: Option<Arc<Features>>,
}

/// What a member is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum Activity {
    /// Loading its model.
    Loading,
    /// Ready since then, without micro-batches.
    Waiting(Instant),
    Training(u32),
}

/// A connected worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    pub introduction: Introduction,
    pub readiness: Option<Readiness>,
    pub activity: Activity,
    pub last_heard: Instant,
    pub last_timing: Timing,
    pub pace: Pace,
}
