//! Solutions against NumPy's, from `tools/fixtures/make_least_squares.py`.

use numalign_projector::{Features, Sums};
use serde_json::Value;

fn cases() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/least_squares.json");
    let text = std::fs::read_to_string(path).unwrap();
    let parsed: Value = serde_json::from_str(&text).unwrap();
    parsed["cases"].as_array().unwrap().clone()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

/// Distance of two vectors, relative to the second.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn the_solution_is_numpys_for_the_same_ridge() {
    let cases = cases();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let hidden = case["hidden"].as_u64().unwrap() as usize;
        let samples = floats(&case["samples"]).into_iter().map(|value| value as f32).collect();
        let mut sums = Sums::new(hidden, 0);
        sums.add(&Features::new(hidden, samples).unwrap()).unwrap();
        let fit = sums.solve().unwrap();
        let solutions = case["solutions"].as_array().unwrap();
        let same_ridge = |solution: &&Value| (solution["ridge"].as_f64().unwrap() / fit.ridge - 1.0).abs() < 1e-9;
        let expected = solutions.iter().find(same_ridge).expect("a ridge of the grid");
        let weight: Vec<f64> = fit.weight.iter().map(|value| f64::from(*value)).collect();
        let difference = apart(&weight, &floats(&expected["weight"]));
        assert!(difference < 1e-7, "{}: {difference:e} with ridge {:e}", case["name"], fit.ridge);
    }
}

#[test]
fn noise_asks_for_no_tiny_ridge_and_a_smooth_curve_for_no_large_one() {
    let ridge_of = |name: &str| {
        let case = cases().into_iter().find(|case| case["name"] == name).unwrap();
        let samples = floats(&case["samples"]).into_iter().map(|value| value as f32).collect();
        let mut sums = Sums::new(12, 0);
        sums.add(&Features::new(12, samples).unwrap()).unwrap();
        sums.solve().unwrap().ridge
    };
    assert!(ridge_of("noisy") > 0.1 && ridge_of("curve") < 1e-6, "{} {}", ridge_of("noisy"), ridge_of("curve"));
}
