//! Products against the same chains one number at a time, to the bit.

use numalign_config::Dtype;

use super::super::reference::{one_by_one, turned, values};
use super::*;
use crate::kernels::dispatch::available;
use crate::kernels::panels::Packed;

/// Rows, inner size and columns: within a tile, across tiles, panels, cells, stretches and blocks of lanes, and with ends inside
/// each.
const SHAPES: [(usize, usize, usize); 14] = [
    (1, 1, 1),
    (2, 7, 33),
    (5, 60, 130),
    (15, 64, 32),
    (70, 96, 100),
    (8, 300, 31),
    (3, 32, 64),
    (64, 65, 97),
    (65, 33, 40),
    (200, 70, 70),
    (17, 40, 50),
    (40, 64, 33),
    (56, 35, 70),
    (300, 40, 36),
];

/// `b` packed as `dtype`, and the numbers that it then stands for.
fn pack_rounded(b: &[f32], k: usize, n: usize, dtype: Dtype) -> (Packed, Vec<f32>) {
    let round = |v: &f32| match dtype {
        Dtype::F32 => *v,
        Dtype::Bf16 => half::bf16::from_f32(*v).to_f32(),
        _ => half::f16::from_f32(*v).to_f32(),
    };
    (Packed::new(b, k, n, n, 1, dtype), b.iter().map(round).collect())
}

#[test]
fn bits_depend_on_neither_instruction_set_nor_neighbours_nor_direction() {
    for (m, k, n) in SHAPES {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            let (packed, b) = pack_rounded(&values(k * n, 2), k, n, dtype);
            for (direction, inner, outer, b) in
                [(Direction::Forward, k, n, b.clone()), (Direction::Backward, n, k, turned(&b, k, n))]
            {
                let a = values(m * inner, 1);
                let want = one_by_one(&a, &b, m, inner, outer);
                for found in available() {
                    let name = format!("{dtype:?} {direction:?} {found:?} {m}x{k}x{n}");
                    let mut c = vec![f32::NAN; m * outer];
                    matmul_with(found, &a, m, &packed, direction, Epilogue::default(), &mut c);
                    assert_eq!(c, want, "{name}");
                    let mut row = vec![f32::NAN; outer];
                    matmul_with(found, &a[..inner], 1, &packed, direction, Epilogue::default(), &mut row);
                    assert_eq!(row, want[..outer], "lone row, {name}");
                }
            }
        }
    }
}

/// `c + (sum + bias)`, whichever way the weight is used.
#[test]
fn bias_and_accumulation_come_after_the_sum() {
    for m in [3, 80] {
        let (k, n) = (45, 40);
        let b = values(n * k, 4);
        // `b` is `[n, k]` here.
        let packed = Packed::new(&b, k, n, 1, k, Dtype::F32);
        for (direction, inner, outer, b) in
            [(Direction::Forward, k, n, turned(&b, n, k)), (Direction::Backward, n, k, b.clone())]
        {
            let (a, bias) = (values(m * inner, 3), values(outer, 5));
            let sums = one_by_one(&a, &b, m, inner, outer);
            for found in available() {
                let mut c = vec![1.0f32; m * outer];
                let epilogue = Epilogue { bias: Some(&bias), accumulate: true };
                matmul_with(found, &a, m, &packed, direction, epilogue, &mut c);
                for (i, got) in c.iter().enumerate() {
                    assert_eq!(*got, 1.0 + (sums[i] + bias[i % outer]), "{direction:?} {found:?} {i}");
                }
            }
        }
    }
}
