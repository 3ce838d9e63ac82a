//! Counter-based random numbers: a generator per (seed, domain, label, index), with no state between them.
//!
//! Two generators never share a stream unless all four of their coordinates are equal. The label of samples is the name of
//! their stage.

pub mod permutation;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Separates these keys from every other use of BLAKE3's key derivation. A change changes every sample.
const KEY_CONTEXT: &str = "numalign random stream key v1";

/// What the numbers are for. Streams of different domains are independent of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Domain {
    /// Samples that are trained on. The micro-batch that a worker computes before it is admitted is the first of them.
    Train,
    /// Held-out samples.
    Eval,
    /// Samples of the solver's rounds with `alternate`; `exact` solves for the training samples.
    Solve,
    /// Faults that are injected into a run.
    Chaos,
}

impl Domain {
    /// The fixed name that enters the key.
    pub fn name(self) -> &'static str {
        match self {
            Domain::Train => "train",
            Domain::Eval => "eval",
            Domain::Solve => "solve",
            // The name that this domain had first; another would change the faults of every seed.
            Domain::Chaos => "init",
        }
    }
}

/// A random generator for one index of one stream.
///
/// ChaCha with 8 rounds. The key is BLAKE3's `derive_key` over
/// `seed (u64 LE) ‖ length of the domain's name (u64 LE) ‖ name ‖ length of the label (u64 LE) ‖ label`;
/// the ChaCha stream id is the index. No function of the platform's maths library is used, so every machine
/// draws the same bits.
#[derive(Debug, Clone)]
pub struct SampleRng {
    chacha: ChaCha8Rng,
}

impl SampleRng {
    /// The generator of `index` in the stream named by `seed`, `domain` and `label`.
    pub fn new(seed: u64, domain: Domain, label: &str, index: u64) -> SampleRng {
        let mut hasher = blake3::Hasher::new_derive_key(KEY_CONTEXT);
        hasher.update(&seed.to_le_bytes());
        for name in [domain.name(), label] {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
        }
        let mut chacha = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
        chacha.set_stream(index);
        SampleRng { chacha }
    }

    /// 64 uniform random bits.
    pub fn bits(&mut self) -> u64 {
        self.chacha.next_u64()
    }

    /// A value in [0, 1), a multiple of 2⁻⁵³.
    pub fn uniform(&mut self) -> f64 {
        const STEP: f64 = 1.0 / (1u64 << 53) as f64;
        (self.bits() >> 11) as f64 * STEP
    }

    /// An integer in `0..n`, each equally likely; 0 if `n` is 0.
    ///
    /// Lemire's multiplication method: the high half of a 128-bit product is the result, and the few low halves
    /// that would favour some results are drawn again.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 {
            return 0;
        }
        let rejected_below = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.bits()) * u128::from(n);
            if product as u64 >= rejected_below {
                return (product >> 64) as u64;
            }
        }
    }
}

/// Spreads `value` over all 64 bits: one step of SplitMix64, whose finaliser lets every input bit reach every output bit
/// (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
pub(crate) fn splitmix64(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_stream_never_changes() {
        let mut rng = SampleRng::new(7, Domain::Train, "nn", 3);
        let drawn = [rng.bits(), rng.bits(), rng.below(1000)];
        assert_eq!(drawn, [8_161_494_183_709_444_645, 12_499_129_732_279_740_245, 968]);
        assert_eq!(rng.uniform().to_bits(), 0x3fe2_b65a_5335_2fcd);
        let mut other = SampleRng::new(u64::MAX, Domain::Chaos, "", u64::MAX);
        assert_eq!(other.bits(), 12_870_162_606_248_177_399);
    }

    #[test]
    fn every_coordinate_names_another_stream() {
        let domains = [Domain::Train, Domain::Eval, Domain::Solve, Domain::Chaos];
        let mut first_words = Vec::new();
        for domain in domains {
            for seed in [0, 1] {
                for label in ["", "nn", "text"] {
                    for index in [0, 1, 1 << 40] {
                        first_words.push(SampleRng::new(seed, domain, label, index).bits());
                    }
                }
            }
        }
        let drawn = first_words.len();
        first_words.sort_unstable();
        first_words.dedup();
        assert_eq!(first_words.len(), drawn);
    }

    #[test]
    fn below_is_unbiased_over_a_small_range() {
        let mut rng = SampleRng::new(0, Domain::Eval, "below", 0);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[rng.below(7) as usize] += 1;
        }
        for count in counts {
            assert!((9_600..10_400).contains(&count), "{counts:?}");
        }
    }

    #[test]
    fn uniform_has_the_mean_and_spread_of_its_distribution() {
        let mut rng = SampleRng::new(0, Domain::Eval, "uniform", 0);
        let (mut sum, mut squares) = (0.0, 0.0);
        for _ in 0..100_000 {
            let value = rng.uniform();
            sum += value;
            squares += value * value;
        }
        assert!((sum / 1e5 - 0.5).abs() < 0.005);
        assert!((squares / 1e5 - 1.0 / 3.0).abs() < 0.005);
    }

    proptest! {
        #[test]
        fn draws_stay_in_range(seed: u64, index: u64, n in 1u64..) {
            let mut rng = SampleRng::new(seed, Domain::Eval, "range", index);
            prop_assert!(rng.below(n) < n);
            prop_assert_eq!(rng.below(0), 0);
            prop_assert!((0.0..1.0).contains(&rng.uniform()));
        }
    }
}
