//! Settings, states and messages that every test of the machine shares.

use std::sync::Arc;
use std::time::Duration;

use numalign_config::{Arithmetic, Config, Solver};
use numalign_coordinator::machine::{Generation, JoinRequest, KnownBase, Process, Report, Timing, WorkerReady};
use numalign_data::{Schedule, Unit};
use numalign_projector::{Features, Fit, State};
use numalign_protocol::codec::digest_of_rows;

pub const HIDDEN: usize = 3;
pub const FINGERPRINT: &str = "0123456789abcdef0123";

/// How many workers, and how much work.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub workers: usize,
    pub min_workers: usize,
    pub max_workers: usize,
    pub micro_batches: usize,
    pub steps: u64,
    pub solver: Solver,
    /// Steps between rounds of `alternate`, and chunks of a round.
    pub every: u64,
    pub chunks: u64,
    /// Steps between evaluations.
    pub evaluate_every: u64,
}

pub const PAIR: Shape = Shape {
    workers: 2,
    min_workers: 1,
    max_workers: 64,
    micro_batches: 4,
    steps: 6,
    solver: Solver::Adam,
    every: 0,
    chunks: 0,
    evaluate_every: 0,
};

pub fn config_of(shape: Shape) -> Config {
    let mut config = Config::with(&[]).unwrap();
    config.recipe.num_epochs = shape.steps;
    config.recipe.num_batches = 1;
    config.run.eval_every = shape.evaluate_every;
    config.recipe.batch_size = shape.micro_batches;
    config.recipe.micro_batch_size = 1;
    config.recipe.solver = shape.solver;
    if shape.solver == Solver::Alternate {
        config.recipe.solve_every = Some(shape.every);
        config.recipe.solve_samples = Some(shape.chunks * shape.micro_batches as u64);
    }
    config.run.workers = shape.workers;
    config.run.min_workers = shape.min_workers;
    config.run.max_workers = shape.max_workers;
    config.run.dead_after = Duration::from_secs(3);
    config.run.join_debounce = Duration::from_millis(200);
    config.run.coordinator_wait = Duration::from_secs(5);
    config.run.audit_every = 2;
    config
}

/// The reduced row of a step: the same for every rank.
pub fn row(state: &State) -> Vec<f32> {
    let float = |i: usize| ((state.step() as usize * 31 + i * 17) % 23) as f32 - 11.0;
    (0..state.layout().row_len()).map(float).collect()
}

/// What a chunk gathers: the same for every rank.
pub fn features(unit: u64) -> Arc<Features> {
    let floats = (0..2 * (HIDDEN + 1)).map(|i| ((unit as usize * 13 + i * 7) % 19) as f32 - 9.0);
    Arc::new(Features::new(HIDDEN, floats.collect()).unwrap())
}

/// The solution of every round.
pub fn fit() -> Fit {
    Fit { weight: vec![0.5; HIDDEN], bias: -1.0, ridge: 1e-6, held_out_error: 0.25 }
}

/// Units behind a state.
pub fn unit_of(state: &State, config: &Config) -> u64 {
    Schedule::of_run(config).index(state.position())
}

/// The state after a rank's next unit.
pub fn next(state: &State, config: &Config) -> State {
    let unit = unit_of(state, config);
    if let Unit::Chunk { .. } = Schedule::of_run(config).unit(unit) {
        return state.gathered(&config.recipe, features(unit).digest()).unwrap();
    }
    if Schedule::of_run(config).unit(unit) == Unit::Evaluate {
        return state.evaluated(&config.recipe, &row(state), config.run.eval_samples).unwrap();
    }
    let mut state = state.clone();
    state.update(&row(&state), &config.recipe).unwrap();
    state
}

/// What is right: the states after 0, 1, … units.
pub fn correct_states(config: &Config) -> Vec<State> {
    let mut state = State::initial(HIDDEN, config.recipe.seed).prepared(&config.recipe);
    let mut states = vec![state.clone()];
    loop {
        state = match Schedule::of_run(config).next(state.position()) {
            Unit::Step(_) | Unit::Chunk { .. } | Unit::Evaluate => next(&state, config),
            Unit::Solve => state.solved(&fit()),
            Unit::End => return states,
        };
        states.push(state.clone());
    }
}

pub fn join_request(rejoin_state: Option<State>) -> JoinRequest {
    let process = Process { host: "host".to_owned(), pid: 7, namespace: 5 };
    JoinRequest { process, restarts: 0, returns: rejoin_state.is_some(), rejoin_state, mac_holds: true }
}

/// The frozen model of a checkpoint.
pub fn known_base() -> KnownBase {
    KnownBase {
        source: "chk/mine/step-2.safetensors".into(),
        fingerprint: FINGERPRINT.to_owned(),
        tokenizer: None,
        arithmetic: None,
    }
}

pub fn worker_ready() -> WorkerReady {
    WorkerReady {
        base_fingerprint: FINGERPRINT.to_owned(),
        tokenizer_fingerprint: None,
        arithmetic: Arithmetic::F32,
        longest_text: 0,
        hidden_size: HIDDEN,
        model_parameters: 1000,
        weights: "random".to_owned(),
        device: "cpu".to_owned(),
        trial_digest: vec![1, 2, 3],
        layer_norms: Vec::new(),
        layer_norm_values: Vec::new(),
        nccl: Err("no GPU".to_owned()),
    }
}

/// Digests of every row of a step, as honest ranks have them. A real rank has only those that it computed.
pub fn rows_of(step: u64) -> Vec<(usize, [u8; 32])> {
    (0..8)
        .map(|micro_batch| (micro_batch, [(step as u8).wrapping_mul(31).wrapping_add(micro_batch as u8); 32]))
        .collect()
}

/// A rank's report that it made `after` out of the state before.
pub fn report(config: &Config, generation: Generation, rank: usize, after: &State) -> Report {
    let unit = unit_of(after, config) - 1;
    let is_chunk = matches!(Schedule::of_run(config).unit(unit), Unit::Chunk { .. });
    let rows = rows_of(after.step() - 1);
    let received: Vec<[u8; 32]> = rows.iter().take(config.recipe.micro_batches()).map(|(_, digest)| *digest).collect();
    Report {
        generation,
        unit,
        features: (is_chunk && rank == 0).then(|| features(unit)),
        loss: 0.5,
        digest: after.digest(),
        state: (rank == 0).then(|| Arc::new(after.clone())),
        rows,
        received: Some(digest_of_rows(received.iter())),
        timing: Timing::default(),
    }
}
