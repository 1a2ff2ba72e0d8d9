//! The Inception network of FID: the classifier `inception-2015-12-05`, with TensorFlow 1's resize in front of it.
//!
//! FID, sFID, Inception Score, precision and recall are defined by the features of this very network, as the ADM evaluator takes
//! them out of TensorFlow's graph. It is not torchvision's Inception: average pools do not count their padding, the last
//! block pools by maximum, and there are 1008 classes. Weights are the PyTorch conversion that pytorch-fid and torch-fidelity share,
//! as safetensors; batch norms are folded into the convolutions when they are loaded. The classifier's bias is
//! read and not used.
//!
//! ```text
//! u8 [B, H, W, 3]  --resize to 299 x 299, (x - 128) / 128-->  17 convolutions and blocks
//!   Mixed_6d.branch1x1, channels 0..7, by row, column, channel  = spatial  f32 [B, 2023]
//!   mean over 8 x 8 of Mixed_7c                                 = pool     f32 [B, 2048]
//!   pool times fc.weight                                        = logits   f32 [B, 1008]
//! ```

use std::path::Path;

use tch::{Device, Kind, TchError, Tensor, no_grad};

use super::weights::{Weights, WeightsError, channels_last};

/// Width of [`InceptionFeatures::pool`].
pub const POOL: i64 = 2048;
/// Width of [`InceptionFeatures::spatial`]: 17 x 17 x 7.
pub const SPATIAL: i64 = 17 * 17 * SPATIAL_CHANNELS;
/// Number of classes, background and unused ones included.
pub const CLASSES: i64 = 1008;

const SPATIAL_CHANNELS: i64 = 7;
/// Pixels of a side of what the network sees.
const SIDE: i64 = 299;
/// Of every batch norm.
const EPSILON: f64 = 1e-3;

/// What the metrics are made of, f32 on the network's device.
#[derive(Debug)]
pub struct InceptionFeatures {
    /// `pool_3`, `[B, 2048]`: FID, precision and recall.
    pub pool: Tensor,
    /// The first 7 channels of `mixed_6/conv`, `[B, 2023]`: sFID.
    pub spatial: Tensor,
    /// `pool` times the classifier's weights, without its bias, `[B, 1008]`: Inception Score.
    pub logits: Tensor,
}

/// The network on one device. Owned by one thread.
#[derive(Debug)]
pub struct Inception {
    stem: [Conv; 5],
    /// Mixed_5b to 7c.
    blocks: Vec<Block>,
    /// `[1008, 2048]`.
    classifier: Tensor,
    device: Device,
    weights_xxh3: u64,
}

impl Inception {
    /// Reads a safetensors file with the keys of torchvision's `inception_v3`; `num_batches_tracked` may be there or not.
    ///
    /// # Errors
    /// [`WeightsError`], which names every tensor that does not fit.
    pub fn open(path: &Path, device: Device) -> Result<Self, WeightsError> {
        Self::new(Weights::open(path, device)?)
    }

    /// Takes the network's tensors out of `weights`.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`].
    pub fn new(weights: Weights) -> Result<Self, WeightsError> {
        let device = weights.device();
        // What torchvision counts in training.
        let w = &mut weights.rename(|name| (!name.ends_with("num_batches_tracked")).then(|| name.to_owned()));
        let (convs, blocks, classifier) = (stem(w), blocks(w), w.take("fc.weight", &[CLASSES, POOL]));
        let _ = w.take("fc.bias", &[CLASSES]);
        let taken = std::mem::replace(w, Weights::from_tensors([], "", device));
        let weights_xxh3 = taken.finish()?;
        // Folded only now: what did not fit is an empty tensor until `finish` has agreed.
        Ok(no_grad(|| Self {
            stem: convs.map(Unfolded::fold),
            blocks: blocks.into_iter().map(Unfolded::fold_block).collect(),
            classifier,
            device,
            weights_xxh3,
        }))
    }

    /// Name and shape of every tensor that a file of weights must have, sorted by name.
    pub fn tensors() -> Vec<(String, Vec<i64>)> {
        let nothing = &mut Weights::from_tensors([], "", Device::Cpu);
        let _ = (stem(nothing), blocks(nothing));
        let mut tensors = nothing.expected().to_vec();
        tensors.extend([("fc.weight".to_owned(), vec![CLASSES, POOL]), ("fc.bias".to_owned(), vec![CLASSES])]);
        tensors.sort();
        tensors
    }

    /// Identity of the weights: xxh3 of names, shapes and bytes.
    pub fn weights_xxh3(&self) -> u64 {
        self.weights_xxh3
    }

    /// Features of u8 `[B, H, W, 3]`, RGB, on any device and of any size.
    ///
    /// # Errors
    /// libtorch's, for example for want of memory.
    pub fn features(&self, pixels: &Tensor) -> Result<InceptionFeatures, TchError> {
        no_grad(|| {
            let x = resized(&pixels.f_to_device(self.device)?.f_permute([0, 3, 1, 2])?.f_to_kind(Kind::Float)?)?;
            let x = channels_last(&((x - 128.0) * 0.007_812_5))?;
            let [first, second, third, fourth, fifth] = &self.stem;
            let x = max_pool(&third.forward(&second.forward(&first.forward(&x)?)?)?)?;
            let mut x = max_pool(&fifth.forward(&fourth.forward(&x)?)?)?;
            let mut spatial = None;
            for (at, block) in self.blocks.iter().enumerate() {
                x = block.forward(&x)?;
                if at == MIXED_6D {
                    // The 1x1 branch comes first.
                    let first = x.f_narrow(1, 0, SPATIAL_CHANNELS)?;
                    spatial = Some(first.f_permute([0, 2, 3, 1])?.f_reshape([-1, SPATIAL])?);
                }
            }
            let pool = x.f_mean_dim([2i64, 3].as_slice(), false, Kind::Float)?;
            let logits = pool.f_matmul(&self.classifier.f_transpose(0, 1)?)?;
            let spatial = spatial.expect("there are more blocks than those up to 6d");
            Ok(InceptionFeatures { pool, spatial, logits })
        })
    }
}

/// TensorFlow 1's bilinear resize to 299 x 299 (`align_corners` and `half_pixel_centers` both false), f32 as there: pixel i looks at
/// `i * scale` with no half added, and nothing is rounded or clamped. `[B, C, H, W]`.
fn resized(x: &Tensor) -> Result<Tensor, TchError> {
    let along = |x: &Tensor, dim: i64| -> Result<Tensor, TchError> {
        let inside = x.size()[dim as usize];
        let scale = inside as f32 / SIDE as f32;
        let places: Vec<f32> = (0..SIDE).map(|i| i as f32 * scale).collect();
        let low: Vec<i64> = places.iter().map(|place| place.floor() as i64).collect();
        let high: Vec<i64> = low.iter().map(|low| (low + 1).min(inside - 1)).collect();
        let share: Vec<f32> = places.iter().zip(&low).map(|(place, &low)| place - low as f32).collect();
        let mut shape = [1; 4];
        shape[dim as usize] = SIDE;
        let on_device = |tensor: Tensor| tensor.f_to_device(x.device());
        let (low, high) = (on_device(Tensor::f_from_slice(&low)?)?, on_device(Tensor::f_from_slice(&high)?)?);
        let share = on_device(Tensor::f_from_slice(&share)?.f_view(shape)?)?;
        let low = x.f_index_select(dim, &low)?;
        x.f_index_select(dim, &high)?.f_sub(&low)?.f_mul(&share)?.f_add(&low)
    };
    along(&along(x, 3)?, 2)
}

/// A convolution without bias, its batch norm, ReLU.
#[derive(Debug)]
struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: [i64; 2],
}

impl Conv {
    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let mut y = x.f_conv2d(&self.weight, Some(&self.bias), [self.stride; 2], self.padding, [1, 1], 1)?;
        y.f_relu_()
    }
}

#[derive(Debug, Clone, Copy)]
enum Pool {
    /// 3 x 3 at stride 1; padding is not counted.
    Average,
    /// 3 x 3 at stride 1.
    Max,
    /// 3 x 3 at stride 2, which makes the picture smaller.
    Down,
}

fn max_pool(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false)
}

/// A pool, convolutions one behind the other, and perhaps several side by side at the end.
#[derive(Debug)]
struct Branch<C = Conv> {
    pool: Option<Pool>,
    path: Vec<C>,
    fork: Vec<C>,
}

/// Branches on the same input, their channels joined.
#[derive(Debug)]
struct Block<C = Conv>(Vec<Branch<C>>);

impl Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let mut joined = Vec::new();
        for Branch { pool, path, fork } in &self.0 {
            let pooled = match pool {
                None => x.shallow_clone(),
                Some(Pool::Average) => x.f_avg_pool2d([3, 3], [1, 1], [1, 1], false, false, None)?,
                Some(Pool::Max) => x.f_max_pool2d([3, 3], [1, 1], [1, 1], [1, 1], false)?,
                Some(Pool::Down) => max_pool(x)?,
            };
            let along = path.iter().try_fold(pooled, |x, conv| conv.forward(&x))?;
            if fork.is_empty() {
                joined.push(along);
                continue;
            }
            for conv in fork {
                joined.push(conv.forward(&along)?);
            }
        }
        Tensor::f_cat(&joined, 1)
    }
}

/// A convolution and its batch norm as they are stored.
#[derive(Debug)]
struct Unfolded {
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    variance: Tensor,
    stride: i64,
    padding: [i64; 2],
}

impl Unfolded {
    fn take(w: &mut Weights, name: &str, [inputs, outputs]: [i64; 2], kernel: [i64; 2]) -> Self {
        let weight = w.take(&format!("{name}.conv.weight"), &[outputs, inputs, kernel[0], kernel[1]]);
        let [gamma, beta, mean, variance] = ["weight", "bias", "running_mean", "running_var"]
            .map(|part| w.take(&format!("{name}.bn.{part}"), &[outputs]));
        Self { weight, gamma, beta, mean, variance, stride: 1, padding: [0, 0] }
    }

    fn stride(self, stride: i64) -> Self {
        Self { stride, ..self }
    }

    fn padded(self, padding: [i64; 2]) -> Self {
        Self { padding, ..self }
    }

    /// gamma (W x - mean) / sqrt(variance + eps) + beta is one convolution with a bias; computed in f64, rounded once.
    fn fold(self) -> Conv {
        let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
        let factor = double(&self.gamma) / (double(&self.variance) + EPSILON).sqrt();
        let bias = double(&self.beta) - double(&self.mean) * &factor;
        let weight = (double(&self.weight) * factor.view([-1, 1, 1, 1])).to_kind(Kind::Float);
        let weight = channels_last(&weight).expect("a kernel has four dimensions");
        Conv { weight, bias: bias.to_kind(Kind::Float), stride: self.stride, padding: self.padding }
    }

    fn fold_block(Block(branches): Block<Self>) -> Block {
        let all = |convs: Vec<Self>| convs.into_iter().map(Self::fold).collect();
        Block(
            branches
                .into_iter()
                .map(|Branch { pool, path, fork }| Branch { pool, path: all(path), fork: all(fork) })
                .collect(),
        )
    }
}

fn stem(w: &mut Weights) -> [Unfolded; 5] {
    [
        Unfolded::take(w, "Conv2d_1a_3x3", [3, 32], [3, 3]).stride(2),
        Unfolded::take(w, "Conv2d_2a_3x3", [32, 32], [3, 3]),
        Unfolded::take(w, "Conv2d_2b_3x3", [32, 64], [3, 3]).padded([1, 1]),
        Unfolded::take(w, "Conv2d_3b_1x1", [64, 80], [1, 1]),
        Unfolded::take(w, "Conv2d_4a_3x3", [80, 192], [3, 3]),
    ]
}

/// Place of Mixed_6d in [`blocks`].
const MIXED_6D: usize = 6;

fn blocks(w: &mut Weights) -> Vec<Block<Unfolded>> {
    vec![
        block_a(w, "Mixed_5b", 192, 32),
        block_a(w, "Mixed_5c", 256, 64),
        block_a(w, "Mixed_5d", 288, 64),
        block_b(w, "Mixed_6a"),
        block_c(w, "Mixed_6b", 128),
        block_c(w, "Mixed_6c", 160),
        block_c(w, "Mixed_6d", 160),
        block_c(w, "Mixed_6e", 192),
        block_d(w, "Mixed_7a"),
        block_e(w, "Mixed_7b", 1280, Pool::Average),
        block_e(w, "Mixed_7c", 2048, Pool::Max),
    ]
}

fn path(path: Vec<Unfolded>) -> Branch<Unfolded> {
    Branch { pool: None, path, fork: Vec::new() }
}

fn pooled(pool: Pool, path: Vec<Unfolded>) -> Branch<Unfolded> {
    Branch { pool: Some(pool), path, fork: Vec::new() }
}

const ONE: [i64; 2] = [1, 1];
const THREE: [i64; 2] = [3, 3];

/// 35 x 35.
fn block_a(w: &mut Weights, name: &str, inputs: i64, pool: i64) -> Block<Unfolded> {
    let mut conv = |part: &str, channels, kernel| Unfolded::take(w, &format!("{name}.{part}"), channels, kernel);
    Block(vec![
        path(vec![conv("branch1x1", [inputs, 64], ONE)]),
        path(vec![conv("branch5x5_1", [inputs, 48], ONE), conv("branch5x5_2", [48, 64], [5, 5]).padded([2, 2])]),
        path(vec![
            conv("branch3x3dbl_1", [inputs, 64], ONE),
            conv("branch3x3dbl_2", [64, 96], THREE).padded([1, 1]),
            conv("branch3x3dbl_3", [96, 96], THREE).padded([1, 1]),
        ]),
        pooled(Pool::Average, vec![conv("branch_pool", [inputs, pool], ONE)]),
    ])
}

/// 35 x 35 to 17 x 17.
fn block_b(w: &mut Weights, name: &str) -> Block<Unfolded> {
    let mut conv = |part: &str, channels, kernel| Unfolded::take(w, &format!("{name}.{part}"), channels, kernel);
    Block(vec![
        path(vec![conv("branch3x3", [288, 384], THREE).stride(2)]),
        path(vec![
            conv("branch3x3dbl_1", [288, 64], ONE),
            conv("branch3x3dbl_2", [64, 96], THREE).padded([1, 1]),
            conv("branch3x3dbl_3", [96, 96], THREE).stride(2),
        ]),
        pooled(Pool::Down, vec![]),
    ])
}

/// 17 x 17, with a 7 x 7 taken apart into rows and columns of `width` channels.
fn block_c(w: &mut Weights, name: &str, width: i64) -> Block<Unfolded> {
    let mut conv = |part: &str, channels, kernel| Unfolded::take(w, &format!("{name}.{part}"), channels, kernel);
    let (row, column, across, down) = ([1, 7], [7, 1], [0, 3], [3, 0]);
    Block(vec![
        path(vec![conv("branch1x1", [768, 192], ONE)]),
        path(vec![
            conv("branch7x7_1", [768, width], ONE),
            conv("branch7x7_2", [width, width], row).padded(across),
            conv("branch7x7_3", [width, 192], column).padded(down),
        ]),
        path(vec![
            conv("branch7x7dbl_1", [768, width], ONE),
            conv("branch7x7dbl_2", [width, width], column).padded(down),
            conv("branch7x7dbl_3", [width, width], row).padded(across),
            conv("branch7x7dbl_4", [width, width], column).padded(down),
            conv("branch7x7dbl_5", [width, 192], row).padded(across),
        ]),
        pooled(Pool::Average, vec![conv("branch_pool", [768, 192], ONE)]),
    ])
}

/// 17 x 17 to 8 x 8.
fn block_d(w: &mut Weights, name: &str) -> Block<Unfolded> {
    let mut conv = |part: &str, channels, kernel| Unfolded::take(w, &format!("{name}.{part}"), channels, kernel);
    Block(vec![
        path(vec![conv("branch3x3_1", [768, 192], ONE), conv("branch3x3_2", [192, 320], THREE).stride(2)]),
        path(vec![
            conv("branch7x7x3_1", [768, 192], ONE),
            conv("branch7x7x3_2", [192, 192], [1, 7]).padded([0, 3]),
            conv("branch7x7x3_3", [192, 192], [7, 1]).padded([3, 0]),
            conv("branch7x7x3_4", [192, 192], THREE).stride(2),
        ]),
        pooled(Pool::Down, vec![]),
    ])
}

/// 8 x 8.
fn block_e(w: &mut Weights, name: &str, inputs: i64, pool: Pool) -> Block<Unfolded> {
    let mut conv = |part: &str, channels, kernel| Unfolded::take(w, &format!("{name}.{part}"), channels, kernel);
    let (row, column, across, down) = ([1, 3], [3, 1], [0, 1], [1, 0]);
    Block(vec![
        path(vec![conv("branch1x1", [inputs, 320], ONE)]),
        Branch {
            pool: None,
            path: vec![conv("branch3x3_1", [inputs, 384], ONE)],
            fork: vec![
                conv("branch3x3_2a", [384, 384], row).padded(across),
                conv("branch3x3_2b", [384, 384], column).padded(down),
            ],
        },
        Branch {
            pool: None,
            path: vec![
                conv("branch3x3dbl_1", [inputs, 448], ONE),
                conv("branch3x3dbl_2", [448, 384], THREE).padded([1, 1]),
            ],
            fork: vec![
                conv("branch3x3dbl_3a", [384, 384], row).padded(across),
                conv("branch3x3dbl_3b", [384, 384], column).padded(down),
            ],
        },
        pooled(pool, vec![conv("branch_pool", [inputs, 192], ONE)]),
    ])
}

#[cfg(test)]
mod tests;
