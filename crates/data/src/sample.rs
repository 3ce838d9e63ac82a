//! One sample, and the bytes that stand for it in digests.

use numalign_protocol as proto;

/// What a model is given.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A lone number (stage `nn`), in value units.
    Number(f64),
    /// A text; in stage `mixed`, its marked numbers become embeddings.
    Text(String),
}

/// One input with its target.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its place in the stream.
    pub index: u64,
    /// What the model is given.
    pub input: Input,
    /// The number to predict, in value units.
    pub target: f64,
}

impl Sample {
    /// The content without the index, in an encoding in which no two contents are equal and none is the beginning
    /// of another: `0u8 ‖ input bits` or `1u8 ‖ length in bytes ‖ text`, then `target bits`. Lengths and bits are
    /// `u64`, little-endian.
    pub fn content_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(17);
        match &self.input {
            Input::Number(value) => {
                bytes.push(0);
                bytes.extend(value.to_bits().to_le_bytes());
            }
            Input::Text(text) => {
                bytes.push(1);
                bytes.extend((text.len() as u64).to_le_bytes());
                bytes.extend(text.as_bytes());
            }
        }
        bytes.extend(self.target.to_bits().to_le_bytes());
        bytes
    }

    /// Feeds `index (u64 LE) ‖ content` to `hasher`; [`crate::SampleDigest`] is made of this.
    pub fn digest_into(&self, hasher: &mut blake3::Hasher) {
        hasher.update(&self.index.to_le_bytes());
        hasher.update(&self.content_bytes());
    }
}

impl From<Sample> for proto::Sample {
    fn from(sample: Sample) -> Self {
        let input = match sample.input {
            Input::Number(value) => proto::sample::Input::Number(value),
            Input::Text(text) => proto::sample::Input::Text(text),
        };
        Self { index: sample.index, input: Some(input), target: sample.target }
    }
}

/// A sample message without an input; the number is the sample's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sample {0} has no input")]
pub struct NoInput(pub u64);

impl TryFrom<proto::Sample> for Sample {
    type Error = NoInput;

    fn try_from(message: proto::Sample) -> Result<Self, NoInput> {
        let input = match message.input {
            Some(proto::sample::Input::Number(value)) => Input::Number(value),
            Some(proto::sample::Input::Text(text)) => Input::Text(text),
            None => return Err(NoInput(message.index)),
        };
        Ok(Self { index: message.index, input, target: message.target })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn samples_survive_the_protocol(index in any::<u64>(), number in -1e9..1e9, text in prop::option::of(".{0,40}")) {
            let input = text.map_or(Input::Number(number), Input::Text);
            let sample = Sample { index, input, target: number };
            prop_assert_eq!(Sample::try_from(proto::Sample::from(sample.clone())), Ok(sample));
        }
    }

    #[test]
    fn a_message_without_an_input_is_no_sample() {
        let message = proto::Sample { index: 3, input: None, target: 0.0 };
        assert_eq!(Sample::try_from(message), Err(NoInput(3)));
    }

    fn digest(samples: &[Sample]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for sample in samples {
            sample.digest_into(&mut hasher);
        }
        hasher.finalize()
    }

    #[test]
    fn the_encoding_is_fixed() {
        let number = Sample { index: 2, input: Input::Number(1.0), target: 2.0 };
        let expected = [0, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0x40];
        assert_eq!(number.content_bytes(), expected);
        let text = Sample { index: 2, input: Input::Text("é".to_string()), target: 0.0 };
        let expected = [1, 2, 0, 0, 0, 0, 0, 0, 0, 0xc3, 0xa9, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(text.content_bytes(), expected);
    }

    #[test]
    fn every_field_changes_the_digest() {
        let base = Sample { index: 0, input: Input::Number(1.0), target: 1.0 };
        let others = [
            Sample { index: 1, ..base.clone() },
            Sample { input: Input::Number(2.0), ..base.clone() },
            Sample { input: Input::Number(-1.0), ..base.clone() },
            Sample { input: Input::Text("1".to_string()), ..base.clone() },
            Sample { target: 2.0, ..base.clone() },
        ];
        let once = digest(std::slice::from_ref(&base));
        for other in others {
            assert_ne!(once, digest(&[other]));
        }
        assert_ne!(once, digest(&[base.clone(), base]));
    }
}
