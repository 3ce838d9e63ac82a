//! Sums and dot products over a row in one fixed order: 16 partial sums, element `i` in sum `i mod 16`,
//! folded as a binary tree.

/// Partial sums per row. A row's sum has the same bits on every machine because this is a constant.
pub const LANES: usize = 16;

#[inline(always)]
fn fold(mut acc: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            acc[i] += acc[i + width];
        }
        width /= 2;
    }
    acc[0]
}

/// Sum of `x`.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    let mut acc = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            acc[i] += chunk[i];
        }
    }
    for (a, v) in acc.iter_mut().zip(rest) {
        *a += v;
    }
    fold(acc)
}

/// Replaces each of `x` by `f` of it; the sum of the results, as [`sum`] has it.
#[inline(always)]
pub fn map_sum(x: &mut [f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut acc = [0.0f32; LANES];
    let mut chunks = x.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            chunk[i] = f(chunk[i]);
            acc[i] += chunk[i];
        }
    }
    for (a, v) in acc.iter_mut().zip(chunks.into_remainder()) {
        *v = f(*v);
        *a += *v;
    }
    fold(acc)
}

/// The largest of `x`, NaN aside; −∞ where there is none.
///
/// In lanes because one chain of comparisons would wait for each of them.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut acc = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            acc[i] = larger(chunk[i], acc[i]);
        }
    }
    for (a, v) in acc.iter_mut().zip(rest) {
        *a = larger(*v, *a);
    }
    acc.into_iter().fold(f32::NEG_INFINITY, |largest, a| larger(a, largest))
}

/// `Σ aᵢ·bᵢ`, each partial sum a chain of fused multiply-adds.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [0.0f32; LANES];
    let (chunks_a, chunks_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (rest_a, rest_b) = (chunks_a.remainder(), chunks_b.remainder());
    for (x, y) in chunks_a.zip(chunks_b) {
        for i in 0..LANES {
            acc[i] = x[i].mul_add(y[i], acc[i]);
        }
    }
    for ((s, x), y) in acc.iter_mut().zip(rest_a).zip(rest_b) {
        *s = x.mul_add(*y, *s);
    }
    fold(acc)
}

/// `Σ (xᵢ − c)²`.
#[inline(always)]
pub fn sum_of_squares_about(x: &[f32], c: f32) -> f32 {
    let mut acc = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            let t = chunk[i] - c;
            acc[i] = t.mul_add(t, acc[i]);
        }
    }
    for (a, v) in acc.iter_mut().zip(rest) {
        let t = v - c;
        *a = t.mul_add(t, *a);
    }
    fold(acc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_is_found_in_every_lane_and_nan_is_none() {
        for length in [0, 1, 15, 16, 17, 50] {
            for place in 0..length {
                let mut x: Vec<f32> = (0..length).map(|i| -1.0 - i as f32).collect();
                x[place] = 2.5;
                assert_eq!(max(&x), 2.5, "{place} of {length}");
                x[place] = f32::NAN;
                let others = x.iter().filter(|v| !v.is_nan()).fold(f32::NEG_INFINITY, |a, v| a.max(*v));
                assert_eq!(max(&x), others, "NaN at {place} of {length}");
            }
        }
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }
}
