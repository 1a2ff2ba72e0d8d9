//! Where training starts: an autoencoder that already shrinks and enlarges images.
//!
//! Minutes of training on a CPU are too few to discover from noise that latents should look like small images. So the
//! residual stream starts as a linear path for the three colours: 2x2 means down, bilinear interpolation up. The last
//! convolution of every residual block starts at zero, and every channel that the path does not need starts at random.
//!
//! Two facts make the path linear in spite of the normalisation and the SiLU before each output convolution.
//! silu(x) - silu(-x) = x, so each colour passes as a pair (x, -x). And a pair of constants (c, -c) in the same group,
//! large beside the colours, keeps the group's mean at zero and its deviation the same for all images. The latter needs
//! groups of four channels, so 16 channels have four groups: in a group of two, normalising takes the mean and the scale
//! of the pair, and with them the brightness of a flat image.

use std::f64::consts::FRAC_1_SQRT_2;

use stages::native::fill_uniform;
use stages::nets::autoencoder::{AutoencoderConfig, AutoencoderKl};
use tch::{Device, Kind, Tensor};

use crate::Failure;

/// The constants beside the colours; their mean square is about 0.25.
const ANCHOR: f64 = 4.0;
const COLOUR_MEAN_SQUARE: f64 = 0.25;

/// Latent channels 0 to 2 are brightness and two differences of colours, so that they are nearly uncorrelated.
const OPPONENT: [[f64; 3]; 3] =
    [[0.577_35, 0.577_35, 0.577_35], [FRAC_1_SQRT_2, 0.0, -FRAC_1_SQRT_2], [0.408_25, -0.816_5, 0.408_25]];
/// Brings brightness to about unit variance.
const LATENT_GAIN: f64 = 1.5;
/// Deviation exp(-3) = 0.05 of the posterior.
const LOGVAR: f64 = -6.0;

/// Every parameter by name: leaves that require gradients.
pub(crate) fn parameters(config: &AutoencoderConfig, seed: u64) -> Result<Vec<(String, Tensor)>, Failure> {
    let mut parameters = Vec::new();
    for (i, (name, shape)) in AutoencoderKl::parameters(config)?.into_iter().enumerate() {
        let mut tensor = Tensor::zeros(&shape, (Kind::Float, Device::Cpu));
        if name.contains("norm") && name.ends_with("weight") {
            tensor = tensor.ones_like();
        } else if shape.len() == 4 && !name.ends_with("conv2.weight") {
            // Uniform with variance 1 / fan-in, so that the random channels keep their variance too.
            fill_uniform(&mut tensor, seed << 32 | i as u64)?;
            let fan_in: i64 = shape[1..].iter().product();
            tensor = (tensor * 2.0 - 1.0) * (3.0 / fan_in as f64).sqrt();
        }
        lay_path(&name, &mut tensor, config.block_out_channels.len());
        parameters.push((name, tensor.set_requires_grad(true)));
    }
    Ok(parameters)
}

/// Overwrites what the linear path needs of one parameter.
fn lay_path(name: &str, t: &mut Tensor, blocks: usize) {
    let last_down = format!("encoder.down_blocks.{}.downsamplers.0.conv", blocks - 2);
    let last_up = format!("decoder.up_blocks.{}.resnets.0.conv_shortcut", blocks - 1);
    // 2x2 mean: the padding is on the right and at the bottom, so the kernel's first two rows and columns are the block.
    let halve = |t: &mut Tensor, to, from, sign: f64| {
        clear(t, to);
        for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            set(t, &[to, from, row, column], sign * 0.25);
        }
    };
    // Behind a nearest enlargement, 1/4 1/2 1/4 in both directions is bilinear interpolation.
    let smooth = |t: &mut Tensor, channel| {
        clear(t, channel);
        for (row, weight) in [0.25, 0.5, 0.25].into_iter().enumerate() {
            for (column, other) in [0.25, 0.5, 0.25].into_iter().enumerate() {
                set(t, &[channel, channel, row as i64, column as i64], weight * other);
            }
        }
    };
    let Some((layer, part)) = name.rsplit_once('.') else { return };
    let weight = part == "weight";
    match layer {
        "encoder.conv_in" if weight => (0..3).for_each(|c| only(t, c, &[(c, 1.0)])),
        "encoder.conv_norm_out" if weight => (0..6).for_each(|c| set(t, &[c], deviation(6.0, 10.0))),
        "encoder.conv_out" if weight => {
            for (to, mix) in OPPONENT.iter().enumerate() {
                let pairs =
                    (0..6).map(|c| (c, mix[c as usize / 2] * LATENT_GAIN * if c % 2 == 0 { 1.0 } else { -1.0 }));
                only(t, to as i64, &pairs.collect::<Vec<_>>());
            }
            (4..8).for_each(|logvar| clear(t, logvar));
        }
        "encoder.conv_out" => (4..8).for_each(|logvar| set(t, &[logvar], LOGVAR)),
        "quant_conv" if weight => (0..8).for_each(|c| only(t, c, &[(c, 1.0)])),
        "post_quant_conv" if weight => (0..4).for_each(|c| only(t, c, &[(c, 1.0)])),
        "decoder.conv_in" if weight => {
            for colour in 0..3 {
                let mix = (0..3).map(|from| (from, OPPONENT[from as usize][colour as usize] / LATENT_GAIN));
                only(t, colour, &mix.collect::<Vec<_>>());
            }
        }
        "decoder.conv_norm_out" if weight => {
            (0..3).for_each(|c| (0..2).for_each(|sign| set(t, &[4 * c + sign], deviation(2.0, 2.0))));
        }
        "decoder.conv_out" if weight => (0..3).for_each(|c| only(t, c, &[(4 * c, 1.0), (4 * c + 1, -1.0)])),
        // The last linear map before a head makes the pairs.
        _ if layer == last_down && weight => {
            (0..3).for_each(|c| {
                halve(t, 2 * c, c, 1.0);
                halve(t, 2 * c + 1, c, -1.0);
            });
            (6..16).for_each(|anchor| clear(t, anchor));
        }
        _ if layer == last_down => (6..16).for_each(|c| set(t, &[c], if c % 2 == 0 { ANCHOR } else { -ANCHOR })),
        _ if layer == last_up && weight => {
            (0..3).for_each(|c| {
                only(t, 4 * c, &[(c, 1.0)]);
                only(t, 4 * c + 1, &[(c, -1.0)]);
                clear(t, 4 * c + 2);
                clear(t, 4 * c + 3);
            });
        }
        _ if layer == last_up => (0..3).for_each(|c| {
            set(t, &[4 * c + 2], ANCHOR);
            set(t, &[4 * c + 3], -ANCHOR);
        }),
        _ if layer.contains("downsamplers") && weight => (0..3).for_each(|c| halve(t, c, c, 1.0)),
        _ if layer.contains("upsamplers") && weight => (0..3).for_each(|c| smooth(t, c)),
        _ if layer.contains("conv_shortcut") && weight => (0..3).for_each(|c| only(t, c, &[(c, 1.0)])),
        _ => {}
    }
}

/// Root mean square of a group of so many colour channels and constants: the scale that undoes its normalisation.
fn deviation(colours: f64, anchors: f64) -> f64 {
    ((colours * COLOUR_MEAN_SQUARE + anchors * ANCHOR * ANCHOR) / (colours + anchors)).sqrt()
}

/// Output channel `to` of a kernel becomes a mixture of input channels at the kernel's centre.
fn only(kernel: &mut Tensor, to: i64, mixture: &[(i64, f64)]) {
    clear(kernel, to);
    let centre = kernel.size()[2] / 2;
    for &(from, weight) in mixture {
        set(kernel, &[to, from, centre, centre], weight);
    }
}

fn clear(kernel: &mut Tensor, to: i64) {
    let _ = kernel.get(to).zero_();
}

fn set(tensor: &mut Tensor, place: &[i64], value: f64) {
    let _ = place.iter().fold(tensor.shallow_clone(), |t, &i| t.get(i)).fill_(value);
}
