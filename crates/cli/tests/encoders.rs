//! Encoders, losses, read-outs and trained layer norms in real runs: the same bytes for any world, after kills and
//! resumes; what `eval`, `predict`, `inspect` and `complete` say about them.

mod common;

use common::Folder;
use common::run::{json, run_line, succeed_line};
use serde_json::Value;

const SHORT: &str = "--num-epochs 3 --num-batches 8 --batch-size 12 --micro-batch-size 2 --mixed-max-numbers 3 \
                     --checkpoint-every 6 --keep-checkpoints 100 --lr 0.01 --no-eval";

#[test]
fn every_recipe_gives_the_same_bytes_for_any_world_and_after_a_resume() {
    let folder = Folder::new();
    for (name, recipe) in [
        ("norms", "nn --train-layer-norms true --value-encoding fourier --loss huber"),
        ("mean", "text --pooling mean --layer 2 --train-layer-norms true"),
        ("numbers", "mixed --pooling numbers --train-layer-norms true --value-encoding signlog"),
        ("relative", "mixed --loss relative --pooling mean"),
        ("taps", "mixed --layer 0,2 --pooling last,mean --train-layer-norms true"),
    ] {
        let file = |run: &str| folder.read(&format!("chk/{run}.safetensors"));
        for workers in [1, 2, 5] {
            succeed_line(&folder, &format!("launch {recipe} {SHORT} --workers {workers} --run-id {name}-{workers}"));
            assert!(file(&format!("{name}-{workers}")) == file(&format!("{name}-1")), "{name}: {workers} workers");
        }
        let from = format!("chk/{name}-1/step-00000012.safetensors");
        succeed_line(&folder, &format!("launch {recipe} {SHORT} --workers 3 --run-id {name}-on --resume {from}"));
        assert!(file(&format!("{name}-on")) == file(&format!("{name}-1")), "{name}: resumed");
    }
}

#[test]
fn layer_norms_travel_from_stage_to_stage() {
    let folder = Folder::new();
    let norms = "--train-layer-norms true";
    succeed_line(&folder, &format!("launch nn {SHORT} {norms} --run-id first"));
    let first = json(&succeed_line(&folder, "inspect --json chk/first.safetensors"));
    assert_eq!(first["layer_norms"].as_array().map(Vec::len), Some(18), "two norms of 4 blocks and the last one");
    succeed_line(
        &folder,
        &format!("launch mixed {SHORT} {norms} --run-id second --model-path-load chk/first.safetensors"),
    );
    // The trained norms are applied: the answers are another model's without them.
    let answers = json(&succeed_line(&folder, "predict --json --checkpoint chk/first.safetensors 12.5 99"));
    assert_eq!(answers["predictions"].as_array().map(Vec::len), Some(2));
    let refused =
        run_line(&folder, &format!("launch mixed {SHORT} --run-id third --model-path-load chk/first.safetensors"));
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    assert!(refused.stderr.contains("hint: set train_layer_norms to true"), "{refused}");
    let refused = run_line(
        &folder,
        &format!("launch nn {SHORT} {norms} --value-encoding fourier --model-path-load chk/first.safetensors"),
    );
    assert!(refused.stderr.contains("1 columns") && refused.stderr.contains("17"), "{refused}");
}

#[test]
fn several_places_are_one_wide_read_out() {
    let folder = Folder::new();
    let taps = "--taps 0:mean,2:numbers,-1:last";
    succeed_line(&folder, &format!("launch mixed {SHORT} {taps} --run-id taps"));
    let about = json(&succeed_line(&folder, "inspect --json chk/taps.safetensors"));
    assert_eq!(about["taps"], serde_json::json!(["0:mean", "2:numbers", "-1:last"]), "{about}");
    let file = folder.read("chk/taps.safetensors");
    let parsed = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(parsed.tensor("output_projection.weight").unwrap().shape(), [1, 3 * 192]);
    let answer = json(&succeed_line(&folder, "predict --json --checkpoint chk/taps.safetensors min$$5&&$$7.5&&"));
    assert_eq!(answer["predictions"].as_array().map(Vec::len), Some(1), "{answer}");
    let report = json(&succeed_line(&folder, "eval --json --checkpoint chk/taps.safetensors --count 50 --ablation"));
    assert!(report["mae"].is_number() && report["ablation"]["mae"].is_number(), "{report}");
    // A step computed alone has the digest that it had in the run.
    let line = "replay --json --checkpoint chk/taps/step-00000018.safetensors --steps 6";
    let replayed = json(&succeed_line(&folder, line));
    let last = replayed["steps"].as_array().and_then(|steps| steps.last()).expect("steps");
    assert_eq!(last["state_digest"], about["state_digest"], "{replayed}");
    let features = succeed_line(&folder, "features --checkpoint chk/taps.safetensors --count 20 --out f.safetensors");
    assert!(features.stderr.contains("hidden [20, 576]"), "{features}");
    // An output projector of one place does not fit three.
    succeed_line(&folder, &format!("launch mixed {SHORT} --run-id one"));
    let load = "--model-path-load chk/one.safetensors";
    let refused = run_line(&folder, &format!("launch mixed {SHORT} {taps} --run-id on {load}"));
    assert!(refused.stderr.contains("reads 1 places, this run reads 3"), "{refused}");
    succeed_line(&folder, &format!("launch mixed {SHORT} {taps} --run-id on {load} --load-projections input"));
}

#[test]
fn wide_ranges_are_drawn_and_predicted_in_value_units() {
    let folder = Folder::new();
    let range = "--value-encoding signlog --min-val 1e-6 --max-val 1e9";
    succeed_line(
        &folder,
        &format!("launch nn {range} --num-epochs 20 --num-batches 20 --lr 0.01 --no-eval --run-id wide"),
    );
    let report = json(&succeed_line(&folder, "eval --json --checkpoint chk/wide.safetensors"));
    let median = report["median_relative_error_percent"].as_f64().unwrap_or(f64::NAN);
    assert!(median < 20.0, "{median}");
    let deciles = report["deciles"].as_array().expect("deciles");
    assert_eq!(deciles.len(), 10);
    assert!(deciles[0]["to"].as_f64() < Some(1e-3) && deciles[9]["from"].as_f64() > Some(1e6), "{deciles:?}");
    let encoder = &json(&succeed_line(&folder, "inspect --json chk/wide.safetensors"))["encoder"];
    assert_eq!((encoder["kind"].as_str(), encoder["threshold"].as_f64()), (Some("signlog"), Some(1e-6)));
    let answer = json(&succeed_line(&folder, "predict --json --checkpoint chk/wide.safetensors 1000000"));
    let prediction = answer["predictions"][0]["prediction"].as_f64().unwrap_or(f64::NAN);
    assert!((1e5..1e7).contains(&prediction), "{prediction}");
    let hidden = json(&succeed_line(&folder, "hidden --json --checkpoint chk/wide.safetensors --value 12.5"));
    assert_eq!(hidden["hidden"].as_array().map(Vec::len), Some(192));
}

#[test]
fn the_report_has_baselines_an_ablation_zero_shot_answers_and_a_picture() {
    let folder = Folder::new();
    succeed_line(&folder, &format!("launch mixed {SHORT} --run-id q"));
    let line = "eval --checkpoint chk/q.safetensors --count 60 --ablation --verbal --plot out.svg";
    let report = json(&succeed_line(&folder, &format!("{line} --json")));
    for field in ["stage", "samples", "mse", "mae", "mae_percent_of_range", "r2", "within_1_percent", "baseline_mae"] {
        assert!(!report[field].is_null(), "{field} in {report}");
    }
    assert_eq!(report["worst"].as_array().map(Vec::len), Some(10));
    let chance = report["right_numbers"]["chance_percent"].as_f64().unwrap_or(0.0);
    assert!((50.0..75.0).contains(&chance), "one to three numbers: {chance}");
    assert!(report["ablation"]["mae"].is_number() && report["ablation"]["right_numbers"]["right_percent"].is_number());
    // An answer below all numbers names the smallest; the strict share does not let it.
    let shares = &report["right_numbers"];
    assert_eq!(shares["end_percent"].as_f64(), Some(100.0), "{shares}");
    assert!(shares["median_percent"].as_f64() > Some(20.0), "{shares}");
    assert!(shares["strict_percent"].as_f64() <= shares["right_percent"].as_f64(), "{shares}");
    // The demo is trained to say it.
    assert!(report["verbal"]["right_percent"].as_f64() > Some(50.0), "{}", report["verbal"]);
    let svg = String::from_utf8(folder.read("out.svg")).expect("text");
    assert!(svg.starts_with("<svg") && svg.contains("training loss") && svg.ends_with("</svg>\n"), "{svg}");
    succeed_line(&folder, "eval --checkpoint chk/q.safetensors --count 60 --plot out.PNG");
    assert!(folder.read("out.PNG").starts_with(b"\x89PNG\r\n\x1a\n"));
    let table = succeed_line(&folder, &format!("{line} --details")).stdout;
    for words in ["constant predictor", "no language model", "chance", "zero-shot", "by decile", "worst samples"] {
        assert!(table.contains(words), "{words} in {table}");
    }
}

#[test]
fn the_ablation_uses_the_solver_of_the_run() {
    let folder = Folder::new();
    for (run, recipe) in [("pass", "text --solver exact"), ("rounds", "nn --solver alternate --solve-samples 96")] {
        succeed_line(&folder, &format!("launch {recipe} {SHORT} --run-id {run}"));
        let report = json(&succeed_line(
            &folder,
            &format!("eval --json --checkpoint chk/{run}.safetensors --count 100 --ablation"),
        ));
        let percent = |of: &Value| of["mae_percent_of_range"].as_f64().unwrap_or(f64::NAN);
        let (ablated, constant) = (percent(&report["ablation"]), report["baseline_mae_percent_of_range"].as_f64());
        // Without the model the number itself is still there in stage nn, and tokens alone say something in stage text.
        assert!(Some(ablated) < constant, "{run}: {ablated}, constant {constant:?}");
        assert!(run != "rounds" || ablated < 0.01, "{ablated}");
    }
}

#[test]
fn the_demo_answers_a_question_as_text() {
    let folder = Folder::new();
    let question = "The list holds $$45.2&& and $$7.81&& and $$60&&: which is the smallest?";
    let output = folder.run(&["generate-text", "--model", "demo", question]);
    assert!(output.status.success() && output.stdout.starts_with(" 7.81"), "{output}");
    let none = folder.run(&["complete", ""]);
    assert_eq!(none.status.code(), Some(2), "{none}");
}

#[test]
fn what_cannot_be_is_refused_with_what_to_do() {
    let folder = Folder::new();
    succeed_line(&folder, &format!("launch nn {SHORT} --run-id nn"));
    for (line, code, words) in [
        ("launch nn --train-transformer true", 2, &["stays frozen", "train_layer_norms"][..]),
        ("launch text --pooling numbers", 2, &["pooling", "use mean or last"]),
        ("launch nn --loss relative --value-encoding signlog", 2, &["linear target", "use mse"]),
        ("launch nn --fourier-periods 3", 2, &["value_encoding fourier"]),
        ("launch nn --layer 9", 1, &["9", "hint:"]),
        ("eval --checkpoint chk/nn.safetensors --plot a.jpg", 2, &[".svg", ".png", "hint:"]),
        ("eval --checkpoint chk/nn.safetensors --zero-shot", 2, &["stage nn", "hint:"]),
        ("complete --model synthetic:tiny x", 2, &["synthetic"]),
    ] {
        let output = run_line(&folder, line);
        assert_eq!(output.status.code(), Some(code), "{line}: {output}");
        for word in words {
            assert!(output.stderr.contains(word), "{line}: `{word}` in {output}");
        }
    }
}
