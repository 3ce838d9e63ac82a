//! The hand-written backward pass and the CPU kernels against Burn's generic tensors and autodiff.

use burn::backend::Autodiff;
use burn_flex::{Flex, FlexDevice};

use super::*;
use crate::arch::Gpt2Config;
use crate::kernels::activation::Activation;
use crate::lm::{Piece, PooledRead, ReadPositions};
use crate::load::gpt2;
use crate::load::synthetic::Synthetic;
use crate::load::weights::TensorSource;
use crate::ops::generic_impl::frozen_ops;

// Operations in plain Burn tensors, so that autodiff can follow them.
frozen_ops!(Autodiff<Flex>, crate::ops::generic::product);

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

/// Weights for both directions, as they are.
pub(super) const STORAGE: WeightStorage = WeightStorage::F32;

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

fn load<B: FrozenOps>(activation: Activation, device: B::Device) -> Decoder<B> {
    load_as(activation, device, STORAGE)
}

pub(super) fn load_as<B: FrozenOps>(activation: Activation, device: B::Device, storage: WeightStorage) -> Decoder<B> {
    let config = small_config(activation);
    let placement = Placement::single(device, config.n_layer);
    let source = Loud(Synthetic::new(&crate::arch::Architecture::Gpt2(config.clone()), 5));
    gpt2::load(config, &source, Tokenizer::Missing("none in this test".to_owned()), placement, storage).unwrap()
}

pub(super) fn input(lengths: &[usize], d: usize) -> LmInput {
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
    LmInput { sequences, embeddings, ..LmInput::default() }
}

pub(super) fn relative_difference(a: &[f32], b: &[f32]) -> f32 {
    let largest = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let apart = a.iter().zip(b).fold(0.0f32, |m, (x, y)| m.max((x - y).abs()));
    apart / largest
}

pub(super) type Generic = Autodiff<Flex>;

/// The stack's result and the gradient of each row of its input, by autodiff.
pub(super) fn by_autodiff(oracle: &mut Decoder<Generic>, batch: &LmInput, cotangent: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let d = oracle.hidden_size();
    let Embedded { inputs, sequences, external, .. } = oracle.embed(batch).unwrap();
    oracle.extend_rotary(sequences.lengths().iter().copied().max().unwrap());
    let plan = PoolingPlan::new(&batch.reads, oracle.layers(), sequences.lengths(), &external).unwrap();
    let x = oracle.first_rows(inputs, &batch.embeddings).require_grad();
    let mut pooled = plan.unread(d);
    let grads = weighed_reads(oracle, x.clone(), &sequences, &plan, cotangent, &mut pooled).backward();
    let grad = x.grad(&grads).unwrap().into_data().into_vec::<f32>().unwrap();
    (pooled, grad)
}

/// The scalar product of everything that is read, put into `pooled`, with `cotangent`.
fn weighed_reads(
    oracle: &Decoder<Generic>,
    x: Tensor<Generic, 2>,
    sequences: &Sequences,
    plan: &PoolingPlan,
    cotangent: &[f32],
    pooled: &mut [f32],
) -> Tensor<Generic, 1> {
    let d = oracle.hidden_size();
    let mut total: Option<Tensor<Generic, 1>> = None;
    let read = &mut |layer, states: Tensor<Generic, 2>| {
        plan.pool(layer, &to_host(states.clone())?, d, pooled);
        let spread = plan.spread(layer, cotangent, d, sequences.rows()).unwrap();
        let weights = Tensor::from_data(TensorData::new(spread, states.dims()), &FlexDevice);
        let part = (states * weights).sum();
        total = Some(match total.take() {
            Some(total) => total + part,
            None => part,
        });
        Ok(())
    };
    oracle.run(x, sequences, plan, false, read).unwrap();
    total.unwrap()
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
            let mut ours: Decoder<Flex> = load(activation, FlexDevice);
            let mut oracle: Decoder<Generic> = load(activation, FlexDevice);
            let d = ours.hidden_size();
            let batch = input(&vec![length; count], d);
            let hidden = ours.forward(&batch, true).unwrap();
            let cotangent: Vec<f32> = (0..count * d).map(|i| (i as f32 * 0.7).cos()).collect();
            let grad = ours.backward_to_embeddings(&cotangent).unwrap();

            let (hidden_oracle, grad_oracle) = by_autodiff(&mut oracle, &batch, &cotangent);

            let label = format!("{activation:?}, {count} sequences of {length}");
            let apart = relative_difference(&hidden, &hidden_oracle);
            assert!(apart < 1e-5, "hidden states, {label}: {apart}");
            let apart = relative_difference(&grad, &grad_oracle);
            assert!(apart < 1e-5, "gradients, {label}: {apart}");
        }
    }
}

#[test]
fn every_read_agrees_with_autodiff() {
    let mut ours: Decoder<Flex> = load(Activation::GeluTanh, FlexDevice);
    let mut oracle: Decoder<Generic> = load(Activation::GeluTanh, FlexDevice);
    let d = ours.hidden_size();
    let mut cases = Vec::new();
    for positions in [ReadPositions::Last, ReadPositions::Mean, ReadPositions::Embeddings] {
        for layer in [None, Some(0), Some(1), Some(2), Some(3)] {
            cases.push(vec![PooledRead { positions, layer }]);
        }
    }
    cases.extend(several_reads());
    for reads in cases {
        for length in [1, 9] {
            let mut batch = input(&[length; 3], d);
            batch.reads = reads.clone();
            // Tokens between the external embeddings, which still are one per row of the gradient.
            for sequence in &mut batch.sequences {
                if length > 1 {
                    sequence[2] = Piece::Tokens(vec![7]);
                }
            }
            let hidden = ours.forward(&batch, true).unwrap();
            let cotangent: Vec<f32> = (0..3 * reads.len() * d).map(|i| (i as f32 * 0.7).cos()).collect();
            let grad = ours.backward_to_embeddings(&cotangent).unwrap();
            let (hidden_oracle, mut grad_oracle) = by_autodiff(&mut oracle, &batch, &cotangent);
            if length > 1 {
                for sequence in 0..3 {
                    let row = sequence * length + 2;
                    grad_oracle[row * d..(row + 1) * d].fill(0.0);
                }
            }
            let label = format!("{reads:?}, length {length}");
            let apart = relative_difference(&hidden, &hidden_oracle);
            assert!(apart < 1e-5, "hidden states, {label}: {apart}");
            let apart = relative_difference(&grad, &grad_oracle);
            assert!(apart < 1e-5, "gradients, {label}: {apart}");
        }
    }
    assert!(ours.backward_to_embeddings(&[]).is_err(), "nothing is kept twice");
}

/// Reads at several places: within the stack and at its end, with and without all positions of the last block.
fn several_reads() -> Vec<Vec<PooledRead>> {
    let read = |positions, layer| PooledRead { positions, layer };
    vec![
        vec![read(ReadPositions::Mean, Some(1)), read(ReadPositions::Last, Some(2))],
        vec![read(ReadPositions::Last, None), read(ReadPositions::Last, Some(3)), read(ReadPositions::Mean, Some(0))],
        vec![read(ReadPositions::Mean, Some(3)), read(ReadPositions::Last, None), read(ReadPositions::Last, Some(1))],
    ]
}

#[test]
fn gradients_of_the_norms_agree_with_autodiff() {
    let mut ours: Decoder<Flex> = load(Activation::GeluTanh, FlexDevice);
    let d = ours.hidden_size();
    let names: Vec<String> = ours.norm_parameters().unwrap().into_iter().map(|parameter| parameter.name).collect();
    assert_eq!(names.len(), 4 * 3 + 2);
    assert_eq!((names[0].as_str(), names[13].as_str()), ("h.0.ln_1.weight", "ln_f.bias"));
    let total = names.len() * d;
    let read = |positions, layer| vec![PooledRead { positions, layer }];
    let mut cases = vec![
        (read(ReadPositions::Last, None), 1),
        (read(ReadPositions::Last, None), 9),
        (read(ReadPositions::Mean, None), 9),
        (read(ReadPositions::Mean, Some(2)), 9),
    ];
    cases.extend(several_reads().into_iter().map(|reads| (reads, 9)));
    for (reads, length) in cases {
        let mut oracle: Decoder<Generic> = load(Activation::GeluTanh, FlexDevice);
        for norm in oracle.parts.blocks.iter_mut().flat_map(|block| [&mut block.norm_1, &mut block.norm_2]) {
            norm.gamma_d = norm.gamma_d.clone().require_grad();
            norm.beta_d = norm.beta_d.clone().map(Tensor::require_grad);
        }
        let norm_f = &mut oracle.parts.norm_f;
        norm_f.gamma_d = norm_f.gamma_d.clone().require_grad();
        norm_f.beta_d = norm_f.beta_d.clone().map(Tensor::require_grad);

        let mut batch = input(&[length; 3], d);
        batch.reads = reads.clone();
        let cotangent: Vec<f32> = (0..3 * reads.len() * d).map(|i| (i as f32 * 0.7).cos()).collect();
        ours.forward(&batch, true).unwrap();
        let mut sums = vec![vec![0.0; total]];
        let target = NormGradients { group_of_sequence: &[0, 0, 0], sums: &mut sums };
        ours.backward(&cotangent, Some(target)).unwrap();

        let Embedded { inputs, sequences, external, .. } = oracle.embed(&batch).unwrap();
        let plan = PoolingPlan::new(&batch.reads, oracle.layers(), sequences.lengths(), &external).unwrap();
        let x = oracle.first_rows(inputs, &batch.embeddings);
        let mut pooled = plan.unread(d);
        let grads = weighed_reads(&oracle, x, &sequences, &plan, &cotangent, &mut pooled).backward();
        let mut want = Vec::new();
        for norm in oracle.norms() {
            for tensor in [&norm.gamma_d, norm.beta_d.as_ref().unwrap()] {
                match tensor.grad(&grads) {
                    Some(grad) => want.extend(grad.into_data().into_vec::<f32>().unwrap()),
                    None => want.extend(vec![0.0; d]),
                }
            }
        }
        for (i, name) in names.iter().enumerate() {
            let (got, want) = (&sums[0][i * d..(i + 1) * d], &want[i * d..(i + 1) * d]);
            if want.iter().all(|w| *w == 0.0) {
                assert!(got.iter().all(|g| *g == 0.0), "{reads:?} {length} {name}");
                continue;
            }
            let apart = relative_difference(got, want);
            assert!(apart < 2e-5, "{reads:?} {length} {name}: {apart}");
        }
    }
}

/// A micro-batch's gradient of the norms is its own, whatever shares its batch and however it is cut into passes.
#[test]
fn groups_of_norm_gradients_are_alone() {
    let mut lm: Decoder<Flex> = load(Activation::GeluTanh, FlexDevice);
    let d = lm.hidden_size();
    let total: usize = lm.norm_parameters().unwrap().iter().map(|parameter| parameter.values.len()).sum();
    let lengths = [3, 1, 12, 3, 40, 2];
    let groups = [0, 0, 1, 1, 2, 2];
    let batch = input(&lengths, d);
    let cotangent: Vec<f32> = (0..lengths.len() * d).map(|i| (i as f32 * 0.3).sin()).collect();
    lm.forward(&batch, true).unwrap();
    let mut together = vec![vec![0.0; total]; 3];
    let target = NormGradients { group_of_sequence: &groups, sums: &mut together };
    lm.backward(&cotangent, Some(target)).unwrap();
    let mut first_row = 0;
    let mut one_by_one = vec![vec![0.0; total]; 3];
    for (i, length) in lengths.iter().enumerate() {
        let embeddings = batch.embeddings[first_row * d..(first_row + length) * d].to_vec();
        let pieces = (0..*length).map(|row| Piece::Embedding { row, repeat: 1 }).collect();
        let alone = LmInput { sequences: vec![pieces], embeddings, ..LmInput::default() };
        lm.forward(&alone, true).unwrap();
        let target = NormGradients { group_of_sequence: &[groups[i]], sums: &mut one_by_one };
        lm.backward(&cotangent[i * d..(i + 1) * d], Some(target)).unwrap();
        first_row += length;
    }
    assert_eq!(one_by_one, together);
}

#[test]
fn norms_can_be_set_and_read() {
    let mut lm: Decoder<Flex> = load(Activation::GeluTanh, FlexDevice);
    let batch = input(&[5, 1], lm.hidden_size());
    let before = lm.forward(&batch, false).unwrap();
    let first: Vec<f32> = lm.norm_parameters().unwrap().into_iter().flat_map(|parameter| parameter.values).collect();
    let other: Vec<f32> = first.iter().enumerate().map(|(i, value)| value + (i % 5) as f32 * 0.01).collect();
    lm.set_norm_parameters(&other).unwrap();
    let now: Vec<f32> = lm.norm_parameters().unwrap().into_iter().flat_map(|parameter| parameter.values).collect();
    assert_eq!(now, other);
    assert_ne!(lm.forward(&batch, false).unwrap(), before);
    lm.set_norm_parameters(&first).unwrap();
    assert_eq!(lm.forward(&batch, false).unwrap(), before);
    assert!(lm.set_norm_parameters(&first[1..]).is_err());
}

#[test]
fn generic_backward_agrees_with_the_kernels() {
    let mut ours: Decoder<Flex> = load(Activation::GeluTanh, FlexDevice);
    let mut generic: Decoder<Autodiff<Flex>> = load(Activation::GeluTanh, FlexDevice);
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
    let mut lm: Decoder<Flex> = load(Activation::GeluTanh, FlexDevice);
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
            let mut lm: Decoder<Flex> = load(Activation::GeluTanh, FlexDevice);
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
    let mut lm: Decoder<Flex> = load(Activation::GeluTanh, FlexDevice);
    let of = |pieces: Vec<Piece>| LmInput { sequences: vec![pieces], embeddings: vec![0.0; 36], ..LmInput::default() };
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

/// Rows that the device makes of repeated embeddings are those of the host, and so are the gradients summed there.
#[test]
fn embeddings_repeated_on_the_device_are_those_of_the_host() {
    let mut on_host: Decoder<Flex> = load(Activation::GeluTanh, FlexDevice);
    let mut on_device: Decoder<Generic> = load(Activation::GeluTanh, FlexDevice);
    let d = on_host.hidden_size();
    for each in [16, 40, 20] {
        let sequences = (0..3).map(|row| vec![Piece::Embedding { row, repeat: each }]).collect();
        let embeddings: Vec<f32> = (0..3 * d).map(|i| (i as f32 * 0.37).sin()).collect();
        let batch = LmInput { sequences, embeddings, ..LmInput::default() };
        let Inputs::Rows(want) = on_host.embed(&batch).unwrap().inputs else { panic!("the host makes rows") };
        let inputs = on_device.embed(&batch).unwrap().inputs;
        assert!(matches!(inputs, Inputs::Repeated(repeat) if repeat == each));
        let got = on_device.first_rows(inputs, &batch.embeddings).into_data().into_vec::<f32>().unwrap();
        assert_eq!(got, want, "{each} times");

        let hidden = on_host.forward(&batch, true).unwrap();
        assert!(relative_difference(&on_device.forward(&batch, true).unwrap(), &hidden) < 1e-5);
        let want = on_host.backward_to_embeddings(&hidden).unwrap();
        let got = on_device.backward_to_embeddings(&hidden).unwrap();
        let apart = relative_difference(&got, &want);
        assert!(apart < 1e-5, "{each} times: {apart}");
    }
}
