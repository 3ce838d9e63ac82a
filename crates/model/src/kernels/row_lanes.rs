//! A cell of a weight times rows that lie across the lanes of registers: the inner loop of `g·Wᵀ`.
//!
//! A register holds one inner index of 8 or 16 rows of `g`, and each number of the weight multiplies all of them. So the weight is
//! read where it lies, number by number along its contiguous axis, and never turned over; the rows are, once for all cells
//! beside each other, and the sums at the end. A lane holds one sum, so its chain has the order of a plain loop.

use super::dispatch::Isa;
use super::panels::{CELL, PANEL};
use super::tile::Ahead;

/// Lanes come in multiples of this.
pub const STEP: usize = 8;
/// Most lanes of a block of rows.
pub const MOST_LANES: usize = 64;

/// Lanes that a block of `rows` rows takes.
pub fn lanes(rows: usize) -> usize {
    rows.next_multiple_of(STEP)
}

/// The chains of a cell's sums go on: `sums[i][l] += Σⱼ cell[i][j]·g[j][l]`, `j` ascending over the rows of `g [·, lanes]`; `fresh`
/// sums begin at zero. `ahead` is fetched meanwhile.
pub fn add(found: Isa, lanes: usize, g: &[f32], cell: &[f32; CELL], ahead: Ahead, sums: &mut [f32], fresh: bool) {
    assert!(lanes > 0 && lanes.is_multiple_of(STEP) && lanes <= MOST_LANES, "{lanes} lanes");
    assert!(g.len() <= PANEL * lanes && sums.len() == PANEL * lanes, "{lanes} lanes do not fit");
    let job = Job { lanes, columns: g.len() / lanes, g: g.as_ptr(), cell, ahead, sums: sums.as_mut_ptr(), fresh };
    match found {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this kind is only made after the CPU reported the feature; the sizes were checked.
        Isa::Avx512 => unsafe { x86::add_avx512(&job) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::add_avx2(&job) },
        Isa::Portable => add_portable(lanes, g, cell, sums, fresh),
    }
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only registers need it"))]
struct Job<'a> {
    lanes: usize,
    /// Rows of `g`.
    columns: usize,
    g: *const f32,
    cell: &'a [f32; CELL],
    ahead: Ahead,
    sums: *mut f32,
    fresh: bool,
}

fn add_portable(lanes: usize, g: &[f32], cell: &[f32; CELL], sums: &mut [f32], fresh: bool) {
    for (weights, sums) in cell.as_chunks::<PANEL>().0.iter().zip(sums.chunks_exact_mut(lanes)) {
        if fresh {
            sums.fill(0.0);
        }
        for (weight, g) in weights.iter().zip(g.chunks_exact(lanes)) {
            for (sum, g) in sums.iter_mut().zip(g) {
                *sum = weight.mul_add(*g, *sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::tile::Ahead;
    use super::{Job, PANEL};

    // Pointers move by `wrapping_add`, and numbers come by intrinsics: the development profile would check each of the inner loop's
    // accesses.

    /// Defines `$name::<V, I>`: `V` registers of `$width` lanes from lane `from` on, `I` of the cell's rows at a time.
    macro_rules! product {
        ($name:ident, $features:literal, $width:literal, $zero:ident, $load:ident, $store:ident, $spread:ident, $fma:ident) => {
            /// # Safety
            /// `g` holds `columns` rows of `lanes` numbers, `sums` a row for each of the cell's; the lanes from `from` on are as
            /// many as the registers hold; the CPU has the features.
            #[target_feature(enable = $features)]
            unsafe fn $name<const V: usize, const I: usize>(job: &Job<'_>, from: usize, mut ahead: Ahead) {
                let Job { lanes, columns, .. } = *job;
                // SAFETY: the caller's sizes.
                unsafe {
                    for first in (0..PANEL).step_by(I) {
                        if first == 2 * I {
                            ahead = Ahead::nothing(job.cell);
                        }
                        let mut cell = job.cell.as_ptr().add(first * PANEL);
                        let sums = job.sums.add(first * lanes + from);
                        let mut g = job.g.add(from);
                        let mut acc = [[$zero(); V]; I];
                        if !job.fresh {
                            for (i, acc) in acc.iter_mut().enumerate() {
                                for (v, acc) in acc.iter_mut().enumerate() {
                                    *acc = $load(sums.add(i * lanes + v * $width));
                                }
                            }
                        }
                        for _ in 0..columns {
                            let mut x = [$zero(); V];
                            for (v, x) in x.iter_mut().enumerate() {
                                *x = $load(g.wrapping_add(v * $width));
                            }
                            ahead.fetch_line();
                            for (i, acc) in acc.iter_mut().enumerate() {
                                let weight = $spread(_mm_load_ss(cell.wrapping_add(i * PANEL)));
                                for (acc, x) in acc.iter_mut().zip(x) {
                                    *acc = $fma(weight, x, *acc);
                                }
                            }
                            cell = cell.wrapping_add(1);
                            g = g.wrapping_add(lanes);
                        }
                        for (i, acc) in acc.iter().enumerate() {
                            for (v, acc) in acc.iter().enumerate() {
                                $store(sums.add(i * lanes + v * $width), *acc);
                            }
                        }
                    }
                }
            }
        };
    }

    product!(
        sixteen,
        "avx512f",
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_broadcastss_ps,
        _mm512_fmadd_ps
    );
    product!(
        eight_of_32_registers,
        "avx512f,avx512vl,avx2,fma",
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_broadcastss_ps,
        _mm256_fmadd_ps
    );
    product!(
        eight,
        "avx2,fma",
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_broadcastss_ps,
        _mm256_fmadd_ps
    );

    /// # Safety
    /// The sizes of `job` fit, and the CPU has AVX-512 with its short vectors.
    pub unsafe fn add_avx512(job: &Job<'_>) {
        let whole = job.lanes / 16;
        // SAFETY: the caller's; the registers together have as many lanes as there are.
        unsafe {
            match whole {
                0 => {}
                1 => sixteen::<1, 16>(job, 0, job.ahead),
                2 => sixteen::<2, 8>(job, 0, job.ahead),
                3 => sixteen::<3, 8>(job, 0, job.ahead),
                4 => sixteen::<4, 4>(job, 0, job.ahead),
                other => unreachable!("{other} registers of lanes"),
            }
            if !job.lanes.is_multiple_of(16) {
                let ahead = if whole == 0 { job.ahead } else { Ahead::nothing(job.cell) };
                eight_of_32_registers::<1, 16>(job, whole * 16, ahead);
            }
        }
    }

    /// # Safety
    /// The sizes of `job` fit, and the CPU has AVX2 and FMA.
    pub unsafe fn add_avx2(job: &Job<'_>) {
        let mut from = 0;
        while from < job.lanes {
            let registers = (job.lanes - from) / 8;
            let ahead = if from == 0 { job.ahead } else { Ahead::nothing(job.cell) };
            // SAFETY: the caller's; no more lanes than are left.
            unsafe {
                match registers {
                    1 => eight::<1, 8>(job, from, ahead),
                    2 | 4 => eight::<2, 4>(job, from, ahead),
                    _ => eight::<3, 4>(job, from, ahead),
                }
            }
            from += match registers {
                1 => 8,
                2 | 4 => 16,
                _ => 24,
            };
        }
    }
}
