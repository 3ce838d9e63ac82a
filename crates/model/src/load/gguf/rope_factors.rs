//! Llama 3's scaled rotary positions: a GGUF file holds the factor of every pair, `config.json` the numbers behind them.
//!
//! The numbers are found again from the factors and checked against all of them, so that both kinds of file give the
//! same frequencies to the bit, and the same fingerprint.

use serde_json::{Value as Json, json};

use super::container::Container;
use super::dequantise::dequantise;
use super::error::GgufError;

/// The factors are stored in `f32`, made from frequencies in `f32`.
const TOLERANCE: f64 = 1e-4;

/// The numbers of `rope_type: llama3`. `low_freq_factor` is 1, as in every published model: the three others times any
/// number give the same factors.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Scaling {
    factor: f64,
    high_freq_factor: f64,
    original_positions: f64,
}

impl Scaling {
    /// By what the frequency of a wave of that many positions is divided, as llama.cpp's converter computes it.
    fn divisor(&self, wave: f64) -> f64 {
        if wave < self.original_positions / self.high_freq_factor {
            return 1.0;
        }
        if wave > self.original_positions {
            return self.factor;
        }
        let smooth = (self.original_positions / wave - 1.0) / (self.high_freq_factor - 1.0);
        1.0 / ((1.0 - smooth) / self.factor + smooth)
    }

    fn gives(&self, waves: &[f64], factors: &[f64]) -> bool {
        let close = |(wave, factor): (&f64, &f64)| (self.divisor(*wave) / factor - 1.0).abs() < TOLERANCE;
        waves.iter().zip(factors).all(close)
    }
}

/// `rope_parameters` of the file's `rope_freqs.weight`.
///
/// # Errors
/// The tensor is misshapen, or its factors are not of Llama 3's form.
pub fn llama_3_scaling(file: &Container<'_>, theta: f64, head_size: u64) -> Result<Json, GgufError> {
    let wrong = |reason: String| GgufError::Shape { tensor: "rope_freqs.weight".to_owned(), reason };
    let Some(tensor) = file.tensors.get("rope_freqs.weight") else {
        return Err(wrong("it is missing".to_owned()));
    };
    let pairs = head_size / 2;
    if tensor.shape.iter().map(|length| *length as u64).product::<u64>() != pairs {
        return Err(wrong(format!("shape {:?} for {pairs} pairs of a head", tensor.shape)));
    }
    let mut factors = Vec::new();
    dequantise(tensor.kind, file.data(tensor), &mut factors);
    let factors: Vec<f64> = factors.into_iter().map(f64::from).collect();
    let exponent = |pair: u64| (2 * pair) as f64 / head_size as f64;
    let waves: Vec<f64> = (0..pairs).map(|pair| std::f64::consts::TAU * libm::pow(theta, exponent(pair))).collect();
    if factors.iter().all(|factor| *factor == 1.0) {
        return Ok(json!({ "rope_type": "default", "rope_theta": theta }));
    }
    let Some(scaling) = find(&waves, &factors) else {
        let reason = "the factors of rope_freqs.weight are not those of rope_type llama3".to_owned();
        return Err(GgufError::Unsupported { reason });
    };
    Ok(json!({
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": scaling.factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_positions as u64,
    }))
}

/// The numbers behind `factors`, if they are of this form. Where no pair is blended, several numbers give the same.
fn find(waves: &[f64], factors: &[f64]) -> Option<Scaling> {
    let factor = factors.iter().copied().fold(1.0, f64::max);
    let blended = waves.iter().zip(factors).find(|(_, divisor)| **divisor > 1.0 && **divisor < factor);
    // 4 and 8192 are Llama 3's own.
    for high_freq_factor in [4.0, 2.0, 3.0, 8.0, 16.0, 32.0] {
        let lengths: Vec<f64> = match blended {
            Some((wave, divisor)) => {
                let smooth = (1.0 / divisor - 1.0 / factor) / (1.0 - 1.0 / factor);
                vec![(wave * (smooth * (high_freq_factor - 1.0) + 1.0)).round()]
            }
            None => std::iter::once(13).chain(8..=20).map(|power| f64::from(1u32 << power)).collect(),
        };
        for original_positions in lengths {
            let scaling = Scaling { factor, high_freq_factor, original_positions };
            if original_positions >= 1.0 && scaling.gives(waves, factors) {
                return Some(scaling);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waves(theta: f64, size: usize) -> Vec<f64> {
        (0..size / 2).map(|pair| std::f64::consts::TAU * theta.powf((2 * pair) as f64 / size as f64)).collect()
    }

    #[test]
    fn the_numbers_behind_the_factors_are_found() {
        for (theta, size, factor, high, length) in [
            (5e5, 128, 8.0, 4.0, 8192.0),
            (5e5, 64, 32.0, 4.0, 8192.0),
            (200.0, 10, 8.0, 4.0, 48.0),
            (1e4, 80, 3.5, 8.0, 777.0),
        ] {
            let wanted = Scaling { factor, high_freq_factor: high, original_positions: length };
            let waves = waves(theta, size);
            let factors: Vec<f64> = waves.iter().map(|wave| f64::from(wanted.divisor(*wave) as f32)).collect();
            assert_eq!(find(&waves, &factors), Some(wanted));
        }
    }

    #[test]
    fn other_factors_are_not_taken_for_them() {
        let waves = waves(5e5, 128);
        let mut factors = vec![1.0; 64];
        factors[3] = 2.0;
        assert_eq!(find(&waves, &factors), None);
        let longrope: Vec<f64> = (0..64).map(|pair| 1.0 + f64::from(pair) / 10.0).collect();
        assert_eq!(find(&waves, &longrope), None);
        assert_eq!(find(&waves, &[f64::NAN; 64]), None);
    }
}
