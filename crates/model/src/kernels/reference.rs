//! Products one number at a time, and numbers to multiply: what the kernels' tests compare with.

/// Numbers in −½..½.
pub fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        })
        .collect()
}

/// `a [m, k] · b [k, n]`, each element one chain of fused multiply-adds.
pub fn one_by_one(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
    let mut c = vec![0.0f32; m * n];
    for i in 0..m {
        for j in 0..n {
            for l in 0..k {
                c[i * n + j] = a[i * k + l].mul_add(b[l * n + j], c[i * n + j]);
            }
        }
    }
    c
}

/// `xᵀ` of `x [rows, columns]`.
pub fn turned(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for j in 0..columns {
        out.extend((0..rows).map(|i| x[i * columns + j]));
    }
    out
}
