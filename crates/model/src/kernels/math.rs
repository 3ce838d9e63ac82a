//! Elementary functions made of multiply-adds only, so that they vectorise and have the same bits on
//! every machine.

/// Adding and taking away 1.5·2²³ rounds to the nearest integer.
const ROUND: f32 = 12_582_912.0;

/// `eˣ` in `f32`, relative error below 2e-7 on [−87, 88]; 0 below, `+∞` above, NaN for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let clamped = if x < -104.0 { -104.0 } else { x };
    let clamped = if clamped > 89.0 { 89.0 } else { clamped };
    let (y, whole) = exp_parts(clamped);
    // 2ⁿ in two factors, so that results near the ends of the range neither overflow nor vanish early.
    let half = whole >> 1;
    y * power_of_two(half) * power_of_two(whole - half)
}

/// [`exp`] for `x` up to 0, in fewer instructions: the same bits above −87.68, 0 below −87.69.
#[inline(always)]
pub fn exp_of_negative(x: f32) -> f32 {
    let (y, whole) = exp_parts(if x < -88.0 { -88.0 } else { x });
    y * power_of_two(whole)
}

/// `eˣ = y·2ⁿ` for `x` in [−104, 89]: `y` and `n`.
///
/// Range reduction by Cody and Waite's two-part ln 2, then the degree-6 polynomial of Cephes' `expf`.
#[inline(always)]
fn exp_parts(x: f32) -> (f32, i32) {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // Both parts as in Cephes: their sum is ln 2 to more than f32's precision.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;

    let shifted = x.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_HIGH, x);
    let r = n.mul_add(-LN2_LOW, r);
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let y = (p * r).mul_add(r, r) + 1.0;
    // The integer value of `n` is read from the bits of `n + 1.5·2²³`, since a float-to-integer
    // conversion with Rust's saturation does not vectorise well.
    (y, (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32))
}

/// `2ⁿ` for `n` in [−126, 127]; 0 for −127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_f64() {
        let mut worst = 0.0f64;
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            let error = ((f64::from(exp(x)) - want) / want).abs();
            worst = worst.max(error);
        }
        assert!(worst < 2e-7, "worst relative error {worst}");
    }

    #[test]
    fn below_zero_the_short_form_has_the_same_bits() {
        for i in 0..=1_050_000 {
            let x = i as f32 * -1e-4;
            if x > -87.68 {
                assert_eq!(exp_of_negative(x).to_bits(), exp(x).to_bits(), "{x}");
            } else if x < -87.69 {
                assert_eq!(exp_of_negative(x).to_bits(), 0, "{x}");
            }
        }
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(100.0), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp_of_negative(f32::NAN).is_nan());
        assert_eq!(exp_of_negative(f32::NEG_INFINITY), 0.0);
        assert_eq!(sigmoid(-500.0), 0.0);
        assert_eq!(sigmoid(500.0), 1.0);
    }
}
