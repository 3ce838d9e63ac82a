//! Frozen weights packed once for products: panels of columns, in `f32` or in 16 bits.
//!
//! The right-hand side `b [k, n]` is cut into panels of [`PANEL`] columns; a panel holds its `k` rows of `PANEL` numbers
//! one after another, so a product with few rows reads memory strictly forwards, at the speed of memory. Numbers of 16
//! bits become `f32` in registers, exactly, so all arithmetic is `f32`.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use numalign_config::Dtype;
use rayon::prelude::*;

/// Columns of a panel.
pub const PANEL: usize = 32;

/// A right-hand side in panels. Columns past `n` in the last panel are zero.
#[derive(Debug, Clone)]
pub struct Packed {
    k: usize,
    n: usize,
    panels: Panels,
}

/// Panels in memory, one after another.
#[derive(Debug, Clone)]
pub enum Panels {
    /// As they are.
    F32(Vec<f32>),
    /// Rounded to bfloat16.
    Bf16(Vec<bf16>),
    /// Rounded to half precision.
    F16(Vec<f16>),
}

impl Packed {
    /// Packs `b [k, n]`, element `(i, j)` at `i·row_stride + j·column_stride`, rounded to `dtype` (to nearest, ties to even).
    pub fn new(b: &[f32], k: usize, n: usize, row_stride: usize, column_stride: usize, dtype: Dtype) -> Self {
        let pack = |p: usize, panel: &mut [f32]| pack_panel(b, k, n, row_stride, column_stride, p, panel);
        let panels = match dtype {
            Dtype::F32 => {
                let mut panels = vec![0.0f32; n.div_ceil(PANEL) * k * PANEL];
                let tasks = panels.par_chunks_mut((k * PANEL).max(1)).enumerate();
                tasks.for_each(|(p, panel)| pack(p, panel));
                Panels::F32(panels)
            }
            Dtype::Bf16 => {
                Panels::Bf16(rounded(k, n, pack, |panel, out: &mut [bf16]| out.convert_from_f32_slice(panel)))
            }
            Dtype::F16 => Panels::F16(rounded(k, n, pack, |panel, out: &mut [f16]| out.convert_from_f32_slice(panel))),
        };
        Self { k, n, panels }
    }

    /// Inner size.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The numbers.
    pub fn panels(&self) -> &Panels {
        &self.panels
    }
}

/// Panels of a 16-bit type: each is packed in `f32` first, one panel per thread at a time.
fn rounded<E: Copy + Default + Send>(
    k: usize,
    n: usize,
    pack: impl Fn(usize, &mut [f32]) + Sync,
    round: impl Fn(&[f32], &mut [E]) + Sync,
) -> Vec<E> {
    let mut panels = vec![E::default(); n.div_ceil(PANEL) * k * PANEL];
    panels.par_chunks_mut((k * PANEL).max(1)).enumerate().for_each_init(
        || vec![0.0f32; k * PANEL],
        |wide, (p, panel)| {
            pack(p, wide);
            round(wide, panel);
        },
    );
    panels
}

/// Writes panel `p` of `b` into `panel [k, PANEL]`; columns past `n` become zero.
pub fn pack_panel(b: &[f32], k: usize, n: usize, row_stride: usize, column_stride: usize, p: usize, panel: &mut [f32]) {
    let first = p * PANEL;
    let width = PANEL.min(n - first);
    for (i, row) in panel.chunks_exact_mut(PANEL).enumerate().take(k) {
        let start = i * row_stride + first * column_stride;
        if column_stride == 1 {
            row[..width].copy_from_slice(&b[start..start + width]);
        } else {
            for (j, out) in row[..width].iter_mut().enumerate() {
                *out = b[start + j * column_stride];
            }
        }
        row[width..].fill(0.0);
    }
}
