//! A running digest that proves which samples were committed, at which step, in which order. Anyone can recompute it from
//! the sample stream.

use std::ops::Range;

use numalign_config::Recipe;
use thiserror::Error;

use crate::plan::{MicroBatchId, samples_of};
use crate::sample::Sample;
use crate::stream::SampleStream;

/// Digest after some number of committed steps.
///
/// - start: `BLAKE3("numalign sample ledger v1")`
/// - each step: `BLAKE3(previous (32 bytes) ‖ step (u64 LE) ‖ sample …)`, `step` being the 0-based index of the
///   update and the samples those of the step in stream order, each as `index (u64 LE) ‖` [`Sample::content_bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleDigest(blake3::Hash);

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
#[error("expected 64 hexadecimal digits, found {text:?}")]
pub struct SampleDigestError {
    pub text: String,
}

impl SampleDigest {
    /// The digest before the first step.
    pub fn start() -> SampleDigest {
        SampleDigest(blake3::hash(b"numalign sample ledger v1"))
    }

    /// Adds the samples of one committed step.
    pub fn add_step<'a>(&mut self, step: u64, samples: impl Iterator<Item = &'a Sample>) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.0.as_bytes());
        hasher.update(&step.to_le_bytes());
        for sample in samples {
            sample.digest_into(&mut hasher);
        }
        self.0 = hasher.finalize();
    }

    /// Adds the samples that a run of `recipe` takes from `stream` in `steps`.
    pub fn extend(&mut self, stream: &SampleStream, recipe: &Recipe, steps: Range<u64>) {
        for step in steps {
            let mut samples = Vec::with_capacity(recipe.batch_size);
            for micro_batch in 0..recipe.micro_batches() {
                for index in samples_of(step, MicroBatchId(micro_batch), recipe) {
                    samples.push(stream.sample(index));
                }
            }
            self.add_step(step, samples.iter());
        }
    }

    /// The 32 bytes of the digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The digest with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> SampleDigest {
        SampleDigest(blake3::Hash::from_bytes(bytes))
    }

    /// 64 lowercase hexadecimal digits.
    pub fn to_hex(&self) -> String {
        self.0.to_hex().to_string()
    }

    /// The inverse of [`SampleDigest::to_hex`].
    ///
    /// # Errors
    /// Anything but 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<SampleDigest, SampleDigestError> {
        match blake3::Hash::from_hex(text) {
            Ok(hash) => Ok(SampleDigest(hash)),
            Err(_) => Err(SampleDigestError { text: crate::text::excerpt(text, 80) }),
        }
    }
}

impl std::fmt::Display for SampleDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.to_hex().as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Domain;
    use crate::sample::Input;
    use crate::stream::test_recipe;
    use numalign_config::Stage;

    fn samples() -> [Sample; 2] {
        let text = Sample { index: 1, input: Input::Text("$$2&&".to_string()), target: 2.0 };
        [Sample { index: 0, input: Input::Number(1.5), target: 1.5 }, text]
    }

    fn after(step: u64, samples: &[Sample]) -> SampleDigest {
        let mut digest = SampleDigest::start();
        digest.add_step(step, samples.iter());
        digest
    }

    #[test]
    fn it_is_the_documented_formula() {
        let mut bytes = blake3::hash(b"numalign sample ledger v1").as_bytes().to_vec();
        bytes.extend(7u64.to_le_bytes());
        for sample in samples() {
            bytes.extend(sample.index.to_le_bytes());
            bytes.extend(sample.content_bytes());
        }
        assert_eq!(after(7, &samples()).as_bytes(), blake3::hash(&bytes).as_bytes());
    }

    #[test]
    fn order_step_and_number_of_samples_count() {
        let [first, second] = samples();
        let expected = after(0, &samples());
        assert_ne!(expected, after(1, &samples()));
        assert_ne!(expected, after(0, &[second, first.clone()]));
        assert_ne!(expected, after(0, &[first]));
        assert_ne!(after(0, &[]), SampleDigest::start());
    }

    #[test]
    fn a_run_takes_every_sample_once_and_in_order() {
        let recipe = Recipe { batch_size: 6, micro_batch_size: 2, ..test_recipe(Stage::Mixed) };
        let stream = SampleStream::generated(&recipe, Domain::Train).unwrap();
        let mut by_hand = SampleDigest::start();
        for step in 0..5u64 {
            let samples: Vec<Sample> = (6 * step..6 * step + 6).map(|index| stream.sample(index)).collect();
            by_hand.add_step(step, samples.iter());
        }
        let mut digest = SampleDigest::start();
        digest.extend(&stream, &recipe, 0..2);
        digest.extend(&stream, &recipe, 2..5);
        assert_eq!(digest, by_hand);
    }

    #[test]
    fn hex_and_bytes_round_trip() {
        let digest = after(3, &samples());
        assert_eq!(SampleDigest::from_hex(&digest.to_hex()), Ok(digest));
        assert_eq!(SampleDigest::from_bytes(*digest.as_bytes()), digest);
        assert_eq!(digest.to_string(), digest.to_hex());
        for text in ["", "00", &"g".repeat(64), &"é".repeat(32), &"0".repeat(65)] {
            assert!(SampleDigest::from_hex(text).is_err(), "{text}");
        }
    }
}
