//! The layers of the autoencoder, each made from its tensors in a [`Weights`] and named as in diffusers.
//!
//! All maps are f32 `[B, C, H, W]`. Construction follows the structure, and so is the only place where names and shapes
//! are written down. Errors are libtorch's own (out of memory, above all): shapes were checked before the first layer.

use tch::{TchError, Tensor};

use super::AutoencoderConfig;
use crate::nets::weights::Weights;

/// Every normalisation of this autoencoder; the default of libtorch would be 1e-5.
const GROUP_NORM_EPS: f64 = 1e-6;

/// A convolution with bias; `padding` zeros on every side.
#[derive(Debug)]
pub(super) struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv {
    pub(super) fn new(w: &mut Weights, name: &str, inputs: i64, outputs: i64, kernel: i64) -> Self {
        Self {
            weight: w.take(&format!("{name}.weight"), &[outputs, inputs, kernel, kernel]),
            bias: w.take(&format!("{name}.bias"), &[outputs]),
            stride: 1,
            padding: kernel / 2,
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        x.f_conv2d(&self.weight, Some(&self.bias), stride, padding, [1, 1], 1)
    }
}

/// Group normalisation with an affine map for each channel.
#[derive(Debug)]
struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
}

impl GroupNorm {
    fn new(w: &mut Weights, name: &str, channels: i64, groups: i64) -> Self {
        let weight = w.take(&format!("{name}.weight"), &[channels]);
        let bias = w.take(&format!("{name}.bias"), &[channels]);
        Self { weight, bias, groups }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_group_norm(self.groups, Some(&self.weight), Some(&self.bias), GROUP_NORM_EPS, true)
    }
}

/// A linear layer with bias over the last dimension.
#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn new(w: &mut Weights, name: &str, channels: i64) -> Self {
        let weight = w.take_matrix(&format!("{name}.weight"), channels, channels);
        let bias = w.take(&format!("{name}.bias"), &[channels]);
        Self { weight, bias }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_linear(&self.weight, Some(&self.bias))
    }
}

/// Two rounds of normalise, SiLU, convolve, added to the input (through a 1x1 convolution where channels change).
#[derive(Debug)]
struct Resnet {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    conv_shortcut: Option<Conv>,
}

impl Resnet {
    fn new(w: &mut Weights, name: &str, inputs: i64, outputs: i64, groups: i64) -> Self {
        Self {
            norm1: GroupNorm::new(w, &format!("{name}.norm1"), inputs, groups),
            conv1: Conv::new(w, &format!("{name}.conv1"), inputs, outputs, 3),
            norm2: GroupNorm::new(w, &format!("{name}.norm2"), outputs, groups),
            conv2: Conv::new(w, &format!("{name}.conv2"), outputs, outputs, 3),
            conv_shortcut: (inputs != outputs)
                .then(|| Conv::new(w, &format!("{name}.conv_shortcut"), inputs, outputs, 1)),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let h = self.conv1.forward(&self.norm1.forward(x)?.f_silu()?)?;
        let h = self.conv2.forward(&self.norm2.forward(&h)?.f_silu()?)?;
        match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(x)?.f_add(&h),
            None => x.f_add(&h),
        }
    }
}

/// Self-attention over all positions, one head as wide as the channels, added to the input.
#[derive(Debug)]
struct Attention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    fn new(w: &mut Weights, name: &str, channels: i64, groups: i64) -> Self {
        Self {
            group_norm: GroupNorm::new(w, &format!("{name}.group_norm"), channels, groups),
            to_q: Linear::new(w, &format!("{name}.to_q"), channels),
            to_k: Linear::new(w, &format!("{name}.to_k"), channels),
            to_v: Linear::new(w, &format!("{name}.to_v"), channels),
            to_out: Linear::new(w, &format!("{name}.to_out.0"), channels),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        // [B, C, H, W] -> [B, 1, H*W, C]: the second dimension counts heads.
        let tokens = self.group_norm.forward(x)?.f_flatten(2, 3)?.f_transpose(1, 2)?.f_unsqueeze(1)?;
        let q = self.to_q.forward(&tokens)?;
        let k = self.to_k.forward(&tokens)?;
        let v = self.to_v.forward(&tokens)?;
        let mixed = Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false)?;
        let out = self.to_out.forward(&mixed)?;
        out.f_squeeze_dim(1)?.f_transpose(1, 2)?.f_reshape(x.size())?.f_add(x)
    }
}

/// Resnet, attention (if the configuration has it), resnet at the coarsest resolution.
#[derive(Debug)]
struct MidBlock {
    first: Resnet,
    attention: Option<Attention>,
    second: Resnet,
}

impl MidBlock {
    fn new(w: &mut Weights, name: &str, channels: i64, config: &AutoencoderConfig) -> Self {
        let groups = config.norm_num_groups;
        Self {
            first: Resnet::new(w, &format!("{name}.resnets.0"), channels, channels, groups),
            attention: config
                .mid_block_add_attention
                .then(|| Attention::new(w, &format!("{name}.attentions.0"), channels, groups)),
            second: Resnet::new(w, &format!("{name}.resnets.1"), channels, channels, groups),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let mut h = self.first.forward(x)?;
        if let Some(attention) = &self.attention {
            h = attention.forward(&h)?;
        }
        self.second.forward(&h)
    }
}

/// Normalise, SiLU, convolve: the way out of encoder and decoder.
#[derive(Debug)]
struct Head {
    norm: GroupNorm,
    conv: Conv,
}

impl Head {
    fn new(w: &mut Weights, name: &str, inputs: i64, outputs: i64, groups: i64) -> Self {
        let norm = GroupNorm::new(w, &format!("{name}.conv_norm_out"), inputs, groups);
        let conv = Conv::new(w, &format!("{name}.conv_out"), inputs, outputs, 3);
        Self { norm, conv }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        self.conv.forward(&self.norm.forward(x)?.f_silu()?)
    }
}

/// The residual blocks of one resolution, and the convolution that changes it (absent in the last).
#[derive(Debug)]
struct Level {
    resnets: Vec<Resnet>,
    resample: Option<Conv>,
}

/// Image `[B, 3, H, W]` -> parameters of the posterior `[B, 2 C, H/f, W/f]`.
#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: Conv,
    down: Vec<Level>,
    mid: MidBlock,
    head: Head,
}

impl Encoder {
    pub(super) fn new(w: &mut Weights, config: &AutoencoderConfig) -> Self {
        let channels = &config.block_out_channels;
        let groups = config.norm_num_groups;
        let last = channels.len() - 1;
        let conv_in = Conv::new(w, "encoder.conv_in", config.in_channels, channels[0], 3);
        let mut inputs = channels[0];
        let mut down = Vec::new();
        for (i, &outputs) in channels.iter().enumerate() {
            let name = format!("encoder.down_blocks.{i}");
            let mut resnets = Vec::new();
            for j in 0..config.layers_per_block {
                resnets.push(Resnet::new(w, &format!("{name}.resnets.{j}"), inputs, outputs, groups));
                inputs = outputs;
            }
            // Stride 2 without padding: `forward` pads on the right and at the bottom only.
            let resample = (i < last).then(|| Conv {
                stride: 2,
                padding: 0,
                ..Conv::new(w, &format!("{name}.downsamplers.0.conv"), outputs, outputs, 3)
            });
            down.push(Level { resnets, resample });
        }
        let mid = MidBlock::new(w, "encoder.mid_block", inputs, config);
        let head = Head::new(w, "encoder", inputs, 2 * config.latent_channels, groups);
        Self { conv_in, down, mid, head }
    }

    pub(super) fn forward(&self, image: &Tensor) -> Result<Tensor, TchError> {
        let mut h = self.conv_in.forward(image)?;
        for level in &self.down {
            for resnet in &level.resnets {
                h = resnet.forward(&h)?;
            }
            if let Some(halve) = &level.resample {
                // left, right, top, bottom
                h = halve.forward(&h.f_constant_pad_nd([0, 1, 0, 1])?)?;
            }
        }
        self.head.forward(&self.mid.forward(&h)?)
    }
}

/// Latent `[B, C, h, w]` -> image `[B, 3, h*f, w*f]`, not clamped.
#[derive(Debug)]
pub(super) struct Decoder {
    conv_in: Conv,
    mid: MidBlock,
    up: Vec<Level>,
    head: Head,
}

impl Decoder {
    pub(super) fn new(w: &mut Weights, config: &AutoencoderConfig) -> Self {
        let groups = config.norm_num_groups;
        let last = config.block_out_channels.len() - 1;
        let mut inputs = config.block_out_channels[last];
        let conv_in = Conv::new(w, "decoder.conv_in", config.latent_channels, inputs, 3);
        let mid = MidBlock::new(w, "decoder.mid_block", inputs, config);
        let mut up = Vec::new();
        for (i, &outputs) in config.block_out_channels.iter().rev().enumerate() {
            let name = format!("decoder.up_blocks.{i}");
            let mut resnets = Vec::new();
            for j in 0..=config.layers_per_block {
                resnets.push(Resnet::new(w, &format!("{name}.resnets.{j}"), inputs, outputs, groups));
                inputs = outputs;
            }
            let resample = (i < last).then(|| Conv::new(w, &format!("{name}.upsamplers.0.conv"), outputs, outputs, 3));
            up.push(Level { resnets, resample });
        }
        let head = Head::new(w, "decoder", inputs, config.out_channels, groups);
        Self { conv_in, mid, up, head }
    }

    pub(super) fn forward(&self, latent: &Tensor) -> Result<Tensor, TchError> {
        let mut h = self.mid.forward(&self.conv_in.forward(latent)?)?;
        for level in &self.up {
            for resnet in &level.resnets {
                h = resnet.forward(&h)?;
            }
            if let Some(conv) = &level.resample {
                let size = h.size();
                h = conv.forward(&h.f_upsample_nearest2d([2 * size[2], 2 * size[3]], Some(2.0), Some(2.0))?)?;
            }
        }
        self.head.forward(&h)
    }
}
