//! Matrix products with a right-hand side that is packed once: the frozen weights, and attention's keys and values.
//!
//! The right-hand side lies in [`super::panels`]. With AVX2 [`super::avx2`] multiplies rows with a panel; otherwise the
//! left-hand side is copied into blocks of a few rows, stored by column, and [`super::tile`] multiplies one block with one
//! panel.
//!
//! The scheme follows BLIS (Van Zee and van de Geijn, 2015).

use std::ops::Range;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::dispatch::{Isa, isa};
use super::panels::{PANEL, Packed, Panels};
use super::tile::{Element, MOST_ROWS, Target, Tile};

/// Products below this many multiply-adds are done by one thread.
const PARALLEL_FROM: usize = 1 << 18;

/// What is added to the product before it is stored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// One value per column.
    pub bias: Option<&'a [f32]>,
    /// Add to what `c` holds instead of replacing it.
    pub accumulate: bool,
}

/// `c [m, n] = a [m, k] · b (+ bias) (+ c)`, both dense and row-major, on all threads of the pool.
pub fn matmul(a: &[f32], m: usize, b: &Packed, epilogue: Epilogue<'_>, c: &mut [f32]) {
    matmul_with(isa(), a, m, b, epilogue, c);
}

/// `a [m, k] · b (+ bias)`. The result's memory is not cleared first, which one thread would have to do.
pub fn matmul_new(a: &[f32], m: usize, b: &Packed, bias: Option<&[f32]>) -> Vec<f32> {
    let mut c = Vec::with_capacity(m * b.n());
    let epilogue = Epilogue { bias, accumulate: false };
    // SAFETY: the capacity is as large as the result, every element of which the product writes and none of which it
    // reads.
    unsafe {
        any_product(isa(), a, m, b, epilogue, Shared(c.as_mut_ptr()));
        c.set_len(m * b.n());
    }
    c
}

/// [`matmul`] with a chosen instruction set.
pub fn matmul_with(found: Isa, a: &[f32], m: usize, b: &Packed, epilogue: Epilogue<'_>, c: &mut [f32]) {
    assert_eq!(c.len(), m * b.n(), "result is not [{m}, {}]", b.n());
    // SAFETY: `c` is as large as the result.
    unsafe { any_product(found, a, m, b, epilogue, Shared(c.as_mut_ptr())) };
}

/// # Safety
/// As [`product`].
unsafe fn any_product(found: Isa, a: &[f32], m: usize, b: &Packed, epilogue: Epilogue<'_>, c: Shared) {
    // SAFETY: the caller's.
    unsafe {
        match b.panels() {
            Panels::F32(panels) => product(found, a, m, (b.k(), b.n()), panels, epilogue, c),
            Panels::Bf16(panels) => product(found, a, m, (b.k(), b.n()), panels, epilogue, c),
            Panels::F16(panels) => product(found, a, m, (b.k(), b.n()), panels, epilogue, c),
        }
    }
}

/// # Safety
/// `c` is valid for `m·n` floats, and nobody else uses them. They are read only to accumulate.
unsafe fn product<E: Element>(
    found: Isa,
    a: &[f32],
    m: usize,
    (k, n): (usize, usize),
    panels: &[E],
    epilogue: Epilogue<'_>,
    c: Shared,
) {
    assert_eq!(a.len(), m * k, "left-hand side is not [{m}, {k}]");
    if let Some(bias) = epilogue.bias {
        assert_eq!(bias.len(), n, "bias is not [{n}]");
    }
    if m == 0 || n == 0 {
        return;
    }
    let parallel = m * n * k >= PARALLEL_FROM && rayon::current_num_threads() > 1;
    let blocks = Blocks::new(found, m);
    let packed_a = if reads_rows_in_place(found) { Vec::new() } else { pack(a, k, &blocks, parallel && m > 64) };

    let count = n.div_ceil(PANEL);
    let groups = blocks.groups(k);
    let run = |group: &Range<usize>, p: usize, scratch: &mut Vec<f32>| {
        let panel = &panels[p * k * PANEL..(p + 1) * k * PANEL];
        let first = p * PANEL;
        let to = Target {
            // SAFETY: column `first` lies inside the first row of `c`; panels write disjoint columns.
            c: unsafe { c.get().add(first) },
            ldc: n,
            width: PANEL.min(n - first),
            bias: epilogue.bias.map(|bias| bias[first..].as_ptr()),
            accumulate: epilogue.accumulate,
        };
        #[cfg(target_arch = "x86_64")]
        if found == Isa::Avx2 {
            let rows = blocks.range(group.start).start..blocks.range(group.end - 1).end;
            let left = avx2::Left { data: a[rows.start * k..].as_ptr(), row: k, column: 1 };
            // SAFETY: the slices hold as many rows, as asserted above.
            unsafe { avx2::product(rows.len(), k, left, panel.as_ptr(), to.from(rows.start, 0), scratch) };
            return;
        }
        for block in group.clone() {
            let rows = blocks.range(block);
            let a = packed_a[rows.start * k..rows.end * k].as_ptr();
            let tile = Tile { rows: rows.len(), k, a, b: panel.as_ptr(), to: to.from(rows.start, 0) };
            // SAFETY: the pointers cover `rows.len()·k`, `k·PANEL` and the tile of `c`, as asserted above.
            unsafe { tile.run(found) };
        }
    };
    if parallel {
        // One contiguous run of panels per thread, so that each thread streams through memory.
        let tasks = rayon::current_num_threads().min(count);
        (0..tasks).into_par_iter().for_each_init(Vec::new, |scratch, t| {
            for group in &groups {
                (count * t / tasks..count * (t + 1) / tasks).for_each(|p| run(group, p, scratch));
            }
        });
    } else {
        let mut scratch = Vec::new();
        for group in &groups {
            (0..count).for_each(|p| run(group, p, &mut scratch));
        }
    }
}

/// Whether `found`'s products read the left-hand side where it lies.
fn reads_rows_in_place(found: Isa) -> bool {
    match found {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => true,
        _ => false,
    }
}

/// All blocks of `a [m, k]`, one after another, each stored by column.
fn pack(a: &[f32], k: usize, blocks: &Blocks, parallel: bool) -> Vec<f32> {
    let mut packed = vec![0.0f32; a.len()];
    let mut rest = packed.as_mut_slice();
    let mut parts = Vec::with_capacity(blocks.count);
    for block in 0..blocks.count {
        let rows = blocks.range(block);
        let (part, tail) = rest.split_at_mut(rows.len() * k);
        parts.push((rows, part));
        rest = tail;
    }
    let fill = |(rows, part): (Range<usize>, &mut [f32])| {
        pack_block(&a[rows.start * k..], rows.len(), k, k, 1, part);
    };
    if parallel {
        parts.into_par_iter().for_each(fill);
    } else {
        parts.into_iter().for_each(fill);
    }
    packed
}

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
            let tile = Tile { rows: rows.len(), k, a: scratch.as_ptr(), b: panel(p), to: target(rows.start, p, c) };
            // SAFETY: sizes as asserted above.
            unsafe { tile.run(found) };
        }
    }
}

/// Copies `rows` rows of `a` into `out [k, rows]`.
fn pack_block(a: &[f32], rows: usize, k: usize, row_stride: usize, column_stride: usize, out: &mut [f32]) {
    if column_stride != 1 {
        for (j, column) in out.chunks_exact_mut(rows).enumerate().take(k) {
            for (i, value) in column.iter_mut().enumerate() {
                *value = a[i * row_stride + j * column_stride];
            }
        }
        return;
    }
    // A few columns at a time: reads stay within a cache line of each row, writes are contiguous.
    const COLUMNS: usize = 16;
    for (chunk, columns) in out[..rows * k].chunks_mut(rows * COLUMNS).enumerate() {
        let first = chunk * COLUMNS;
        let count = columns.len() / rows;
        for i in 0..rows {
            let row = &a[i * row_stride + first..][..count];
            for (j, value) in row.iter().enumerate() {
                columns[j * rows + i] = *value;
            }
        }
    }
}

/// Rows cut into blocks of nearly equal size that fit the registers.
struct Blocks {
    rows: usize,
    count: usize,
}

impl Blocks {
    fn new(found: Isa, rows: usize) -> Self {
        let most = match found {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => MOST_ROWS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::MOST_ROWS,
            Isa::Portable => 4,
        };
        Self { rows, count: rows.div_ceil(most) }
    }

    /// Runs of blocks whose packed rows stay in a core's cache while all panels pass by. Where `k` is so large that a
    /// panel alone fills the cache, the rows pass by instead.
    fn groups(&self, k: usize) -> Vec<Range<usize>> {
        const CACHE: usize = 512 << 10;
        let row_bytes = k * size_of::<f32>();
        if row_bytes * PANEL > CACHE / 2 || self.count == 0 {
            return std::iter::once(0..self.count).collect();
        }
        let block_rows = self.rows.div_ceil(self.count);
        let per_group = (CACHE / (row_bytes * block_rows).max(1)).max(1);
        (0..self.count).step_by(per_group).map(|first| first..(first + per_group).min(self.count)).collect()
    }

    fn range(&self, block: usize) -> Range<usize> {
        self.rows * block / self.count..self.rows * (block + 1) / self.count
    }
}

/// A pointer that the tasks of one product share; each writes its own columns.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: tasks write disjoint columns, and the product waits for all of them.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(self) -> *mut f32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use numalign_config::Dtype;

    use super::super::panels::pack_panel;
    use super::*;
    use crate::kernels::dispatch::available;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            })
            .collect()
    }

    fn one_by_one(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
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

    #[test]
    fn bits_do_not_depend_on_instruction_set_or_neighbours() {
        for (m, k, n) in [(1, 1, 1), (2, 7, 33), (5, 60, 130), (15, 64, 32), (70, 96, 100), (8, 300, 31)] {
            let (a, b) = (values(m * k, 1), values(k * n, 2));
            let want = one_by_one(&a, &b, m, k, n);
            let packed = Packed::new(&b, k, n, n, 1, Dtype::F32);
            for found in available() {
                let mut c = vec![f32::NAN; m * n];
                matmul_with(found, &a, m, &packed, Epilogue::default(), &mut c);
                assert_eq!(c, want, "{found:?} {m}x{k}x{n}");
                let mut row = vec![f32::NAN; n];
                matmul_with(found, &a[..k], 1, &packed, Epilogue::default(), &mut row);
                assert_eq!(row, want[..n], "lone row, {found:?} {m}x{k}x{n}");
            }
        }
    }

    #[test]
    fn transposed_packing_bias_and_accumulation() {
        let (m, k, n) = (3, 5, 40);
        let (a, b, bias) = (values(m * k, 3), values(n * k, 4), values(n, 5));
        let packed = Packed::new(&b, k, n, 1, k, Dtype::F32);
        let mut c = vec![1.0f32; m * n];
        matmul(&a, m, &packed, Epilogue { bias: Some(&bias), accumulate: true }, &mut c);
        for i in 0..m {
            for j in 0..n {
                let mut sum = 0.0f32;
                for l in 0..k {
                    sum = a[i * k + l].mul_add(b[j * k + l], sum);
                }
                assert_eq!(c[i * n + j], 1.0 + (sum + bias[j]));
            }
        }
    }

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

    /// Weights of 16 bits give the bits of a product with the same weights in `f32`.
    #[test]
    fn rounded_weights_multiply_in_f32() {
        for (m, k, n) in [(1, 5, 3), (8, 300, 31), (33, 65, 100)] {
            let (a, b) = (values(m * k, 8), values(k * n, 9));
            for dtype in [Dtype::Bf16, Dtype::F16] {
                let rounded: Vec<f32> = b
                    .iter()
                    .map(|v| {
                        if dtype == Dtype::F16 {
                            half::f16::from_f32(*v).to_f32()
                        } else {
                            half::bf16::from_f32(*v).to_f32()
                        }
                    })
                    .collect();
                let want = one_by_one(&a, &rounded, m, k, n);
                let packed = Packed::new(&b, k, n, n, 1, dtype);
                for found in available() {
                    let mut c = vec![f32::NAN; m * n];
                    matmul_with(found, &a, m, &packed, Epilogue::default(), &mut c);
                    assert_eq!(c, want, "{dtype:?} {found:?} {m}x{k}x{n}");
                }
            }
        }
    }
}
