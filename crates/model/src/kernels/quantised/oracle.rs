//! Records against the numbers that the loader makes of the same blocks, to the bit, and products against their chains.

use half::f16;

use super::super::dispatch::available;
use super::super::matmul::{Direction, Epilogue, matmul_with};
use super::super::panels::{CELL, PANEL, Packed};
use super::super::reference::{one_by_one, turned, values};
use super::layout::Form;
use super::{make, pack};
use crate::load::gguf::dequantise::dequantise;
use crate::load::gguf::kind::Kind;

fn kind(form: Form) -> (Kind, usize) {
    let kind = match form {
        Form::Q8_0 => Kind::Q8_0,
        Form::Q4_0 => Kind::Q4_0,
        Form::Q4_1 => Kind::Q4_1,
        Form::Q5_0 => Kind::Q5_0,
        Form::Q5_1 => Kind::Q5_1,
        Form::Q4_K => Kind::Q4_K,
        Form::Q5_K => Kind::Q5_K,
        Form::Q6_K => Kind::Q6_K,
    };
    (kind, kind.block().1 as usize)
}

/// Blocks of random bits whose scales are finite, some of them below the normal numbers.
fn blocks(form: Form, count: usize) -> Vec<u8> {
    let size = kind(form).1;
    let mut state = 7u32;
    let mut bytes = Vec::with_capacity(count * size);
    for _ in 0..count * size {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.push((state >> 24) as u8);
    }
    for (i, block) in bytes.chunks_exact_mut(size).enumerate() {
        let scale = |at: usize| f16::from_f32([0.013, -0.7, 3.1e-6, 0.0, -2.4e-7][(i + at) % 5]).to_le_bytes();
        let at = if form == Form::Q6_K { 208 } else { 0 };
        block[at..at + 2].copy_from_slice(&scale(0));
        if form.has_minimum() {
            block[2..4].copy_from_slice(&scale(1));
        }
    }
    bytes
}

/// Some rows of a weight `[outputs, k]`, as a right-hand side `[k, outputs]`, and the numbers that they stand for.
fn weight(form: Form, k: usize, outputs: std::ops::Range<usize>) -> (Packed, Vec<f32>) {
    let (kind, size) = kind(form);
    let bytes = blocks(form, outputs.end * k / form.block());
    let mut numbers = Vec::new();
    dequantise(kind, &bytes, &mut numbers);
    let numbers = turned(&numbers[outputs.start * k..outputs.end * k], outputs.len(), k);
    let packed = Packed::quantised(k, outputs.len(), pack::from_ggml(form, &bytes, size, k, outputs));
    (packed, numbers)
}

#[test]
fn records_hold_the_numbers_of_the_blocks() {
    for form in Form::ALL {
        let (k, n) = (2 * form.block(), 37);
        let (packed, numbers) = weight(form, k, 3..3 + n);
        for found in available() {
            for (p, strip) in (0..2).flat_map(|p| (0..k / PANEL).map(move |strip| (p, strip))) {
                let mut buffer = [f32::NAN; CELL];
                let cell = packed.cell(found, p, strip, &mut buffer);
                for (i, row) in cell.chunks_exact(PANEL).enumerate() {
                    for (j, value) in row.iter().enumerate() {
                        let column = p * PANEL + j;
                        let want = if column < n { numbers[(strip * PANEL + i) * n + column] } else { 0.0 };
                        let same = value.to_bits() == want.to_bits() || column >= n && *value == 0.0;
                        assert!(same, "{form:?} {found:?} input {} column {column}", strip * PANEL + i);
                    }
                }
            }
        }
    }
}

#[test]
fn products_are_those_of_the_numbers() {
    for form in Form::ALL {
        for (m, blocks, n) in
            [(1, 1, 32), (2, 3, 40), (3, 2, 70), (5, 2, 100), (7, 1, 31), (8, 1, 64), (20, 1, 45), (70, 2, 33)]
        {
            let k = blocks * form.block();
            let (packed, b) = weight(form, k, 0..n);
            for (direction, inner, outer, b) in
                [(Direction::Forward, k, n, b.clone()), (Direction::Backward, n, k, turned(&b, k, n))]
            {
                let a = values(m * inner, 11);
                let want = one_by_one(&a, &b, m, inner, outer);
                for found in available() {
                    let mut c = vec![f32::NAN; m * outer];
                    matmul_with(found, &a, m, &packed, direction, Epilogue::default(), &mut c);
                    assert_eq!(c, want, "{form:?} {direction:?} {found:?} {m}x{k}x{n}");
                }
            }
        }
    }
}

/// Made from `f32`, in either order of the file: no number is further off than half a step of its scale allows.
#[test]
fn made_blocks_stay_within_half_a_step() {
    let (k, n) = (64, 40);
    let b = values(k * n, 13);
    for (form, steps, most) in [(Form::Q8_0, 127.0, 0.57), (Form::Q4_0, 8.0, 1.01)] {
        let by_rows = Packed::quantised(k, n, make::from_f32(form, &b, k, n, n, 1));
        let by_columns = Packed::quantised(k, n, make::from_f32(form, &turned(&b, k, n), k, n, 1, k));
        let (mut one, mut other) = ([0.0; CELL], [0.0; CELL]);
        for (p, strip) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let found = available()[0];
            let cell = by_rows.cell(found, p, strip, &mut one);
            assert_eq!(cell, by_columns.cell(found, p, strip, &mut other));
            for j in 0..PANEL.min(n - p * PANEL) {
                let column: Vec<f32> = (0..PANEL).map(|i| b[(strip * PANEL + i) * n + p * PANEL + j]).collect();
                let step = column.iter().fold(0.0f32, |m, v| m.max(v.abs())) / steps;
                for (i, want) in column.iter().enumerate() {
                    let apart = (cell[i * PANEL + j] - want).abs();
                    assert!(apart <= most * step, "{form:?} ({i}, {j}): {apart} of {step}");
                }
            }
        }
    }
}

/// `testdata/gguf/made.safetensors`, written by `tools/fixtures/make_gguf.py`.
#[test]
fn made_blocks_are_those_of_the_gguf_package() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/gguf/made.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let values = file.tensor("values").unwrap();
    let values: Vec<f32> = values.data().as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)).collect();
    for (form, name) in [(Form::Q8_0, "Q8_0"), (Form::Q4_0, "Q4_0")] {
        let tensor = file.tensor(name).unwrap();
        let mut compared = 0;
        for (values, want) in values.as_chunks().0.iter().zip(tensor.data().chunks_exact(kind(form).1)) {
            let (got, want) = (make::block(form, *values), pack::Block::read(form, want));
            assert_eq!((got.scale, got.numbers), (want.scale, want.numbers), "{name}: {values:?}");
            compared += 1;
        }
        assert_eq!(compared, 64);
    }
}
