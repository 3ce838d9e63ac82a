//! What a chunk of the solver's round gathers: hidden states at the places that are read, with the encoded target. Where
//! several are read they count as one hidden state of size `k·d`, which the solver calls `d`.

use crate::bytes::digest_of;

/// A matrix `[samples, d+1]` in sample order: the hidden state, then the target.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    hidden: usize,
    values: Vec<f32>,
}

/// Why floats are not features.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum FeaturesError {
    #[error("{got} floats are not whole samples of {want}")]
    WrongLength { got: usize, want: usize },
    #[error("the hidden state or target of sample {sample} of the chunk is not finite ({value})")]
    NotFinite { sample: usize, value: f32 },
}

impl Features {
    /// Floats of a sample: `d+1`.
    pub fn width(hidden: usize) -> usize {
        hidden + 1
    }

    /// Features of hidden size `d`; `values` is `[samples, d+1]`.
    ///
    /// # Errors
    /// A number of floats that is no multiple of `d+1`, or a float that is not finite.
    pub fn new(hidden: usize, values: Vec<f32>) -> Result<Self, FeaturesError> {
        let width = Self::width(hidden);
        if !values.len().is_multiple_of(width) {
            return Err(FeaturesError::WrongLength { got: values.len(), want: width });
        }
        if let Some(place) = values.iter().position(|value| !value.is_finite()) {
            return Err(FeaturesError::NotFinite { sample: place / width, value: values[place] });
        }
        Ok(Self { hidden, values })
    }

    /// No samples yet.
    pub fn empty(hidden: usize) -> Self {
        Self { hidden, values: Vec::new() }
    }

    /// Adds a sample that was part of other features of this hidden size.
    pub(crate) fn push(&mut self, hidden: &[f32], target: f32) {
        self.values.extend_from_slice(hidden);
        self.values.push(target);
    }

    /// Hidden size `d`.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.values.len() / Self::width(self.hidden)
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// All floats, `[samples, d+1]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Hidden state `[d]` and target of each sample, in order.
    pub fn samples(&self) -> impl Iterator<Item = (&[f32], f32)> {
        self.values.chunks_exact(Self::width(self.hidden)).map(|sample| (&sample[..self.hidden], sample[self.hidden]))
    }

    /// BLAKE3 of the little-endian floats.
    pub fn digest(&self) -> [u8; 32] {
        digest_of(&self.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_finite_samples_are_features() {
        let features = Features::new(2, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        assert_eq!(features.len(), 2);
        assert_eq!(features.samples().collect::<Vec<_>>(), [(&[1.0f32, 2.0][..], 3.0), (&[4.0, 5.0][..], 6.0)]);
        assert_eq!(Features::new(2, vec![1.0; 4]), Err(FeaturesError::WrongLength { got: 4, want: 3 }));
        let error = Features::new(1, vec![1.0, 2.0, 3.0, f32::INFINITY]).unwrap_err();
        assert_eq!(error, FeaturesError::NotFinite { sample: 1, value: f32::INFINITY });
        assert_ne!(features.digest(), Features::new(2, vec![0.0; 6]).unwrap().digest());
    }
}
