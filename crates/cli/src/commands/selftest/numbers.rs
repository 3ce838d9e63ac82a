//! Hidden states and gradients: against `transformers`' stored values, on a GPU against this machine's CPU too, and each
//! against itself.

use numalign_config::{Arithmetic, DeviceChoice};
use numalign_model::reference::{self, Reference};
use numalign_model::{Description, FrozenLm, LmInput, Piece};

use super::{Seen, Table};

/// Largest difference over the largest value, where products are exact to rounding, and where their factors keep ten bits
/// (TF32).
const EXACT: f32 = 2e-5;
const ROUNDED: f32 = 1e-2;

/// What is allowed between this model and other implementations.
fn tolerance(description: &Description) -> f32 {
    if description.arithmetic == Arithmetic::F32 { EXACT } else { ROUNDED }
}

pub fn check(table: &mut Table, device: DeviceChoice) {
    let model = numalign_model::load("demo", device, true);
    let mut lm = match (model, reference::demo()) {
        (Ok(model), Ok(reference)) => {
            let tolerance = tolerance(&model.description);
            let mut lm = model.lm;
            table.run("hidden states, transformers", || hidden_states(&mut *lm, &reference, tolerance));
            table.run("gradients, transformers", || gradients(&mut *lm, &reference, tolerance));
            lm
        }
        (Err(error), _) => {
            let hint = error.hint().unwrap_or_default().to_owned();
            return table.run("demo model", || Err(format!("{error}; {hint}")));
        }
        (_, Err(error)) => return table.run("stored values", || Err(error.to_string())),
    };
    table.run("the same pass twice, bit by bit", || twice(&mut *lm));
    table.run("alone and among others, bit by bit", || alone_and_among_others(&mut *lm));
    if device != DeviceChoice::Cpu {
        for (model, sequences, positions) in [("demo", 4, 16), ("synthetic:small", 8, 1), ("synthetic:small", 2, 64)] {
            let name = format!("{model} {sequences}×{positions}, the CPU");
            table.run(name, || against_cpu(model, device, sequences, positions));
        }
    }
}

/// Largest difference over the largest wanted value, held against the tolerance.
fn apart(what: &str, got: &[f32], want: &[f32], tolerance: f32) -> Result<f32, String> {
    if got.len() != want.len() {
        return Err(format!("{what}: {} numbers instead of {}", got.len(), want.len()));
    }
    let largest = want.iter().fold(f32::MIN_POSITIVE, |most, v| most.max(v.abs()));
    let mut most = 0.0f32;
    for (a, b) in got.iter().zip(want) {
        // A difference that is no number must not pass for a small one.
        let difference = (a - b).abs() / largest;
        if difference.is_nan() {
            return Err(format!("{what}: {a} instead of {b}"));
        }
        most = most.max(difference);
    }
    if most < tolerance {
        Ok(most)
    } else {
        Err(format!("{what}: relative difference {most:.1e}, {tolerance:.0e} allowed"))
    }
}

fn tokens(ids: &[u32]) -> LmInput {
    LmInput { sequences: vec![vec![Piece::Tokens(ids.to_vec())]], ..LmInput::default() }
}

/// One external embedding per token, so that each token's gradient can be seen.
fn as_embeddings(lm: &dyn FrozenLm, ids: &[u32]) -> Result<LmInput, String> {
    let pieces = (0..ids.len()).map(|row| Piece::Embedding { row, repeat: 1 }).collect();
    let embeddings = lm.embed_tokens(ids).map_err(|error| error.to_string())?;
    Ok(LmInput { sequences: vec![pieces], embeddings, ..LmInput::default() })
}

fn hidden_states(lm: &mut dyn FrozenLm, reference: &Reference, tolerance: f32) -> Seen {
    let mut most = 0.0f32;
    for case in &reference.cases {
        let hidden = lm.forward(&tokens(&case.ids), false).map_err(|error| error.to_string())?;
        most = most.max(apart(&format!("{} tokens", case.ids.len()), &hidden, &case.hidden_last, tolerance)?);
    }
    Ok(format!("{} texts, relative difference {most:.1e}", reference.cases.len()))
}

fn gradients(lm: &mut dyn FrozenLm, reference: &Reference, tolerance: f32) -> Seen {
    let gradient = &reference.gradient;
    let input = as_embeddings(lm, &gradient.ids)?;
    let hidden = lm.forward(&input, true).map_err(|error| error.to_string())?;
    apart("hidden state", &hidden, &gradient.hidden_last, tolerance)?;
    let cotangent = reference::cotangent(lm.hidden_size());
    let grad = lm.backward_to_embeddings(&cotangent).map_err(|error| error.to_string())?;
    let want: Vec<f32> = gradient.grad_embeddings.iter().flatten().copied().collect();
    let most = apart("gradient", &grad, &want, tolerance)?;
    Ok(format!("{} tokens, relative difference {most:.1e}", gradient.ids.len()))
}

/// Made-up numbers: `sequences` of one embedding at `positions` positions each.
fn made_up(lm: &dyn FrozenLm, sequences: usize, positions: usize) -> LmInput {
    let d = lm.hidden_size();
    let embeddings = (0..sequences * d).map(|i| (i % 29) as f32 * 0.01 - 0.14).collect();
    let sequences = (0..sequences).map(|row| vec![Piece::Embedding { row, repeat: positions }]).collect();
    LmInput { sequences, embeddings, ..LmInput::default() }
}

/// Hidden states and gradients of made-up numbers, one after the other.
fn both_ways(lm: &mut dyn FrozenLm, sequences: usize, positions: usize) -> Result<(Vec<f32>, Vec<f32>), String> {
    let input = made_up(lm, sequences, positions);
    let hidden = lm.forward(&input, true).map_err(|error| error.to_string())?;
    let cotangent = reference::cotangent(hidden.len());
    let grad = lm.backward_to_embeddings(&cotangent).map_err(|error| error.to_string())?;
    Ok((hidden, grad))
}

fn bits((hidden, grad): (Vec<f32>, Vec<f32>)) -> Vec<u32> {
    hidden.iter().chain(&grad).map(|value| value.to_bits()).collect()
}

/// The results of two sequences by themselves, and with more beside them: micro-batches pass through the model together, and
/// how many depends on the number of workers.
fn alone_and_among_others(lm: &mut dyn FrozenLm) -> Seen {
    const ALONE: usize = 2;
    let failed = |error: numalign_model::ModelError| error.to_string();
    let (d, mut compared) = (lm.hidden_size(), 0);
    for positions in [1, 20] {
        for together in [8, 100] {
            let cotangent = reference::cotangent(together * d);
            let mut results = Vec::with_capacity(2);
            for sequences in [ALONE, together] {
                let hidden = lm.forward(&made_up(lm, sequences, positions), true).map_err(failed)?;
                let grad = lm.backward_to_embeddings(&cotangent[..sequences * d]).map_err(failed)?;
                results.push(bits((hidden[..ALONE * d].to_vec(), grad[..ALONE * d].to_vec())));
            }
            let differing = results[0].iter().zip(&results[1]).filter(|(a, b)| a != b).count();
            if differing > 0 {
                let all = results[0].len();
                return Err(format!("{differing} of {all} numbers differ among {together} sequences of {positions}"));
            }
            compared += results[0].len();
        }
    }
    Ok(format!("{compared} numbers"))
}

fn twice(lm: &mut dyn FrozenLm) -> Seen {
    let (first, second) = (bits(both_ways(lm, 8, 16)?), bits(both_ways(lm, 8, 16)?));
    let differing = first.iter().zip(&second).filter(|(a, b)| a != b).count();
    match differing {
        0 => Ok(format!("{} numbers", first.len())),
        _ => Err(format!("{differing} of {} numbers differ between two passes", first.len())),
    }
}

fn against_cpu(model: &str, device: DeviceChoice, sequences: usize, positions: usize) -> Seen {
    let (mut both, mut allowed) = (Vec::new(), EXACT);
    for device in [DeviceChoice::Cpu, device] {
        let mut model = numalign_model::load(model, device, true).map_err(|error| error.to_string())?;
        both.push(both_ways(&mut *model.lm, sequences, positions)?);
        allowed = tolerance(&model.description);
    }
    let hidden = apart("hidden states", &both[1].0, &both[0].0, allowed)?;
    let grad = apart("gradients", &both[1].1, &both[0].1, allowed)?;
    Ok(format!("relative difference: hidden states {hidden:.1e}, gradients {grad:.1e}"))
}
