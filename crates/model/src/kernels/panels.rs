//! Frozen weights packed once for products: panels of columns, in `f32` or in 16 bits.
//!
//! The right-hand side `b [k, n]` is cut into panels of [`PANEL`] columns; a panel holds its `k` rows of `PANEL` numbers
//! one after another, so a product with few rows reads memory strictly forwards, at the speed of memory. The backward pass
//! reads the same panels by cells, [`PANEL`] rows of one panel. Numbers of 16
//! bits become `f32` in registers, exactly, so all arithmetic is `f32`.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use numalign_config::Dtype;
use rayon::prelude::*;

use super::aligned::Aligned;
use super::dispatch::{Isa, multiversion};
use super::matmul::{Direction, Factor, Job};
use super::quantised::Quantised;
use super::tile::{Ahead, Element};
use super::{backward, forward};

/// Columns of a panel.
pub const PANEL: usize = 32;

/// Numbers of a cell: [`PANEL`] rows of a panel.
pub const CELL: usize = PANEL * PANEL;

/// A right-hand side in panels. Columns past `n` in the last panel are zero.
#[derive(Debug)]
pub struct Packed {
    k: usize,
    n: usize,
    panels: Panels,
}

/// Panels in memory, one after another.
#[derive(Debug)]
pub enum Panels {
    /// As they are.
    F32(Aligned<f32>),
    /// Rounded to bfloat16.
    Bf16(Aligned<bf16>),
    /// Rounded to half precision.
    F16(Aligned<f16>),
    /// In GGML's blocks.
    Quantised(Quantised),
}

impl Packed {
    /// Packs `b [k, n]`, element `(i, j)` at `i·row_stride + j·column_stride`, rounded to `dtype` (to nearest, ties to even);
    /// to half precision where that names blocks.
    pub fn new(b: &[f32], k: usize, n: usize, row_stride: usize, column_stride: usize, dtype: Dtype) -> Self {
        let pack = |p: usize, panel: &mut [f32]| pack_panel(b, k, n, row_stride, column_stride, p, panel);
        let panels = match dtype {
            Dtype::F32 => {
                let mut panels = Aligned::zeroed(n.div_ceil(PANEL) * k * PANEL);
                let tasks = panels.as_mut_slice().par_chunks_mut((k * PANEL).max(1)).enumerate();
                tasks.for_each(|(p, panel)| pack(p, panel));
                Panels::F32(panels)
            }
            Dtype::Bf16 => {
                Panels::Bf16(rounded(k, n, pack, |panel, out: &mut [bf16]| out.convert_from_f32_slice(panel)))
            }
            // Beside blocks: what is no whole number of these, as writers of GGUF files have it.
            _ => Panels::F16(rounded(k, n, pack, |panel, out: &mut [f16]| out.convert_from_f32_slice(panel))),
        };
        Self { k, n, panels }
    }

    /// The numbers.
    pub fn panels(&self) -> &Panels {
        &self.panels
    }

    /// A weight `[k, n]` in GGML's blocks.
    pub fn quantised(k: usize, n: usize, weight: Quantised) -> Self {
        Self { k, n, panels: Panels::Quantised(weight) }
    }

    /// A cell: up to [`PANEL`] rows of panel `p`, from `PANEL·strip` on, as `f32`; where they lie, or in `buffer`.
    pub fn cell<'a>(&'a self, found: Isa, p: usize, strip: usize, buffer: &'a mut [f32; CELL]) -> &'a [f32] {
        let rows = strip * PANEL..((strip + 1) * PANEL).min(self.k);
        let numbers = (p * self.k + rows.start) * PANEL..(p * self.k + rows.end) * PANEL;
        match &self.panels {
            Panels::F32(panels) => return &panels.as_slice()[numbers],
            Panels::Bf16(panels) => widen(found, &panels.as_slice()[numbers.clone()], &mut buffer[..numbers.len()]),
            Panels::F16(panels) => {
                panels.as_slice()[numbers.clone()].convert_to_f32_slice(&mut buffer[..numbers.len()]);
            }
            Panels::Quantised(weight) => weight.unpack(found, p, strip, buffer),
        }
        &buffer[..numbers.len()]
    }

    /// [`Packed::cell`] with as many rows as a panel has columns; those past the weight's are zero.
    pub fn whole_cell<'a>(
        &'a self,
        found: Isa,
        p: usize,
        strip: usize,
        buffer: &'a mut [f32; CELL],
    ) -> &'a [f32; CELL] {
        let rows = PANEL.min(self.k - strip * PANEL);
        match &self.panels {
            Panels::F32(panels) => {
                let numbers = &panels.as_slice()[(p * self.k + strip * PANEL) * PANEL..][..rows * PANEL];
                if let Ok(cell) = numbers.try_into() {
                    return cell;
                }
                buffer[..numbers.len()].copy_from_slice(numbers);
            }
            _ => {
                self.cell(found, p, strip, buffer);
            }
        }
        buffer[rows * PANEL..].fill(0.0);
        buffer
    }

    /// The memory that [`Packed::cell`] reads, to fetch it ahead of use; any place will do.
    pub fn place(&self, p: usize, strip: usize) -> Ahead {
        let first = (p * self.k + strip * PANEL) * PANEL;
        match &self.panels {
            Panels::F32(panels) => Ahead::at(panels.as_slice().as_ptr().wrapping_add(first)),
            Panels::Bf16(panels) => Ahead::at(panels.as_slice().as_ptr().wrapping_add(first)),
            Panels::F16(panels) => Ahead::at(panels.as_slice().as_ptr().wrapping_add(first)),
            Panels::Quantised(weight) => weight.place(p, strip),
        }
    }
}

impl Factor for Packed {
    fn sizes(&self, direction: Direction) -> (usize, usize) {
        match direction {
            Direction::Forward => (self.k, self.n),
            Direction::Backward => (self.n, self.k),
        }
    }

    unsafe fn multiply(&self, job: &Job<'_>, direction: Direction) {
        // SAFETY: the caller's.
        unsafe {
            match direction {
                Direction::Forward => forward::product(job, self),
                Direction::Backward => backward::product(job, self),
            }
        }
    }
}

multiversion! {
    fn widen(from: &[bf16], to: &mut [f32]) => widen_body
}

#[inline(always)]
fn widen_body(from: &[bf16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.widen();
    }
}

/// Panels of a 16-bit type: each is packed in `f32` first, one panel per thread at a time.
fn rounded<E: Copy + Default + Send>(
    k: usize,
    n: usize,
    pack: impl Fn(usize, &mut [f32]) + Sync,
    round: impl Fn(&[f32], &mut [E]) + Sync,
) -> Aligned<E> {
    let mut panels = Aligned::zeroed(n.div_ceil(PANEL) * k * PANEL);
    panels.as_mut_slice().par_chunks_mut((k * PANEL).max(1)).enumerate().for_each_init(
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
