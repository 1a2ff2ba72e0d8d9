//! What the finished autoencoder is measured by, and the README that says so.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use stages::encode::crop::centre_crop;
use stages::nets::autoencoder::AutoencoderKl;
use stages::procedural::{CLASSES, image};
use tch::{Kind, Tensor};

use crate::{BATCH, CROP, Failure, KL_WEIGHT, MSE_WEIGHT, Options, PEAK_LR, WARM_UP_STEPS, draw, psnr, to_tensor};

/// Images that training never drew: its seeds come from the whole of 64 bits, these are small.
const HELD_OUT_SEED: u64 = 1_000_000;
const HELD_OUT: usize = 64;
const SIDE: usize = 256;

/// f32 [1, 3, 256, 256] in [-1, 1].
fn held_out(i: usize) -> Tensor {
    to_tensor(&image(i, HELD_OUT_SEED + i as u64, SIDE, SIDE), 1, SIDE)
}

/// Mean and deviation of draws from the posteriors of the held-out images.
pub(crate) struct Latents {
    pub(crate) mean: Vec<f64>,
    pub(crate) std: Vec<f64>,
    /// Deviation of all values together, which one factor for all channels can bring to 1.
    pub(crate) overall_std: f64,
}

pub(crate) fn latents(net: &AutoencoderKl) -> Result<Latents, Failure> {
    let _guard = tch::no_grad_guard();
    let mut draws = Vec::new();
    for i in 0..HELD_OUT {
        let (mean, logvar) = net.encode_moments(&held_out(i))?;
        draws.push(draw(&mean, &logvar, i as u64)?);
    }
    let draws = Tensor::cat(&draws, 0).to_kind(Kind::Double);
    let all_but_channels = [0i64, 2, 3];
    Ok(Latents {
        mean: Vec::try_from(draws.mean_dim(all_but_channels.as_slice(), false, Kind::Double))?,
        std: Vec::try_from(draws.std_dim(all_but_channels.as_slice(), true, false))?,
        overall_std: draws.std(true).double_value(&[]),
    })
}

/// Folds a shift and a scale for each channel into `quant_conv` and `post_quant_conv`: the images stay what they were,
/// the latents get mean 0 and deviation 1.
pub(crate) fn normalise(net: &AutoencoderKl, parameters: &[(String, Tensor)]) -> Result<(), Failure> {
    let Latents { mean, std, .. } = latents(net)?;
    let _guard = tch::no_grad_guard();
    let named = |name: &str| {
        let found = parameters.iter().find(|(known, _)| known == name);
        found.map(|(_, p)| p.shallow_clone()).ok_or_else(|| format!("there is no parameter {name}"))
    };
    let channels = mean.len() as i64;
    let (mean, std) = (Tensor::from_slice(&mean).to_kind(Kind::Float), Tensor::from_slice(&std).to_kind(Kind::Float));
    // mean' = (mean - m) / s and logvar' = logvar - 2 ln s; the decoder sees draw' s + m.
    let one = std.ones_like();
    let divisor = Tensor::cat(&[&std, &one], 0);
    let moved = Tensor::cat(&[&mean, &(std.log() * 2.0)], 0);
    let (mut weight, mut bias) = (named("quant_conv.weight")?, named("quant_conv.bias")?);
    let _ = bias.g_sub_(&moved).g_div_(&divisor);
    let _ = weight.g_div_(&divisor.view([2 * channels, 1, 1, 1]));
    let (mut weight, mut bias) = (named("post_quant_conv.weight")?, named("post_quant_conv.bias")?);
    let _ = bias.g_add_(&weight.squeeze_dim(3).squeeze_dim(2).mv(&mean));
    let _ = weight.g_mul_(&std.view([1, channels, 1, 1]));
    Ok(())
}

/// Mean and worst peak signal-to-noise ratio over some images, in decibels.
#[derive(Default)]
struct Ratios {
    of: Vec<f64>,
}

impl Ratios {
    /// `y` against `x`, both in [-1, 1].
    fn add(&mut self, y: &Tensor, x: &Tensor) {
        self.of.push(psnr((y.clamp(-1.0, 1.0) - x).square().mean(Kind::Double).double_value(&[])));
    }

    fn mean(&self) -> f64 {
        self.of.iter().sum::<f64>() / self.of.len() as f64
    }

    fn worst(&self) -> f64 {
        self.of.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

struct Quality {
    from_mean: Ratios,
    from_draw: Ratios,
    bicubic: Ratios,
    /// How far the autoencoder is ahead of the bicubic reduction, image by image.
    least_lead: f64,
}

/// Of f32 [1, 3, 256, 256] images in [-1, 1].
fn quality(net: &AutoencoderKl, images: impl Iterator<Item = Tensor>) -> Result<Quality, Failure> {
    let _guard = tch::no_grad_guard();
    let (mut from_mean, mut from_draw, mut bicubic) = (Ratios::default(), Ratios::default(), Ratios::default());
    for (i, x) in images.enumerate() {
        let (mean, logvar) = net.encode_moments(&x)?;
        from_mean.add(&net.decode(&mean)?, &x);
        from_draw.add(&net.decode(&draw(&mean, &logvar, 77 + i as u64)?)?, &x);
        let small = x.internal_upsample_bicubic2d_aa([32, 32], false, None::<f64>, None::<f64>);
        bicubic.add(&small.upsample_bicubic2d([SIDE as i64, SIDE as i64], false, None::<f64>, None::<f64>), &x);
    }
    let leads = from_mean.of.iter().zip(&bicubic.of).map(|(own, other)| own - other);
    let least_lead = leads.fold(f64::INFINITY, f64::min);
    Ok(Quality { from_mean, from_draw, bicubic, least_lead })
}

/// Every picture in a folder and its folders, centre-cropped to 256 pixels as `pipeline encode` does, by path.
fn photographs(folder: &Path) -> Result<Vec<Tensor>, Failure> {
    let mut folders = vec![folder.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let picture = ::image::open(&file).map_err(|e| format!("{}: {e}", file.display()))?.to_rgb8();
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        all.push(to_tensor(&centre_crop(picture.into_raw(), width, height, SIDE), 1, SIDE));
    }
    Ok(all)
}

pub(crate) fn readme(
    net: &AutoencoderKl,
    options: &Options,
    parameters: usize,
    minutes: f64,
) -> Result<String, Failure> {
    let Latents { mean, std, overall_std } = latents(net)?;
    let mut rows = vec![("held-out procedural".to_owned(), quality(net, (0..HELD_OUT).map(held_out))?)];
    if let Some(folder) = &options.photographs {
        let photographs = photographs(folder)?;
        let name = format!("{} photographs (those of --photographs)", photographs.len());
        rows.push((name, quality(net, photographs.into_iter())?));
    }
    let per_channel = |values: &[f64]| values.iter().map(|v| format!("{v:+.3}")).collect::<Vec<_>>().join(", ");
    let mut text = format!(
        "# The embedded autoencoder

A diffusers `AutoencoderKL` (f8, 4 channels, {parameters} parameters, f16) that this project trained on its own
procedural images. It stands in for the Stable Diffusion autoencoder where nothing may be downloaded: in the
demo and in tests. It has seen no photograph. Written by `stages/examples/train_tiny_vae.rs`:

    cargo run --release -p stages --example train_tiny_vae -- --steps {} --seed {}

Recipe: a start that is bilinear shrinking and enlarging, fresh images at every step, batch {BATCH} of
{CROP}-pixel crops at varied scale, AdamW with peak {PEAK_LR}, {WARM_UP_STEPS} steps of warm-up and cosine decay;
loss L1 + {MSE_WEIGHT} MSE + {KL_WEIGHT} KL on a draw from the posterior; {minutes:.0} minutes on 2 cores in f32. Then a shift
and a scale for each latent channel went into `quant_conv` and `post_quant_conv`.

PSNR at {SIDE} x {SIDE}, {HELD_OUT} procedural images ({} of each class) that training never drew:

| images | from the posterior mean | worst image | from a draw | bicubic to 32 x 32 and back | least lead over it |
|---|---|---|---|---|---|
",
        options.steps,
        options.seed,
        HELD_OUT / CLASSES.len(),
    );
    for (name, quality) in &rows {
        writeln!(
            text,
            "| {name} | {:.2} dB | {:.2} dB | {:.2} dB | {:.2} dB | {:+.2} dB |",
            quality.from_mean.mean(),
            quality.from_mean.worst(),
            quality.from_draw.mean(),
            quality.bicubic.mean(),
            quality.least_lead,
        )?;
    }
    writeln!(text, "\nLatents of the held-out images, unscaled draws:\n\n| | |\n|---|---|")?;
    writeln!(text, "| mean, per channel | {} |", per_channel(&mean))?;
    writeln!(text, "| deviation, per channel | {} |", per_channel(&std))?;
    writeln!(text, "| deviation over all channels | {overall_std:.5} |")?;
    writeln!(text, "| scaling_factor; shift_factor | {:.5}; 0 |", net.scaling_factor())?;
    Ok(text)
}
