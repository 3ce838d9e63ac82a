//! What the port tells of a run, while it goes on and when it is over.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::http::{get, get_with};
use super::{launch, page_of, watch};
use crate::common::run::{children, json, kill, succeed_line, wait_for};
use crate::common::{Folder, check};

/// A run that lasts until it is stopped.
const ENDLESS: &str = "--run-id seen --num-epochs 1000000 --num-batches 20 --eval-every 50 --eval-samples 20";

fn names(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// The samples whose names end in `_total`, by name.
fn counters(metrics: &str) -> BTreeMap<&str, f64> {
    let lines = metrics.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.rsplit_once(' ')).filter(|(name, _)| name.ends_with("_total"));
    pairs.map(|(name, value)| (name, value.parse().expect("a number"))).collect()
}

/// Whether Prometheus' own checker accepts the text, where it is installed.
fn promtool_accepts(metrics: &str) {
    use std::io::Write;
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut tool) = command.spawn() else {
        eprintln!("skipped: promtool (Debian's prometheus package) is not installed");
        return;
    };
    tool.stdin.take().expect("piped").write_all(metrics.as_bytes()).expect("it reads");
    let output = tool.wait_with_output().expect("it ends");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "{said}\n{metrics}");
}

#[test]
fn a_run_is_told_as_json_and_as_metrics_while_its_coordinator_comes_and_goes() {
    let folder = Folder::new();
    let (mut launch, address) = launch(&folder, ENDLESS);
    wait_for("the coordinator's answer", || get(&address, "/readyz").status == 200);
    wait_for("an evaluation", || get(&address, "/api/history").body.contains("\"evaluation\""));

    let (told, asked) = (get(&address, "/api/status").json(), json(&succeed_line(&folder, "status --json")));
    assert_eq!(names(&told), names(&asked), "the schema of `status --json`");
    assert_eq!(names(&told["workers"][0]), names(&asked["workers"][0]));
    assert_eq!(told["run_id"], "seen");
    let history = get(&address, "/api/history?run=seen").json();
    let record = String::from_utf8(folder.read("chk/seen/metrics.jsonl")).expect("text");
    for (told, line) in history["records"].as_array().expect("records").iter().zip(record.lines()).take(5) {
        assert_eq!(*told, serde_json::from_str::<Value>(line).expect("JSON"), "the lines of metrics.jsonl");
    }
    let runs = get(&address, "/api/runs").json();
    assert_eq!(runs[0]["settings"]["num_batches"], "20");
    assert!(runs[0]["constant_percent_of_range"].as_f64().is_some_and(|error| (15.0..35.0).contains(&error)), "{runs}");

    let before = get(&address, "/metrics").body;
    promtool_accepts(&before);
    let open = get_with(&address, "/metrics", &[&format!("host: {address}"), "accept: application/openmetrics-text"]);
    assert!(open.head.contains("application/openmetrics-text") && open.body.ends_with("# EOF\n"), "{}", open.body);

    let old = children(launch.id(), "numalign coordinator")[0];
    kill(old, Signal::KILL);
    let until = Instant::now() + Duration::from_secs(30);
    let mut counted = BTreeMap::new();
    loop {
        let metrics = get(&address, "/metrics").body;
        for (name, value) in counters(&before).into_iter().chain(counters(&metrics)) {
            let known = counted.entry(name.to_owned()).or_insert(value);
            *known = f64::max(*known, value);
        }
        for (name, value) in counters(&metrics) {
            assert!(value >= counted[name], "{name} fell from {} to {value}", counted[name]);
        }
        if metrics.contains("numalign_coordinator_up 1.0") && counted["numalign_failures_total"] >= 1.0 {
            break;
        }
        assert!(Instant::now() < until, "no new coordinator was told\n{metrics}");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_ne!(children(launch.id(), "numalign coordinator")[0], old, "the URL stayed, the coordinator did not");
    kill(launch.id() as i32, Signal::INT);
    assert!(!launch.wait().status.success());
    assert!(std::net::TcpStream::connect(&address).is_err(), "nobody listens any more");
}

#[test]
fn the_page_can_be_off_or_elsewhere_and_a_taken_port_is_told() {
    let folder = Folder::new();
    let tiny = "launch nn --no-eval --workers 1 --num-epochs 1 --num-batches 2";
    let off = succeed_line(&folder, &format!("{tiny} --http off"));
    assert!(!off.stderr.contains("watch it on"), "{off}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
    let port = taken.local_addr().expect("an address").port();
    let line = format!("{tiny} --http 127.0.0.1:{port}");
    let refused = folder.run(&line.split_whitespace().collect::<Vec<_>>());
    check("a taken port", &refused, 1, &["cannot serve the page", "hint:"]);
    let open = format!("{tiny} --http 0.0.0.0:0");
    let refused = folder.run(&open.split_whitespace().collect::<Vec<_>>());
    check("beyond loopback", &refused, 2, &["would be open to anybody", "--http-token-file"]);
}

#[test]
fn runs_that_are_over_are_shown_and_compared() {
    let folder = Folder::new();
    let settings = "--no-eval --workers 1 --num-epochs 2 --num-batches 4 --eval-every 1 --eval-samples 20";
    succeed_line(&folder, &format!("launch nn {settings} --run-id first"));
    succeed_line(&folder, &format!("launch nn {settings} --run-id second --lr 0.01 --seed 3"));
    let (mut watch, address) = watch(&folder, &["first", "second"]);
    assert_eq!(get(&address, "/api/status?run=second").json()["phase"], "over");
    let runs = get(&address, "/api/runs").json();
    let [first, second] = runs.as_array().expect("runs").as_slice() else { panic!("{runs}") };
    let keys = names(&first["settings"]);
    let differing: Vec<&str> =
        keys.into_iter().filter(|key| first["settings"][key] != second["settings"][key]).collect();
    assert_eq!(differing, ["lr", "seed"]);
    for run in [first, second] {
        assert!(run["last_percent_of_range"].is_number(), "{run}");
        assert!(run["checkpoints"].as_array().is_some_and(|files| !files.is_empty()), "{run}");
    }
    let history = get(&address, "/api/history?run=first").json();
    let kinds: Vec<&str> =
        history["records"].as_array().expect("records").iter().filter_map(|record| record["kind"].as_str()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "evaluation").count(), 2, "{kinds:?}");
    kill(watch.id() as i32, Signal::INT);
    assert!(watch.wait().status.success());
    let unknown = folder.run(&["watch", "third"]);
    check("no such run", &unknown, 2, &["there is no run `third`", "second, first"]);
}

#[test]
fn the_constant_of_a_run_on_a_file_is_that_of_its_held_out_rows() {
    let folder = Folder::new();
    let mut rows = String::new();
    for index in 0..40 {
        rows.push_str(&format!("{{\"input\": {index}, \"output\": {}}}\n", (index * index) % 37));
    }
    folder.write("rows.jsonl", &rows);
    let line = "launch nn --dataset.file rows.jsonl --dataset.eval-share 0.25 --run-id rows --workers 1 --num-epochs 2 \
                --num-batches 2 --eval-every 1 --json";
    let report = json(&succeed_line(&folder, line));
    let baseline = report["baseline_mae_percent_of_range"].as_f64().expect("a number");
    let record = String::from_utf8(folder.read("chk/rows/metrics.jsonl")).expect("text");
    let last = record.lines().rfind(|line| line.contains("\"evaluation\"")).expect("an evaluation");
    let (mut watch, address) = watch(&folder, &["rows"]);
    let told = get(&address, "/api/runs").json()[0]["constant_percent_of_range"].clone();
    for (name, value) in [
        ("metrics.jsonl", &serde_json::from_str::<Value>(last).expect("JSON")["baseline_mae_percent_of_range"]),
        ("the page", &told),
    ] {
        let error = value.as_f64().unwrap_or_else(|| panic!("{name}: {value}"));
        assert!((error - baseline).abs() < 1e-9, "{name}: {error}, the closing evaluation: {baseline}");
    }
    kill(watch.id() as i32, Signal::INT);
    assert!(watch.wait().status.success());
}

#[test]
fn a_coordinator_serves_its_own_page() {
    let folder = Folder::new();
    let line = "coordinator nn --listen 127.0.0.1:0 --http 127.0.0.1:0 --run-id alone";
    let mut coordinator = folder.spawn(&line.split_whitespace().collect::<Vec<_>>());
    let address = page_of(&mut coordinator);
    wait_for("its own answer", || get(&address, "/readyz").status == 200);
    assert_eq!(get(&address, "/api/status").json()["phase"], "waiting");
}
