//! Greedy decoding through the model's own head.

use crate::error::ModelError;
use crate::lm::{FrozenLm, LmInput, Piece};

/// Positions that pass through the model at once.
const MOST_POSITIONS: usize = 2048;

/// The token that ends a text in GPT-2's vocabulary and its descendants'.
const END_OF_TEXT: &str = "<|endoftext|>";

/// Continues every prompt by the likeliest token at a time (the first of equals), until the end of text, `max_tokens`, or
/// the model's longest sequence. Returns the new tokens alone.
///
/// # Errors
/// As [`FrozenLm::forward`] and [`FrozenLm::logits`].
pub fn generate(lm: &mut dyn FrozenLm, prompts: &[Vec<u32>], max_tokens: usize) -> Result<Vec<Vec<u32>>, ModelError> {
    let mut texts: Vec<Vec<u32>> = prompts.to_vec();
    let mut open: Vec<usize> = (0..texts.len()).collect();
    for _ in 0..max_tokens {
        open.retain(|place| texts[*place].len() < lm.max_positions());
        let mut still_open = Vec::with_capacity(open.len());
        for batch in batches(lm, &texts, &open) {
            let next = next_tokens(lm, &texts, batch)?;
            for (place, token) in batch.iter().zip(next) {
                if lm.detokenize(&[token])? != END_OF_TEXT {
                    texts[*place].push(token);
                    still_open.push(*place);
                }
            }
        }
        open = still_open;
        if open.is_empty() {
            break;
        }
    }
    for (text, prompt) in texts.iter_mut().zip(prompts) {
        text.drain(..prompt.len());
    }
    Ok(texts)
}

/// Divides `open` into stretches that fit one pass; of one length each where the model needs that.
fn batches<'a>(lm: &dyn FrozenLm, texts: &[Vec<u32>], open: &'a [usize]) -> Vec<&'a [usize]> {
    let mut found = Vec::new();
    let mut rest = open;
    while let Some(first) = rest.first() {
        let (mut count, mut total) = (0, 0);
        for place in rest {
            total += texts[*place].len();
            let alike = lm.batches_freely() || texts[*place].len() == texts[*first].len();
            if count > 0 && (total > MOST_POSITIONS || !alike) {
                break;
            }
            count += 1;
        }
        let (batch, after) = rest.split_at(count);
        found.push(batch);
        rest = after;
    }
    found
}

fn next_tokens(lm: &mut dyn FrozenLm, texts: &[Vec<u32>], batch: &[usize]) -> Result<Vec<u32>, ModelError> {
    let sequences = batch.iter().map(|place| vec![Piece::Tokens(texts[*place].clone())]).collect();
    let hidden = lm.forward(&LmInput { sequences, ..LmInput::default() }, false)?;
    let logits = lm.logits(&hidden)?;
    let vocabulary = logits.len() / batch.len().max(1);
    let mut tokens = Vec::with_capacity(batch.len());
    for scores in logits.chunks_exact(vocabulary.max(1)) {
        let mut best = 0;
        for (token, score) in scores.iter().enumerate() {
            if *score > scores[best] {
                best = token;
            }
        }
        tokens.push(best as u32);
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use numalign_config::DeviceChoice;

    use super::*;

    #[test]
    fn the_demo_answers_a_question() {
        let mut lm = crate::load("demo", DeviceChoice::Cpu, false).unwrap().lm;
        let question = "The list holds $$45.2&& and $$7.81&& and $$60&&: which is the smallest?";
        let prompt = lm.tokenize(question).unwrap();
        let short = lm.tokenize("The list holds").unwrap();
        let answers = generate(&mut *lm, &[prompt.clone(), short.clone()], 8).unwrap();
        assert!(lm.detokenize(&answers[0]).unwrap().starts_with(" 7.81"));
        // Neighbours in the batch change nothing.
        assert_eq!(generate(&mut *lm, &[short], 8).unwrap()[0], answers[1]);
        assert!(generate(&mut *lm, &[prompt], 0).unwrap()[0].is_empty());
    }
}
