//! The promise on the emulated GPU: any number of workers, either collective and a killed rank give the same bytes.

use std::collections::HashMap;

use super::*;
use crate::common::run::hit_at_steps;
use rustix::process::Signal;

/// One way to do a run.
struct Way {
    stage: &'static str,
    workers: usize,
    collective: &'static str,
    killed: bool,
    order: &'static str,
}

const STAGES: [&str; 3] = ["nn", "text", "mixed"];

/// Each combination of two factors' values is in one of them at least.
fn pairs() -> Vec<Way> {
    let (f, r) = ("forward", "reverse");
    let rows = [
        ("nn", 1, "grpc", true, r),
        ("nn", 2, "nccl", false, f),
        ("nn", 3, "nccl", true, f),
        ("text", 1, "nccl", false, r),
        ("text", 2, "grpc", true, f),
        ("text", 3, "nccl", true, r),
        ("mixed", 1, "nccl", true, f),
        ("mixed", 2, "nccl", true, r),
        ("mixed", 3, "grpc", false, f),
    ];
    rows.map(|(stage, workers, collective, killed, order)| Way { stage, workers, collective, killed, order }).into()
}

fn everything() -> Vec<Way> {
    let mut all = Vec::new();
    for stage in STAGES {
        for workers in [1, 2, 3] {
            for collective in ["grpc", "nccl"] {
                for (killed, order) in [(false, "forward"), (false, "reverse"), (true, "forward"), (true, "reverse")] {
                    all.push(Way { stage, workers, collective, killed, order });
                }
            }
        }
    }
    all
}

#[test]
fn every_pair_of_factors_is_tried() {
    let ways = pairs();
    let factors = |way: &Way| {
        let killed = way.killed.to_string();
        [way.stage.to_owned(), way.workers.to_string(), way.collective.to_owned(), killed, way.order.to_owned()]
    };
    let (mut wanted, mut seen) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    for (ways, into) in [(&everything(), &mut wanted), (&ways, &mut seen)] {
        for way in ways {
            let values = factors(way);
            for i in 0..values.len() {
                for j in 0..i {
                    into.insert((j, i, values[j].clone(), values[i].clone()));
                }
            }
        }
    }
    let missing: Vec<_> = wanted.difference(&seen).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
#[allow(clippy::print_stderr, reason = "hours of work should show that they go on")]
fn the_same_bytes_for_any_world_collective_and_killed_rank() {
    let Some(mut gpu) = Gpu::get() else { return };
    let all = std::env::var("NUMALIGN_TEST_EVERYTHING").is_ok_and(|text| text == "1");
    let mut references = HashMap::new();
    for stage in STAGES {
        gpu.launched(stage, SHORT, &format!("--workers 1 --collective grpc --run-id {stage}"));
        references.insert(stage, gpu.bytes(stage));
    }
    for Way { stage, workers, collective, killed, order } in if all { everything() } else { pairs() } {
        let run = format!("{stage}-{workers}-{collective}-{killed}-{order}");
        gpu.set("FAKE_CUDA_ORDER", order);
        let slow = if killed { "--chaos slow=20" } else { "" };
        let more = format!("--workers {workers} --collective {collective} --run-id {run} {slow}");
        let mut launcher = gpu.launch(stage, SHORT, &more);
        if killed {
            let checkpoints = gpu.folder.path().join("chk").join(&run);
            hit_at_steps(launcher.id(), "worker --coordinator", Signal::KILL, &checkpoints, [3]);
        }
        let output = launcher.wait_at_most(TIMEOUT);
        assert!(output.status.success(), "{run}: {output}");
        assert!(gpu.bytes(&run) == references[stage], "{run}: {output}");
        if all {
            eprintln!("{run}: the same bytes");
        }
    }
}
