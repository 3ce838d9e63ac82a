//! The coordinator under load: many simulated workers, and workers that never read what they are sent.

mod common;

use std::time::Duration;

use common::{Child, Folder};
use numalign_protocol as proto;
use numalign_protocol::coordinator_client::CoordinatorClient;
use numalign_protocol::worker_message::Message;
use numalign_worker::Options;
use numalign_worker::simulated::Simulated;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const HIDDEN: usize = 768;

/// Far above what a coordinator with a handful of workers needs, far below what an unbounded queue would take.
const MOST_RSS_MIB: u64 = 200;

#[test]
fn bench_coordinator_reports_its_figures() {
    let folder = Folder::new();
    let output = folder.run(&["bench", "coordinator", "--workers", "5", "--steps", "20", "--hidden", "8", "--json"]);
    assert!(output.status.success(), "{output}");
    let said: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output}"));
    assert_eq!((&said["workers"], &said["steps"]), (&5.into(), &20.into()));
    for figure in ["steps_per_s", "p50_ms", "p99_ms", "peak_rss_mib"] {
        assert!(said[figure].as_f64().is_some_and(|value| value > 0.0), "{figure}: {said}");
    }
    assert_eq!(folder.contents(), [], "it leaves nothing behind");
}

fn coordinator(folder: &Folder, workers: usize, steps: u64) -> (Child, String) {
    let (workers, steps) = (workers.to_string(), steps.to_string());
    let list = [
        "coordinator",
        "nn",
        "--listen",
        "127.0.0.1:0",
        "--model-name",
        "simulated",
        "--run-id",
        "load",
        "--num-epochs",
        "1",
        "--num-batches",
        &steps,
        "--batch-size",
        "4",
        "--micro-batch-size",
        "2",
        "--workers",
        &workers,
        "--checkpoint-every",
        "1000000",
    ];
    let mut child = folder.spawn(&list);
    child.wait_for_stderr("listening on ");
    let said = child.stderr();
    let address = said.split("listening on ").nth(1).and_then(|rest| rest.split(';').next()).expect("an address");
    (child, format!("http://{address}"))
}

async fn simulated(url: String) {
    let options = Options {
        access: numalign_access::ClientAccess::default(),
        coordinator: url,
        device: None,
        local_rank: None,
        first_contact: Duration::from_secs(60),
        restarts: 0,
        simulated: Some(Simulated::new(HIDDEN)),
    };
    numalign_worker::run(options, std::future::pending()).await.expect("the run ends well");
}

/// Says what a worker says, heartbeats too, and never reads a message.
async fn mute(url: String) {
    let mut client = CoordinatorClient::connect(url).await.expect("it listens");
    let (sender, messages) = mpsc::channel(8);
    let say = |message| proto::WorkerMessage { message: Some(message) };
    let hello = proto::Hello { protocol: proto::PROTOCOL, host: "mute".to_owned(), ..proto::Hello::default() };
    sender.send(say(Message::Hello(hello))).await.expect("room");
    let unread = client.control(ReceiverStream::new(messages)).await.expect("it is taken in");
    let ready = proto::Ready {
        base_fingerprint: blake3::hash(b"simulated").to_hex().to_string(),
        hidden_size: HIDDEN as u32,
        trial_digest: blake3::hash(&HIDDEN.to_le_bytes()).as_bytes().to_vec(),
        ..proto::Ready::default()
    };
    sender.send(say(Message::Ready(ready))).await.expect("room");
    // Until the coordinator has had enough.
    while sender.send(say(Message::Heartbeat(proto::Heartbeat::default()))).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    drop(unread);
}

fn peak_rss_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Two simulated workers and one that never reads, which comes before them or when they are training. The run ends well
/// and the coordinator's memory stays small; answers with what it said.
fn run_with_a_mute_worker(mute_comes_first: bool, steps: u64) -> String {
    let folder = Folder::new();
    let (mut child, url) = coordinator(&folder, 2, steps);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut peak = 0;
    runtime.block_on(async {
        let mut silent = tokio::task::JoinSet::new();
        if mute_comes_first {
            silent.spawn(mute(url.clone()));
            child.wait_for_stderr("trains ");
        }
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..2 {
            tasks.spawn(simulated(url.clone()));
        }
        if !mute_comes_first {
            child.wait_for_stderr("rank 1 ");
            silent.spawn(mute(url.clone()));
        }
        let until = tokio::time::Instant::now() + common::TIMEOUT;
        while !tasks.is_empty() {
            assert!(tokio::time::Instant::now() < until, "the run does not end: {}", child.stderr());
            peak = peak.max(peak_rss_mib(child.id()));
            if let Ok(Some(ended)) = tokio::time::timeout(Duration::from_millis(50), tasks.join_next()).await {
                ended.expect("a simulated worker ends well");
            }
        }
    });
    let output = child.wait();
    assert!(output.status.success(), "{output}");
    assert!((1..MOST_RSS_MIB).contains(&peak), "the coordinator took {peak} MiB: {output}");
    output.stderr
}

#[test]
fn a_rank_that_never_reads_is_dropped_in_words_and_the_run_goes_on() {
    let said = run_with_a_mute_worker(true, 300);
    assert!(said.contains("worker 1 is dismissed: it has not answered the news of a generation for 3.0 s"), "{said}");
    assert!(said.contains("going on from the last committed step"), "{said}");
    assert!(said.contains("1 failure, 1 recovery"), "{said}");
}

#[test]
fn a_spare_that_never_reads_takes_no_memory() {
    let said = run_with_a_mute_worker(false, 5000);
    assert!(!said.contains("failure"), "{said}");
}
