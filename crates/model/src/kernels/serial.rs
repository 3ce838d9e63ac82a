//! A product on one thread with panels that were packed just now: attention's, of one head.

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::blocks::{Blocks, pack_block};
use super::dispatch::Isa;
use super::panels::PANEL;
use super::tile::{Ahead, Target, Tile};

/// A dense left-hand side with strides, for products inside one attention head.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    /// The numbers.
    pub data: &'a [f32],
    /// Distance of two rows.
    pub row_stride: usize,
    /// Distance of two columns.
    pub column_stride: usize,
}

/// `c [m, n] = a [m, k] · b (+ c)` on the calling thread, where `b` starts at row `b_from` of panels of `b_rows` rows
/// and `c` has `ldc` floats a row. `scratch` holds the packed block.
#[allow(clippy::too_many_arguments)]
pub fn matmul_serial(
    found: Isa,
    a: Strided<'_>,
    m: usize,
    k: usize,
    panels: &[f32],
    b_rows: usize,
    b_from: usize,
    n: usize,
    accumulate: bool,
    c: &mut [f32],
    ldc: usize,
    scratch: &mut Vec<f32>,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(b_from + k <= b_rows, "rows {b_from}+{k} of {b_rows}");
    assert!(panels.len() >= n.div_ceil(PANEL) * b_rows * PANEL, "right-hand side too small");
    assert!(c.len() >= (m - 1) * ldc + n, "result too small");
    assert!(a.data.len() > (m - 1) * a.row_stride + k.saturating_sub(1) * a.column_stride, "left-hand side too small");
    let count = n.div_ceil(PANEL);
    let panel = |p: usize| panels[(p * b_rows + b_from) * PANEL..].as_ptr();
    let target = |row: usize, p: usize, c: &mut [f32]| {
        let (first, bias) = (p * PANEL, None);
        Target { c: c[row * ldc + first..].as_mut_ptr(), ldc, width: PANEL.min(n - first), bias, accumulate }
    };
    #[cfg(target_arch = "x86_64")]
    if found == Isa::Avx2 {
        let left = avx2::Left { data: a.data.as_ptr(), row: a.row_stride, column: a.column_stride };
        for p in 0..count {
            // SAFETY: sizes as asserted above.
            unsafe { avx2::product(m, k, left, panel(p), target(0, p, c), scratch) };
        }
        return;
    }
    let blocks = Blocks::new(found, m);
    for block in 0..blocks.count {
        let rows = blocks.range(block);
        scratch.resize(rows.len() * k, 0.0);
        pack_block(&a.data[rows.start * a.row_stride..], rows.len(), k, a.row_stride, a.column_stride, scratch);
        for p in 0..count {
            let tile = Tile { rows: rows.len(), k, a: scratch.as_ptr(), b: panel(p), ahead: Ahead::of(panel(p)) };
            // SAFETY: sizes as asserted above.
            unsafe { tile.run(found, target(rows.start, p, c)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::panels::pack_panel;
    use super::super::reference::{one_by_one, values};
    use super::*;
    use crate::kernels::dispatch::isa;

    #[test]
    fn serial_product_on_part_of_the_inner_range() {
        let (m, k, n, from) = (17, 20, 12, 6);
        let (a, b) = (values(m * k, 6), values((from + k) * n, 7));
        let mut panels = vec![0.0; (from + k) * PANEL];
        pack_panel(&b, from + k, n, n, 1, 0, &mut panels);
        let want = one_by_one(&a, &b[from * n..], m, k, n);
        let mut c = vec![0.0f32; m * n];
        let left = Strided { data: &a, row_stride: k, column_stride: 1 };
        matmul_serial(isa(), left, m, k, &panels, from + k, from, n, false, &mut c, n, &mut Vec::new());
        assert_eq!(c, want);
    }
}
