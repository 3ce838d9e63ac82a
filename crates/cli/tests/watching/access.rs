//! Who is refused, and that idle connections and slow readers cost a run nothing.

use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpStream;
use std::process::Command;

use rustix::process::Signal;

use super::http::{get, get_with, request};
use super::{launch, watch};
use crate::common::run::{kill, run_line, succeed_line, wait_for};
use crate::common::{Child, Folder};

/// A folder with one run's record, and a page over it; `more` are further arguments.
fn watched(folder: &Folder, more: &[&str]) -> (Child, String) {
    folder.write("chk/mine/metrics.jsonl", "{\"kind\":\"epoch\",\"step\":1,\"loss\":0.5}\n");
    watch(folder, &[&["mine"], more].concat())
}

#[test]
fn other_names_other_sites_and_other_paths_are_refused() {
    let folder = Folder::new();
    let (_watch, address) = watched(&folder, &[]);
    let page = get(&address, "/");
    assert_eq!(page.status, 200);
    for header in ["content-security-policy: default-src 'none'", "x-content-type-options: nosniff"] {
        assert!(page.head.contains(header), "{}", page.head);
    }
    for foreign in ["http://", "https://", "//"] {
        assert!(!page.body.contains(foreign), "the page names no other host");
    }
    let host = format!("host: {address}");
    for (headers, status) in [
        (vec!["host: evil.example"], 403),
        (vec![], 400),
        (vec![&*host, "origin: http://evil.example"], 403),
        (vec![&*host, "origin: null"], 403),
    ] {
        let answer = get_with(&address, "/api/history", &headers);
        assert!(
            answer.status == status || (headers.is_empty() && answer.status == 403),
            "{headers:?}: {}",
            answer.head
        );
        assert!(!answer.body.contains("epoch"), "{headers:?}");
    }
    for path in
        ["/../../etc/passwd", "/..%2f..%2fetc/passwd", "/chk/mine/metrics.jsonl", "/api/history?run=../mine", "//etc"]
    {
        let answer = get(&address, path);
        assert!(answer.status == 404 && !answer.body.contains("root:"), "{path}: {}", answer.head);
    }
    for method in ["POST", "PUT", "DELETE"] {
        let answer = request(&address, &format!("{method} /api/status HTTP/1.1"), &[&host], "");
        assert_eq!(answer.status, 405, "{method}");
    }
    let long = format!("/{}", "x".repeat(100_000));
    assert!(get(&address, &long).status >= 400);
    assert_eq!(get(&address, "/healthz").status, 200);
}

#[test]
fn with_a_token_nothing_but_the_health_checks_is_told_without_it() {
    let folder = Folder::new();
    folder.write("token", "open-sesame/4711\n");
    let (_watch, address) = watched(&folder, &["--http-token-file", "token"]);
    let host = format!("host: {address}");
    for path in ["/", "/page.js", "/api/status", "/api/history", "/api/runs", "/api/events", "/metrics", "/nothing"] {
        let answer = get(&address, path);
        assert_eq!(answer.status, 401, "{path}");
        assert!(answer.head.contains("www-authenticate: Basic"), "{}", answer.head);
        let wrong = get_with(&address, path, &[&host, "authorization: Bearer open-sesame/471"]);
        assert_eq!(wrong.status, 401, "{path}");
    }
    assert_eq!(get_with(&address, "/api/status", &[&host, "authorization: Bearer open-sesame/4711"]).status, 200);
    // `me:open-sesame/4711`
    let basic = "authorization: Basic bWU6b3Blbi1zZXNhbWUvNDcxMQ==";
    assert_eq!(get_with(&address, "/", &[&host, basic]).status, 200);
    assert_eq!(get(&address, "/healthz").status, 200);
}

#[test]
fn watch_speaks_tls_and_asks_for_the_join_token_beyond_loopback() {
    let folder = Folder::new();
    succeed_line(&folder, "cert --out tls 127.0.0.1");
    folder.write("token", "open-sesame/4711\n");
    folder.write("chk/mine/metrics.jsonl", "{\"kind\":\"epoch\",\"step\":1,\"loss\":0.5}\n");
    let open = run_line(&folder, "watch mine --http 0.0.0.0:0");
    assert_eq!(open.status.code(), Some(2), "{open}");
    assert!(open.stderr.contains("would be open to anybody"), "{open}");
    let mut words = vec!["mine", "--http", "0.0.0.0:0", "--token-file", "token"];
    words.extend(["--tls-cert", "tls/coordinator.pem", "--tls-key", "tls/coordinator-key.pem"]);
    let (watch, address) = watch(&folder, &words);
    assert!(watch.stdout().starts_with("https://"), "{}", watch.stdout());
    let port = address.rsplit(':').next().expect("a port");
    let asked = |scheme: &str, more: &[&str]| {
        let url = format!("{scheme}://127.0.0.1:{port}/api/history");
        let mut command = Command::new("curl");
        command.args(["--silent", "--max-time", "20", "--write-out", "\n%{http_code}", "--cacert"]);
        command.arg(folder.path().join("tls/ca.pem")).args(more).arg(url);
        command.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let Ok(without) = asked("https", &[]) else {
        eprintln!("skipped: curl is not installed");
        return;
    };
    assert!(without.ends_with("401") && !without.contains("epoch"), "{without}");
    let wrong = asked("https", &["--header", "authorization: Bearer open-sesame/471"]).expect("curl");
    assert!(wrong.ends_with("401"), "{wrong}");
    let told = asked("https", &["--header", "authorization: Bearer open-sesame/4711"]).expect("curl");
    assert!(told.ends_with("200") && told.contains("epoch"), "{told}");
    let plain = asked("http", &["--header", "authorization: Bearer open-sesame/4711"]).expect("curl");
    assert!(!plain.contains("epoch"), "{plain}");
}

#[test]
fn idle_connections_and_slow_readers_cost_a_run_nothing() {
    let folder = Folder::new();
    let (mut run, address) = launch(&folder, "--run-id mine --num-epochs 1000000 --num-batches 20");
    let step = || get(&address, "/api/status").json()["step"].as_u64().unwrap_or(0);
    wait_for("a step", || step() > 0);
    let ask = format!("GET /api/events HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let mut slow = Vec::new();
    for _ in 0..40 {
        let mut reader = TcpStream::connect(&address).expect("a connection");
        reader.write_all(ask.as_bytes()).expect("it takes the request");
        slow.push(reader);
    }
    // More than that are told so.
    wait_for("the limit on streams", || get(&address, "/api/events").status == 503);
    let mut idle = VecDeque::new();
    for _ in 0..10_000 {
        idle.push_back(TcpStream::connect(&address).expect("a connection"));
        // As many as this process may hold; the page's process has dropped the oldest long ago.
        if idle.len() > 500 {
            idle.pop_front();
        }
    }
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", run.id())).expect("a process of ours").count();
    assert!(descriptors < 200, "{descriptors} files are open");
    assert_eq!(get(&address, "/healthz").status, 200, "one that speaks is answered");
    let before = step();
    wait_for("more steps", || step() > before);
    assert_eq!(get(&address, "/api/status").json()["failures_total"], 0);
    kill(run.id() as i32, Signal::INT);
    let output = run.wait();
    assert!(!output.status.success() && !output.stderr.contains("panicked"), "{output}");
}
