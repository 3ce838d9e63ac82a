//! The hand-written backward pass and the CPU kernels against Burn's generic tensors and autodiff.

use burn::backend::Autodiff;
use burn_flex::{Flex, FlexDevice};

use super::*;
use crate::ops::generic;
use crate::synthetic::Synthetic;

// Operations in plain Burn tensors, so that autodiff can follow them.
generic::frozen_ops!(Autodiff<Flex>);

fn small_config(activation: Activation) -> Gpt2Config {
    Gpt2Config {
        vocab_size: 50,
        n_positions: 40,
        n_embd: 36,
        n_layer: 3,
        n_head: 3,
        n_inner: 70,
        layer_norm_epsilon: 1e-5,
        activation,
        scale_attn_weights: true,
        scale_attn_by_inverse_layer_idx: true,
    }
}

/// Random weights much larger than GPT-2's initialisation, so that attention and activations are far from linear.
struct Loud(Synthetic);

impl TensorSource for Loud {
    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let mut values = self.0.read(name)?;
        for (i, value) in values.iter_mut().enumerate() {
            *value = if name.contains("ln_") || name.ends_with("bias") {
                *value + 0.1 * ((i * 7 % 13) as f32 - 6.0) / 6.0
            } else {
                *value * 12.0
            };
        }
        Ok(values)
    }
}

fn load<B: FrozenOps>(activation: Activation, device: B::Device) -> Gpt2<B> {
    let config = small_config(activation);
    let source = Loud(Synthetic::new(&config, 5));
    Gpt2::load(config, &source, Tokenizer::Missing("none in this test".to_owned()), device, true).unwrap()
}

fn input(lengths: &[usize], d: usize) -> LmInput {
    let mut sequences = Vec::new();
    let mut embeddings = Vec::new();
    for length in lengths {
        let mut pieces = Vec::new();
        for _ in 0..*length {
            pieces.push(Piece::Embedding { row: embeddings.len() / d, repeat: 1 });
            for i in 0..d {
                embeddings.push(((embeddings.len() * 31 + i * 17) % 97) as f32 / 60.0 - 0.8);
            }
        }
        sequences.push(pieces);
    }
    LmInput { sequences, embeddings }
}

fn relative_difference(a: &[f32], b: &[f32]) -> f32 {
    let largest = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let apart = a.iter().zip(b).fold(0.0f32, |m, (x, y)| m.max((x - y).abs()));
    apart / largest
}

#[test]
fn kernels_and_hand_written_backward_agree_with_autodiff() {
    for activation in [
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
    ] {
        for (count, length) in [(1, 1), (4, 1), (1, 2), (3, 17), (2, 40)] {
            let mut ours: Gpt2<Flex> = load(activation, FlexDevice);
            let oracle: Gpt2<Autodiff<Flex>> = load(activation, FlexDevice);
            let d = ours.hidden_size();
            let batch = input(&vec![length; count], d);
            let hidden = ours.forward(&batch, true).unwrap();
            let cotangent: Vec<f32> = (0..count * d).map(|i| (i as f32 * 0.7).cos()).collect();
            let grad = ours.backward_to_embeddings(&cotangent).unwrap();

            let Embedded { x, sequences, .. } = oracle.embed(&batch).unwrap();
            let device = FlexDevice;
            let x: Tensor<Autodiff<Flex>, 2> =
                Tensor::from_data(TensorData::new(x, [count * length, d]), &device).require_grad();
            let (hidden_oracle, _, _) = oracle.run(x.clone(), &sequences, false);
            let weights = Tensor::from_data(TensorData::new(cotangent, [count, d]), &device);
            let grads = (hidden_oracle.clone() * weights).sum().backward();
            let grad_oracle = x.grad(&grads).unwrap().into_data().into_vec::<f32>().unwrap();
            let hidden_oracle = hidden_oracle.into_data().into_vec::<f32>().unwrap();

            let label = format!("{activation:?}, {count} sequences of {length}");
            let apart = relative_difference(&hidden, &hidden_oracle);
            assert!(apart < 1e-5, "hidden states, {label}: {apart}");
            let apart = relative_difference(&grad, &grad_oracle);
            assert!(apart < 1e-5, "gradients, {label}: {apart}");
        }
    }
}

#[test]
fn generic_backward_agrees_with_the_kernels() {
    let mut ours: Gpt2<Flex> = load(Activation::GeluTanh, FlexDevice);
    let mut generic: Gpt2<Autodiff<Flex>> = load(Activation::GeluTanh, FlexDevice);
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

/// The promise at its root: a sample's hidden state and gradient do not depend on what shares its batch.
#[test]
fn neighbours_change_no_bit() {
    let mut lm: Gpt2<Flex> = load(Activation::GeluTanh, FlexDevice);
    let d = lm.hidden_size();
    let lengths = [1, 7, 40, 1, 2, 33, 7, 16];
    let together = input(&lengths, d);
    let hidden = lm.forward(&together, true).unwrap();
    let cotangent: Vec<f32> = (0..hidden.len()).map(|i| (i as f32 * 0.3).sin()).collect();
    let grad = lm.backward_to_embeddings(&cotangent).unwrap();
    let mut first_row = 0;
    for (i, length) in lengths.iter().enumerate() {
        let embeddings = together.embeddings[first_row * d..(first_row + length) * d].to_vec();
        let pieces = (0..*length).map(|row| Piece::Embedding { row, repeat: 1 }).collect();
        let alone = LmInput { sequences: vec![pieces], embeddings };
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
            let mut lm: Gpt2<Flex> = load(Activation::GeluTanh, FlexDevice);
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
fn bad_inputs_are_errors() {
    let mut lm: Gpt2<Flex> = load(Activation::GeluTanh, FlexDevice);
    let of = |pieces: Vec<Piece>| LmInput { sequences: vec![pieces], embeddings: vec![0.0; 36] };
    let mut forward = |input: &LmInput| lm.forward(input, false).unwrap_err();
    assert!(matches!(forward(&of(vec![])), ModelError::Empty));
    assert!(matches!(forward(&LmInput::default()), ModelError::Empty));
    assert!(matches!(
        forward(&of(vec![Piece::Embedding { row: 0, repeat: 41 }])),
        ModelError::TooLong { positions: 41, most: 40 }
    ));
    assert!(matches!(forward(&of(vec![Piece::Tokens(vec![50])])), ModelError::UnknownToken { id: 50, .. }));
    assert!(matches!(forward(&of(vec![Piece::Embedding { row: 1, repeat: 1 }])), ModelError::NoSuchEmbedding { .. }));
}
