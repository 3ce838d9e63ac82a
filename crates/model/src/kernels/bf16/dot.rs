//! What `VDPBF16PS` computes, in plain code: Intel's Software Developer's Manual, volume 2, "VDPBF16PS".
//!
//! Per lane, two products of bfloat16 numbers are added to an `f32`, one after the other: first those of the upper halves of the
//! two words, then those of the lower ones. Each addition is a fused multiply-add, rounded to nearest even. Factors and sums
//! below the normal numbers count as zeros of their sign, whatever the processor's control register says. A result is below them
//! if it is after rounding to 24 bits with an exponent without bounds.
//!
//! Which of several NaNs comes out is not modelled.

/// Bits of an `f32` but for its sign.
const MAGNITUDE: u32 = 0x7fff_ffff;
/// The exponent's.
const EXPONENT: u32 = 0x7f80_0000;

/// Whether this processor has the instruction, and the ones that the kernels use beside it.
pub fn has_instruction() -> bool {
    #[cfg(test)]
    if SWITCHED_OFF.load(std::sync::atomic::Ordering::Relaxed) {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// For tests of whole models; others beside them see no difference but in speed.
#[cfg(test)]
pub static SWITCHED_OFF: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Below the normal numbers: zero of the same sign.
#[inline(always)]
pub fn flushed(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & EXPONENT == 0 { bits & !MAGNITUDE } else { bits })
}

/// `x` rounded to the nearest bfloat16, ties to even, in the lower half of a word; [`flushed`] before, as `VCVTNEPS2BF16` does.
#[inline(always)]
pub fn rounded(x: f32) -> u32 {
    let bits = flushed(x).to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // Rounded, a NaN could become infinite.
    if bits & MAGNITUDE > EXPONENT { bits >> 16 | 0x40 } else { nearest }
}

/// Two numbers, rounded; `first` in the lower half.
#[inline(always)]
pub fn pair(first: f32, second: f32) -> u32 {
    rounded(second) << 16 | rounded(first)
}

/// The numbers of a word: that of the lower half first.
#[inline(always)]
pub fn halves(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
}

/// `x·y + sum` for numbers that are [`flushed`].
#[inline(always)]
pub fn step(x: f32, y: f32, sum: f32) -> f32 {
    // The same sum 2²⁴ times as large, so that what lies below the normal numbers is rounded as the normal ones are. Where that
    // is infinite or NaN, the sum is zero or too large to matter.
    const HALF: f32 = (1 << 12) as f32;
    const LEAST: f32 = f32::MIN_POSITIVE * HALF * HALF;
    let result = x.mul_add(y, sum);
    let scaled = (x * HALF).mul_add(y * HALF, sum * (HALF * HALF));
    if scaled.abs() < LEAST { f32::from_bits(result.to_bits() & !MAGNITUDE) } else { result }
}

/// Two steps for words whose numbers are [`flushed`].
#[inline(always)]
pub fn steps(a: u32, b: u32, sum: f32) -> f32 {
    let (a, b) = (halves(a), halves(b));
    step(a[0], b[0], step(a[1], b[1], sum))
}

/// [`steps`] without a look at what lies below the normal numbers: the same wherever [`suspicion`] of both sums is none.
#[inline(always)]
pub fn quick_steps(a: u32, b: u32, sum: f32) -> (f32, u32) {
    let (a, b) = (halves(a), halves(b));
    let first = a[1].mul_add(b[1], sum);
    let second = a[0].mul_add(b[0], first);
    (second, suspicion(first).min(suspicion(second)))
}

/// Less than [`SUSPICIOUS`] where a sum may have to be flushed: from the smallest normal number down, but for zero.
#[inline(always)]
fn suspicion(sum: f32) -> u32 {
    (sum.to_bits() << 1).wrapping_sub(1)
}

/// See [`quick_steps`].
pub const SUSPICIOUS: u32 = f32::MIN_POSITIVE.to_bits() << 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The numbers at whose edges something changes: zeros, the smallest and largest numbers, infinities and NaN.
    const EDGES: [u32; 10] =
        [0, 1, 0x007f_ffff, 0x0080_0000, 0x0080_0001, 0x3f80_0000, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, 0x7fc0_0000];

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bf16,avx512vl")]
    fn instruction(a: u32, b: u32, sum: f32) -> f32 {
        use std::arch::x86_64::*;
        // SAFETY: both are 128 bits of anything.
        unsafe {
            let words = |word: u32| std::mem::transmute::<__m128i, __m128bh>(_mm_set1_epi32(word.cast_signed()));
            _mm_cvtss_f32(_mm_dpbf16_ps(_mm_set_ss(sum), words(a), words(b)))
        }
    }

    /// What the model has for any words: factors are flushed before.
    fn model(a: u32, b: u32, sum: f32) -> f32 {
        let flush = |word: u32| {
            let [lower, upper] = halves(word).map(|number| flushed(number).to_bits() >> 16);
            upper << 16 | lower
        };
        steps(flush(a), flush(b), flushed(sum))
    }

    fn same(one: f32, other: f32) -> bool {
        one.to_bits() == other.to_bits() || one.is_nan() && other.is_nan()
    }

    #[cfg(target_arch = "x86_64")]
    fn compare(a: u32, b: u32, sum: f32) {
        // SAFETY: the callers looked whether the processor has it.
        let got = unsafe { instruction(a, b, sum) };
        let want = model(a, b, sum);
        assert!(same(got, want), "{a:08x} · {b:08x} + {sum:e}: the instruction has {got:e}, the model {want:e}");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_model_is_the_instruction_at_every_edge() {
        if !has_instruction() {
            return;
        }
        let numbers: Vec<u32> = EDGES.iter().flat_map(|bits| [*bits, bits | !MAGNITUDE]).collect();
        let halves: Vec<u32> = numbers.iter().map(|bits| bits >> 16).chain([0x1a00, 0x9a00, 0x2580, 0x5a80]).collect();
        for (a, b) in halves.iter().flat_map(|a| halves.iter().map(move |b| (*a, *b))) {
            for other in &halves {
                for sum in &numbers {
                    compare(a << 16 | other, b << 16 | 0x3f80, f32::from_bits(*sum));
                    compare(other << 16 | a, 0x3f80 << 16 | b, f32::from_bits(*sum));
                }
            }
        }
    }

    /// Where the smallest normal number less very little becomes zero.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn results_are_judged_after_they_were_rounded() {
        if !has_instruction() {
            return;
        }
        let mut flushed_down = 0;
        for sum in [0x0080_0000, 0x8080_0000, 0x0080_0001] {
            for exponent in 0..12 {
                for mantissa in 0..128 {
                    for sign in [0, 0x8000] {
                        let (x, y) = ((127 - 75 + exponent) << 7 | mantissa | sign, (127 - 80) << 7);
                        compare(x, y, f32::from_bits(sum));
                        flushed_down += u32::from(model(x, y, f32::from_bits(sum)) == 0.0);
                    }
                }
            }
        }
        assert!(flushed_down > 100, "{flushed_down}");
    }

    #[test]
    fn rounding_goes_to_the_nearest_and_ties_to_even() {
        for (from, to) in [
            (0x3f80_8000, 0x3f80),
            (0x3f81_8000, 0x3f82),
            (0x3f80_8001, 0x3f81),
            (0x7f7f_ffff, 0x7f80),
            (0x007f_ffff, 0),
            (0x8000_0001, 0x8000),
            (0x7f80_0001, 0x7fc0),
        ] {
            assert_eq!(rounded(f32::from_bits(from)), to, "{from:08x}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn rounding_is_that_of_the_crate_half(bits: u32) {
            let x = f32::from_bits(bits);
            prop_assume!(!x.is_nan());
            prop_assert_eq!(rounded(x), u32::from(half::bf16::from_f32(flushed(x)).to_bits()));
        }

        #[test]
        fn quick_steps_are_those_of_the_model_where_nothing_is_suspicious(a: u32, b: u32, sum: f32) {
            let flush = |word: u32| pair(halves(word)[0], halves(word)[1]);
            let (a, b, sum) = (flush(a), flush(b), flushed(sum));
            let (quick, suspicion) = quick_steps(a, b, sum);
            prop_assert!(suspicion < SUSPICIOUS || same(quick, steps(a, b, sum)));
        }

        #[test]
        #[cfg(target_arch = "x86_64")]
        fn the_model_is_the_instruction_for_any_bits(a: u32, b: u32, sum: u32) {
            if has_instruction() {
                compare(a, b, f32::from_bits(sum));
            }
        }

        /// Products and a sum of similar sizes, from below the normal numbers to infinity.
        #[test]
        #[cfg(target_arch = "x86_64")]
        fn the_model_is_the_instruction_where_sizes_meet(
            size in 0i32..255, (a, b) in any::<(u32, u32)>(), spread in prop::array::uniform4(-9i32..9), sum: u32,
        ) {
            if has_instruction() {
                // The factors' exponents add up to about the sum's.
                let exponents = [(size + 127) / 2 + spread[0], (size + 127) / 2 + spread[1]];
                let word = |bits: u32, upper: i32| {
                    let field = |exponent: i32| exponent.clamp(0, 255).cast_unsigned() << 7;
                    bits & 0x807f_807f | field(upper) << 16 | field(upper + spread[2])
                };
                let sum = sum & !EXPONENT | (size + spread[3]).clamp(0, 254).cast_unsigned() << 23;
                compare(word(a, exponents[0]), word(b, exponents[1]), f32::from_bits(sum));
            }
        }
    }
}
