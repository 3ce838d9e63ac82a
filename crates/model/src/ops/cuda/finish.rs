//! What follows a matrix product, in one pass over its result: the sum over the parts that it was computed in, the bias, and a
//! residual or an activation.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::functions::{activated, slope};
use super::matrix::{Gpu, Matrix, ROW_THREADS, stretches};
use crate::kernels::activation::Activation;

/// What happens to a product `p`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    /// `p`
    Plain,
    /// `p + other`
    Add,
    /// `p`, and `f(p)` beside it
    Activate(Activation),
    /// `p · f′(other)`
    Slope(Activation),
}

/// The same, with the matrices that it takes.
pub enum Epilogue {
    /// Nothing more.
    Plain,
    /// This is added.
    Add(Matrix),
    /// An activation of the result is wanted too.
    Activate(Activation),
    /// The result is multiplied with an activation's slope at this place.
    Slope(Activation, Matrix),
}

#[cube(launch_unchecked)]
fn finish_kernel(
    product: &Array<f32>,
    bias: &Array<f32>,
    other: &Array<f32>,
    out: &mut Array<f32>,
    active: &mut Array<f32>,
    columns: usize,
    product_stride: usize,
    other_stride: usize,
    parts: usize,
    part_size: usize,
    #[comptime] biased: bool,
    #[comptime] step: Step,
) {
    let row = CUBE_POS_X as usize;
    let column = (CUBE_POS_Y * ROW_THREADS + UNIT_POS_X) as usize;
    if column >= columns {
        terminate!();
    }
    let at = row * columns + column;
    let mut from = row * product_stride + column;
    let mut p = product[from];
    let mut part = 1;
    while part < parts {
        from += part_size;
        p += product[from];
        part += 1;
    }
    if comptime!(biased) {
        p += bias[column];
    }
    if comptime!(matches!(step, Step::Add)) {
        p += other[row * other_stride + column];
    }
    if comptime!(matches!(step, Step::Slope(_))) {
        p *= slope(other[row * other_stride + column], comptime!(function_of(step)));
    }
    out[at] = p;
    if comptime!(matches!(step, Step::Activate(_))) {
        active[at] = activated(p, comptime!(function_of(step)));
    }
}

/// The activation of a step that has one.
fn function_of(step: Step) -> Activation {
    match step {
        Step::Activate(function) | Step::Slope(function) => function,
        Step::Plain | Step::Add => Activation::Relu,
    }
}

/// The result of a product that lies in `parts` equal parts one after another in `product`, each `[rows, columns]`, and its
/// activation where one is asked for.
pub fn finish(
    product: &Matrix,
    parts: usize,
    [rows, columns]: [usize; 2],
    bias: Option<&Matrix>,
    epilogue: Epilogue,
) -> (Matrix, Option<Matrix>) {
    let out = product.empty(rows, columns);
    let (step, other) = match epilogue {
        Epilogue::Plain => (Step::Plain, None),
        Epilogue::Add(other) => (Step::Add, Some(other)),
        Epilogue::Activate(function) => (Step::Activate(function), None),
        Epilogue::Slope(function, other) => (Step::Slope(function), Some(other)),
    };
    let active = matches!(step, Step::Activate(_)).then(|| out.empty(rows, columns));
    let (count, threads) = stretches(rows, columns);
    // SAFETY: rows and columns are those of all matrices that are read or written; the others are not touched.
    unsafe {
        finish_kernel::launch_unchecked::<Gpu>(
            product.client(),
            count,
            threads,
            product.argument(),
            bias.unwrap_or(product).argument(),
            other.as_ref().unwrap_or(product).argument(),
            out.argument(),
            active.as_ref().unwrap_or(&out).argument(),
            columns,
            product.stride,
            other.as_ref().map_or(0, |other| other.stride),
            parts,
            rows * product.stride,
            bias.is_some(),
            step,
        );
    }
    (out, active)
}
