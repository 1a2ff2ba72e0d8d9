use std::collections::BTreeMap;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::*;
use crate::native::fill_normal;
use crate::procedural::{CLASSES, image};

/// f4, attention in the middle, shortcuts wherever channels change.
const SMALL: &str = r#"{"block_out_channels": [4, 8, 8], "layers_per_block": 1, "norm_num_groups": 2,
    "latent_channels": 2}"#;

type Stored = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn config(text: &str) -> AutoencoderConfig {
    AutoencoderConfig::from_json(text, "config.json").unwrap()
}

/// Random values for every parameter, norms and biases too: a default would hide a factor that is left out.
fn random(config: &AutoencoderConfig) -> Stored {
    let parameters = AutoencoderKl::parameters(config).unwrap();
    let random = |(i, (name, shape)): (usize, (String, Vec<i64>))| {
        let mut tensor = Tensor::zeros(&shape, (Kind::Float, Device::Cpu));
        fill_normal(&mut tensor, i as u64).unwrap();
        let values = Vec::<f32>::try_from((tensor * 0.3).flatten(0, -1)).unwrap();
        (name, (shape.into_iter().map(|n| n as usize).collect(), values))
    };
    parameters.into_iter().enumerate().map(random).collect()
}

fn file(tensors: &Stored) -> Vec<u8> {
    let bytes: Vec<_> = tensors
        .iter()
        .map(|(name, (shape, values))| (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| ((*name).clone(), TensorView::new(Dtype::F32, (*shape).clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn load(config: &AutoencoderConfig, tensors: &Stored) -> Result<AutoencoderKl, AutoencoderError> {
    AutoencoderKl::new(config.clone(), Weights::from_bytes(file(tensors), "weights", Device::Cpu)?, "test")
}

fn renamed(tensors: &Stored, new_name: impl Fn(&str) -> String) -> Stored {
    tensors.iter().map(|(name, tensor)| (new_name(name), tensor.clone())).collect()
}

fn input(shape: &[i64]) -> Tensor {
    let mut tensor = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    fill_normal(&mut tensor, 99).unwrap();
    tensor
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

/// Both say the same about one image and one draw.
fn assert_same(a: &AutoencoderKl, b: &AutoencoderKl) {
    let (f, c) = (a.downsample(), a.latent_channels());
    let (image, draw) = (input(&[2, 3, 4 * f, 2 * f]), input(&[1, c, 3, 2]));
    let ((mean_a, logvar_a), (mean_b, logvar_b)) =
        (a.encode_moments(&image).unwrap(), b.encode_moments(&image).unwrap());
    assert_eq!(distance(&mean_a, &mean_b), 0.0);
    assert_eq!(distance(&logvar_a, &logvar_b), 0.0);
    assert_eq!(distance(&a.decode(&draw).unwrap(), &b.decode(&draw).unwrap()), 0.0);
    assert_eq!(a.identity().weights_xxh3, b.identity().weights_xxh3);
}

fn old_attention(name: &str) -> String {
    [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
        .iter()
        .fold(name.to_owned(), |name, (new, old)| name.replace(new, old))
}

/// Written down from the names in LDM's own checkpoints, for three resolutions.
fn ldm(name: &str) -> String {
    [
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_q", "mid.attn_1.q"),
        ("mid_block.attentions.0.to_k", "mid.attn_1.k"),
        ("mid_block.attentions.0.to_v", "mid.attn_1.v"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("encoder.down_blocks", "encoder.down"),
        ("decoder.up_blocks.0", "decoder.up.coarsest"),
        ("decoder.up_blocks.2", "decoder.up.0"),
        ("decoder.up_blocks.1", "decoder.up.1"),
        ("decoder.up.coarsest", "decoder.up.2"),
        ("resnets", "block"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (new, old)| name.replace(new, old))
}

#[test]
fn the_published_autoencoder_has_248_tensors_and_83_653_863_parameters() {
    let config = config(r#"{"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}"#);
    let parameters = AutoencoderKl::parameters(&config).unwrap();
    assert_eq!(parameters.len(), 248);
    assert_eq!(parameters.iter().map(|(_, shape)| shape.iter().product::<i64>()).sum::<i64>(), 83_653_863);
}

#[test]
fn moments_and_images_equal_those_of_diffusers() {
    for golden in [
        include_bytes!("../../../golden/vae.safetensors").as_slice(),
        include_bytes!("../../../golden/vae_eps.safetensors").as_slice(),
    ] {
        let (_, metadata) = SafeTensors::read_metadata(golden).unwrap();
        let config = config(&metadata.metadata().as_ref().unwrap()["config"]);
        let mut answers = Weights::from_bytes(golden, "golden", Device::Cpu)
            .unwrap()
            .rename(|name| (!name.starts_with("weights.")).then(|| name.to_owned()));
        let image = answers.take("input", &[1, 3, 32, 24]);
        let mean = answers.take("mean", &[1, 4, 8, 6]);
        let logvar = answers.take("logvar", &[1, 4, 8, 6]);
        let draw = answers.take("latent", &[1, 4, 8, 6]);
        let decoded = answers.take("decoded", &[1, 3, 32, 24]);
        answers.finish().unwrap();
        let weights = Weights::from_bytes(golden, "golden", Device::Cpu)
            .unwrap()
            .rename(|name| name.strip_prefix("weights.").map(str::to_owned));
        let net = AutoencoderKl::new(config, weights, "golden").unwrap();
        let (own_mean, own_logvar) = net.encode_moments(&image).unwrap();
        for (what, own, golden) in
            [("mean", own_mean, mean), ("logvar", own_logvar, logvar), ("decoded", net.decode(&draw).unwrap(), decoded)]
        {
            let error = distance(&own, &golden);
            assert!(error < 1e-4, "{what}: {error:e}");
        }
    }
}

#[test]
fn old_attention_names_and_kernels_of_one_pixel_load_as_the_same_network() {
    let config = config(SMALL);
    let tensors = random(&config);
    let current = load(&config, &tensors).unwrap();
    let mut old = renamed(&tensors, old_attention);
    assert_ne!(old.keys().collect::<Vec<_>>(), tensors.keys().collect::<Vec<_>>());
    assert_same(&current, &load(&config, &old).unwrap());
    for (name, (shape, _)) in &mut old {
        if name.contains("attentions") && shape.len() == 2 {
            shape.extend([1, 1]);
        }
    }
    assert_same(&current, &load(&config, &old).unwrap());
}

#[test]
fn the_ldm_layout_loads_as_the_same_network_alone_and_within_a_whole_checkpoint() {
    let config = config(SMALL);
    let tensors = random(&config);
    let current = load(&config, &tensors).unwrap();
    let mut alone = renamed(&tensors, ldm);
    alone.insert("loss.logvar".to_owned(), (vec![1], vec![0.0]));
    assert!(!alone.keys().any(|name| name.contains("_blocks") || name.contains("resnets")));
    assert_same(&current, &load(&config, &alone).unwrap());
    let mut whole = renamed(&alone, |name| format!("first_stage_model.{name}"));
    whole.insert("model.diffusion_model.out.0.bias".to_owned(), (vec![1], vec![0.0]));
    assert_same(&current, &load(&config, &whole).unwrap());
}

#[test]
fn one_message_names_every_tensor_that_is_missing_unexpected_or_misshapen() {
    let config = config(SMALL);
    let mut tensors = random(&config);
    tensors.remove("decoder.conv_in.bias");
    tensors.remove("encoder.mid_block.attentions.0.to_q.weight");
    tensors.insert("encoder.extra".to_owned(), (vec![1], vec![0.0]));
    // It would broadcast.
    tensors.insert("encoder.conv_out.bias".to_owned(), (vec![1], vec![0.0]));
    let message = load(&config, &tensors).unwrap_err().to_string();
    assert_eq!(
        message,
        "weights: the weights do not fit the network: \
         2 missing: encoder.mid_block.attentions.0.to_q.weight, decoder.conv_in.bias; 1 unexpected: encoder.extra; \
         1 misshapen: encoder.conv_out.bias: expected [4], got [1]"
    );
}

#[test]
fn optional_parts_are_neither_asked_for_nor_accepted_when_switched_off() {
    let full = random(&config(SMALL));
    for (key, part) in [
        ("mid_block_add_attention", ".attentions."),
        ("use_quant_conv", "quant_conv"),
        ("use_post_quant_conv", "post_quant_conv"),
    ] {
        let lean = config(&SMALL.replacen('{', &format!("{{\"{key}\": false, "), 1));
        assert!(load(&lean, &full).unwrap_err().to_string().contains("unexpected"), "{key}");
        let kept: Stored = random(&lean);
        assert!(kept.len() < full.len());
        assert!(kept.keys().all(|name| !name.contains(part) || (key == "use_quant_conv" && name.starts_with("post"))));
        let net = load(&lean, &kept).unwrap();
        assert_eq!(net.decode(&input(&[1, 2, 2, 2])).unwrap().size(), [1, 3, 8, 8]);
        assert_eq!(net.encode_moments(&input(&[1, 3, 8, 8])).unwrap().0.size(), [1, 2, 2, 2]);
    }
}

#[test]
fn the_log_variance_is_clamped_at_both_ends() {
    let config = config(SMALL);
    let mut tensors = random(&config);
    let (_, values) = tensors.get_mut("quant_conv.bias").unwrap();
    values.copy_from_slice(&[1e4, -1e4, 1e4, -1e4]);
    let (mean, logvar) = load(&config, &tensors).unwrap().encode_moments(&input(&[1, 3, 4, 4])).unwrap();
    assert_eq!(Vec::<f32>::try_from(logvar.flatten(0, -1)).unwrap(), [20.0, -30.0]);
    assert!(mean.abs().min().double_value(&[]) > 1e3, "the mean must not be clamped");
}

#[test]
fn tensors_that_do_not_fit_are_refused_in_one_sentence() {
    let net = load(&config(SMALL), &random(&config(SMALL))).unwrap();
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    for wrong in [
        zeros(&[1, 3, 8, 10]),
        zeros(&[1, 4, 8, 8]),
        zeros(&[3, 8, 8]),
        zeros(&[0, 3, 8, 8]),
        zeros(&[1, 3, 0, 8]),
        zeros(&[1, 3, 8, 8]).to_kind(Kind::Double),
    ] {
        let error = net.encode_moments(&wrong).unwrap_err();
        assert!(matches!(error, AutoencoderError::Input { .. }), "{error}");
    }
    assert_eq!(
        net.decode(&zeros(&[1, 4, 2, 2])).unwrap_err().to_string(),
        "autoencoder: expected a Float tensor [B, 2, H, W] on Cpu, B >= 1, H and W multiples of 1, \
         got a Float tensor [1, 4, 2, 2] on Cpu"
    );
}

#[test]
fn tensors_that_require_gradients_make_a_network_that_can_be_trained() {
    let config = config(SMALL);
    let leaves: Vec<_> = AutoencoderKl::parameters(&config)
        .unwrap()
        .into_iter()
        .map(|(name, shape)| {
            let leaf = input(&shape) * 0.3;
            (name, leaf.set_requires_grad(true))
        })
        .collect();
    let shared = leaves.iter().map(|(name, leaf)| (name.clone(), leaf.shallow_clone()));
    let net = AutoencoderKl::new(config, Weights::from_tensors(shared, "leaves", Device::Cpu), "trained").unwrap();
    let image = input(&[1, 3, 8, 8]);
    let (mean, logvar) = net.encode_moments(&image).unwrap();
    let decoded = net.decode(&(mean + (logvar * 0.5).exp())).unwrap();
    (decoded - image).square().mean(Kind::Float).backward();
    for (name, leaf) in &leaves {
        assert!(leaf.grad().defined() && bool::try_from(leaf.grad().isfinite().all()).unwrap(), "{name}");
    }
}

#[test]
fn inference_records_no_gradients() {
    let net = load(&config(SMALL), &random(&config(SMALL))).unwrap();
    assert!(!net.decode(&input(&[1, 2, 2, 2])).unwrap().requires_grad());
}

#[test]
fn a_directory_is_opened_and_identified() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = random(&config(SMALL));
    std::fs::write(dir.path().join(CONFIG_FILE), SMALL).unwrap();
    let missing = AutoencoderKl::open(dir.path(), "test", Device::Cpu, Kind::Float).unwrap_err().to_string();
    assert!(missing.contains(WEIGHTS_FILE) && missing.contains("cannot be read"), "{missing}");
    std::fs::write(dir.path().join(WEIGHTS_FILE), file(&tensors)).unwrap();
    let net = AutoencoderKl::open(dir.path(), "test", Device::Cpu, Kind::Float).unwrap();
    assert_same(&net, &load(&config(SMALL), &tensors).unwrap());
    assert_eq!(net.identity().name, "test");
    assert_eq!(net.identity().weights_xxh3, load(&config(SMALL), &tensors).unwrap().identity().weights_xxh3);
}

/// bf16 has 8 bits of precision: what comes out is near f32 and not equal to it.
#[test]
fn the_dtype_of_the_layers_is_what_was_asked_for() {
    let open = |kind| AutoencoderKl::tiny(Device::Cpu, kind).unwrap();
    let image = photograph(3, 5, 64).to_kind(Kind::Float);
    let (exact, _) = tch::no_grad(|| open(Kind::Float).encode_moments(&image)).unwrap();
    let (coarse, _) = tch::no_grad(|| open(Kind::BFloat16).encode_moments(&image)).unwrap();
    assert_eq!(coarse.kind(), Kind::Float);
    let error = f64::try_from((&exact - &coarse).square().mean(Kind::Float).sqrt()).unwrap();
    let spread = f64::try_from(exact.std(true)).unwrap();
    assert!(error > 1e-4 * spread && error < 0.05 * spread, "{error} of {spread}");
}

/// `u8 [3, side, side]` of a procedural image as the autoencoder sees it.
fn photograph(class: usize, seed: u64, side: usize) -> Tensor {
    let rgb = Tensor::from_slice(&image(class, seed, side, side)).view([1, side as i64, side as i64, 3]);
    rgb.permute([0, 3, 1, 2]).contiguous().to_kind(Kind::Float) / 127.5 - 1.0
}

/// At 256 pixels: at least 27 dB, and at least 3 dB more than three colours for each latent pixel would give.
#[test]
fn the_embedded_autoencoder_restores_images_that_it_was_not_trained_on() {
    let net = AutoencoderKl::tiny(Device::Cpu, Kind::Float).unwrap();
    assert_eq!((net.downsample(), net.latent_channels(), net.shift_factor()), (8, 4, 0.0));
    let count = CLASSES.len() as f64;
    let (mut own, mut bicubic) = (0.0, 0.0);
    let mut means = Vec::new();
    for class in 0..CLASSES.len() {
        let x = photograph(class, 2_000_000 + class as u64, 256);
        let psnr = |y: &Tensor| {
            let mse = (y.clamp(-1.0, 1.0) - &x).square().mean(Kind::Float).double_value(&[]);
            10.0 * (4.0 / mse).log10()
        };
        let (mean, _) = net.encode_moments(&x).unwrap();
        assert_eq!(mean.size(), [1, 4, 32, 32]);
        own += psnr(&net.decode(&mean).unwrap()) / count;
        let small = x.internal_upsample_bicubic2d_aa([32, 32], false, None::<f64>, None::<f64>);
        bicubic += psnr(&small.upsample_bicubic2d([256, 256], false, None::<f64>, None::<f64>)) / count;
        means.push(mean * net.scaling_factor());
    }
    assert!(own > 27.0 && own > bicubic + 3.0, "{own:.2} dB, bicubic {bicubic:.2} dB");
    // Every channel of a latent has about mean 0 and deviation 1, so that no channel outweighs the others.
    let means = Tensor::cat(&means, 0);
    for channel in 0..4 {
        let values = means.select(1, channel);
        let (mean, std) = (values.mean(Kind::Float).double_value(&[]), values.std(true).double_value(&[]));
        assert!(mean.abs() < 0.3 && (0.7..1.3).contains(&std), "channel {channel}: mean {mean:.3}, deviation {std:.3}");
    }
}
