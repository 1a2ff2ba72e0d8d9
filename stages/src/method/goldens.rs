//! The method against independent implementations (`stages/golden/make_golden.py`: timm's layers, PyTorch's autograd
//! and AdamW, NumPy). Every tensor of a golden network is random: zero gates would make most gradients vanish.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::algorithm::{Losses, batch_loss};
use super::config::{Backbone, LatentShape, ModelConfig};
use super::layout::{Init, ParameterSpec, layout};
use super::network::Network;
use super::objective::config::{Aligned, ObjectiveConfig, Reduction, Similarity};
use super::parameters::{Parameters, in_order, views};
use super::sampler::{self, Diffusion, Guidance};
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
        depth: 3,
        encoder_depth: 2,
        hidden: 16,
        heads: 2,
        projector_hidden: 24,
        projector_out: 12,
        ..ModelConfig::OPEN
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
    Parameters::from_master(specs, Tensor::cat(&flat, 0), Kind::Float)
}

fn losses(golden: &Golden, network: &Network, prefix: &str, k: i64) -> Losses {
    let get = |name: &str| golden[&format!("{prefix}{name}")].shallow_clone();
    let labels = get("view_labels");
    let latents = golden["latents"].unsqueeze(0);
    let views = Views {
        posterior_noise: latents.zeros_like(),
        t: get("t"),
        noise: get("noise"),
        drop_label: labels.eq(DATA.classes),
        others: None,
    };
    let batch = LatentBatch { latents, labels: golden["labels"].shallow_clone() };
    assert!(views.labels(&batch.labels, DATA.classes).equal(&labels));
    batch_loss(network, &batch, &views, &ObjectiveConfig { views: k, ..Default::default() }, false)
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
    parameters.collect_gradients(false).unwrap();
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

/// The cases of `variants.py` as configurations.
fn variants() -> Vec<(&'static str, ModelConfig, ObjectiveConfig)> {
    let (ddt, sit) = (model(), ModelConfig { backbone: Backbone::Sit, ..model() });
    let dupa = ObjectiveConfig::default();
    let nt_xent = ObjectiveConfig { similarity: Similarity::NtXent, ..dupa.clone() };
    let plain = ObjectiveConfig::plain();
    vec![
        ("plain_sit", sit.clone(), plain.clone()),
        ("plain_ddt", ddt.clone(), plain.clone()),
        ("dual_path", ddt.clone(), ObjectiveConfig { lambda: 0.0, ..dupa.clone() }),
        ("sit", sit.clone(), dupa.clone()),
        ("label", ModelConfig { decoder_label: true, ..ddt.clone() }, dupa.clone()),
        ("no_position", ModelConfig { decoder_position: false, ..ddt.clone() }, dupa.clone()),
        ("no_encoder_position", ModelConfig { encoder_position: false, ..ddt.clone() }, dupa.clone()),
        ("projector", ModelConfig { projector_layers: 2, projector_bias: false, ..ddt.clone() }, dupa.clone()),
        ("patch4", ModelConfig { patch: 4, ..ddt.clone() }, dupa.clone()),
        ("k3", ddt.clone(), ObjectiveConfig { views: 3, ..dupa.clone() }),
        ("k4", ddt.clone(), ObjectiveConfig { views: 4, ..dupa.clone() }),
        ("lambda", ddt.clone(), ObjectiveConfig { lambda: 0.25, ..dupa.clone() }),
        ("modulation", ddt.clone(), ObjectiveConfig { aligned: Aligned::Modulation, ..dupa.clone() }),
        ("constant", ddt.clone(), ObjectiveConfig { stop_gradient: true, ..dupa.clone() }),
        ("centre", ddt.clone(), ObjectiveConfig { centre: true, ..dupa.clone() }),
        ("nt_xent", ddt.clone(), nt_xent.clone()),
        ("nt_xent_k3", ddt.clone(), ObjectiveConfig { views: 3, ..nt_xent.clone() }),
        ("nt_xent_constant", ddt.clone(), ObjectiveConfig { stop_gradient: true, ..nt_xent.clone() }),
        ("nt_xent_pooled", ddt.clone(), ObjectiveConfig { pool_tokens: true, ..nt_xent }),
        (
            "sums",
            ddt.clone(),
            ObjectiveConfig { velocity_views: Reduction::Sum, velocity_elements: Reduction::Sum, ..dupa.clone() },
        ),
        ("posterior", ddt.clone(), ObjectiveConfig { resample_posterior: true, ..dupa.clone() }),
        ("dispersive_ddt", ddt.clone(), ObjectiveConfig { dispersive: 0.5, ..dupa.clone() }),
        ("contrastive_k2", ddt, ObjectiveConfig { contrastive: 0.05, ..dupa }),
        ("dispersive", sit.clone(), ObjectiveConfig { dispersive: 0.5, ..plain.clone() }),
        ("contrastive", sit, ObjectiveConfig { contrastive: 0.05, ..plain }),
    ]
}

#[test]
fn every_model_and_objective_has_the_loss_and_the_gradients_of_the_reference() {
    let golden = golden("variants");
    let cases = golden.keys().filter(|key| key.ends_with(".total")).count();
    assert_eq!(cases, variants().len());
    for (case, model, objective) in variants() {
        let k = objective.views;
        let specs = layout(&model, &DATA);
        let own = match (model.projector_layers, model.patch) {
            (2, _) => "small",
            (_, 4) => "patch4",
            _ => "weights",
        };
        let stored = |of: &str, spec: &ParameterSpec| golden.get(&format!("{of}.{}", spec.name));
        let flat: Vec<Tensor> = specs
            .iter()
            .map(|spec| stored(own, spec).or_else(|| stored("weights", spec)).unwrap().flatten(0, -1))
            .collect();
        let mut parameters = Parameters::from_master(specs, Tensor::cat(&flat, 0), Kind::Float);
        let network = Network::new(&model, &DATA, parameters.leaves());
        let first = |name: &str| golden[name].narrow(0, 0, k);
        let labels = first("view_labels");
        let views = Views {
            posterior_noise: golden["latents"].zeros_like(),
            t: first("t"),
            noise: first("noise"),
            drop_label: labels.eq(DATA.classes),
            others: (objective.contrastive > 0.0).then(|| golden["others"].shallow_clone()),
        };
        let draws = if objective.resample_posterior { k } else { 1 };
        let batch =
            LatentBatch { latents: golden["latents"].narrow(0, 0, draws), labels: golden["labels"].shallow_clone() };
        assert!(views.labels(&batch.labels, DATA.classes).equal(&labels));
        let losses = batch_loss(&network, &batch, &views, &objective, false);
        let terms = [
            ("total", &losses.total),
            ("velocity", &losses.velocity),
            ("alignment", &losses.alignment),
            ("dispersive", &losses.dispersive),
            ("contrastive", &losses.contrastive),
        ];
        for (name, loss) in terms {
            match golden.get(&format!("{case}.{name}")) {
                Some(expected) => assert_close(&format!("{case}, {name}"), loss, expected, 1e-5),
                None => assert_eq!(loss.double_value(&[]), 0.0, "{case}, {name}"),
            }
        }
        losses.total.backward();
        parameters.collect_gradients(false).unwrap();
        let ours = views_of(&parameters);
        let expected = &golden[&format!("{case}.grads")];
        let used: Vec<_> =
            ours.iter().filter(|(name, _)| objective.aligns() || !name.starts_with("projectors")).collect();
        assert_eq!(expected.size()[0], used.len() as i64, "{case}");
        for (row, (name, gradient)) in (0..).zip(used) {
            let gradient = gradient.flatten(0, -1).to_kind(Kind::Double);
            let index = Tensor::arange(gradient.numel() as i64, (Kind::Double, Device::Cpu));
            let along = (&gradient * (index * 0.7 + 1.0).cos()).sum(Kind::Double).double_value(&[]);
            let norm = gradient.norm().double_value(&[]);
            let [expected_norm, expected_along] = [0, 1].map(|column| expected.double_value(&[row, column]));
            // What a bias adds everywhere, centring takes off.
            let has_none = case == "centre" && name == "projectors.0.4.bias";
            assert_eq!(expected_norm > 0.0, !has_none, "{case}, {name}: norm {expected_norm} in the golden");
            // A product with a direction of length sqrt(n) errs with the norm of the gradient.
            let tolerance = 2e-4 * expected_norm.max(1e-3);
            assert!((norm - expected_norm).abs() < tolerance, "{case}, {name}: norm {norm} for {expected_norm}");
            let length = (gradient.numel() as f64).sqrt();
            assert!(
                (along - expected_along).abs() < tolerance * length,
                "{case}, {name}: {along} for {expected_along}"
            );
        }
    }
}

fn views_of(parameters: &Parameters) -> BTreeMap<String, Tensor> {
    views(parameters.specs(), &parameters.gradients)
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
    let mut parameters = Parameters::from_master(vec![spec(0), spec(1)], master, Kind::Float);
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
    let heun = sampler::heun(x0(), 10, |x, t, _| plain(x, t)).unwrap();
    assert_close("heun", &heun, &golden["heun"], 1e-12);
    let sde = sampler::euler_maruyama(x0(), 10, Diffusion::TwoSigma, plain, noise).unwrap();
    assert_close("sde", &sde, &golden["sde"], 1e-12);
    let guidance = Guidance { scale: 1.6, low: 0.0, high: 0.7 };
    let sde = sampler::euler_maruyama(x0(), 10, Diffusion::TwoSigma, guided(guidance), noise).unwrap();
    assert_close("sde cfg", &sde, &golden["sde_cfg"], 1e-12);
}

/// A linear field that depends on the label, with guidance as the network's is made: `Guidance::velocity`.
#[test]
fn samplers_with_labels_equal_an_independent_integration_for_each_diffusion() {
    let golden = golden("samplers");
    let (labels, null) = (&golden["labels"], 2);
    let x1 = || golden["x1"].copy();
    let noise = |i: usize| Ok::<_, ()>(golden["xi"].get(i as i64));
    for (suffix, scale) in [("", 1.0), ("_cfg", 1.6)] {
        let guidance = Guidance { scale, low: 0.1, high: 0.65 };
        let field = |x: &Tensor, t: f64, gate: f64| {
            Ok::<_, ()>(guidance.velocity(gate, x, labels, null, |x, labels| {
                let (a, b) = (golden["a"].index_select(0, labels), golden["b"].index_select(0, labels));
                a.bmm(&x.unsqueeze(-1)).squeeze_dim(-1) + b * (1.0 + t)
            }))
        };
        let plain = |x: &Tensor, t: f64| field(x, t, t);
        let check = |name: &str, end: Tensor| assert_close(name, &end, &golden[&format!("{name}{suffix}")], 1e-10);
        check("euler", sampler::euler(x1(), 9, plain).unwrap());
        check("heun", sampler::heun(x1(), 9, field).unwrap());
        for (name, diffusion) in [("sde_2sigma", Diffusion::TwoSigma), ("sde_sigma", Diffusion::Sigma)] {
            check(name, sampler::euler_maruyama(x1(), 9, diffusion, plain, noise).unwrap());
        }
    }
}
