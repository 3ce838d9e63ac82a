//! Messages of workers as calls for the driver: text is sanitised, every length is checked. Pure.

use std::sync::Arc;

use numalign_access::rate_limited_log::sanitize;
use numalign_config::{Arithmetic, Choice, Config};
use numalign_projector::{Features, NormTensor, State, StateDigest};
use numalign_protocol as proto;
use numalign_protocol::codec::{digest_from_bytes, floats_from_bytes};
use tonic::Status;

use super::call::Call;
use super::reduce::{ReceivedRow, RowsRefused};
use crate::machine::collective::Nccl;
use crate::machine::{Cause, Event, JoinRequest, MemberId, Process, Report, WorkerReady};
use crate::state_key::StateKey;

/// Characters that are kept of a host, a build, a device, a fingerprint or a tensor's name.
const MAX_NAME: usize = 128;

/// Characters that are kept of a worker's message.
const MAX_MESSAGE: usize = 4096;

/// Bytes of the longest digest there is.
const MAX_DIGEST: usize = 64;

/// Bytes of an `ncclUniqueId`.
const NCCL_ID: usize = 128;

/// A worker's Hello to the run of `config`, whose committed states are signed with `key`. A rejoin state of another run is
/// passed over.
///
/// # Errors
/// Another protocol, or a rejoin state that cannot be of this run.
pub fn join_request(
    hello: proto::Hello,
    config: &Config,
    config_digest: &str,
    key: &StateKey,
) -> Result<JoinRequest, Status> {
    if hello.protocol != proto::PROTOCOL {
        return Err(Status::failed_precondition(format!(
            "protocol {} of build {} does not match this coordinator's {} of build {}",
            hello.protocol,
            sanitize(&hello.build, MAX_NAME),
            proto::PROTOCOL,
            env!("CARGO_PKG_VERSION")
        )));
    }
    let (mut rejoin_state, mut mac_holds) = (None, false);
    let mut returns = false;
    if let Some(claimed) = hello.rejoin_state
        && claimed.run_id == config.run.run_id
        && claimed.config_digest == config_digest
    {
        returns = true;
        let state = State::from_bytes(&claimed.state)
            .map_err(|error| Status::invalid_argument(format!("the rejoin state: {error}")))?;
        let total = config.recipe.total_steps();
        if state.step() > total {
            let reason = format!("its rejoin state is after {} of {total} steps", state.step());
            return Err(Status::invalid_argument(reason));
        }
        mac_holds = key.holds(&state, claimed.rollback, &claimed.mac);
        // The run went back since: a worker that is honest did not hear of it yet.
        let is_void = claimed.rollback < key.rollbacks() && (mac_holds || config.run.trust_returning_state);
        rejoin_state = Some(state).filter(|_| !is_void);
    }
    let host = sanitize(&hello.host, MAX_NAME);
    let process = Process { host, pid: hello.pid, namespace: hello.pid_namespace };
    Ok(JoinRequest { process, restarts: hello.restarts, rejoin_state, mac_holds, returns })
}

/// Rows of a `RankMessage`: micro-batch, floats and digest of each.
///
/// # Errors
/// A row that is not whole floats, or not what was computed: the message arrived as it was sent, so its sender changed it.
pub fn rows(rows: &[proto::Row]) -> Result<Vec<ReceivedRow>, RowsRefused> {
    let mut decoded = Vec::with_capacity(rows.len());
    for row in rows {
        match row.decode() {
            Ok(row) => decoded.push(row),
            Err(reason) => return Err(RowsRefused::Unreadable { micro_batch: row.micro_batch, reason }),
        }
    }
    Ok(decoded)
}

/// Gathered rows as features of what the state's output projector reads.
///
/// # Errors
/// They do not fit; this ends the membership of their sender.
pub fn features(state: &State, rows: Vec<f32>) -> Result<Arc<Features>, String> {
    let features = Features::new(state.layout().read_width(), rows);
    features.map(Arc::new).map_err(|error| format!("its features cannot be used: {error}"))
}

/// A member's message as a call; `None` if it says nothing.
///
/// # Errors
/// The message makes no sense; this ends the membership.
pub fn worker_message(member: MemberId, message: proto::WorkerMessage) -> Result<Option<Call>, String> {
    use proto::worker_message::Message;
    let Some(message) = message.message else {
        return Ok(None);
    };
    Ok(Some(Call::Event(match message {
        Message::Hello(_) => return Err("it said Hello twice".to_owned()),
        Message::Heartbeat(heartbeat) => {
            return Ok(Some(Call::Heartbeat(member, heartbeat)));
        }
        Message::SamplesChecked(checked) => {
            let problem = sanitize(&checked.problem, MAX_MESSAGE);
            let checked = if problem.is_empty() { Ok(()) } else { Err((checked.sample, problem)) };
            return Ok(Some(Call::SamplesChecked(member, checked)));
        }
        Message::Failure(failure) if failure.permanent => {
            let why = sanitize(&failure.message, MAX_MESSAGE);
            match (failure.data, failure.sample) {
                (true, Some(sample)) => return Ok(Some(Call::SampleFailed(member, sample, why))),
                (true, None) => Event::PermanentFailure(member, Cause::Data, why),
                (false, _) => Event::PermanentFailure(member, Cause::Machine, why),
            }
        }
        Message::Failure(failure) => Event::Left(member, sanitize(&failure.message, MAX_MESSAGE)),
        Message::NcclId(id) => {
            let generation = id.generation.ok_or("it sent an NCCL id of no generation")?;
            if id.id.len() != NCCL_ID {
                return Err(format!("it sent an NCCL id of {} bytes instead of {NCCL_ID}", id.id.len()));
            }
            Event::NcclId(member, generation, id.id)
        }
        Message::NcclFailed(failed) => {
            let generation = failed.generation.ok_or("it reported NCCL of no generation")?;
            Event::NcclFailed(member, generation, sanitize(&failed.reason, MAX_MESSAGE))
        }
        Message::Ready(ready) => Event::Ready(member, worker_ready(ready)?),
        Message::UnitDone(done) => Event::Reported(member, report(done)?),
    })))
}

fn report(done: proto::UnitDone) -> Result<Report, String> {
    let digest = StateDigest::from_slice(&done.digest).ok_or("it sent a digest that is not 32 bytes")?;
    let rows: Result<_, _> = done.rows.iter().map(proto::RowDigest::decode).collect();
    let rows = rows.map_err(|_| "it sent a row digest that is not 32 bytes")?;
    let state = match done.state.is_empty() {
        true => None,
        false => Some(Arc::new(State::from_bytes(&done.state).map_err(|error| error.to_string())?)),
    };
    let features = match &state {
        Some(state) if !done.features.is_empty() => {
            let gathered = floats_from_bytes(&done.features);
            Some(features(state, gathered.map_err(|error| format!("its features cannot be used: {error}"))?)?)
        }
        _ => None,
    };
    Ok(Report {
        generation: done.generation.ok_or("it reported a unit of no generation")?,
        unit: done.unit,
        loss: done.loss,
        digest,
        state,
        features,
        rows,
        received: digest_from_bytes(&done.received_digest).ok(),
        timing: done.timing(),
    })
}

fn nccl(ability: Option<proto::NcclAbility>, reason: String) -> Nccl {
    match proto::NcclAbility::from_fields(ability, reason) {
        Ok(ability) => Ok(proto::NcclAbility { gpu: sanitize(&ability.gpu, MAX_NAME), ..ability }),
        Err(reason) => Err(sanitize(&reason, MAX_MESSAGE)),
    }
}

/// Workers that know of no other than `f32` say nothing.
fn arithmetic(name: &str) -> Result<Arithmetic, String> {
    if name.is_empty() {
        return Ok(Arithmetic::F32);
    }
    let known = Arithmetic::ALL.iter().find(|known| known.name() == name);
    known.copied().ok_or_else(|| format!("it multiplies in {}, which is not known here", sanitize(name, MAX_NAME)))
}

fn worker_ready(ready: proto::Ready) -> Result<WorkerReady, String> {
    let (mut layer_norms, mut layer_norm_values) = (Vec::new(), Vec::new());
    for tensor in ready.layer_norms {
        let name = sanitize(&tensor.name, MAX_NAME);
        let values = tensor.floats().map_err(|_| format!("its layer norm {name} is not whole floats"))?;
        layer_norms.push(NormTensor { name, len: values.len() });
        layer_norm_values.extend(values);
    }
    if ready.trial_digest.len() > MAX_DIGEST {
        return Err(format!("it sent a trial digest of {} bytes", ready.trial_digest.len()));
    }
    Ok(WorkerReady {
        base_fingerprint: sanitize(&ready.base_fingerprint, MAX_NAME),
        longest_text: ready.longest_text,
        tokenizer_fingerprint: Some(sanitize(&ready.tokenizer_fingerprint, MAX_NAME)).filter(|hex| !hex.is_empty()),
        hidden_size: ready.hidden_size as usize,
        model_parameters: ready.model_parameters,
        weights: sanitize(&ready.weights, MAX_NAME),
        device: sanitize(&ready.device, MAX_NAME),
        arithmetic: arithmetic(&ready.arithmetic)?,
        trial_digest: ready.trial_digest,
        nccl: nccl(ready.nccl, ready.no_nccl),
        layer_norms,
        layer_norm_values,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use numalign_projector::digest_of;
    use numalign_protocol::worker_message::Message;
    use tonic::Code;

    use super::*;
    use crate::machine::Generation;

    const MEMBER: MemberId = MemberId(7);
    const GENERATION: Generation = Generation { incarnation: 3, number: 2, rollback: 0 };

    fn config() -> Config {
        let flags = [("run_id", "mine"), ("num_epochs", "1"), ("num_batches", "2")];
        Config::with(&flags).unwrap()
    }

    fn decoded(message: Message) -> Result<Event, String> {
        match worker_message(MEMBER, proto::WorkerMessage { message: Some(message) })? {
            Some(Call::Event(event)) => Ok(event),
            _ => Err("no event".to_owned()),
        }
    }

    fn refusal(message: Message) -> String {
        decoded(message).expect_err("it is refused")
    }

    fn hello() -> proto::Hello {
        let (host, pid) = ("host\x1b[31m".to_owned(), 9);
        proto::Hello { protocol: proto::PROTOCOL, host, pid, restarts: 2, pid_namespace: 77, ..proto::Hello::default() }
    }

    fn key() -> StateKey {
        StateKey::open(tempfile::tempdir().unwrap().path(), &config()).unwrap()
    }

    fn with_state(run_id: &str, config_digest: &str, state: &[u8]) -> proto::Hello {
        let rejoin_state = proto::RejoinState {
            run_id: run_id.to_owned(),
            config_digest: config_digest.to_owned(),
            state: state.to_vec(),
            mac: Vec::new(),
            rollback: 0,
        };
        proto::Hello { rejoin_state: Some(rejoin_state), ..hello() }
    }

    #[test]
    fn another_protocol_is_refused_with_both_builds() {
        let other = proto::Hello { protocol: proto::PROTOCOL + 1, build: "9.9\n".to_owned(), ..hello() };
        let status = join_request(other, &config(), "digest", &key()).unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("of build 9.9\u{fffd} does not match"), "{}", status.message());
    }

    #[test]
    fn a_hello_becomes_a_join_request_without_control_characters() {
        let request = join_request(hello(), &config(), "digest", &key()).unwrap();
        let process = Process { host: "host\u{fffd}[31m".to_owned(), pid: 9, namespace: 77 };
        assert_eq!((request.process, request.restarts), (process, 2));
        assert_eq!(request.rejoin_state, None);
    }

    #[test]
    fn only_a_rejoin_state_of_this_run_counts() {
        let config = config();
        let state = State::initial(2, 0);
        let asked = |run_id: &str, digest: &str, bytes: &[u8]| {
            join_request(with_state(run_id, digest, bytes), &config, "digest", &key())
                .map(|request| request.rejoin_state)
        };
        assert_eq!(asked("mine", "digest", &state.to_bytes()).unwrap(), Some(state.clone()));
        for (run_id, digest) in [("another", "digest"), ("mine", "another")] {
            assert_eq!(asked(run_id, digest, b"anything").unwrap(), None, "it is not even read");
        }
        let status = asked("mine", "digest", b"anything").unwrap_err();
        assert!(status.message().starts_with("the rejoin state: "), "{}", status.message());
        let mut ahead = state;
        for _ in 0..3 {
            let row = vec![0.0; ahead.layout().row_len()];
            ahead.update(&row, &config.recipe).unwrap();
        }
        let status = asked("mine", "digest", &ahead.to_bytes()).unwrap_err();
        assert_eq!(status.message(), "its rejoin state is after 3 of 2 steps");
    }

    #[test]
    fn a_rejoin_state_comes_with_the_mac_of_this_run() {
        let (key, state) = (key(), State::initial(2, 0));
        let holds = |mac: &[u8]| {
            let mut hello = with_state("mine", "digest", &state.to_bytes());
            hello.rejoin_state.as_mut().unwrap().mac = mac.to_vec();
            join_request(hello, &config(), "digest", &key).unwrap().mac_holds
        };
        assert!(holds(&key.mac(&state)));
        for other in [&[][..], &key.mac(&State::initial(2, 1)), &[0; 32]] {
            assert!(!holds(other));
        }
    }

    #[test]
    fn a_state_from_before_a_rollback_is_passed_over_and_a_forged_one_is_not() {
        let (key, state) = (key(), State::initial(2, 0));
        let asked = |mac: &[u8], rollback: u64| {
            let mut hello = with_state("mine", "digest", &state.to_bytes());
            let claimed = hello.rejoin_state.as_mut().unwrap();
            (claimed.mac, claimed.rollback) = (mac.to_vec(), rollback);
            let request = join_request(hello, &config(), "digest", &key).unwrap();
            assert!(request.returns);
            (request.rejoin_state.is_some(), request.mac_holds)
        };
        let void = key.mac(&state);
        key.rolled_back(1);
        assert_eq!(asked(&void, 0), (false, true));
        assert_eq!(asked(&[0; 32], 0), (true, false), "it is refused");
        assert_eq!(asked(&void, 1), (true, false));
        assert_eq!(asked(&key.mac(&state), 1), (true, true));
    }

    #[test]
    fn a_heartbeat_brings_the_generation_that_is_known() {
        let heartbeat = proto::Heartbeat { generation: 4, rows_until: 3, damaged: 2 };
        let call = worker_message(MEMBER, proto::WorkerMessage { message: Some(Message::Heartbeat(heartbeat)) });
        assert!(matches!(call, Ok(Some(Call::Heartbeat(MEMBER, found))) if found == heartbeat));
        assert!(matches!(worker_message(MEMBER, proto::WorkerMessage::default()), Ok(None)));
    }

    #[test]
    fn failures_are_permanent_or_not_and_their_text_is_bounded() {
        let message = "x".repeat(2 * MAX_MESSAGE);
        for permanent in [true, false] {
            let event = decoded(Message::Failure(proto::Failure {
                permanent,
                message: message.clone(),
                data: true,
                sample: None,
            }))
            .unwrap();
            let text = match (permanent, event) {
                (true, Event::PermanentFailure(MEMBER, Cause::Data, text)) | (false, Event::Left(MEMBER, text)) => text,
                (_, event) => panic!("{event:?}"),
            };
            assert_eq!(text.len(), MAX_MESSAGE);
        }
    }

    #[test]
    fn a_report_keeps_every_field() {
        let state = State::initial(2, 0);
        let done = proto::UnitDone {
            generation: Some(GENERATION),
            unit: 5,
            loss: 0.25,
            digest: state.digest().0.to_vec(),
            state: state.to_bytes(),
            compute_us: 1_000,
            data_wait_us: 2_000,
            reduce_us: u64::MAX,
            peak_rss_mib: u64::MAX,
            rows: vec![proto::RowDigest::new(3, [9; 32])],
            features: proto::codec::floats_to_bytes(&[1.0, 2.0, 3.0]),
            received_digest: vec![8; 32],
        };
        let Ok(Event::Reported(MEMBER, report)) = decoded(Message::UnitDone(done)) else { panic!("a report") };
        assert_eq!((report.generation, report.unit, report.loss), (GENERATION, 5, 0.25));
        assert_eq!(report.received, Some([8; 32]));
        assert_eq!((report.digest, report.rows.as_slice()), (state.digest(), &[(3, [9; 32])][..]));
        assert_eq!(report.features.unwrap().hidden(), 2);
        assert_eq!(report.state, Some(Arc::new(state)));
        assert_eq!(
            (report.timing.compute, report.timing.data_wait),
            (Duration::from_millis(1), Duration::from_millis(2))
        );
        assert!(report.timing.reduce <= Duration::from_secs(24 * 60 * 60), "an absurd time is bounded");
        assert_eq!(report.timing.peak_rss_mib, 1 << 26, "so is absurd memory");
    }

    #[test]
    fn malformed_reports_end_the_membership() {
        let state = State::initial(2, 0);
        let good = proto::UnitDone {
            generation: Some(GENERATION),
            digest: state.digest().0.to_vec(),
            state: state.to_bytes(),
            ..proto::UnitDone::default()
        };
        let rows = vec![proto::RowDigest { micro_batch: 0, digest: vec![1; 31] }];
        let features = |count| proto::codec::floats_to_bytes(&vec![0.0; count]);
        for (bad, words) in [
            (proto::UnitDone { digest: vec![1; 31], ..good.clone() }, "a digest that is not 32 bytes"),
            (proto::UnitDone { rows, ..good.clone() }, "a row digest that is not 32 bytes"),
            (proto::UnitDone { generation: None, ..good.clone() }, "a unit of no generation"),
            (proto::UnitDone { features: features(4), ..good.clone() }, "its features cannot be used"),
            (proto::UnitDone { features: vec![0; 13], ..good.clone() }, "its features cannot be used"),
        ] {
            let why = refusal(Message::UnitDone(bad));
            assert!(why.contains(words), "{why}");
        }
        assert!(decoded(Message::UnitDone(proto::UnitDone { state: vec![1; 9], ..good })).is_err());
    }

    #[test]
    fn other_messages_that_make_no_sense_are_refused() {
        let id = |generation, length| Message::NcclId(proto::NcclId { generation, id: vec![0; length] });
        assert!(refusal(id(None, NCCL_ID)).contains("of no generation"));
        assert_eq!(refusal(id(Some(GENERATION), 5)), "it sent an NCCL id of 5 bytes instead of 128");
        let sent = vec![0; NCCL_ID];
        assert_eq!(decoded(id(Some(GENERATION), NCCL_ID)), Ok(Event::NcclId(MEMBER, GENERATION, sent)));
        assert_eq!(refusal(Message::Hello(hello())), "it said Hello twice");
        let norm = proto::LayerNorm { name: "ln".to_owned(), values: vec![0; 6] };
        let ready = proto::Ready { layer_norms: vec![norm], ..proto::Ready::default() };
        assert_eq!(refusal(Message::Ready(ready)), "its layer norm ln is not whole floats");
    }

    #[test]
    fn a_ready_worker_says_what_it_reduces_with() {
        let norms =
            vec![proto::LayerNorm::new("a".to_owned(), &[1.0]), proto::LayerNorm::new("b".to_owned(), &[2.0, 3.0])];
        let ability = proto::NcclAbility { gpu: "GPU\n".to_owned(), version: 1, replica: true, shares_gpu: false };
        let ready = proto::Ready { hidden_size: 3, layer_norms: norms, nccl: Some(ability), ..proto::Ready::default() };
        let Ok(Event::Ready(MEMBER, ready)) = decoded(Message::Ready(ready)) else { panic!("ready") };
        assert_eq!((ready.hidden_size, ready.layer_norm_values), (3, vec![1.0, 2.0, 3.0]));
        let lengths: Vec<_> = ready.layer_norms.iter().map(|tensor| (tensor.name.as_str(), tensor.len)).collect();
        assert_eq!(lengths, [("a", 1), ("b", 2)]);
        assert_eq!(ready.nccl.unwrap().gpu, "GPU\u{fffd}");
        let hostile = format!("\x1b[2J\x1b]0;owned\x07\u{9b}31m\u{202e}{}", "x".repeat(1 << 20));
        let norms = vec![proto::LayerNorm::new(hostile.clone(), &[1.0])];
        let hostile = proto::Ready {
            base_fingerprint: hostile.clone(),
            weights: hostile.clone(),
            device: hostile.clone(),
            layer_norms: norms,
            ..proto::Ready::default()
        };
        let Ok(Event::Ready(_, shown)) = decoded(Message::Ready(hostile)) else { panic!("ready") };
        for text in [&shown.base_fingerprint, &shown.weights, &shown.device, &shown.layer_norms[0].name] {
            assert_eq!(text.chars().count(), MAX_NAME);
            assert!(text.starts_with("\u{fffd}[2J\u{fffd}]0;owned\u{fffd}\u{fffd}31m\u{fffd}x"), "{text:?}");
        }
        let long = proto::Ready { trial_digest: vec![0; 65], ..proto::Ready::default() };
        assert_eq!(refusal(Message::Ready(long)), "it sent a trial digest of 65 bytes");
        let Ok(Event::Ready(_, silent)) = decoded(Message::Ready(proto::Ready::default())) else { panic!("ready") };
        assert_eq!(silent.nccl, Err("it did not say whether it has NCCL".to_owned()));
    }

    #[test]
    fn rows_are_whole_floats_and_what_was_computed() {
        let (values, digest) = (vec![1.0, -0.0], digest_of(&[1.0, -0.0]));
        assert_eq!(rows(&[proto::Row::new(4, &values, digest)]).unwrap(), [(4, values.clone(), digest)]);
        let refusal = |row: proto::Row| rows(&[row]).unwrap_err().to_string();
        let short = proto::Row { micro_batch: 2, values: vec![0; 3].into(), digest: vec![0; 32] };
        assert_eq!(refusal(short), "its row of micro-batch 2 cannot be used: 3 bytes are not whole floats");
        let changed = proto::Row::new(4, &[1.0, 0.0], digest);
        assert_eq!(
            refusal(changed),
            "its row of micro-batch 4 cannot be used: the numbers are not those of their digest"
        );
    }
}
