//! The block of the CPU against the composed one in f64, output and every gradient.

use tch::{Device, Kind, Tensor};

use super::{Block, Linear};
use crate::method::random;

const IMAGES: i64 = 3;

/// Width, heads, hidden width and tokens.
type Sizes = [i64; 4];

/// Odd everywhere, and the sizes of which all vectors are whole.
const SIZES: [Sizes; 2] = [[15, 3, 37, 7], [64, 2, 128, 32]];

fn normal(shape: &[i64], seed: u64) -> Tensor {
    random::normal(shape, Device::Cpu, seed).unwrap()
}

/// Output, then the gradients of tokens, condition and the ten weights, f64, for inputs drawn with `seed` that have been
/// rounded to `rounded` and are computed with in `kind`.
fn pass(sizes: Sizes, per_token: bool, seed: u64, rounded: Kind, kind: Kind, composed: bool) -> Vec<Tensor> {
    let [d, heads, hidden, tokens] = sizes;
    let leaf = |shape: &[i64], of: u64, scale: f64| {
        (normal(shape, 100 * seed + of) * scale).to_kind(rounded).to_kind(kind).set_requires_grad(true)
    };
    let shapes = [[6 * d, d], [3 * d, d], [d, d], [hidden, d], [d, hidden]];
    let weights: Vec<[Tensor; 2]> = shapes
        .iter()
        .zip(0..)
        .map(|(shape, at)| [leaf(shape, at, (shape[1] as f64).powf(-0.5)), leaf(&shape[..1], 10 + at, 0.3)])
        .collect();
    let linear = |i: usize| {
        let [weight, bias] = &weights[i];
        Linear { weight: weight.shallow_clone(), bias: Some(bias.shallow_clone()) }
    };
    let block = Block { heads, modulation: linear(0), qkv: linear(1), proj: linear(2), fc1: linear(3), fc2: linear(4) };
    let x = leaf(&[IMAGES, tokens, d], 20, 1.0);
    let condition = leaf(&[IMAGES, if per_token { tokens } else { 1 }, d], 21, 1.0);
    let y = if composed { block.composed(&x, &condition) } else { block.forward(&x, &condition) };
    let towards = normal(&[IMAGES, tokens, d], 100 * seed + 22).to_kind(rounded).to_kind(kind);
    (&y * towards).sum(kind).backward();
    let mut all = vec![y.detach(), x.grad(), condition.grad()];
    all.extend(weights.iter().flatten().map(Tensor::grad));
    all.iter().map(|tensor| tensor.to_kind(Kind::Double)).collect()
}

/// |a - b| / |b| for each tensor.
fn errors(of: &[Tensor], exact: &[Tensor]) -> Vec<f64> {
    let norm = |tensor: &Tensor| tensor.norm().double_value(&[]);
    of.iter()
        .zip(exact)
        .map(|(a, b)| {
            assert_eq!(a.size(), b.size());
            norm(&(a - b)) / norm(b)
        })
        .collect()
}

#[test]
fn a_block_in_f64_and_f32_is_the_composed_one_with_all_its_gradients() {
    for (size, per_token) in SIZES.into_iter().flat_map(|size| [(size, false), (size, true)]) {
        let exact = pass(size, per_token, 0, Kind::Float, Kind::Double, true);
        for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 2e-6)] {
            for (at, error) in errors(&pass(size, per_token, 0, Kind::Float, kind, false), &exact).iter().enumerate() {
                assert!(*error < tolerance, "{size:?}, per token {per_token}, {kind:?}, tensor {at}: {error:e}");
            }
        }
    }
}

/// Means over draws: of one, where the roundings of a few values decide, either may be half as far again from the truth.
#[test]
fn a_block_in_bf16_is_as_near_to_the_exact_one_as_the_composed_one_in_bf16() {
    const DRAWS: u64 = 8;
    for (size, per_token) in SIZES.into_iter().flat_map(|size| [(size, false), (size, true)]) {
        let mut means = [[0.0; 2]; 13];
        for seed in 0..DRAWS {
            let of = |kind, composed| pass(size, per_token, seed, Kind::BFloat16, kind, composed);
            let exact = of(Kind::Double, true);
            let both = [false, true].map(|composed| errors(&of(Kind::BFloat16, composed), &exact));
            for (at, mean) in means.iter_mut().enumerate() {
                mean[0] += both[0][at] / DRAWS as f64;
                mean[1] += both[1][at] / DRAWS as f64;
            }
        }
        for (at, [ours, theirs]) in means.into_iter().enumerate() {
            assert!(
                ours < 1.15 * theirs && ours < 0.02,
                "{size:?}, per token {per_token}, tensor {at}: {ours} to {theirs}"
            );
        }
    }
}

#[test]
fn a_block_goes_backward_once() {
    let (x, condition) = (normal(&[1, 2, 4], 0).set_requires_grad(true), normal(&[1, 1, 4], 1));
    let linear = |out: i64, inside: i64| Linear { weight: normal(&[out, inside], 2), bias: Some(normal(&[out], 3)) };
    let block = Block {
        heads: 2,
        modulation: linear(24, 4),
        qkv: linear(12, 4),
        proj: linear(4, 4),
        fc1: linear(8, 4),
        fc2: linear(4, 8),
    };
    let sum = block.forward(&x, &condition).sum(Kind::Float);
    let again = |keep| Tensor::f_run_backward(&[&sum], &[&x], keep, false);
    assert!(again(true).is_ok());
    assert!(again(false).unwrap_err().to_string().contains("a block goes backward once"));
}
