//! The method against independent implementations (`stages/golden/make_golden.py`: timm's layers, PyTorch's autograd
//! and AdamW, NumPy). Every tensor of a golden network is random: zero gates would make most gradients vanish.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::algorithm::{Losses, batch_loss};
use super::config::{Backbone, LatentShape, ModelConfig, ObjectiveConfig};
use super::layout::{Init, ParameterSpec, layout};
use super::network::Network;
use super::parameters::{Parameters, in_order, views};
use super::sampler::{self, Guidance};
use super::views::Views;
use crate::data::LatentBatch;
use crate::train::optimiser::{AdamW, OptimiserConfig};

type Golden = BTreeMap<String, Tensor>;

fn golden(name: &str) -> Golden {
    let path = format!("{}/golden/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

/// |a - b| / |b|, the error relative to the tensor's norm.
fn error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    (a - &b).norm().double_value(&[]) / b.norm().double_value(&[])
}

#[track_caller]
fn assert_close(what: &str, a: &Tensor, b: &Tensor, tolerance: f64) {
    let error = error(a, b);
    assert!(error < tolerance, "{what}: relative error {error:e}");
}

const DATA: LatentShape = LatentShape { channels: 4, height: 8, width: 8, classes: 5 };

fn model() -> ModelConfig {
    ModelConfig {
        backbone: Backbone::Ddt,
        depth: 3,
        encoder_depth: 2,
        hidden: 16,
        heads: 2,
        patch: 2,
        mlp_ratio: 4,
        projector_hidden: 24,
        projector_out: 12,
    }
}

fn parameters(golden: &Golden) -> Parameters {
    let specs = layout(&model(), &DATA);
    let stored = golden.keys().filter(|key| key.starts_with("weights.")).count();
    assert_eq!(stored, specs.len(), "the golden and the layout name different parameters");
    let flat: Vec<Tensor> = specs
        .iter()
        .map(|spec| {
            let weight = &golden[&format!("weights.{}", spec.name)];
            assert_eq!(weight.size(), spec.shape, "{}", spec.name);
            weight.flatten(0, -1)
        })
        .collect();
    Parameters::from_master(specs, Tensor::cat(&flat, 0), Kind::Float).unwrap()
}

fn losses(golden: &Golden, network: &Network, prefix: &str, k: i64) -> Losses {
    let get = |name: &str| golden[&format!("{prefix}{name}")].shallow_clone();
    let labels = get("view_labels");
    let batch = LatentBatch { latents: golden["latents"].shallow_clone(), labels: golden["labels"].shallow_clone() };
    let views = Views {
        posterior_noise: batch.latents.zeros_like(),
        t: get("t"),
        noise: get("noise"),
        drop_label: labels.eq(DATA.classes),
    };
    assert!(views.labels(&batch.labels, DATA.classes).equal(&labels));
    batch_loss(network, &batch, &views, &ObjectiveConfig { views: k, ..Default::default() })
}

#[test]
fn forward_pass_equals_the_reference() {
    let golden = golden("dupa");
    let parameters = parameters(&golden);
    let network = Network::new(&model(), &DATA, parameters.leaves());
    let flat = |name: &str| golden[name].flatten(0, 1);
    let prediction = network.forward(&flat("x_t"), &flat("t").flatten(0, -1), &flat("view_labels"));
    assert_close("velocity", &prediction.velocity, &flat("velocity"), 1e-5);
    assert_close("condition", &prediction.condition, &flat("z"), 1e-5);
    assert_close("projected", &network.project(&prediction.condition), &flat("projected"), 1e-5);
}

#[test]
fn losses_and_the_gradient_of_every_parameter_equal_the_reference() {
    let (golden, grads) = (golden("dupa"), golden("dupa_grads"));
    let mut parameters = parameters(&golden);
    let network = Network::new(&model(), &DATA, parameters.leaves());
    let losses = losses(&golden, &network, "", 2);
    assert_close("velocity loss", &losses.velocity, &golden["velocity_loss"], 1e-5);
    assert_close("alignment loss", &losses.alignment, &golden["alignment_loss"], 1e-5);
    assert_close("loss", &losses.total, &golden["loss"], 1e-5);
    losses.total.backward();
    parameters.collect_gradients();
    let ours = views(parameters.specs(), &parameters.gradients);
    for (spec, gradient) in parameters.specs().iter().zip(in_order(parameters.specs(), &ours)) {
        let reference = &grads[&format!("grads.{}", spec.name)];
        assert!(reference.norm().double_value(&[]) > 0.0, "{} has no gradient in the golden", spec.name);
        assert_close(&spec.name, gradient, reference, 1e-4);
    }
}

#[test]
fn three_views_are_aligned_in_all_pairs_as_the_reference_does() {
    let golden = golden("dupa");
    let parameters = parameters(&golden);
    let network = Network::new(&model(), &DATA, parameters.leaves());
    let losses = losses(&golden, &network, "k3.", 3);
    assert_close("velocity loss", &losses.velocity, &golden["k3.velocity_loss"], 1e-5);
    assert_close("alignment loss", &losses.alignment, &golden["k3.alignment_loss"], 1e-5);
}

#[test]
fn clipped_adamw_and_ema_steps_equal_the_reference() {
    let golden = golden("adamw");
    let spec = |i: usize| {
        let shape = golden[&format!("param.{i}")].size();
        ParameterSpec { name: format!("param.{i}"), shape, init: Init::Zero }
    };
    let flat = |prefix: &str| Tensor::cat(&[0, 1].map(|i| golden[&format!("{prefix}.{i}")].flatten(0, -1)), 0);
    let master = flat("param");
    let mut average = master.copy();
    let mut parameters = Parameters::from_master(vec![spec(0), spec(1)], master, Kind::Float).unwrap();
    let config = OptimiserConfig { lr: 1e-2, weight_decay: 0.1, clip: 1.0, ..Default::default() };
    let mut adamw = AdamW::new(config, parameters.master.numel() as i64, Device::Cpu);
    for step in 0..3 {
        parameters.gradients.copy_(&flat(&format!("grad.{step}")));
        let figures = adamw.update(&mut parameters, 1e-2).unwrap();
        super::ema::update(&mut average, &parameters.master, 0.9, &figures.skipped);
        assert_close("norm", &figures.gradient_norm, &golden[&format!("norm.{step}")], 1e-6);
        assert_close("parameters", &parameters.master, &flat(&format!("after.{step}")), 1e-6);
        assert_close("average", &average, &flat(&format!("ema.{step}")), 1e-6);
    }
    assert_close("first moment", &adamw.exp_avg, &flat("exp_avg"), 1e-6);
    assert_close("second moment", &adamw.exp_avg_sq, &flat("exp_avg_sq"), 1e-6);
}

/// Velocity of the linear path when the data are N(mu, s^2): (t - a s^2) / (a^2 s^2 + t^2) (x - a mu) - mu, a = 1 - t.
fn gaussian_field(golden: &Golden, which: &str) -> impl Fn(&Tensor, f64) -> Tensor + use<> {
    let mu = golden[&format!("mu_{which}")].view([1, 4, 1, 1]);
    let s = golden[&format!("s_{which}")].double_value(&[]);
    move |x, t| {
        let a = 1.0 - t;
        let slope = (t - a * s * s) / (a * a * s * s + t * t);
        (x - a * &mu) * slope - &mu
    }
}

#[test]
fn samplers_equal_an_independent_integration() {
    let golden = golden("sampler");
    let field = gaussian_field(&golden, "cond");
    let unconditional = gaussian_field(&golden, "uncond");
    let x0 = || golden["x0"].copy();
    let plain = |x: &Tensor, t: f64| Ok::<_, ()>(field(x, t));
    let noise = |i: usize| Ok(golden["xi"].get(i as i64));
    let guided = |guidance: Guidance| {
        let (field, unconditional) = (&field, &unconditional);
        move |x: &Tensor, t: f64| {
            let v = field(x, t);
            Ok::<_, ()>(if guidance.applies_at(t) {
                let null = unconditional(x, t);
                &null + guidance.scale * (v - &null)
            } else {
                v
            })
        }
    };
    assert_close("ode", &sampler::euler(x0(), 10, plain).unwrap(), &golden["euler"], 1e-12);
    let guidance = Guidance { scale: 1.6, low: 0.0, high: 0.65 };
    assert_close("ode cfg", &sampler::euler(x0(), 10, guided(guidance)).unwrap(), &golden["euler_cfg"], 1e-12);
    let sde = sampler::euler_maruyama(x0(), 10, plain, noise).unwrap();
    assert_close("sde", &sde, &golden["sde"], 1e-12);
    let guidance = Guidance { scale: 1.6, low: 0.0, high: 0.7 };
    let sde = sampler::euler_maruyama(x0(), 10, guided(guidance), noise).unwrap();
    assert_close("sde cfg", &sde, &golden["sde_cfg"], 1e-12);
}
