//! Bits that change on the way, and rows that are not those that were computed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::proxy::Proxy;

use super::*;

/// Training steps, a round of the solver, evaluations.
const ALL_KINDS: &str = "--num-epochs 16 --num-batches 50 --checkpoint-every 50 --batch-size 20 --micro-batch-size 4 \
                         --lr 0.01 --solver alternate --solve-every 200 --solve-samples 400 --eval-every 1 --eval-samples 40";

/// How many messages of each kind were damaged.
fn kinds(folder: &Folder, files: &[&str]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for file in files {
        let text = std::fs::read_to_string(folder.path().join(file)).unwrap_or_default();
        for line in text.lines() {
            *counts.entry(line.to_owned()).or_insert(0) += 1;
        }
    }
    counts
}

#[test]
fn a_bit_that_changes_in_a_message_of_any_kind_changes_no_byte() {
    let undisturbed = Folder::new();
    succeed(&undisturbed, "nn", ALL_KINDS, "--run-id run");

    let folder = Folder::new();
    let listen = ["coordinator", "nn", "--listen", "127.0.0.1:0", "--run-id", "run", "--workers", "3"];
    // Links are renewed all the time; nobody is to lose patience.
    let patient = ["--coordinator-wait", "110", "--join-debounce", "0.05", "--heartbeat", "0.1"];
    let arguments: Vec<&str> = listen.into_iter().chain(patient).chain(ALL_KINDS.split_whitespace()).collect();
    let mut coordinator = folder.spawn_env(&arguments, &[("NUMALIGN_INTERNAL_DAMAGE", "2,20,at-coordinator")]);
    let url = format!("http://{}", listening_address(&mut coordinator));
    let files = ["at-worker-0", "at-worker-1", "at-worker-2"];
    let mut workers = files.map(|file| {
        let damage = format!("2,7,{file}");
        let faults = [("NUMALIGN_INTERNAL_DAMAGE", damage.as_str()), ("NUMALIGN_INTERNAL_FAULTS", "slow=2")];
        folder.spawn_env(&["worker", "--coordinator", &url], &faults)
    });
    let output = coordinator.wait();
    assert!(output.status.success(), "{output}");
    assert!(bytes(&folder, "run") == bytes(&undisturbed, "run"), "{output}");
    for worker in &mut workers {
        let output = worker.wait();
        assert!(output.status.success(), "{output}");
    }

    // Hello, Ready and Heartbeat; rows (gradients, features, errors) with reports and credits.
    let at_coordinator = kinds(&folder, &["at-coordinator"]);
    for kind in ["WorkerMessage.1", "WorkerMessage.2", "WorkerMessage.4", "RankMessage"] {
        assert_eq!(at_coordinator.get(kind), Some(&20), "{kind}: {at_coordinator:?}\n{output}");
    }
    // Welcome (configuration and trial micro-batch) and Begin; sums with what is committed, and samples.
    let at_workers = kinds(&folder, &files);
    for kind in ["CoordinatorMessage.1", "CoordinatorMessage.2", "WorkMessage.1", "WorkMessage.2"] {
        assert!(at_workers.get(kind).is_some_and(|count| *count >= 20), "{kind}: {at_workers:?}\n{output}");
    }
    // Reports that had no rows to travel with, at the end of a round.
    assert!(at_coordinator.get("WorkerMessage.3").is_some_and(|count| *count > 0), "{at_coordinator:?}\n{output}");
    let damaged: usize = at_coordinator.values().chain(at_workers.values()).sum();
    let shown = shown_count(&output.stderr);
    assert!(shown <= damaged && shown + 30 >= damaged, "{shown} of {damaged} are shown: {output}");
}

/// What the coordinator says at the end.
fn shown_count(stderr: &str) -> usize {
    let line = stderr.lines().find(|line| line.contains("messages were damaged on their way and sent again"));
    let count = line.and_then(|line| line.split_whitespace().next()).and_then(|count| count.parse().ok());
    count.unwrap_or_else(|| panic!("no count: {stderr}"))
}

/// A proxy to `target` that flips a bit in about every `spacing` bytes, `most` of them in each direction; and how many it
/// flipped to the target and from it.
fn flipper(target: &str, spacing: u64, most: u64) -> (Proxy, Arc<[AtomicU64; 2]>) {
    let flipped = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let counts = flipped.clone();
    let proxy = Proxy::start(target, move |seed| {
        let (counts, mut random) = (counts.clone(), seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut until = spacing / 2 + next() % spacing;
        Box::new(move |bytes| {
            let count = &counts[seed as usize % 2];
            if until < bytes.len() as u64 && count.load(Ordering::Relaxed) < most {
                count.fetch_add(1, Ordering::Relaxed);
                bytes[until as usize] ^= 1 << (next() % 8);
                until = spacing / 2 + next() % spacing;
            } else {
                until = until.saturating_sub(bytes.len() as u64);
            }
        })
    });
    (proxy, flipped)
}

#[test]
fn bits_that_change_under_http2_change_no_byte() {
    let mut cluster = Cluster::start("--workers 3 --stall-after 2 --dead-after 2 --heartbeat 0.2");
    let (flipper, flipped) = flipper(cluster.url.trim_start_matches("http://"), 2_000, 30);
    // Slow enough for the far worker to come back often, whatever else the machine does.
    let _honest = [cluster.worker("slow=15", &[]), cluster.worker("slow=15", &[])];
    let url = format!("http://{}", flipper.address);
    // A frame that cannot be read may end a worker; whoever started it starts another.
    let respawn = || cluster.folder.spawn_env(&["worker", "--coordinator", &url], &[]);
    let mut far = respawn();
    let began = std::time::Instant::now();
    while !cluster.coordinator.ended() {
        assert!(began.elapsed() < common::TIMEOUT, "{}", cluster.coordinator.stderr());
        if far.ended() && !cluster.coordinator.ended() {
            far = respawn();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let flips = [0, 1].map(|way: usize| flipped[way].load(Ordering::Relaxed));
    let said = cluster.finish();
    assert!(flips.iter().all(|count| *count >= 20), "{flips:?} bits were flipped each way: {said}");
    assert!(shown_count(&said) > 0, "{said}");
}

#[test]
fn a_rank_whose_rows_change_after_they_were_computed_is_dismissed() {
    let cluster = Cluster::start("--workers 3");
    let _honest = [cluster.worker("", &[]), cluster.worker("", &[])];
    let mut faulty = cluster.worker("altered=50", &[]);
    let said = cluster.finish();
    assert!(said.contains("the numbers are not those of their digest"), "{said}");
    assert_eq!(said.matches("is dismissed").count(), 1, "{said}");
    assert_eq!(faulty.wait().status.code(), Some(1));
}

#[test]
fn an_audit_compares_what_was_received_and_not_what_is_said_of_it() {
    let mut cluster = Cluster::start("--workers 3 --audit-every 1");
    let _honest = [cluster.worker("", &[]), cluster.worker("", &[])];
    // The rows that it sends are wrong, and it reports the digests of the right ones.
    let mut liar = cluster.worker("lie=50", &[]);
    let output = cluster.coordinator.wait();
    assert!(output.status.success(), "{output}");
    assert_eq!(output.stderr.matches("is dismissed: excluded: the audit of step").count(), 1, "{output}");
    let output = liar.wait();
    assert_eq!(output.status.code(), Some(1), "{output}");
}
