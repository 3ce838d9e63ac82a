//! Matrix products with a right-hand side that is packed once: the frozen weights, and attention's keys and values.
//! Called by the flex operations and by the attention kernel.
//!
//! Layout. The right-hand side `b [k, n]` is cut into panels of [`PANEL`] columns; a panel holds its `k` rows of
//! `PANEL` floats one after another, so a product with few rows reads memory strictly forwards, at the speed of
//! memory. The left-hand side is copied into blocks of a few rows, stored by column. One tile (block × panel) keeps
//! its sums in registers over the whole of `k`; there is no blocking of `k`. Each output element is therefore
//! `fma(a[k−1], b[k−1], … fma(a[0], b[0], 0))`, whatever the tile, the thread count or the instruction set.
//!
//! The scheme follows BLIS (Van Zee and van de Geijn, 2015), without its loop over `k`.

use rayon::prelude::*;

use super::dispatch::{Isa, isa};

/// Columns of a panel.
pub const PANEL: usize = 32;

/// Rows of the largest tile.
const MOST_ROWS: usize = 14;

/// Products below this many multiply-adds are done by one thread.
const PARALLEL_FROM: usize = 1 << 18;

/// A right-hand side in panels. Columns past `n` in the last panel are zero.
#[derive(Debug, Clone)]
pub struct Packed {
    k: usize,
    n: usize,
    panels: Vec<f32>,
}

impl Packed {
    /// Packs `b [k, n]`, element `(i, j)` at `i·row_stride + j·column_stride`.
    pub fn new(b: &[f32], k: usize, n: usize, row_stride: usize, column_stride: usize) -> Self {
        let mut panels = vec![0.0f32; n.div_ceil(PANEL) * k * PANEL];
        if k > 0 {
            panels
                .par_chunks_mut(k * PANEL)
                .enumerate()
                .for_each(|(p, panel)| pack_panel(b, k, n, row_stride, column_stride, p, panel));
        }
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

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.panels.len() * size_of::<f32>()
    }
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

/// [`matmul`] with a chosen instruction set.
pub fn matmul_with(found: Isa, a: &[f32], m: usize, b: &Packed, epilogue: Epilogue<'_>, c: &mut [f32]) {
    let (k, n) = (b.k, b.n);
    assert_eq!(a.len(), m * k, "left-hand side is not [{m}, {k}]");
    assert_eq!(c.len(), m * n, "result is not [{m}, {n}]");
    if let Some(bias) = epilogue.bias {
        assert_eq!(bias.len(), n, "bias is not [{n}]");
    }
    if m == 0 || n == 0 {
        return;
    }
    let parallel = m * n * k >= PARALLEL_FROM && rayon::current_num_threads() > 1;
    let blocks = Blocks::new(found, m);
    let mut packed_a = vec![0.0f32; m * k];
    if parallel && m > 64 {
        let mut rest = packed_a.as_mut_slice();
        let mut parts = Vec::with_capacity(blocks.count);
        for block in 0..blocks.count {
            let rows = blocks.range(block);
            let (part, tail) = rest.split_at_mut(rows.len() * k);
            parts.push((rows, part));
            rest = tail;
        }
        parts.into_par_iter().for_each(|(rows, part)| {
            pack_block(&a[rows.start * k..], rows.len(), k, k, 1, part);
        });
    } else {
        for block in 0..blocks.count {
            let rows = blocks.range(block);
            pack_block(&a[rows.start * k..], rows.len(), k, k, 1, &mut packed_a[rows.start * k..rows.end * k]);
        }
    }

    let panels = n.div_ceil(PANEL);
    let groups = blocks.groups(k);
    let c = Shared(c.as_mut_ptr());
    let run = |group: &std::ops::Range<usize>, p: usize| {
        let panel = &b.panels[p * k * PANEL..(p + 1) * k * PANEL];
        let first = p * PANEL;
        let width = PANEL.min(n - first);
        for block in group.clone() {
            let rows = blocks.range(block);
            let tile = Tile {
                rows: rows.len(),
                k,
                a: packed_a[rows.start * k..].as_ptr(),
                b: panel.as_ptr(),
                // SAFETY: row `rows.start` and column `first` lie inside `c`; panels write disjoint columns.
                c: unsafe { c.get().add(rows.start * n + first) },
                ldc: n,
                width,
                bias: epilogue.bias.map(|bias| bias[first..].as_ptr()),
                accumulate: epilogue.accumulate,
            };
            // SAFETY: the pointers cover `rows.len()·k`, `k·PANEL` and the tile of `c`, as asserted above.
            unsafe { tile.run(found) };
        }
    };
    if parallel {
        // One contiguous run of panels per thread, so that each thread streams through memory.
        let tasks = rayon::current_num_threads().min(panels);
        (0..tasks).into_par_iter().for_each(|t| {
            for group in &groups {
                (panels * t / tasks..panels * (t + 1) / tasks).for_each(|p| run(group, p));
            }
        });
    } else {
        for group in &groups {
            (0..panels).for_each(|p| run(group, p));
        }
    }
}

/// A dense left-hand side with strides, for products inside one attention head.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    pub data: &'a [f32],
    pub row_stride: usize,
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
    let blocks = Blocks::new(found, m);
    for block in 0..blocks.count {
        let rows = blocks.range(block);
        scratch.resize(rows.len() * k, 0.0);
        pack_block(&a.data[rows.start * a.row_stride..], rows.len(), k, a.row_stride, a.column_stride, scratch);
        for p in 0..n.div_ceil(PANEL) {
            let first = p * PANEL;
            let tile = Tile {
                rows: rows.len(),
                k,
                a: scratch.as_ptr(),
                b: panels[(p * b_rows + b_from) * PANEL..].as_ptr(),
                c: c[rows.start * ldc + first..].as_mut_ptr(),
                ldc,
                width: PANEL.min(n - first),
                bias: None,
                accumulate,
            };
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
            Isa::Avx2 => 3,
            Isa::Portable => 4,
        };
        Self { rows, count: rows.div_ceil(most) }
    }

    /// Runs of blocks whose packed rows stay in a core's cache while all panels pass by. Where `k` is so large that a
    /// panel alone fills the cache, the rows pass by instead.
    fn groups(&self, k: usize) -> Vec<std::ops::Range<usize>> {
        const CACHE: usize = 512 << 10;
        let row_bytes = k * size_of::<f32>();
        if row_bytes * PANEL > CACHE / 2 || self.count == 0 {
            return std::iter::once(0..self.count).collect();
        }
        let block_rows = self.rows.div_ceil(self.count);
        let per_group = (CACHE / (row_bytes * block_rows).max(1)).max(1);
        (0..self.count).step_by(per_group).map(|first| first..(first + per_group).min(self.count)).collect()
    }

    fn range(&self, block: usize) -> std::ops::Range<usize> {
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

/// One block of rows times one panel.
struct Tile {
    rows: usize,
    k: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    ldc: usize,
    width: usize,
    bias: Option<*const f32>,
    accumulate: bool,
}

impl Tile {
    /// # Safety
    /// `a` holds `k·rows`, `b` holds `k·PANEL`, `bias` holds `width` floats, and `c` is valid for
    /// `rows` rows of `width` floats, `ldc` apart. The CPU supports `found`.
    unsafe fn run(&self, found: Isa) {
        // Not cleared: the product writes the rows it is asked for, and clearing 14 would cost as much as a short product.
        let mut buffer = std::mem::MaybeUninit::<[[f32; PANEL]; MOST_ROWS]>::uninit();
        let sums = buffer.as_mut_ptr().cast::<[f32; PANEL]>();
        // SAFETY: the caller's.
        unsafe {
            match found {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => x86::product_avx512(self.rows, self.k, self.a, self.b, sums),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::product_avx2(self.rows, self.k, self.a, self.b, sums),
                Isa::Portable => product_portable(self.rows, self.k, self.a, self.b, sums),
            }
            let sums = std::slice::from_raw_parts_mut(sums, self.rows);
            for (i, sum) in sums.iter_mut().enumerate() {
                if let Some(bias) = self.bias {
                    let bias = std::slice::from_raw_parts(bias, self.width);
                    for (s, b) in sum.iter_mut().zip(bias) {
                        *s += b;
                    }
                }
                if self.width == PANEL && !self.accumulate {
                    // A whole panel's row moves in registers; a slice copy of unknown length would be a call.
                    self.c.add(i * self.ldc).cast::<[f32; PANEL]>().write_unaligned(*sum);
                    continue;
                }
                let out = std::slice::from_raw_parts_mut(self.c.add(i * self.ldc), self.width);
                if self.accumulate {
                    for (o, s) in out.iter_mut().zip(sum.iter()) {
                        *o += s;
                    }
                } else {
                    out.copy_from_slice(&sum[..self.width]);
                }
            }
        }
    }
}

/// # Safety
/// As [`Tile::run`]; `rows` is at most 4.
unsafe fn product_portable(rows: usize, k: usize, a: *const f32, b: *const f32, sums: *mut [f32; PANEL]) {
    // SAFETY: the caller's sizes.
    let (a, b) = unsafe { (std::slice::from_raw_parts(a, rows * k), std::slice::from_raw_parts(b, k * PANEL)) };
    // SAFETY: the caller's buffer has room for `rows` rows; they are cleared before they are read.
    let sums = unsafe {
        std::ptr::write_bytes(sums, 0, rows);
        std::slice::from_raw_parts_mut(sums, rows)
    };
    for (column, row) in a.chunks_exact(rows).zip(b.chunks_exact(PANEL)) {
        for (sum, value) in sums.iter_mut().zip(column) {
            for (s, r) in sum.iter_mut().zip(row) {
                *s = value.mul_add(*r, *s);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::PANEL;

    /// Rows of the panel fetched ahead of use; hides the latency of memory when the weights do not fit a cache.
    const AHEAD: usize = 24;

    /// Calls `$tile::<rows>` for a run-time number of rows.
    macro_rules! by_rows {
        ($rows:expr, $tile:ident, $args:tt, [$($n:literal)*]) => {
            match $rows {
                $($n => $tile::<$n> $args,)*
                other => unreachable!("tile of {other} rows"),
            }
        };
    }

    #[target_feature(enable = "avx512f")]
    pub unsafe fn product_avx512(rows: usize, k: usize, a: *const f32, b: *const f32, sums: *mut [f32; PANEL]) {
        // SAFETY: the caller's sizes.
        unsafe { by_rows!(rows, tile_avx512, (k, a, b, sums), [1 2 3 4 5 6 7 8 9 10 11 12 13 14]) }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn tile_avx512<const R: usize>(k: usize, mut a: *const f32, mut b: *const f32, sums: *mut [f32; PANEL]) {
        // SAFETY: the loop reads `k·R` floats of `a` and `k·PANEL` of `b`; prefetching past the end is harmless.
        unsafe {
            let mut acc = [[_mm512_setzero_ps(); 2]; R];
            for _ in 0..k {
                let b0 = _mm512_loadu_ps(b);
                let b1 = _mm512_loadu_ps(b.add(16));
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD * PANEL).cast());
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD * PANEL + 16).cast());
                for (i, acc) in acc.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(*a.add(i));
                    acc[0] = _mm512_fmadd_ps(value, b0, acc[0]);
                    acc[1] = _mm512_fmadd_ps(value, b1, acc[1]);
                }
                a = a.add(R);
                b = b.add(PANEL);
            }
            for (i, acc) in acc.iter().enumerate() {
                let sum = sums.add(i).cast::<f32>();
                _mm512_storeu_ps(sum, acc[0]);
                _mm512_storeu_ps(sum.add(16), acc[1]);
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn product_avx2(rows: usize, k: usize, a: *const f32, b: *const f32, sums: *mut [f32; PANEL]) {
        // SAFETY: the caller's sizes.
        unsafe { by_rows!(rows, tile_avx2, (k, a, b, sums), [1 2 3]) }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile_avx2<const R: usize>(k: usize, mut a: *const f32, mut b: *const f32, sums: *mut [f32; PANEL]) {
        // SAFETY: as in `tile_avx512`.
        unsafe {
            let mut acc = [[_mm256_setzero_ps(); 4]; R];
            for _ in 0..k {
                let row = [
                    _mm256_loadu_ps(b),
                    _mm256_loadu_ps(b.add(8)),
                    _mm256_loadu_ps(b.add(16)),
                    _mm256_loadu_ps(b.add(24)),
                ];
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD * PANEL).cast());
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD * PANEL + 16).cast());
                for (i, acc) in acc.iter_mut().enumerate() {
                    let value = _mm256_set1_ps(*a.add(i));
                    for (acc, row) in acc.iter_mut().zip(row) {
                        *acc = _mm256_fmadd_ps(value, row, *acc);
                    }
                }
                a = a.add(R);
                b = b.add(PANEL);
            }
            for (i, acc) in acc.iter().enumerate() {
                let sum = sums.add(i).cast::<f32>();
                for (j, acc) in acc.iter().enumerate() {
                    _mm256_storeu_ps(sum.add(8 * j), *acc);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
            let packed = Packed::new(&b, k, n, n, 1);
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
        let packed = Packed::new(&b, k, n, 1, k);
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
}
