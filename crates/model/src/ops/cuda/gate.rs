//! Activations by themselves, and the gated feed-forward part: gate and other stand side by side, `[r, 2·f]`.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::functions::{activated, slope};
use super::matrix::{Gpu, Matrix, ROW_THREADS, stretches};
use crate::kernels::activation::Activation;

#[cube(launch_unchecked)]
fn activate_kernel(
    u: &Array<f32>,
    grad: &Array<f32>,
    out: &mut Array<f32>,
    columns: usize,
    #[comptime] function: Activation,
    #[comptime] backward: bool,
) {
    let row = CUBE_POS_X as usize;
    let column = (CUBE_POS_Y * ROW_THREADS + UNIT_POS_X) as usize;
    if column >= columns {
        terminate!();
    }
    let at = row * columns + column;
    if comptime!(backward) {
        out[at] = grad[at] * slope(u[at], function);
    } else {
        out[at] = activated(u[at], function);
    }
}

#[cube(launch_unchecked)]
fn gated_kernel(gate_other: &Array<f32>, out: &mut Array<f32>, columns: usize, #[comptime] function: Activation) {
    let row = CUBE_POS_X as usize;
    let column = (CUBE_POS_Y * ROW_THREADS + UNIT_POS_X) as usize;
    if column >= columns {
        terminate!();
    }
    let gate = row * columns * 2 + column;
    out[row * columns + column] = activated(gate_other[gate], function) * gate_other[gate + columns];
}

#[cube(launch_unchecked)]
fn gated_backward_kernel(
    gate_other: &Array<f32>,
    grad: &Array<f32>,
    out: &mut Array<f32>,
    columns: usize,
    #[comptime] function: Activation,
) {
    let row = CUBE_POS_X as usize;
    let column = (CUBE_POS_Y * ROW_THREADS + UNIT_POS_X) as usize;
    if column >= columns {
        terminate!();
    }
    let gate = row * columns * 2 + column;
    let (u, other, own) = (gate_other[gate], gate_other[gate + columns], grad[row * columns + column]);
    out[gate] = own * other * slope(u, function);
    out[gate + columns] = own * activated(u, function);
}

/// `f(u)`, or `grad · f′(u)` where a gradient is given.
pub fn activate(function: Activation, u: &Matrix, grad: Option<&Matrix>) -> Matrix {
    let out = u.empty(u.rows, u.columns);
    let (count, threads) = stretches(u.rows, u.columns);
    // SAFETY: all matrices have the same rows and columns, without gaps.
    unsafe {
        activate_kernel::launch_unchecked::<Gpu>(
            u.client(),
            count,
            threads,
            u.argument(),
            grad.unwrap_or(u).argument(),
            out.argument(),
            u.columns,
            function,
            grad.is_some(),
        );
    }
    out
}

/// `f(gate) · other`, `[r, f]`
pub fn gated(function: Activation, gate_other: &Matrix) -> Matrix {
    let columns = gate_other.columns / 2;
    let out = gate_other.empty(gate_other.rows, columns);
    let (count, threads) = stretches(out.rows, columns);
    // SAFETY: both have the same rows, and the first twice the columns of the second.
    unsafe {
        gated_kernel::launch_unchecked::<Gpu>(
            out.client(),
            count,
            threads,
            gate_other.argument(),
            out.argument(),
            columns,
            function,
        );
    }
    out
}

/// Gradients of gate and other, side by side, from that of [`gated`]'s result.
pub fn gated_backward(function: Activation, gate_other: &Matrix, grad: &Matrix) -> Matrix {
    let out = gate_other.empty(gate_other.rows, gate_other.columns);
    let (count, threads) = stretches(grad.rows, grad.columns);
    // SAFETY: as above.
    unsafe {
        gated_backward_kernel::launch_unchecked::<Gpu>(
            out.client(),
            count,
            threads,
            gate_other.argument(),
            grad.argument(),
            out.argument(),
            grad.columns,
            function,
        );
    }
    out
}
