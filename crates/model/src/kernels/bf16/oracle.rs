//! Products against the same chains one pair at a time, to the bit: with the instruction and without, in every instruction set.

use proptest::prelude::*;

use super::super::dispatch::available;
use super::super::matmul::{Direction, Epilogue, matmul_with};
use super::super::reference::{turned, values};
use super::{Pairs, dot};

/// `a [m, k] · b [k, n]` in the order of the instruction.
fn by_pairs(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
    let mut c = Vec::with_capacity(m * n);
    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
        let (row, column) = (|l: usize| a[i * k + l], |l: usize| b[l * n + j]);
        let mut sum = 0.0;
        for l in (0..k).step_by(2) {
            let pair = |of: &dyn Fn(usize) -> f32| dot::pair(of(l), if l + 1 < k { of(l + 1) } else { 0.0 });
            sum = dot::steps(pair(&row), pair(&column), sum);
        }
        c.push(sum);
    }
    c
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Both directions of the product with `b [k, n]`, all instruction sets, with the instruction and without.
fn check((m, k, n): (usize, usize, usize), b: &[f32], left: impl Fn(usize) -> Vec<f32>) {
    let weights = || [Pairs::new(b, k, n, n, 1), Pairs::new(b, k, n, n, 1).in_plain_code()];
    let by_columns = Pairs::new(&turned(b, k, n), k, n, 1, k);
    for (direction, inner, outer, b) in
        [(Direction::Forward, k, n, b.to_vec()), (Direction::Backward, n, k, turned(b, k, n))]
    {
        let a = left(m * inner);
        let want = bits(&by_pairs(&a, &b, m, inner, outer));
        for found in available() {
            for weight in weights().iter().chain([&by_columns]) {
                let name = format!("{direction:?} {found:?} {} {m}x{k}x{n}", weight.by_instruction());
                let mut c = vec![f32::NAN; m * outer];
                matmul_with(found, &a, m, weight, direction, Epilogue::default(), &mut c);
                assert_eq!(bits(&c), want, "{name}");
                let mut row = vec![f32::NAN; outer];
                matmul_with(found, &a[..inner], 1, weight, direction, Epilogue::default(), &mut row);
                assert_eq!(bits(&row), want[..outer], "lone row, {name}");
            }
        }
    }
}

#[test]
fn bits_depend_on_neither_the_instruction_nor_neighbours() {
    for shape @ (_, k, n) in [
        (1, 1, 1),
        (2, 7, 33),
        (5, 60, 130),
        (15, 64, 32),
        (14, 31, 64),
        (70, 96, 100),
        (8, 300, 31),
        (3, 32, 64),
        (29, 33, 300),
        (64, 65, 97),
    ] {
        check(shape, &values(k * n, 2), |count| values(count, 1));
    }
}

/// Sums that end below the normal numbers, which a chain flushes on its way.
#[test]
fn what_is_below_the_normal_numbers_is_flushed_everywhere() {
    let small = |count: usize, seed: u32| -> Vec<f32> { values(count, seed).iter().map(|v| v * 3e-19).collect() };
    for shape @ (_, k, n) in [(3, 40, 40), (30, 21, 70)] {
        let b = small(k * n, 2);
        assert!(by_pairs(&small(k, 1), &b, 1, k, n).contains(&0.0));
        check(shape, &b, |count| small(count, 1));
    }
}

/// What is too large becomes infinite, in the same places.
#[test]
fn large_numbers_become_infinite() {
    let large = |count: usize, seed: u32| -> Vec<f32> { values(count, seed).iter().map(|v| v * 6e19).collect() };
    let (k, n) = (34, 33);
    let b = large(k * n, 2);
    // Without NaN, whose bits are nobody's promise: infinite sums of both signs do not meet here.
    let a = |count: usize| large(count, 1).iter().map(|v| v.abs()).collect::<Vec<f32>>();
    let b: Vec<f32> = b.iter().map(|v| v.abs()).collect();
    assert!(by_pairs(&a(k), &b, 1, k, n).contains(&f32::INFINITY));
    check((4, k, n), &b, a);
}

/// `c + (sum + bias)`, and near the sum of the same numbers in f64.
#[test]
fn bias_and_accumulation_come_after_the_sum() {
    let (m, k, n) = (20, 90, 40);
    let (a, b, bias) = (values(m * k, 3), values(k * n, 4), values(n, 5));
    let weight = Pairs::new(&b, k, n, n, 1);
    let sums = by_pairs(&a, &b, m, k, n);
    let round = |v: f32| f64::from(half::bf16::from_f32(v).to_f32());
    for found in available() {
        let mut c = vec![1.0f32; m * n];
        let epilogue = Epilogue { bias: Some(&bias), accumulate: true };
        matmul_with(found, &a, m, &weight, Direction::Forward, epilogue, &mut c);
        for (at, got) in c.iter().enumerate() {
            let (i, j) = (at / n, at % n);
            assert_eq!(*got, 1.0 + (sums[at] + bias[j]), "{found:?} {at}");
            let exact: f64 = (0..k).map(|l| round(a[i * k + l]) * round(b[l * n + j])).sum();
            assert!((f64::from(sums[at]) - exact).abs() < 1e-5, "{} is not near {exact}", sums[at]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_shape_has_the_same_bits(
        m in 1usize..40, k in 1usize..90, n in 1usize..90, seed: u32, size in -20i32..20, sizes in -20i32..20,
    ) {
        // From products below the normal numbers to large ones.
        let scaled = |count: usize, seed: u32, size: i32| -> Vec<f32> {
            values(count, seed).iter().map(|v| v * 10f32.powi(size)).collect()
        };
        let b = scaled(k * n, seed, size);
        check((m, k, n), &b, |count| scaled(count, seed ^ 1, sizes));
    }
}
