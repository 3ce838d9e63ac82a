//! A whole stack with products in bfloat16: its bits, and its gradient beside that of autodiff in f32.

use std::sync::atomic::Ordering;

use burn_flex::{Flex, FlexDevice};
use numalign_config::Arithmetic;

use super::oracle::{Generic, STORAGE, by_autodiff, input, load_as, relative_difference};
use super::*;
use crate::kernels::activation::Activation;
use crate::kernels::bf16::SWITCHED_OFF;

const LENGTHS: [usize; 5] = [40, 39, 12, 1, 2];

fn load() -> Decoder<Flex> {
    let storage = WeightStorage { arithmetic: Arithmetic::Bf16, ..STORAGE };
    load_as(Activation::GeluTanh, FlexDevice, storage)
}

fn pass(lm: &mut Decoder<Flex>, input: &LmInput) -> (Vec<f32>, Vec<f32>) {
    let hidden = lm.forward(input, true).unwrap();
    let grad = lm.backward_to_embeddings(&hidden).unwrap();
    (hidden, grad)
}

#[test]
fn neither_the_instruction_nor_threads_change_a_bit() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut lm = load();
            let input = input(&LENGTHS, lm.hidden_size());
            pass(&mut lm, &input)
        })
    };
    let one = run(1);
    assert_eq!(run(2), one);
    assert_eq!(run(5), one);
    SWITCHED_OFF.store(true, Ordering::Relaxed);
    let plain = run(2);
    SWITCHED_OFF.store(false, Ordering::Relaxed);
    assert_eq!(plain, one);
}

#[test]
fn a_sequence_has_the_bits_it_has_alone() {
    let mut lm = load();
    let d = lm.hidden_size();
    let together = input(&LENGTHS, d);
    let (hidden, grad) = pass(&mut lm, &together);
    let mut first = 0;
    for (i, length) in LENGTHS.into_iter().enumerate() {
        let mut alone = input(&[length], d);
        let rows = first * d..(first + length) * d;
        alone.embeddings.copy_from_slice(&together.embeddings[rows.clone()]);
        let (hidden_alone, grad_alone) = pass(&mut lm, &alone);
        assert_eq!(hidden_alone, hidden[i * d..(i + 1) * d], "sequence {i}");
        assert_eq!(grad_alone, grad[rows], "sequence {i}");
        first += length;
    }
}

#[test]
fn gradients_are_near_those_of_autodiff_in_f32() {
    let mut lm = load();
    let mut oracle: Decoder<Generic> = load_as(Activation::GeluTanh, FlexDevice, STORAGE);
    // The oracle wants sequences of one length.
    let batch = input(&[40, 40], lm.hidden_size());
    let hidden = lm.forward(&batch, true).unwrap();
    let cotangent: Vec<f32> = (0..hidden.len()).map(|i| (i as f32 * 0.7).cos()).collect();
    let grad = lm.backward_to_embeddings(&cotangent).unwrap();
    let (want_hidden, want_grad) = by_autodiff(&mut oracle, &batch, &cotangent);
    for (name, got, want, most) in
        [("hidden states", &hidden, &want_hidden, 0.03), ("gradients", &grad, &want_grad, 0.1)]
    {
        let apart = relative_difference(got, want);
        assert!(apart > 1e-4 && apart < most, "{name}: {apart}");
    }
}
