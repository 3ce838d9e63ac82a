//! No wait without a bound: a worker whose device hangs while its heartbeat goes on, a member that only sends heartbeats, a
//! coordinator that answers nothing. Real processes; the bytes are those of an undisturbed run.

mod common;

use std::time::Duration;

use common::Folder;
use common::run::{arguments, bytes, children, kill, listening_address, newest_step, succeed, undisturbed, wait_for};
use numalign_protocol as proto;
use numalign_protocol::coordinator_client::CoordinatorClient;
use numalign_protocol::coordinator_message::Message as FromCoordinator;
use numalign_protocol::worker_message::Message;
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// 600 short steps in five micro-batches.
const SETTINGS: &str =
    "--num-epochs 12 --num-batches 50 --checkpoint-every 50 --batch-size 20 --micro-batch-size 4 --lr 0.01";

/// Of the demo model.
const HIDDEN: u32 = 192;

/// The result of the same recipe undisturbed.
fn reference() -> &'static [u8] {
    undisturbed(SETTINGS)
}

#[test]
fn a_worker_whose_device_hangs_is_replaced_and_the_others_go_on() {
    let folder = Folder::new();
    let more = "--run-id frozen --workers 3 --stall-after 2s --chaos freeze=200,slow=2";
    let output = succeed(&folder, "nn", SETTINGS, more);
    for said in ["has sent no rows of unit 200 for", "its device may hang", "a new one starts"] {
        assert!(output.stderr.contains(said), "{said}: {output}");
    }
    assert!(bytes(&folder, "frozen") == reference());
}

#[test]
fn a_device_that_hangs_in_a_solvers_chunk_or_an_evaluation_is_found_too() {
    let folder = Folder::new();
    let solver = "--num-epochs 2 --num-batches 40 --batch-size 20 --micro-batch-size 4 --solver exact \
                  --train-input-projection false";
    let evaluations =
        "--num-epochs 4 --num-batches 10 --batch-size 20 --micro-batch-size 4 --eval-every 1 --eval-samples 40";
    // Unit 32 is the third evaluation: three times ten steps and two evaluations lie before it.
    for (settings, unit) in [(solver, 30), (evaluations, 32)] {
        let (whole, frozen) = (format!("whole-{unit}"), format!("frozen-{unit}"));
        succeed(&folder, "nn", settings, &format!("--run-id {whole}"));
        let more = format!("--run-id {frozen} --workers 2 --stall-after 2s --chaos freeze={unit}");
        let output = succeed(&folder, "nn", settings, &more);
        assert!(output.stderr.contains(&format!("has sent no rows of unit {unit} for")), "{output}");
        assert!(bytes(&folder, &frozen) == bytes(&folder, &whole), "{settings}");
    }
}

fn say(message: Message) -> proto::WorkerMessage {
    proto::WorkerMessage { message: Some(message) }
}

/// A member that joins, is ready, and sends heartbeats alone; answers with what it was dismissed with.
async fn stay_mute(url: String) -> proto::Abort {
    let mut client = CoordinatorClient::connect(url).await.unwrap();
    let (sender, outbound) = mpsc::channel(8);
    let hello = proto::Hello { protocol: proto::PROTOCOL, host: "mute".to_owned(), pid: 1, ..Default::default() };
    sender.send(say(Message::Hello(hello))).await.unwrap();
    let mut inbound = client.control(ReceiverStream::new(outbound)).await.unwrap().into_inner();
    let mut generation = 0;
    loop {
        let heartbeat = proto::Heartbeat { generation, ..Default::default() };
        // The stream's end is seen below.
        let _ = sender.send(say(Message::Heartbeat(heartbeat))).await;
        let Ok(message) = tokio::time::timeout(Duration::from_millis(200), inbound.message()).await else {
            continue;
        };
        match message.unwrap().expect("it says why").message {
            Some(FromCoordinator::Welcome(welcome)) => {
                let ready = proto::Ready {
                    base_fingerprint: welcome.base_fingerprint,
                    hidden_size: HIDDEN,
                    trial_digest: vec![1],
                    no_nccl: "none".to_owned(),
                    ..Default::default()
                };
                sender.send(say(Message::Ready(ready))).await.unwrap();
            }
            Some(FromCoordinator::Begin(begin)) => generation = begin.generation.unwrap().number,
            Some(FromCoordinator::Abort(abort)) => return abort,
            _ => {}
        }
    }
}

#[test]
fn a_member_that_only_sends_heartbeats_is_dismissed_and_the_others_go_on() {
    let folder = Folder::new();
    let mut list = vec!["coordinator", "nn", "--listen", "127.0.0.1:0", "--run-id", "mute", "--workers", "2"];
    list.extend(SETTINGS.split_whitespace());
    // Without the comparison of trial micro-batches the mute one needs no model to come in.
    list.extend(["--deterministic", "false", "--stall-after", "2s"]);
    let mut coordinator = folder.spawn(&list);
    let url = format!("http://{}", listening_address(&mut coordinator));
    let mut worker = folder.spawn(&["worker", "--coordinator", &url]);
    coordinator.wait_for_stderr("fingerprint");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let abort = runtime.block_on(stay_mute(url));
    assert!(abort.restart && !abort.permanent && abort.reason.contains("has sent no rows of unit 0"), "{abort:?}");
    let output = coordinator.wait();
    assert!(output.status.success() && worker.wait().status.success(), "{output}");
    assert!(bytes(&folder, "mute") == reference());
}

#[test]
fn a_coordinator_that_answers_nothing_is_killed_and_started_again() {
    let folder = Folder::new();
    let more = "--run-id stopped --workers 2 --max-restarts 1 --chaos slow=4";
    let limit = [("NUMALIGN_INTERNAL_COORDINATOR_SILENCE_MS", "3000")];
    let mut launcher = folder.spawn_env(&arguments("nn", SETTINGS, more), &limit);
    let chk = folder.path().join("chk/stopped");
    wait_for("a checkpoint", || newest_step(&chk) >= 100);
    kill(children(launcher.id(), "coordinator --listen")[0], Signal::STOP);
    let output = launcher.wait();
    assert!(output.status.success(), "{output}");
    for said in ["has not answered for", "killing it", "the coordinator was killed", "starting it again"] {
        assert!(output.stderr.contains(said), "{said}: {output}");
    }
    assert!(bytes(&folder, "stopped") == reference());
}
