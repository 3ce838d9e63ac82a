//! The loop: takes an input, changes it, runs the target, keeps what is answered in new words, and saves what panics.
//! Called by the binary and by the tests.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::mutate::{Choices, MOST_BYTES, mutate};
use crate::targets::Target;

/// Inputs that are kept for further mutation, besides the seeds.
const MOST_KEPT: usize = 4000;

/// What a campaign did.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub executions: u64,
    /// Inputs that the target accepted.
    pub accepted: u64,
    /// Different kinds of answers.
    pub answers: usize,
    /// Inputs that made the target panic.
    pub crashes: Vec<Vec<u8>>,
}

/// The folder of a target's seeds: files written by hand or by numalign, and inputs that once crashed.
pub fn seed_folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target.name)
}

/// The seeds of a target, by file name; never empty.
///
/// # Errors
/// The folder or a file in it cannot be read.
pub fn seeds(target: &Target) -> std::io::Result<Vec<Vec<u8>>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(seed_folder(target))? {
        paths.push(entry?.path());
    }
    paths.sort();
    let mut inputs = Vec::new();
    for path in paths {
        inputs.push(std::fs::read(path)?);
    }
    if inputs.is_empty() {
        inputs.push(Vec::new());
    }
    Ok(inputs)
}

/// What the target answers; none when it panics.
pub fn answer(target: &Target, input: &[u8]) -> Option<Result<(), String>> {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).ok()
}

/// Runs `executions` inputs, all determined by `seeds` and `seed`; stops at the tenth panic.
pub fn run(target: &Target, seeds: &[Vec<u8>], executions: u64, seed: u64) -> Tally {
    const MOST_CRASHES: usize = 10;
    let mut choices = Choices::new(seed);
    let mut inputs = seeds.to_vec();
    let mut heard: HashSet<String> = HashSet::new();
    let mut tally = Tally::default();
    while tally.executions < executions && tally.crashes.len() < MOST_CRASHES {
        let mut input = match tally.executions < seeds.len() as u64 {
            true => inputs[tally.executions as usize].clone(),
            false => changed(target, &mut choices, &inputs),
        };
        input.truncate(MOST_BYTES.max(seeds.first().map_or(0, Vec::len)));
        tally.executions += 1;
        match answer(target, &input) {
            None => tally.crashes.push(input),
            Some(Ok(())) => {
                tally.accepted += 1;
                keep(&mut heard, &mut inputs, seeds.len(), "accepted".to_owned(), input);
            }
            Some(Err(words)) => keep(&mut heard, &mut inputs, seeds.len(), kind_of(&words), input),
        }
    }
    tally.answers = heard.len();
    tally
}

fn changed(target: &Target, choices: &mut Choices, inputs: &[Vec<u8>]) -> Vec<u8> {
    let input = choices.pick(inputs);
    if let Some(structured) = target.structured
        && !choices.one_in(3)
        && let Some(mut changed) = structured(choices, input, target.words)
    {
        while choices.one_in(3) {
            match structured(choices, &changed, target.words) {
                Some(again) => changed = again,
                None => break,
            }
        }
        return changed;
    }
    let other = choices.pick(inputs);
    let mut input = input.clone();
    mutate(choices, &mut input, target.words, other);
    input
}

fn keep(heard: &mut HashSet<String>, inputs: &mut Vec<Vec<u8>>, seeds: usize, kind: String, input: Vec<u8>) {
    if heard.len() < MOST_KEPT && heard.insert(kind) && inputs.len() < seeds + MOST_KEPT {
        inputs.push(input);
    }
}

/// An answer without what is particular to one input: digits, and whatever stands in quotes.
fn kind_of(words: &str) -> String {
    let mut kind = String::new();
    let mut quote = None;
    for character in words.chars().take(400) {
        match quote {
            Some(open) if character == open => quote = None,
            Some(_) => {}
            None if matches!(character, '`' | '"') => {
                kind.push(character);
                quote = Some(character);
            }
            None if character.is_ascii_digit() => {
                if !kind.ends_with('0') {
                    kind.push('0');
                }
            }
            None => kind.push(character),
        }
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse_long(input: &[u8]) -> Result<(), String> {
        assert!(!input.windows(2).any(|pair| pair == b"&&"), "found");
        if input.len() > 3 { Err(format!("{} bytes", input.len())) } else { Ok(()) }
    }

    #[test]
    fn panics_are_found_and_campaigns_repeat_themselves() {
        let target = Target { name: "test", words: &["&&"], structured: None, run: refuse_long };
        let first = run(&target, &[b"abc".to_vec()], 2000, 5);
        let again = run(&target, &[b"abc".to_vec()], 2000, 5);
        assert_eq!(first.crashes.len(), 10);
        assert_eq!((first.executions, &first.crashes), (again.executions, &again.crashes));
        assert_eq!(first.answers, 2);
    }

    #[test]
    fn kinds_of_answers() {
        assert_eq!(kind_of("line 12: key `a` is 3.5"), kind_of("line 7: key `bcd` is 20.25"));
        assert_ne!(kind_of("is missing"), kind_of("is damaged"));
    }
}
