//! Normally distributed numbers from a stream of random bits: the ziggurat of Marsaglia and Tsang in Doornik's variant
//! ("An Improved Ziggurat Method to Generate Normal Random Samples", 2005).
//!
//! Step by step what `rand_distr` 0.6 does. It is kept here because a crate may change its numbers with any release, while
//! a synthetic model must stay the same for ever. `exp` and `log` come from `libm`, so no platform decides a bit.

use rand_chacha::rand_core::Rng;

use super::ziggurat::{F, TAIL, X};

/// The exponent bits of numbers in [1, 2) and of those in [2, 4).
const FROM_ONE: u64 = 1023 << 52;
const FROM_TWO: u64 = 1024 << 52;

/// One number with mean 0 and deviation 1.
pub(super) fn standard_normal(random: &mut impl Rng) -> f64 {
    loop {
        // The lowest 8 bits choose the layer, the highest 52 the place in it.
        let bits = random.next_u64();
        let layer = bits as usize & 0xff;
        let u = f64::from_bits(bits >> 12 | FROM_TWO) - 3.0;
        let x = u * X[layer];
        if x.abs() < X[layer + 1] {
            return x;
        }
        if layer == 0 {
            return tail(random, u < 0.0);
        }
        if F[layer + 1] + (F[layer] - F[layer + 1]) * unit(random) < libm::exp(-x * x / 2.0) {
            return x;
        }
    }
}

/// A number beyond [`TAIL`] (Marsaglia, 1964).
fn tail(random: &mut impl Rng, negative: bool) -> f64 {
    loop {
        let x = libm::log(open_unit(random)) / TAIL;
        let y = libm::log(open_unit(random));
        if -2.0 * y >= x * x {
            return if negative { x - TAIL } else { TAIL - x };
        }
    }
}

/// A multiple of 2⁻⁵³ in [0, 1).
fn unit(random: &mut impl Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A number in (0, 1).
fn open_unit(random: &mut impl Rng) -> f64 {
    f64::from_bits(random.next_u64() >> 12 | FROM_ONE) - (1.0 - f64::EPSILON / 2.0)
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn the_moments_and_the_tail_are_those_of_the_distribution() {
        const COUNT: usize = 1_000_000;
        let mut random = ChaCha8Rng::from_seed([7; 32]);
        let (mut sum, mut squares, mut fourth, mut in_tail) = (0.0, 0.0, 0.0, 0);
        for _ in 0..COUNT {
            let x = standard_normal(&mut random);
            sum += x;
            squares += x * x;
            fourth += x.powi(4);
            in_tail += usize::from(x.abs() > TAIL);
        }
        let count = COUNT as f64;
        assert!((sum / count).abs() < 0.005);
        assert!((squares / count - 1.0).abs() < 0.01);
        assert!((fourth / count - 3.0).abs() < 0.05);
        // 2·(1 − Φ(3.654)) = 2.58e-4
        assert!((200..320).contains(&in_tail), "{in_tail}");
    }
}
