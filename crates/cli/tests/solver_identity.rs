//! The promise with a solver: the same bytes whatever the number of workers, whichever process was killed in the middle of a pass,
//! whenever the run was resumed. Real processes, real sockets, real `kill -9`.

mod common;

use common::Folder;
use common::run::{arguments, bytes, hit_at_steps, succeed};
use rustix::process::Signal;

const SHORT: &str = "--num-epochs 3 --num-batches 6 --batch-size 20 --micro-batch-size 4 --mixed-max-numbers 3 \
                     --checkpoint-every 5 --keep-checkpoints 100 --lr 0.01";

/// Rounds of four chunks after steps 7, 14 and 18.
const ALTERNATE: &str = "--solver alternate --solve-every 7 --solve-samples 77";

/// A pass that is long enough to be killed in the middle.
const PASS: &str = "--solver exact --num-epochs 1 --num-batches 300 --batch-size 20 --micro-batch-size 4 \
                    --checkpoint-every 10 --keep-checkpoints 100";

#[test]
fn any_number_of_workers_solves_to_the_same_bytes() {
    let folder = Folder::new();
    for (stage, solver) in [("text", "--solver exact"), ("nn", ALTERNATE), ("mixed", ALTERNATE)] {
        let mut first: Option<Vec<u8>> = None;
        for workers in [1, 2, 3, 5] {
            let run = format!("{stage}-{workers}");
            succeed(&folder, stage, SHORT, &format!("{solver} --workers {workers} --run-id {run}"));
            let result = bytes(&folder, &run);
            assert!(first.get_or_insert_with(|| result.clone()) == &result, "stage {stage} with {workers} workers");
        }
    }
}

#[test]
fn a_pass_resumes_in_its_middle_to_the_same_bytes() {
    let folder = Folder::new();
    succeed(&folder, "text", SHORT, "--solver exact --run-id whole");
    let whole = bytes(&folder, "whole");
    assert!(whole == folder.read("chk/whole/step-00000018.safetensors"), "the final file is the state after the pass");
    let middle = folder.read("chk/whole/step-00000010.safetensors");
    let holds = |bytes: &[u8], name: &str| bytes.windows(name.len()).any(|window| window == name.as_bytes());
    assert!(holds(&middle, "solve.gram_high") && !holds(&whole, "solve.gram_high"));
    for step in [5, 10, 15] {
        let run = format!("from-{step}");
        let from = format!("--resume chk/whole/step-{step:08}.safetensors");
        succeed(&folder, "text", SHORT, &format!("--solver exact --workers 3 --run-id {run} {from}"));
        assert!(bytes(&folder, &run) == whole, "resumed at chunk {step}");
    }
    // A pass that is solved has lost its sums; one that is not goes on as a longer one.
    let longer = SHORT.replace("epochs 3", "epochs 4");
    let refused = folder.run(&arguments("text", &longer, "--solver exact --run-id whole --resume auto"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stderr.contains("the pass is solved and its sums are gone"), "{}", refused.stderr);
    let from = "--resume chk/whole/step-00000010.safetensors";
    succeed(&folder, "text", &longer, &format!("--solver exact --run-id grown {from}"));
    succeed(&folder, "text", &longer, "--solver exact --run-id longer");
    assert!(bytes(&folder, "grown") == bytes(&folder, "longer"));
}

#[test]
fn rounds_between_steps_resume_to_the_same_bytes() {
    let folder = Folder::new();
    let often = SHORT.replace("checkpoint-every 5", "checkpoint-every 1");
    succeed(&folder, "nn", &often, &format!("{ALTERNATE} --run-id whole"));
    let whole = bytes(&folder, "whole");
    for step in [3, 7, 13, 14, 18] {
        let run = format!("from-{step}");
        let from = format!("--resume chk/whole/step-{step:08}.safetensors");
        succeed(&folder, "nn", SHORT, &format!("{ALTERNATE} --workers 3 --run-id {run} {from}"));
        assert!(bytes(&folder, &run) == whole, "resumed at step {step}");
    }
    let sooner = ALTERNATE.replace("solve-every 7", "solve-every 6");
    let from = "--run-id other --resume chk/whole/step-00000007.safetensors";
    let other = folder.run(&arguments("nn", SHORT, &format!("{sooner} {from}")));
    assert!(other.stderr.contains("solve_every: the checkpoint has 7, the configuration 6"), "{}", other.stderr);
}

#[test]
fn kills_in_the_pass_change_no_byte() {
    let folder = Folder::new();
    succeed(&folder, "text", PASS, "--run-id reference");
    let reference = bytes(&folder, "reference");
    for (victim, times) in [("worker --coordinator", 2), ("coordinator --listen", 1)] {
        let run = format!("killed-{}", &victim[..6]);
        let mut launcher = folder.spawn(&arguments("text", PASS, &format!("--run-id {run}")));
        let chk = folder.path().join("chk").join(&run);
        let steps = (0..times).map(|time| 20 + 100 * time);
        hit_at_steps(launcher.id(), victim, Signal::KILL, &chk, steps);
        let output = launcher.wait();
        assert!(output.status.success(), "{run}: {}", output.stderr);
        assert!(bytes(&folder, &run) == reference, "{run}");
    }
}

#[test]
fn several_places_solve_to_the_same_bytes() {
    let folder = Folder::new();
    let taps = "--layer 0,2 --pooling mean,last";
    let pass = PASS.replace("num-batches 300", "num-batches 60");
    for workers in [1, 2, 3] {
        succeed(&folder, "text", &pass, &format!("{taps} --workers {workers} --run-id {workers}"));
        assert!(bytes(&folder, &workers.to_string()) == bytes(&folder, "1"), "{workers} workers");
    }
    let from = "--resume chk/1/step-00000030.safetensors";
    succeed(&folder, "text", &pass, &format!("{taps} --workers 3 --run-id resumed {from}"));
    assert!(bytes(&folder, "resumed") == bytes(&folder, "1"), "resumed in the middle");
    for victim in ["worker --coordinator", "coordinator --listen"] {
        let run = format!("killed-{}", &victim[..6]);
        let mut launcher = folder.spawn(&arguments("text", &pass, &format!("{taps} --run-id {run}")));
        hit_at_steps(launcher.id(), victim, Signal::KILL, &folder.path().join("chk").join(&run), [20]);
        let output = launcher.wait();
        assert!(output.status.success(), "{run}: {}", output.stderr);
        assert!(bytes(&folder, &run) == bytes(&folder, "1"), "{run}");
    }
}

#[test]
fn exported_features_belong_to_the_solution() {
    let folder = Folder::new();
    succeed(&folder, "text", SHORT, "--solver exact --run-id pass");
    let output = folder.run(&["features", "--checkpoint", "chk/pass.safetensors", "--out", "features.safetensors"]);
    assert!(output.status.success(), "{output}");
    assert!(output.stderr.contains("hidden [360, 192], target [360]"), "{output}");
    let file = folder.read("features.safetensors");
    let parsed = safetensors::SafeTensors::deserialize(&file).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let data = parsed.tensor(name).unwrap();
        data.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let (hidden, target) = (floats("hidden"), floats("target"));
    // The same solution, from the exported floats alone.
    let mut sums = numalign_projector::Sums::new(192, 0);
    let mut values = Vec::new();
    for (hidden, target) in hidden.chunks_exact(192).zip(&target) {
        values.extend_from_slice(hidden);
        values.push(*target);
    }
    sums.add(&numalign_projector::Features::new(192, values).unwrap()).unwrap();
    let fit = sums.solve().unwrap();
    let checkpoint = numalign_checkpoint::Checkpoint::read(&folder.path().join("chk/pass.safetensors")).unwrap();
    let layout = checkpoint.state.layout();
    assert_eq!(checkpoint.state.parameters()[layout.output_weight()], fit.weight);
    assert_eq!(checkpoint.state.parameters()[layout.output_bias()], fit.bias);
}

#[test]
fn the_solver_serves_every_stage_of_launch_all() {
    let folder = Folder::new();
    let output = succeed(&folder, "all", SHORT, &format!("{ALTERNATE} --run-id chain"));
    assert_eq!(output.stderr.matches("output projector solved on").count(), 3 + 1 + 3, "{}", output.stderr);
    let refused = folder.run(&arguments("nn", SHORT, "--solver exact"));
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.stderr.contains("use alternate, or set train_input_projection to false"), "{}", refused.stderr);
}
