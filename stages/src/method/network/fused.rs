//! The block of the CPU against the composed one in f64, output and every gradient.

use tch::{Device, Kind, Tensor};

use super::{Block, Linear};
use crate::method::random;
use crate::native::block as native;
use crate::native::reads::reads_during;

const IMAGES: i64 = 3;

/// Width, heads, hidden width and tokens.
type Sizes = [i64; 4];

/// Whether tokens have conditions of their own, and whether attention picks a few tokens out.
#[derive(Debug, Clone, Copy)]
struct Case {
    per_token: bool,
    sharp: bool,
}

fn cases() -> impl Iterator<Item = (Sizes, Case)> {
    SIZES.into_iter().flat_map(|size| {
        let [width, heads, ..] = size;
        // A head that is wider makes scores in the hundreds then, of which neither block keeps enough digits to be
        // compared.
        let sharp = (width / heads <= 64).then_some(Case { per_token: true, sharp: true });
        let cases = [false, true].map(|per_token| Case { per_token, sharp: false });
        cases.into_iter().chain(sharp).map(move |case| (size, case))
    })
}

/// Odd everywhere; sizes of which all vectors are whole; more tokens than attention takes at a time, and some left
/// over; a head that is wider than a piece of its rows.
const SIZES: [Sizes; 5] = [[15, 3, 37, 7], [15, 3, 8, 21], [64, 2, 128, 32], [24, 2, 16, 140], [130, 1, 16, 20]];

fn normal(shape: &[i64], seed: u64) -> Tensor {
    random::normal(shape, Device::Cpu, seed).unwrap()
}

/// Output, then the gradients of tokens, condition and the ten weights, f64, for inputs drawn with `seed` that have been
/// rounded to `rounded` and are computed with in `kind`.
fn pass(sizes: Sizes, case: Case, seed: u64, rounded: Kind, kind: Kind, composed: bool) -> Vec<Tensor> {
    let ([d, heads, hidden, tokens], Case { per_token, sharp }) = (sizes, case);
    let leaf = |shape: &[i64], of: u64, scale: f64| {
        (normal(shape, 100 * seed + of) * scale).to_kind(rounded).to_kind(kind).set_requires_grad(true)
    };
    let shapes = [[6 * d, d], [3 * d, d], [d, d], [hidden, d], [d, hidden]];
    let weights: Vec<[Tensor; 2]> = shapes
        .iter()
        .zip(0..)
        .map(|(shape, at)| {
            let sharper = if sharp && at == 1 { 4.0 } else { 1.0 };
            [leaf(shape, at, sharper * (shape[1] as f64).powf(-0.5)), leaf(&shape[..1], 10 + at, 0.3)]
        })
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
    for (size, case) in cases() {
        let of = |kind, composed| pass(size, case, 0, Kind::Float, kind, composed);
        let exact = of(Kind::Double, true);
        for (at, error) in errors(&of(Kind::Double, false), &exact).into_iter().enumerate() {
            assert!(error < 1e-12, "{size:?}, {case:?}, tensor {at}: {error:e}");
        }
        let [ours, theirs] = [false, true].map(|composed| errors(&of(Kind::Float, composed), &exact));
        for (at, (ours, theirs)) in ours.into_iter().zip(theirs).enumerate() {
            // Where attention is sharp, roundings of f32 weigh more in either.
            assert!(
                ours < 2e-6 || case.sharp && ours < 1.5 * theirs,
                "{size:?}, {case:?}, tensor {at}: {ours:e} to {theirs:e}"
            );
        }
    }
}

/// Means over draws: of one, where the roundings of a few values decide, either may be half as far again from the truth.
#[test]
fn a_block_in_bf16_is_as_near_to_the_exact_one_as_the_composed_one_in_bf16() {
    const DRAWS: u64 = 8;
    for (size, case) in cases() {
        let mut means = [[0.0; 2]; 13];
        for seed in 0..DRAWS {
            let of = |kind, composed| pass(size, case, seed, Kind::BFloat16, kind, composed);
            let exact = of(Kind::Double, true);
            let both = [false, true].map(|composed| errors(&of(Kind::BFloat16, composed), &exact));
            for (at, mean) in means.iter_mut().enumerate() {
                mean[0] += both[0][at] / DRAWS as f64;
                mean[1] += both[1][at] / DRAWS as f64;
            }
        }
        for (at, [ours, theirs]) in means.into_iter().enumerate() {
            assert!(
                ours < 1.15 * theirs && (ours < 0.02 || case.sharp),
                "{size:?}, {case:?}, tensor {at}: {ours} to {theirs}"
            );
        }
    }
}

/// Width 4, 2 heads, hidden width 8.
fn small() -> Block {
    let linear = |out: i64, inside: i64| Linear { weight: normal(&[out, inside], 2), bias: Some(normal(&[out], 3)) };
    Block {
        heads: 2,
        modulation: linear(24, 4),
        qkv: linear(12, 4),
        proj: linear(4, 4),
        fc1: linear(8, 4),
        fc2: linear(4, 8),
    }
}

#[test]
fn a_block_goes_backward_once_and_has_no_second_derivative() {
    let (x, condition) = (normal(&[1, 2, 4], 0).set_requires_grad(true), normal(&[1, 1, 4], 1));
    let sum = || small().forward(&x, &condition).sum(Kind::Float);
    let one = sum();
    let again = |keep| Tensor::f_run_backward(&[&one], &[&x], keep, false);
    assert!(again(true).is_ok());
    assert!(again(false).unwrap_err().to_string().contains("a block goes backward once"));
    let twice = Tensor::f_run_backward(&[&sum()], &[&x], true, true);
    assert!(twice.unwrap_err().to_string().contains("a block has no second derivative"));
}

#[test]
fn tokens_that_were_changed_before_the_backward_pass_are_found_out() {
    let leaf = normal(&[1, 2, 4], 0).set_requires_grad(true);
    let mut x = &leaf * 1.0;
    let y = small().forward(&x, &normal(&[1, 1, 4], 1));
    let _ = x.g_add_(&Tensor::from(1.0f32));
    let refused = Tensor::f_run_backward(&[&y.sum(Kind::Float)], &[&leaf], false, false);
    assert!(refused.unwrap_err().to_string().contains("modified by an inplace operation"));
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let run = |x: &[i64], condition: &[i64], block: &Block| {
        let (x, condition) = (normal(x, 0), normal(condition, 1));
        native::block(&x, &condition, block.weights(), block.heads).unwrap_err().to_string()
    };
    let fits = small();
    assert!(run(&[2, 4], &[1, 1, 4], &fits).contains("have three dimensions"));
    assert!(
        run(&[2, 3, 4], &[1, 1, 4], &fits).contains("the condition of a block has the shape [2, 1, 4], not [1, 1, 4]")
    );
    assert!(run(&[2, 3, 4], &[2, 2, 4], &fits).contains("the condition of a block has the shape [2, 3, 4]"));
    assert!(run(&[2, 3, 4], &[2, 1, 4], &Block { heads: 3, ..small() }).contains("3 heads do not divide a width of 4"));
    let qkv = Linear { bias: Some(normal(&[4], 3)), ..small().qkv };
    assert!(run(&[2, 3, 4], &[2, 1, 4], &Block { qkv, ..small() }).contains("the bias of a block has the shape [12]"));
    let fc1 = Linear { weight: normal(&[8, 4], 2).to_kind(Kind::Double), ..small().fc1 };
    assert!(run(&[2, 3, 4], &[2, 1, 4], &Block { fc1, ..small() }).contains("has the dtype of its tokens"));
}

#[test]
fn neither_block_reads_a_value_back() {
    let (x, condition) = (normal(&[2, 3, 4], 0).set_requires_grad(true), normal(&[2, 3, 4], 1));
    let block = small();
    for composed in [false, true] {
        let run = || {
            let y = if composed { block.composed(&x, &condition) } else { block.forward(&x, &condition) };
            y.sum(Kind::Float).backward();
        };
        assert_eq!(reads_during(run).unwrap().1, 0);
    }
}

#[test]
fn no_images_make_no_tokens_and_a_value_that_is_not_a_number_stays_one() {
    let block = small();
    assert_eq!(block.forward(&normal(&[0, 3, 4], 0), &normal(&[0, 1, 4], 1)).size(), [0, 3, 4]);
    let x = normal(&[2, 3, 4], 0);
    let _ = x.get(0).get(1).get(2).fill_(f64::NAN);
    let y = block.forward(&x, &normal(&[2, 1, 4], 1));
    assert_eq!(y.get(0).isnan().all().int64_value(&[]), 1, "every token of the image looks at the one");
    assert_eq!(y.get(1).isnan().any().int64_value(&[]), 0);
    // Rows with a stride, as a slice of something wider has them.
    let wide = normal(&[2, 3, 8], 5);
    let slice = wide.narrow(2, 0, 4);
    let condition = normal(&[2, 1, 4], 1);
    assert!(block.forward(&slice, &condition).equal(&block.forward(&slice.contiguous(), &condition)));
}
