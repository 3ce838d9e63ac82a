//! Bounds on what strangers can cost: size of messages, number and time of connections.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tonic::codegen::tokio_stream;

use super::*;

/// A figure of `/proc/<pid>/status`, in KiB.
pub fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {status}"));
    line.split_whitespace().nth(1).and_then(|figure| figure.parse().ok()).expect("a figure")
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn messages_larger_than_any_honest_one_are_refused_unread() {
    let folder = Folder::new();
    let mut coordinator = Listening::start(&folder, &[], &[]);
    let (url, pid) = (coordinator.plain(), coordinator.child.id());
    let before = memory(pid, "VmHWM");
    runtime().block_on(async {
        let mut client = connect(&url).await.max_encoding_message_size(usize::MAX);
        for _ in 0..5 {
            let greeting = tokio_stream::iter([hello(&"x".repeat(20 << 20))]);
            let refused = client.control(greeting).await.unwrap_err();
            assert!(refused.message().contains("too large"), "{refused}");
            let rows = vec![proto::Row { micro_batch: 0, values: vec![0; 20 << 20].into(), digest: Vec::new() }];
            let message = proto::RankMessage { rows, ..Default::default() };
            let refused = client.work(tokio_stream::iter([message])).await.unwrap_err();
            assert!(refused.message().contains("too large"), "{refused}");
        }
        // What it takes for a name it does not keep whole.
        let greeting = tokio_stream::StreamExt::chain(
            tokio_stream::iter([hello(&format!("evil\x1b[2J{}", "x".repeat(8 << 20)))]),
            tokio_stream::pending(),
        );
        let mut inbound = client.control(greeting).await.unwrap().into_inner();
        assert!(inbound.message().await.unwrap().is_some(), "welcome");
        let status = client.status(proto::StatusRequest {}).await.unwrap().into_inner();
        let host = &status.workers[0].host;
        assert!(host.len() < 200 && host.starts_with("evil") && !host.contains('\x1b'), "{host:?}");
    });
    let grown = memory(pid, "VmHWM") - before;
    assert!(grown < 64 << 10, "it grew by {grown} KiB");
    succeed("the worker", &worker(&folder, &url, &[], &[]));
    coordinator.ends_unharmed(&folder);
}

/// True once the other side closed it.
fn closed(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; 256];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            // A greeting of the server.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
    }
}

/// Connections held at once: as many of `wanted` as this process may open.
fn may_hold(wanted: usize) -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    limit.maximum.map_or(wanted, |most| wanted.min(most as usize - 200))
}

#[test]
fn ten_thousand_connections_that_say_nothing_harm_no_run() {
    let folder = Folder::new();
    let held = may_hold(10_000);
    let mut coordinator = Listening::start(&folder, &[], &[("NUMALIGN_TOKEN", SECRET)]);
    let (url, pid) = (coordinator.plain(), coordinator.child.id());
    let before = memory(pid, "VmHWM");
    let beginnings: [&[u8]; 8] = [
        b"",
        b"",
        b"P",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"",
    ];
    let mut silent: Vec<TcpStream> = Vec::new();
    let mut most = 0;
    for index in 0..10_000usize {
        if silent.len() == held {
            silent.drain(..held / 2);
        }
        let mut stream = TcpStream::connect(("127.0.0.1", coordinator.port)).unwrap();
        // It may have been dropped already.
        let _ = stream.write_all(beginnings[index % beginnings.len()]);
        stream.set_nonblocking(true).unwrap();
        silent.push(stream);
        if index % 100 == 0 {
            most = most.max(descriptors(pid));
        }
        if index == 5_000 {
            // Meanwhile a client that speaks is served.
            let wait = [("NUMALIGN_COORDINATOR_WAIT", "20s")];
            check("no token", &worker(&folder, &url, &[], &wait), FAILED, &["no join token"]);
        }
    }
    // 256 and one per worker of max_workers unknown, a few on their way out, and the process's own.
    assert!(most < 256 + 64 + 80, "{most} descriptors");
    // All but the few that are within their time are closed from the other side; soon those are, too.
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let open = silent.iter_mut().filter_map(|stream| (!closed(stream)).then_some(())).count();
        if open == 0 {
            break;
        }
        assert!(Instant::now() < until, "{open} silent connections are still open");
        std::thread::sleep(Duration::from_millis(50));
    }
    let grown = memory(pid, "VmHWM") - before;
    eprintln!("{held} held at once: at most {most} descriptors, {grown} KiB more at the peak");
    assert!(grown < 64 << 10, "it grew by {grown} KiB");
    succeed("the worker", &worker(&folder, &url, &[], &[("NUMALIGN_TOKEN", SECRET)]));
    let output = coordinator.ends_unharmed(&folder);
    assert!(output.stderr.contains("made no call within") || output.stderr.contains("not gRPC"), "{output}");
    assert!(output.stderr.lines().count() < 200, "the log is bounded: {output}");
}

#[test]
fn a_coordinator_with_few_descriptors_survives_too_many_connections() {
    let folder = Folder::new();
    let args = words(&[&["coordinator", "nn", "--listen", ANY_PORT], TINY]);
    let mut coordinator = Listening::of(folder.spawn_with_few_descriptors(64, &args));
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(("127.0.0.1", coordinator.port)).unwrap());
    }
    assert!(descriptors(coordinator.child.id()) <= 64);
    succeed("the worker", &worker(&folder, &coordinator.plain(), &[], &[]));
    let output = coordinator.ends_unharmed(&folder);
    assert!(output.stderr.contains("limit on open files is 64"), "{output}");
}

#[test]
fn several_hosts_end_in_the_same_bytes_though_links_are_cut() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/netns-test.sh");
    let folder = Folder::new();
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_numalign"));
    let mut command = Command::new("bash");
    command.arg(&script).arg(&binary).current_dir(folder.path());
    let output = without_foreign_variables(&mut command).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // `cargo test -- --nocapture` shows the figures, or the reason for skipping.
    eprintln!("{stdout}");
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("the same bytes") || stdout.contains("skipped:"), "{stdout}\n{stderr}");
}
