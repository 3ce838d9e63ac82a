//! A shuffle without state: where each position of a pass goes, computed from (seed, pass) alone.

use super::splitmix64;

/// Separates these keys from every other use of BLAKE3's key derivation. A change changes every shuffle.
const KEY_CONTEXT: &str = "numalign dataset shuffle key v1";
/// Four rounds make a sound Feistel network; small files get nearer to uniform with more.
const ROUNDS: usize = 8;

/// A permutation of `0..len`.
///
/// A balanced Feistel network over the smallest even number of bits that holds `len`, its round keys drawn with
/// BLAKE3 from (seed, pass). A result outside `0..len` is put in again until one falls inside (cycle-walking),
/// fewer than four times on average.
#[derive(Debug, Clone)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    round_keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of pass number `pass` over `len` items.
    pub fn new(seed: u64, pass: u64, len: u64) -> Permutation {
        let mut hasher = blake3::Hasher::new_derive_key(KEY_CONTEXT);
        hasher.update(&seed.to_le_bytes());
        hasher.update(&pass.to_le_bytes());
        let mut reader = hasher.finalize_xof();
        let mut round_keys = [0; ROUNDS];
        for key in &mut round_keys {
            let mut bytes = [0; 8];
            reader.fill(&mut bytes);
            *key = u64::from_le_bytes(bytes);
        }
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Permutation { len, half_bits: bits.div_ceil(2).max(1), round_keys }
    }

    /// Where `position`, below `len`, goes.
    pub fn apply(&self, position: u64) -> u64 {
        if position >= self.len {
            return position;
        }
        let mut place = position;
        loop {
            place = self.network(place);
            if place < self.len {
                return place;
            }
        }
    }

    fn network(&self, place: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (place >> self.half_bits, place & mask);
        for key in self.round_keys {
            (left, right) = (right, left ^ (splitmix64(right ^ key) & mask));
        }
        (left << self.half_bits) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(seed: u64, pass: u64, len: u64) -> Vec<u64> {
        let permutation = Permutation::new(seed, pass, len);
        (0..len).map(|position| permutation.apply(position)).collect()
    }

    #[test]
    fn the_shuffle_never_changes() {
        assert_eq!(order(0, 0, 10), [1, 8, 0, 9, 7, 4, 6, 2, 5, 3]);
        assert_eq!(Permutation::new(1, 2, u64::MAX).apply(3), 11_428_987_234_714_529_920);
    }

    #[test]
    fn passes_and_seeds_differ() {
        assert_ne!(order(0, 0, 100), order(0, 1, 100));
        assert_ne!(order(0, 0, 100), order(1, 0, 100));
    }

    #[test]
    fn every_order_of_three_comes_up_about_equally_often() {
        let mut counts = std::collections::HashMap::new();
        for pass in 0..6_000 {
            *counts.entry(order(5, pass, 3)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn it_is_a_bijection(seed: u64, pass: u64, len in 0u64..2_000) {
            let mut places = order(seed, pass, len);
            places.sort_unstable();
            prop_assert_eq!(places, (0..len).collect::<Vec<_>>());
        }

        #[test]
        fn large_files_stay_in_range(seed: u64, len in 1u64.., position: u64) {
            prop_assert!(Permutation::new(seed, 0, len).apply(position % len) < len);
        }
    }
}
