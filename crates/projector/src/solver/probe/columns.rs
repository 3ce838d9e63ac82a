//! Columns of a comparison: one hidden number of a place on all samples, centred, in `f64`. Sums have a fixed order; what
//! is computed at once is chosen so that it stays in the cache.

use rayon::prelude::*;

use super::Gathered;
use crate::solver::lanes::{add_dots, dot, rest_of_dot};
use crate::solver::least_squares::{HELD_OUT_EVERY, MOST_HELD_OUT};

/// Columns that are taken out of the samples at once: they lie side by side.
const TOGETHER: usize = 16;

/// Samples of a column that are worked on at once: they stay in the cache.
const SAMPLES: usize = 512;

/// Dot products that are computed at once.
pub(super) const DOTS: usize = 4;

/// As the solver holds samples out.
fn is_held_out(sample: usize) -> bool {
    let every = HELD_OUT_EVERY as usize;
    sample % every == every - 1 && sample / every < MOST_HELD_OUT
}

/// A column's values on the samples that are fitted and on those that are held out, less the mean of the former.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) fitted: Vec<f64>,
    pub(super) held_out: Vec<f64>,
}

impl Parts {
    pub(super) fn of(values: &[f64]) -> Self {
        let mut parts = Self::with_room(values.len());
        for (sample, value) in values.iter().enumerate() {
            parts.push(sample, *value);
        }
        parts.centre();
        parts
    }

    fn with_room(samples: usize) -> Self {
        Self { fitted: Vec::with_capacity(samples), held_out: Vec::new() }
    }

    fn push(&mut self, sample: usize, value: f64) {
        if is_held_out(sample) { self.held_out.push(value) } else { self.fitted.push(value) }
    }

    fn centre(&mut self) {
        let mean = self.fitted.iter().sum::<f64>() / self.fitted.len().max(1) as f64;
        for value in self.fitted.iter_mut().chain(&mut self.held_out) {
            *value -= mean;
        }
    }

    /// To variance one; values that never vary become zero.
    fn scale(&mut self) {
        let variance = dot(&self.fitted, &self.fitted) / self.fitted.len().max(1) as f64;
        let factor = if variance > 0.0 { 1.0 / variance.sqrt() } else { 0.0 };
        for value in self.fitted.iter_mut().chain(&mut self.held_out) {
            *value *= factor;
        }
    }

    /// Less the products of `columns` with `weights`, column by column.
    pub(super) fn less(&self, columns: &[Parts], weights: &[f64]) -> Self {
        let mut left = self.clone();
        subtract_all(&mut left.fitted, columns, weights, |column| &column.fitted);
        subtract_all(&mut left.held_out, columns, weights, |column| &column.held_out);
        left
    }
}

/// The columns of one place, centred, each of variance one.
pub(super) fn columns(gathered: &impl Gathered, place: usize, chunks: u64) -> Result<Vec<Parts>, String> {
    let features = gathered.read(&[place], 0..chunks)?;
    let mut columns = vec![Parts::with_room(0); gathered.hidden()];
    columns.par_chunks_mut(TOGETHER).enumerate().for_each(|(block, columns)| {
        for column in columns.iter_mut() {
            *column = Parts::with_room(features.len());
        }
        for (sample, (hidden, _)) in features.samples().enumerate() {
            for (column, value) in columns.iter_mut().zip(&hidden[block * TOGETHER..]) {
                column.push(sample, f64::from(*value));
            }
        }
        for column in columns {
            column.centre();
            column.scale();
        }
    });
    Ok(columns)
}

/// The dot products of each of at most [`DOTS`] columns with each of `others`: a row for each.
pub(super) fn products(columns: &[Parts], others: &[Parts], rows: &mut [Vec<f64>]) {
    let [a, b, c, d] = columns else {
        for (column, row) in columns.iter().zip(rows) {
            row.extend(others.iter().map(|other| dot(&column.fitted, &other.fitted)));
        }
        return;
    };
    let tile: [&[f64]; DOTS] = [&a.fitted, &b.fitted, &c.fitted, &d.fitted];
    let whole = a.fitted.len() / 8 * 8;
    for other in others {
        let mut sums = [[0.0; 8]; DOTS];
        add_dots(tile.map(|column| &column[..whole]), &other.fitted[..whole], &mut sums);
        for ((row, column), sums) in rows.iter_mut().zip(tile).zip(sums) {
            row.push(rest_of_dot(sums, &column[whole..], &other.fitted[whole..]));
        }
    }
}

/// `values −= Σ weight · column`, column by column, of the part of each column that `part` names.
pub(super) fn subtract_all(
    values: &mut [f64],
    columns: &[Parts],
    weights: &[f64],
    part: impl Fn(&Parts) -> &[f64] + Sync,
) {
    values.par_chunks_mut(SAMPLES).enumerate().for_each(|(block, values)| {
        for (column, weight) in columns.iter().zip(weights) {
            subtract(values, &part(column)[block * SAMPLES..], *weight);
        }
    });
}

/// `values −= factor · column`
pub(super) fn subtract(values: &mut [f64], column: &[f64], factor: f64) {
    for (value, entry) in values.iter_mut().zip(column) {
        *value -= factor * entry;
    }
}

pub(super) fn mean_absolute(errors: &[f64]) -> f64 {
    errors.iter().map(|error| error.abs()).sum::<f64>() / errors.len().max(1) as f64
}
