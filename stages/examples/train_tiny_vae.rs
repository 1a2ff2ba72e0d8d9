//! Trains the embedded autoencoder on procedural images and writes it as a diffusers directory.
//!
//! ```text
//! cargo run --release -p stages --example train_tiny_vae -- \
//!     [--steps 2400] [--seed 0] [--photographs DIR] [--out stages/assets/tiny-vae]
//! ```
//!
//! AdamW with warm-up and cosine decay, batch 16 of 64-pixel crops from fresh images, from a start that already shrinks
//! and enlarges images (`train_tiny_vae/start.rs`). The reconstruction loss is L1 + 20 MSE of a draw from the posterior,
//! so the decoder learns to stand noise; a small KL term says how much. When training has ended, the two 1 x 1
//! convolutions around the latent take up a shift and a scale for each channel, after which every channel has mean 0 and
//! deviation 1. What was measured then (`train_tiny_vae/measure.rs`) goes into README.md.

// A program that reports on its terminal.
#![allow(clippy::print_stdout)]

#[path = "train_tiny_vae/measure.rs"]
mod measure;
#[path = "train_tiny_vae/start.rs"]
mod start;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

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

const BATCH: usize = 16;
const CROP: usize = 64;
const PEAK_LR: f64 = 2e-3;
const WARM_UP_STEPS: f64 = 200.0;
const MSE_WEIGHT: f64 = 20.0;
const KL_WEIGHT: f64 = 1e-3;
const CLIP_NORM: f64 = 1.0;

const CONFIG: &str = r#"{"_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [16, 32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4,
    "mid_block_add_attention": false}"#;

struct Options {
    steps: u64,
    seed: u64,
    photographs: Option<PathBuf>,
    out: PathBuf,
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let mut config = AutoencoderConfig::from_json(CONFIG, "the example's configuration")?;
    let parameters = start::parameters(&config, options.seed)?;
    let count: usize = parameters.iter().map(|(_, p)| p.numel()).sum();
    println!("{count} parameters, {} steps", options.steps);
    let net = assemble(&config, &parameters)?;
    let began = Instant::now();
    train(&net, &parameters, &options)?;
    let minutes = began.elapsed().as_secs_f64() / 60.0;

    measure::normalise(&net, &parameters)?;
    std::fs::create_dir_all(&options.out)?;
    let weights = write_weights(&options.out, &parameters)?;
    // Measured on the weights as stored, in f16.
    let stored = AutoencoderKl::new(config.clone(), Weights::open(&weights, Device::Cpu)?, "trained")?;
    config.scaling_factor = Some((1e5 / measure::latents(&stored)?.overall_std).round() / 1e5);
    config.shift_factor = Some(0.0);
    std::fs::write(options.out.join("config.json"), serde_json::to_string_pretty(&config)? + "\n")?;

    let net = AutoencoderKl::open(&options.out, "trained", Device::Cpu, Kind::Float)?;
    let readme = measure::readme(&net, &options, count, minutes)?;
    println!("{readme}");
    std::fs::write(options.out.join("README.md"), readme)?;
    Ok(())
}

fn options() -> Result<Options, Failure> {
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-vae");
    let mut options = Options { steps: 2400, seed: 0, photographs: None, out };
    let mut words = std::env::args().skip(1);
    while let Some(flag) = words.next() {
        let value = words.next().ok_or_else(|| format!("{flag}: expected a value behind it"))?;
        match flag.as_str() {
            "--steps" => options.steps = value.parse().map_err(|e| format!("--steps {value}: {e}"))?,
            "--seed" => options.seed = value.parse().map_err(|e| format!("--seed {value}: {e}"))?,
            "--photographs" => options.photographs = Some(value.into()),
            "--out" => options.out = value.into(),
            _ => return Err(format!("{flag}: expected --steps, --seed, --photographs or --out").into()),
        }
    }
    Ok(options)
}

fn assemble(config: &AutoencoderConfig, parameters: &[(String, Tensor)]) -> Result<AutoencoderKl, Failure> {
    let shared = parameters.iter().map(|(name, p)| (name.clone(), p.shallow_clone()));
    Ok(AutoencoderKl::new(config.clone(), Weights::from_tensors(shared, "training", Device::Cpu), "training")?)
}

fn train(net: &AutoencoderKl, parameters: &[(String, Tensor)], options: &Options) -> Result<(), Failure> {
    let mut optimiser = AdamW::new(parameters);
    let start = Instant::now();
    let mut running = [0.0f64; 2];
    for step in 0..options.steps {
        let warm_up = ((step + 1) as f64 / WARM_UP_STEPS).min(1.0);
        let decay = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / options.steps as f64).cos());
        let x = batch(options.seed, step);
        let (mean, logvar) = net.encode_moments(&x)?;
        let draw = draw(&mean, &logvar, !(options.seed << 32 | step))?;
        let error = net.decode(&draw)? - &x;
        let (l1, mse) = (error.abs().mean(Kind::Float), error.square().mean(Kind::Float));
        let kl = (mean.square() + logvar.exp() - 1.0 - &logvar).mean(Kind::Float) * 0.5;
        (&l1 + &mse * MSE_WEIGHT + &kl * KL_WEIGHT).backward();
        optimiser.step(PEAK_LR * warm_up * decay);

        for (mean, value) in running.iter_mut().zip([mse.double_value(&[]), kl.double_value(&[])]) {
            *mean += (value - *mean) * if step == 0 { 1.0 } else { 0.02 };
        }
        if step == 0 || (step + 1) % 100 == 0 {
            let rate = (step + 1) as f64 / start.elapsed().as_secs_f64();
            let psnr = psnr(running[0]);
            println!("step {}: psnr {psnr:.2} dB, kl {:.3}, {rate:.2} steps/s", step + 1, running[1]);
        }
    }
    Ok(())
}

/// A draw from the posterior, with noise of that seed. Gradients reach both moments.
fn draw(mean: &Tensor, logvar: &Tensor, seed: u64) -> Result<Tensor, Failure> {
    let mut noise = mean.empty_like().detach();
    fill_normal(&mut noise, seed)?;
    Ok(mean + (logvar * 0.5).exp() * noise)
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

/// 16 crops of 64 pixels, four from each of 4 fresh images: f32 [16, 3, 64, 64] in [-1, 1].
fn batch(seed: u64, step: u64) -> Tensor {
    let mut dice = SplitMix64::new(seed << 40 ^ step << 8);
    let mut crops = Vec::with_capacity(BATCH * 3 * CROP * CROP);
    for _ in 0..BATCH / 4 {
        // 80 to 319 pixels a side: a shape nearly whole, or a close-up of its texture.
        let side = 80 + dice.below(240) as usize;
        let rgb = image(dice.below(CLASSES.len() as u64) as usize, dice.bits(), side, side);
        for _ in 0..4 {
            let mut start = || dice.below((side - CROP + 1) as u64) as usize;
            let (left, top) = (start(), start());
            crops.extend((0..CROP).flat_map(|row| {
                let from = ((top + row) * side + left) * 3;
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
