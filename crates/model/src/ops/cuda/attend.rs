//! Which kernels compute attention, and with what tiles: by the shapes, the precision asked for and the GPU.

use burn_cubecl::cubecl::prelude::*;
use numalign_config::Arithmetic;

use super::attention_backward::{self, Kept};
use super::matrix::Matrix;
use super::mma_tiles::Tf32;
use super::tiles::{Extent, Tiles, tiles};
use super::{Cuda, attention, mma_attention, mma_attention_backward};
use crate::kernels::attention::Heads;
use crate::ops::AttentionShape;

/// The kernels of both passes.
pub struct Plan {
    /// The sequences.
    pub extent: Extent,
    heads: Heads,
    kernels: Kernels,
}

enum Kernels {
    /// In `f32`: tiles of the forward and of the backward pass.
    Exact(Tiles, Tiles),
    /// On matrix units: tiles of the forward pass, of the queries' gradient, and of that of keys and values.
    Mma(Tiles, [Tiles; 2]),
}

impl Plan {
    /// `None` where the kernels cannot do it: heads too large for the GPU's shared memory, or odd ones that turn.
    pub fn new(on: &Matrix, shape: &AttentionShape<'_, Cuda>) -> Option<Self> {
        let (extent, heads) = (Extent::of(shape.queries)?, shape.heads);
        if (shape.norms.is_some() || shape.rotary.is_some()) && !heads.head_size.is_multiple_of(2) {
            return None;
        }
        let units = shape.arithmetic != Arithmetic::F32
            && on.client().properties().supports_type(Tf32::as_type_native_unchecked().storage_type());
        let kernels = if units {
            let choose = |limits: &[(usize, usize)], bytes| tiles(on, extent, heads, limits, bytes);
            let of_queries = choose(&mma_attention::LIMITS, mma_attention_backward::queries_bytes)?;
            let of_keys = choose(&mma_attention_backward::KEYS, mma_attention_backward::keys_bytes)?;
            Kernels::Mma(choose(&mma_attention::LIMITS, mma_attention::bytes)?, [of_queries, of_keys])
        } else {
            let choose = |bytes| tiles(on, extent, heads, &attention::LIMITS, bytes);
            Kernels::Exact(choose(attention::bytes)?, choose(attention_backward::bytes)?)
        };
        Some(Self { extent, heads, kernels })
    }

    /// The result `[queries, heads·size]`, and of each query and head the largest score and the sum, `[queries, heads·2]`.
    pub fn forward(&self, q: &Matrix, k: &Matrix, v: &Matrix) -> (Matrix, Matrix) {
        match self.kernels {
            Kernels::Exact(tiles, _) => attention::forward(q, k, v, self.extent, self.heads, tiles),
            Kernels::Mma(tiles, _) => mma_attention::forward(q, k, v, self.extent, self.heads, tiles),
        }
    }

    /// Writes the gradients of queries, keys and values to `to`.
    pub fn backward(&self, grad: &Matrix, kept: &Kept<'_>, to: [&Matrix; 3]) {
        match self.kernels {
            Kernels::Exact(_, tiles) => {
                attention_backward::backward(grad, kept, to, self.extent, self.heads, tiles);
            }
            Kernels::Mma(_, tiles) => mma_attention_backward::backward(grad, kept, to, self.extent, self.heads, tiles),
        }
    }
}
