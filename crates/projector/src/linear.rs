//! The two projectors as linear maps in `f32`, every sum added up in ascending order.

/// The embedding `W·x + b`, `[d]`, of an encoded value `x [w]`; `weight` is `[d, w]`, row-major, `bias` is `[d]`.
pub fn embed(weight: &[f32], bias: &[f32], x: &[f32]) -> Vec<f32> {
    let width = weight.len() / bias.len().max(1);
    let mut embedding = Vec::with_capacity(bias.len());
    for (row, b) in weight.chunks_exact(width.max(1)).zip(bias) {
        let mut products = row.iter().zip(x).map(|(w, x)| w * x);
        let mut sum = products.next().unwrap_or(0.0);
        for product in products {
            sum += product;
        }
        embedding.push(sum + b);
    }
    embedding
}

/// `w·h + b` of what is read of a sample, `[k·d]`: the read-out of training, solving and prediction.
pub fn read_out(weight: &[f32], bias: f32, hidden: &[f32]) -> f32 {
    let mut sum = 0.0f32;
    for (w, h) in weight.iter().zip(hidden) {
        sum += w * h;
    }
    sum + bias
}
