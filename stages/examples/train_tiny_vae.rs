//! Trains the embedded autoencoder on procedural images and writes it as a diffusers directory.
//!
//! ```text
//! cargo run --release -p stages --example train_tiny_vae -- [--minutes 9] [--out stages/assets/tiny-vae] [--seed 0]
//! ```
//!
//! AdamW, warm-up and cosine decay over the time given (so the result depends on the machine's speed), batch 8 of 64
//! pixel crops from fresh images, from a start that already shrinks and enlarges images (`train_tiny_vae/start.rs`). The reconstruction loss is L1 + 4 MSE of a draw from the posterior, so the decoder
//! learns to stand noise; a small KL term keeps the posterior near N(0, 1). What was measured goes into README.md.

// A program that reports on its terminal.
#![allow(clippy::print_stdout)]

#[path = "train_tiny_vae/start.rs"]
mod start;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use half::f16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use stages::native::fill_normal;
use stages::nets::autoencoder::{AutoencoderConfig, AutoencoderKl};
use stages::nets::weights::Weights;
use stages::procedural::{CLASSES, image};
use stages::splitmix::SplitMix64;
use tch::{Device, Kind, Tensor};

pub(crate) type Failure = Box<dyn std::error::Error>;

const BATCH: usize = 8;
const CROP: usize = 64;
const PEAK_LR: f64 = 1e-3;
const WARM_UP_STEPS: f64 = 100.0;
const MSE_WEIGHT: f64 = 4.0;
const KL_WEIGHT: f64 = 1e-4;
const CLIP_NORM: f64 = 1.0;

const CONFIG: &str = r#"{"_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [16, 32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4,
    "mid_block_add_attention": false}"#;

struct Options {
    minutes: f64,
    out: PathBuf,
    seed: u64,
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let mut config = AutoencoderConfig::from_json(CONFIG, "the example's configuration")?;
    let parameters = start::parameters(&config, options.seed)?;
    let count: usize = parameters.iter().map(|(_, p)| p.numel()).sum();
    println!("{count} parameters, {} minutes", options.minutes);
    let net = assemble(&config, &parameters)?;
    let steps = train(&net, &parameters, &options)?;

    std::fs::create_dir_all(&options.out)?;
    let weights = write_weights(&options.out, &parameters)?;
    let latents =
        latent_statistics(&AutoencoderKl::new(config.clone(), Weights::open(&weights, Device::Cpu)?, "trained")?)?;
    config.scaling_factor = Some((1e5 / latents.std).round() / 1e5);
    config.shift_factor = Some(0.0);
    std::fs::write(options.out.join("config.json"), serde_json::to_string_pretty(&config)? + "\n")?;

    let net = AutoencoderKl::open(&options.out, Device::Cpu)?;
    let readme = readme(&net, &latents, &options, steps, count)?;
    println!("{readme}");
    std::fs::write(options.out.join("README.md"), readme)?;
    Ok(())
}

fn options() -> Result<Options, Failure> {
    let default_out = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-vae");
    let mut options = Options { minutes: 9.0, out: default_out, seed: 0 };
    let mut words = std::env::args().skip(1);
    while let Some(flag) = words.next() {
        let value = words.next().ok_or_else(|| format!("{flag}: expected a value behind it"))?;
        match flag.as_str() {
            "--minutes" => options.minutes = value.parse().map_err(|e| format!("--minutes {value}: {e}"))?,
            "--out" => options.out = value.into(),
            "--seed" => options.seed = value.parse().map_err(|e| format!("--seed {value}: {e}"))?,
            _ => return Err(format!("{flag}: expected --minutes, --out or --seed").into()),
        }
    }
    Ok(options)
}

fn assemble(config: &AutoencoderConfig, parameters: &[(String, Tensor)]) -> Result<AutoencoderKl, Failure> {
    let shared = parameters.iter().map(|(name, p)| (name.clone(), p.shallow_clone()));
    Ok(AutoencoderKl::new(config.clone(), Weights::from_tensors(shared, "training", Device::Cpu), "training")?)
}

fn train(net: &AutoencoderKl, parameters: &[(String, Tensor)], options: &Options) -> Result<u64, Failure> {
    let mut optimiser = AdamW::new(parameters);
    let budget = Duration::from_secs_f64(options.minutes * 60.0);
    let start = Instant::now();
    let mut running = [0.0f64; 2];
    let mut step = 0;
    loop {
        let progress = start.elapsed().as_secs_f64() / budget.as_secs_f64();
        if progress >= 1.0 {
            return Ok(step);
        }
        let lr = PEAK_LR
            * 0.5
            * (1.0 + (std::f64::consts::PI * progress).cos())
            * ((step + 1) as f64 / WARM_UP_STEPS).min(1.0);
        let x = batch(options.seed, step);
        let (mean, logvar) = net.encode_moments(&x)?;
        let mut noise = mean.empty_like().detach();
        fill_normal(&mut noise, !(options.seed << 32 | step))?;
        let draw = &mean + (&logvar * 0.5).exp() * noise;
        let error = net.decode(&draw)? - &x;
        let (l1, mse) = (error.abs().mean(Kind::Float), error.square().mean(Kind::Float));
        let kl = (mean.square() + logvar.exp() - 1.0 - &logvar).mean(Kind::Float) * 0.5;
        (&l1 + &mse * MSE_WEIGHT + &kl * KL_WEIGHT).backward();
        optimiser.step(lr);

        let first = step == 0;
        for (mean, value) in running.iter_mut().zip([mse.double_value(&[]), kl.double_value(&[])]) {
            *mean += (value - *mean) * if first { 1.0 } else { 0.02 };
        }
        step += 1;
        if step == 1 || step % 100 == 0 {
            let rate = step as f64 / start.elapsed().as_secs_f64();
            println!(
                "step {step}: psnr {:.2} dB, kl {:.3}, lr {lr:.1e}, {rate:.1} steps/s",
                psnr(running[0]),
                running[1]
            );
        }
    }
}

/// AdamW with gradient clipping, on the leaf tensors themselves. The weight decay is small and spares no tensor.
struct AdamW {
    parameters: Vec<Tensor>,
    exp_avg: Vec<Tensor>,
    exp_avg_sq: Vec<Tensor>,
    steps: i32,
}

impl AdamW {
    const BETA1: f64 = 0.9;
    const BETA2: f64 = 0.99;
    const WEIGHT_DECAY: f64 = 1e-3;

    fn new(parameters: &[(String, Tensor)]) -> Self {
        let zeros = || parameters.iter().map(|(_, p)| p.zeros_like().detach()).collect();
        let parameters = parameters.iter().map(|(_, p)| p.shallow_clone()).collect();
        Self { parameters, exp_avg: zeros(), exp_avg_sq: zeros(), steps: 0 }
    }

    fn step(&mut self, lr: f64) {
        let _guard = tch::no_grad_guard();
        self.steps += 1;
        let correction1 = 1.0 - Self::BETA1.powi(self.steps);
        let correction2 = 1.0 - Self::BETA2.powi(self.steps);
        let squares: Vec<Tensor> = self.parameters.iter().map(|p| p.grad().square().sum(Kind::Float)).collect();
        let norm = Tensor::stack(&squares, 0).sum(Kind::Float).sqrt().double_value(&[]);
        let clip = (CLIP_NORM / (norm + 1e-6)).min(1.0);
        for ((p, m), v) in self.parameters.iter_mut().zip(&mut self.exp_avg).zip(&mut self.exp_avg_sq) {
            let g = p.grad() * clip;
            let _ = m.g_mul_scalar_(Self::BETA1).g_add_(&(&g * (1.0 - Self::BETA1)));
            let _ = v.g_mul_scalar_(Self::BETA2).g_add_(&(g.square() * (1.0 - Self::BETA2)));
            let direction = &*m / ((&*v / correction2).sqrt() + 1e-8) * (lr / correction1);
            let _ = p.g_mul_scalar_(1.0 - lr * Self::WEIGHT_DECAY).g_sub_(&direction);
            p.zero_grad();
        }
    }
}

/// 8 crops of 64 pixels from 4 fresh images of 64 to 319 pixels a side: f32 [8, 3, 64, 64] in [-1, 1].
fn batch(seed: u64, step: u64) -> Tensor {
    let mut dice = SplitMix64::new(seed << 40 ^ step << 8);
    let mut crops = Vec::with_capacity(BATCH * 3 * CROP * CROP);
    for _ in 0..BATCH / 2 {
        // 64 to 319 pixels, mostly small: a third of the images is shown nearly whole, a third in close-up.
        let mut side = || {
            let octave = dice.below(3) as usize;
            CROP + dice.below((CROP << octave) as u64) as usize
        };
        let (width, height) = (side(), side());
        let rgb = image(dice.below(CLASSES.len() as u64) as usize, dice.bits(), width, height);
        for _ in 0..2 {
            let (left, top) =
                (dice.below((width - CROP + 1) as u64) as usize, dice.below((height - CROP + 1) as u64) as usize);
            crops.extend((0..CROP).flat_map(|row| {
                let from = ((top + row) * width + left) * 3;
                &rgb[from..from + CROP * 3]
            }));
        }
    }
    to_tensor(&crops, BATCH, CROP)
}

/// Interleaved square images, one after the other -> f32 [n, 3, side, side] in [-1, 1].
fn to_tensor(rgb: &[u8], n: usize, side: usize) -> Tensor {
    let bytes = Tensor::from_slice(rgb).view([n as i64, side as i64, side as i64, 3]);
    bytes.permute([0, 3, 1, 2]).contiguous().to_kind(Kind::Float) / 127.5 - 1.0
}

/// Peak signal-to-noise ratio for values in [-1, 1], in decibels.
fn psnr(mse: f64) -> f64 {
    10.0 * (4.0 / mse).log10()
}

/// f16, through a temporary file as every asset.
fn write_weights(out: &Path, parameters: &[(String, Tensor)]) -> Result<PathBuf, Failure> {
    let mut stored = Vec::new();
    for (name, tensor) in parameters {
        let values = Vec::<f32>::try_from(tensor.detach().flatten(0, -1))?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let shape = tensor.size().into_iter().map(|n| n as usize).collect::<Vec<_>>();
        stored.push((name, shape, bytes));
    }
    let views = stored
        .iter()
        .map(|(name, shape, bytes)| Ok(((*name).clone(), TensorView::new(Dtype::F16, shape.clone(), bytes)?)));
    let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata))?;
    let path = out.join("diffusion_pytorch_model.safetensors");
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(temporary, &path)?;
    Ok(path)
}

/// Images that training never drew: its seeds come from the whole of 64 bits, these are small.
const HELD_OUT_SEED: u64 = 1_000_000;
const HELD_OUT: usize = 60;
const SIDE: usize = 256;

fn held_out(i: usize) -> Tensor {
    to_tensor(&image(i, HELD_OUT_SEED + i as u64, SIDE, SIDE), 1, SIDE)
}

struct Latents {
    channel_mean: Vec<f64>,
    channel_std: Vec<f64>,
    /// Over all channels.
    mean: f64,
    std: f64,
}

/// Of draws from the posteriors of the held-out images.
fn latent_statistics(net: &AutoencoderKl) -> Result<Latents, Failure> {
    let mut draws = Vec::new();
    for i in 0..HELD_OUT {
        let (mean, logvar) = net.encode_moments(&held_out(i))?;
        let mut noise = mean.empty_like();
        fill_normal(&mut noise, i as u64)?;
        draws.push(mean + (logvar * 0.5).exp() * noise);
    }
    let draws = Tensor::cat(&draws, 0).to_kind(Kind::Double);
    let channels = |t: Tensor| Vec::<f64>::try_from(t);
    Ok(Latents {
        channel_mean: channels(draws.mean_dim([0i64, 2, 3].as_slice(), false, Kind::Double))?,
        channel_std: channels(draws.std_dim([0i64, 2, 3].as_slice(), true, false))?,
        mean: draws.mean(Kind::Double).double_value(&[]),
        std: draws.std(true).double_value(&[]),
    })
}

fn readme(
    net: &AutoencoderKl,
    latents: &Latents,
    options: &Options,
    steps: u64,
    count: usize,
) -> Result<String, Failure> {
    let (mut mean_psnr, mut draw_psnr, mut bicubic_psnr, mut worst) = (0.0, 0.0, 0.0, f64::INFINITY);
    for i in 0..HELD_OUT {
        let x = held_out(i);
        let against = |y: &Tensor| psnr((y.clamp(-1.0, 1.0) - &x).square().mean(Kind::Double).double_value(&[]));
        let (mean, logvar) = net.encode_moments(&x)?;
        let mut noise = mean.empty_like();
        fill_normal(&mut noise, 77 + i as u64)?;
        let own = against(&net.decode(&mean)?);
        mean_psnr += own / HELD_OUT as f64;
        worst = worst.min(own);
        draw_psnr += against(&net.decode(&(&mean + (logvar * 0.5).exp() * noise))?) / HELD_OUT as f64;
        let small = x.internal_upsample_bicubic2d_aa([32, 32], false, None::<f64>, None::<f64>);
        let back = small.upsample_bicubic2d([SIDE as i64, SIDE as i64], false, None::<f64>, None::<f64>);
        bicubic_psnr += against(&back) / HELD_OUT as f64;
    }
    let per_channel = |values: &[f64]| values.iter().map(|v| format!("{v:+.3}")).collect::<Vec<_>>().join(", ");
    let mut text = String::new();
    writeln!(text, "# The embedded autoencoder\n")?;
    writeln!(
        text,
        "A diffusers `AutoencoderKL` (f8, 4 channels, {count} parameters, f16) that this project trained on its own"
    )?;
    writeln!(
        text,
        "procedural images. It stands in for the Stable Diffusion autoencoder where nothing may be downloaded: in the"
    )?;
    writeln!(text, "demo and in tests. It has seen no photograph. Written by `stages/examples/train_tiny_vae.rs`:\n")?;
    writeln!(
        text,
        "    cargo run --release -p stages --example train_tiny_vae -- --minutes {} --seed {}\n",
        options.minutes, options.seed
    )?;
    writeln!(
        text,
        "Recipe: a start that is bilinear shrinking and enlarging, fresh images at every step, batch {BATCH} of"
    )?;
    writeln!(
        text,
        "{CROP}-pixel crops at varied scale, AdamW with peak {PEAK_LR}, {WARM_UP_STEPS} steps of warm-up and cosine decay,"
    )?;
    writeln!(
        text,
        "{steps} steps in {} minutes on the CPU, f32; loss L1 + {MSE_WEIGHT} MSE + {KL_WEIGHT} KL on a draw from",
        options.minutes
    )?;
    writeln!(
        text,
        "the posterior. The steps that fit the time depend on the machine, so another run gives other weights.\n"
    )?;
    writeln!(text, "Measured on {HELD_OUT} held-out procedural images of {SIDE} x {SIDE}, six of each class:\n")?;
    writeln!(text, "| | |\n|---|---|")?;
    writeln!(text, "| PSNR, decoded from the posterior mean | {mean_psnr:.2} dB (worst image {worst:.2} dB) |")?;
    writeln!(text, "| PSNR, decoded from a draw | {draw_psnr:.2} dB |")?;
    writeln!(text, "| PSNR of a bicubic reduction to 32 x 32 and back | {bicubic_psnr:.2} dB |")?;
    writeln!(text, "| latent mean, per channel (unscaled draws) | {} |", per_channel(&latents.channel_mean))?;
    writeln!(text, "| latent std, per channel | {} |", per_channel(&latents.channel_std))?;
    writeln!(text, "| latent mean and std over all channels | {:+.3}, {:.3} |", latents.mean, latents.std)?;
    writeln!(text, "| scaling_factor = 1 / std; shift_factor | {:.5}; 0 |", net.scaling_factor())?;
    Ok(text)
}
