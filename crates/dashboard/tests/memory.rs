//! A page that is watched through a million steps takes little more memory than at their start. Real sockets, and the memory
//! of this process, so there is one test only.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use numalign_dashboard::{Access, Board, CheckpointFact, Facts, RunSource, serve};
use numalign_protocol::StatusReply;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const STEPS: u64 = 1_000_000;
const PARTS: u64 = 10;
/// Bytes more that the page may hold.
const MOST: u64 = 20 << 20;

struct Run {
    facts: Facts,
    folder: PathBuf,
}

impl RunSource for Run {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn constant_percent_of_range(&self) -> Option<f64> {
        Some(25.0)
    }

    fn checkpoints(&self) -> Vec<CheckpointFact> {
        Vec::new()
    }
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}

async fn ask(address: &str, path: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

async fn get(address: &str, path: &str) -> String {
    let mut answer = Vec::new();
    ask(address, path).await.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Adds the records of these steps.
fn record(path: &Path, steps: std::ops::RangeInclusive<u64>) {
    let mut file = BufWriter::new(OpenOptions::new().append(true).create(true).open(path).unwrap());
    for step in steps {
        let rest = "\"run_id\":\"long\",\"time\":\"2026-11-26T12:00:00.000Z\",\"loss\":0.123456789,\"lr\":0.003";
        writeln!(file, "{{\"kind\":\"step\",\"step\":{step},{rest}}}").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_steps_that_are_watched_take_at_most_20_mib() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let facts = Facts { run_id: "long".to_owned(), total_steps: STEPS, batch_size: 8, ..Facts::default() };
    let board = Board::new();
    board.show_live(Box::new(Run { facts, folder: folder.path().to_owned() }));
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let url = serve(socket, Access::default(), board.clone()).unwrap();
    let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let mut stream = ask(&address, "/api/events").await;
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    });
    let mut before = 0;
    for part in 1..=PARTS {
        record(&path, (part - 1) * STEPS / PARTS + 1..=part * STEPS / PARTS);
        let step = part * STEPS / PARTS;
        let status =
            StatusReply { run_id: "long".to_owned(), phase: "training".to_owned(), step, ..Default::default() };
        if part == 1 {
            // What the first answers take for good is none of the history's.
            assert!(get(&address, "/metrics").await.contains("numalign_run_info"));
            before = resident();
        }
        board.report(Some(status));
        // Files are looked at every half second.
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert!(get(&address, "/metrics").await.contains(&format!("numalign_step {step}")));
    }
    let history = get(&address, "/api/history").await;
    assert!(history.contains("\"thinned\":true") && history.contains(&format!("\"step\":{STEPS},")));
    let grown = resident().saturating_sub(before);
    assert!(grown <= MOST, "{:.1} MiB more", grown as f64 / f64::from(1 << 20));
}
