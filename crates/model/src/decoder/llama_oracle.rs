//! Llama-style decoders: the hand-written backward pass and the CPU kernels against Burn's generic tensors and autodiff,
//! and the rule that neighbours change no bit.

use burn_flex::{Flex, FlexDevice};

use super::oracle::{Generic, STORAGE, by_autodiff, input, relative_difference};
use super::*;
use crate::arch::{LlamaConfig, Rope, RopeScaling, TensorList};
use crate::kernels::activation::Activation;
use crate::lm::{Piece, PooledRead, ReadPositions};
use crate::load::llama;
use crate::load::weights::TensorSource;

fn config(heads: usize, kv_heads: usize, biased: bool, head_norms: bool) -> LlamaConfig {
    LlamaConfig {
        vocabulary: 31,
        hidden_size: 28,
        inner: 50,
        layers: 3,
        heads,
        kv_heads,
        head_size: 10,
        positions: 70,
        rms_norm_eps: 1e-5,
        activation: Activation::Silu,
        rope: Rope { theta: 100.0, scaling: RopeScaling::Linear { factor: 2.0 } },
        qkv_bias: biased,
        output_bias: biased,
        mlp_bias: biased,
        head_norms,
        tied_head: false,
    }
}

/// Numbers from a simple recurrence, large enough that attention is far from uniform.
struct Loud(TensorList);

impl TensorSource for Loud {
    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let (place, (_, shape)) = self.0.iter().enumerate().find(|(_, (known, _))| known == name).unwrap();
        let mut state = place as u32 * 7919 + 17;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let count: usize = shape.iter().product();
        Ok(match shape.as_slice() {
            [_] if name.contains("norm") => (0..count).map(|_| 1.0 + 0.4 * next()).collect(),
            [_] => (0..count).map(|_| 0.4 * next()).collect(),
            _ => (0..count).map(|_| next()).collect(),
        })
    }
}

fn load<B: FrozenOps>(config: &LlamaConfig, device: B::Device) -> Decoder<B> {
    let source = Loud(config.tensors());
    let placement = Placement::single(device, config.layers);
    llama::load(config.clone(), &source, Tokenizer::Missing("none in this test".to_owned()), placement, STORAGE)
        .unwrap()
}

#[test]
fn kernels_and_hand_written_backward_agree_with_autodiff() {
    for (heads, kv_heads, biased, head_norms) in
        [(4, 4, false, false), (4, 2, true, false), (6, 2, false, true), (5, 1, true, true)]
    {
        let config = config(heads, kv_heads, biased, head_norms);
        let mut ours: Decoder<Flex> = load(&config, FlexDevice);
        let mut oracle: Decoder<Generic> = load(&config, FlexDevice);
        let d = ours.hidden_size();
        for read in [
            PooledRead::default(),
            PooledRead { positions: ReadPositions::Mean, layer: None },
            PooledRead { positions: ReadPositions::Last, layer: Some(2) },
        ] {
            for (count, length) in [(1, 1), (4, 1), (1, 2), (3, 17), (2, 60)] {
                let mut batch = input(&vec![length; count], d);
                batch.reads = vec![read];
                let hidden = ours.forward(&batch, true).unwrap();
                let cotangent: Vec<f32> = (0..count * d).map(|i| (i as f32 * 0.7).cos()).collect();
                let grad = ours.backward_to_embeddings(&cotangent).unwrap();
                let (hidden_oracle, grad_oracle) = by_autodiff(&mut oracle, &batch, &cotangent);
                let label = format!("{heads}/{kv_heads} heads, {read:?}, {count} sequences of {length}");
                let apart = relative_difference(&hidden, &hidden_oracle);
                assert!(apart < 1e-5, "hidden states, {label}: {apart}");
                let apart = relative_difference(&grad, &grad_oracle);
                assert!(apart < 2e-5, "gradients, {label}: {apart}");
            }
        }
    }
}

#[test]
fn generic_backward_agrees_with_the_kernels() {
    let config = config(6, 2, true, true);
    let mut ours: Decoder<Flex> = load(&config, FlexDevice);
    let mut generic: Decoder<Generic> = load(&config, FlexDevice);
    for length in [1, 9] {
        let batch = input(&[length; 3], ours.hidden_size());
        let (a, b) = (ours.forward(&batch, true).unwrap(), generic.forward(&batch, true).unwrap());
        assert!(relative_difference(&a, &b) < 1e-5);
        let cotangent: Vec<f32> = (0..a.len()).map(|i| (i as f32).sin()).collect();
        let a = ours.backward_to_embeddings(&cotangent).unwrap();
        let b = generic.backward_to_embeddings(&cotangent).unwrap();
        assert!(relative_difference(&a, &b) < 1e-5);
    }
}

#[test]
fn neighbours_change_no_bit() {
    let mut lm: Decoder<Flex> = load(&config(6, 2, true, true), FlexDevice);
    let d = lm.hidden_size();
    let lengths = [1, 7, 40, 1, 2, 70, 7, 16];
    let together = input(&lengths, d);
    let hidden = lm.forward(&together, true).unwrap();
    let cotangent: Vec<f32> = (0..hidden.len()).map(|i| (i as f32 * 0.3).sin()).collect();
    let grad = lm.backward_to_embeddings(&cotangent).unwrap();
    let mut first_row = 0;
    for (i, length) in lengths.iter().enumerate() {
        let embeddings = together.embeddings[first_row * d..(first_row + length) * d].to_vec();
        let pieces = (0..*length).map(|row| Piece::Embedding { row, repeat: 1 }).collect();
        let alone = LmInput { sequences: vec![pieces], embeddings, ..LmInput::default() };
        let hidden_alone = lm.forward(&alone, true).unwrap();
        assert_eq!(hidden_alone, hidden[i * d..(i + 1) * d], "hidden state of sequence {i}");
        let grad_alone = lm.backward_to_embeddings(&cotangent[i * d..(i + 1) * d]).unwrap();
        assert_eq!(grad_alone, grad[first_row * d..(first_row + length) * d], "gradient of sequence {i}");
        first_row += length;
    }
}

#[test]
fn threads_change_no_bit() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut lm: Decoder<Flex> = load(&config(6, 2, false, true), FlexDevice);
            let hidden = lm.forward(&input(&[40, 39, 12, 1], lm.hidden_size()), true).unwrap();
            let grad = lm.backward_to_embeddings(&hidden).unwrap();
            (hidden, grad)
        })
    };
    let one = run(1);
    assert_eq!(run(2), one);
    assert_eq!(run(5), one);
}

#[test]
fn a_head_of_its_own_is_not_loaded() {
    let lm: Decoder<Flex> = load(&config(4, 2, false, false), FlexDevice);
    assert!(matches!(lm.logits(&vec![0.0; lm.hidden_size()]), Err(ModelError::NoHead)));
}
