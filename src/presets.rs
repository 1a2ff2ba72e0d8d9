//! What `--preset` names: the models of the paper, its baselines, and a preset for every row of its tables.
//!
//! A row is a model and the keys that it changes, as they would stand after `--set`. `docs/presets.md` lists them all.

use anyhow::{Result, anyhow};
use stages::load::plan::DEFAULT_POOL_BLOCKS;
use stages::method::config::{Backbone, ModelConfig};
use stages::method::ema::EmaConfig;
use stages::method::objective::config::ObjectiveConfig;
use stages::train::config::{ScheduleConfig, TrainConfig};
use stages::train::optimiser::OptimiserConfig;

use crate::config::nearest;

/// A configuration, and settings that change it.
pub(crate) struct Preset {
    pub(crate) base: TrainConfig,
    pub(crate) settings: &'static [&'static str],
}

/// A row of a table: its name, the model that it starts from, and what it changes.
type Row = (&'static str, &'static str, &'static [&'static str]);

/// Without a projector there is nothing to align with.
const DUAL_PATH: &[&str] = &["objective.lambda=0", "model.projector_hidden=0", "model.projector_out=0"];

/// The rows of the paper's tables.
const ROWS: &[Row] = &[
    // Table 1: DUPA-XL/2 after 80, 200 and 400 epochs of ImageNet.
    ("table1-80-epochs", "dupa-xl/2", &["train.steps=400000"]),
    ("table1-200-epochs", "dupa-xl/2", &["train.steps=1000000"]),
    ("table1-400-epochs", "dupa-xl/2", &["train.steps=2000000"]),
    // Table 2: components of DUPA-L/2.
    ("table2-sit", "sit-l/2", &[]),
    ("table2-t", "dupa-l/2", &["objective.resample_noise=false"]),
    ("table2-noise", "dupa-l/2", &["objective.resample_t=false"]),
    ("table2-depth-4", "dupa-l/2", &["model.encoder_depth=4"]),
    ("table2-depth-6", "dupa-l/2", &["model.encoder_depth=6"]),
    ("table2-depth-10", "dupa-l/2", &["model.encoder_depth=10"]),
    ("table2-depth-12", "dupa-l/2", &["model.encoder_depth=12"]),
    ("table2-depth-14", "dupa-l/2", &["model.encoder_depth=14"]),
    ("table2-depth-16", "dupa-l/2", &["model.encoder_depth=16"]),
    ("table2-nt-xent", "dupa-l/2", &["objective.similarity=nt-xent"]),
    ("table2-lambda-0.25", "dupa-l/2", &["objective.lambda=0.25"]),
    ("table2-lambda-0.75", "dupa-l/2", &["objective.lambda=0.75"]),
    ("table2-lambda-1", "dupa-l/2", &["objective.lambda=1"]),
    ("table2-dupa", "dupa-l/2", &[]),
    // Table 3: sizes.
    ("table3-sit-b", "sit-b/2", &[]),
    ("table3-ddt-b", "ddt-b/2", &[]),
    ("table3-dupa-b", "dupa-b/2", &[]),
    ("table3-sit-l", "sit-l/2", &[]),
    ("table3-ddt-l", "ddt-l/2", &[]),
    ("table3-dupa-l", "dupa-l/2", &[]),
    ("table3-sit-xl", "sit-xl/2", &[]),
    ("table3-ddt-xl", "ddt-xl/2", &[]),
    ("table3-dupa-xl", "dupa-xl/2", &[]),
    // Table 4: what each improvement adds.
    ("table4-ddt", "ddt-l/2", &[]),
    ("table4-dual-path", "dupa-l/2", DUAL_PATH),
    ("table4-dupa", "dupa-l/2", &[]),
    // Figure 3a: views, and DDT at twice the batch. One view is DDT.
    ("figure3a-k1", "ddt-l/2", &[]),
    ("figure3a-k2", "dupa-l/2", &[]),
    ("figure3a-k3", "dupa-l/2", &["objective.views=3"]),
    ("figure3a-k4", "dupa-l/2", &["objective.views=4"]),
    ("figure3a-ddt-2b", "ddt-l/2", &["train.batch=512"]),
];

/// Families of models in all sizes: what they change in DUPA's configuration.
const FAMILIES: [(&str, Backbone, &[&str]); 7] = [
    ("dupa", Backbone::Ddt, &[]),
    ("ddt", Backbone::Ddt, &[]),
    ("sit", Backbone::Sit, &[]),
    // The method is independent of the backbone: aligned is the output of block `encoder_depth`.
    ("dupa-sit", Backbone::Sit, &[]),
    ("dual-path", Backbone::Ddt, DUAL_PATH),
    // Baselines of Table 1 with their authors' weights, on SiT.
    ("dispersive", Backbone::Sit, &["objective.dispersive=0.5"]),
    ("delta-fm", Backbone::Sit, &["objective.contrastive=0.05"]),
];

const SIZES: [&str; 4] = ["s", "b", "l", "xl"];
const PATCHES: [&str; 3] = ["2", "4", "8"];

/// All names.
pub(crate) fn names() -> Vec<String> {
    let mut names = vec!["dupa-demo".to_owned(), "appendix-f".to_owned()];
    for (family, ..) in FAMILIES {
        let of_size = |size: &str| PATCHES.map(|patch| format!("{family}-{size}/{patch}"));
        names.extend(SIZES.into_iter().flat_map(of_size));
    }
    names.extend(ROWS.iter().map(|(name, ..)| (*name).to_owned()));
    names
}

/// A preset by name.
pub(crate) fn find(name: &str) -> Result<Preset> {
    if let Some((_, model, settings)) = ROWS.iter().find(|(row, ..)| *row == name) {
        return Ok(Preset { base: find(model)?.base, settings });
    }
    if name == "dupa-demo" {
        return Ok(Preset { base: demo(), settings: &[] });
    }
    if name == "appendix-f" {
        return Ok(Preset { base: appendix_f(), settings: &[] });
    }
    let family = name.rsplit_once('-').and_then(|(family, size)| {
        let (_, backbone, settings) = FAMILIES.into_iter().find(|(known, ..)| *known == family)?;
        Some((family, ModelConfig::named(backbone, size)?, settings))
    });
    let Some((family, mut model, settings)) = family else {
        let names = names();
        return Err(anyhow!(
            "there is no preset {name:?}; the nearest is {:?} (docs/presets.md lists all: a model as dupa-xl/2, ddt-b/4 or \
             sit-s/2, a row of the paper's tables as table2-nt-xent, appendix-f or dupa-demo)",
            nearest(name, names.iter().map(String::as_str))
        ));
    };
    let aligns = matches!(family, "dupa" | "dupa-sit" | "dual-path");
    if !aligns {
        (model.projector_hidden, model.projector_out) = (0, 0);
    }
    let objective = if aligns { ObjectiveConfig::default() } else { ObjectiveConfig::plain() };
    Ok(Preset { base: paper(model, objective), settings })
}

/// The optimisation of Table 7, for 80 epochs of ImageNet.
fn paper(model: ModelConfig, objective: ObjectiveConfig) -> TrainConfig {
    TrainConfig {
        model,
        objective,
        optimiser: OptimiserConfig::default(),
        ema: EmaConfig { decay: 0.9999, warmup: false },
        train: ScheduleConfig {
            steps: 400_000,
            batch: 256,
            micro_batches: 1,
            seed: 0,
            pool_blocks: DEFAULT_POOL_BLOCKS as u64,
            flip: false,
            log_every: 100,
            checkpoint_every: 50_000,
            keep_checkpoints: 3,
            keep_every: 0,
            sample_every: 0,
            sample_steps: 50,
            sample_guidance: 4.0,
        },
    }
}

/// What `pipeline demo` trains, on images of 128 pixels: minutes on two cores.
fn demo() -> TrainConfig {
    TrainConfig {
        model: ModelConfig::demo(),
        objective: ObjectiveConfig::default(),
        optimiser: OptimiserConfig { lr: 2e-3, warmup_steps: 50, decay_fraction: 0.3, ..Default::default() },
        ema: EmaConfig { decay: 0.99, warmup: true },
        train: ScheduleConfig {
            steps: 1400,
            batch: 16,
            micro_batches: 1,
            seed: 0,
            pool_blocks: DEFAULT_POOL_BLOCKS as u64,
            flip: false,
            log_every: 20,
            checkpoint_every: 350,
            keep_checkpoints: 2,
            keep_every: 0,
            sample_every: 200,
            sample_steps: 20,
            sample_guidance: 2.0,
        },
    }
}

/// The course of the similarity of views that Appendix F shows, at the size of the demonstration: the paper's
/// optimisation, a line for every 10 steps. It was written down before it was run.
fn appendix_f() -> TrainConfig {
    let ScheduleConfig { batch, seed, .. } = demo().train;
    let base = paper(ModelConfig::demo(), ObjectiveConfig::default());
    let train = ScheduleConfig { steps: 4000, batch, seed, log_every: 10, checkpoint_every: 1000, ..base.train };
    TrainConfig { train, ..base }
}

#[cfg(test)]
mod tests {
    use stages::method::config::LatentShape;
    use stages::method::objective::config::{Aligned, Reduction, Similarity, TimeDistribution};

    use super::*;
    use crate::config::resolve;

    fn preset(name: &str) -> TrainConfig {
        resolve(Some(name), None, &[]).unwrap()
    }

    #[test]
    fn every_preset_resolves_and_fits_imagenet_latents() {
        let data = LatentShape { channels: 4, height: 32, width: 32, classes: 1000 };
        for name in names() {
            assert_eq!(preset(&name).problem(&data), None, "{name}");
        }
    }

    #[test]
    fn an_unknown_preset_names_the_nearest() {
        let message = find("dupa-xl2").err().unwrap().to_string();
        assert!(message.contains("\"dupa-xl/2\""), "{message}");
    }

    /// What a row of the paper says: layers, width, heads, depth of the encoder, lambda, K, thousands of steps, batch.
    struct Expected(i64, i64, i64, i64, f64, i64, u64, u64);

    const S: Expected = Expected(12, 384, 6, 4, 0.5, 2, 400, 256);
    const B: Expected = Expected(12, 768, 12, 4, 0.5, 2, 400, 256);
    const L: Expected = Expected(24, 1024, 16, 8, 0.5, 2, 400, 256);
    const XL: Expected = Expected(28, 1152, 16, 8, 0.5, 2, 400, 256);

    fn depth(depth: i64) -> Expected {
        Expected(L.0, L.1, L.2, depth, L.4, L.5, L.6, L.7)
    }

    fn lambda(lambda: f64, of: Expected) -> Expected {
        Expected(of.0, of.1, of.2, of.3, lambda, of.5, of.6, of.7)
    }

    fn views(views: i64, of: Expected) -> Expected {
        Expected(of.0, of.1, of.2, of.3, of.4, views, of.6, of.7)
    }

    /// One view and nothing aligned.
    fn plain(of: Expected) -> Expected {
        views(1, lambda(0.0, of))
    }

    fn thousands(steps: u64) -> Expected {
        Expected(XL.0, XL.1, XL.2, XL.3, XL.4, XL.5, steps, XL.7)
    }

    #[test]
    fn presets_have_the_papers_numbers() {
        let rows = [
            // Table 5
            ("dupa-s/2", S),
            ("dupa-b/2", B),
            ("dupa-l/2", L),
            ("dupa-xl/2", XL),
            // Table 1: 80, 200, 400 epochs
            ("table1-80-epochs", thousands(400)),
            ("table1-200-epochs", thousands(1000)),
            ("table1-400-epochs", thousands(2000)),
            // Table 2
            ("table2-sit", plain(L)),
            ("table2-t", L),
            ("table2-noise", L),
            ("table2-depth-4", depth(4)),
            ("table2-depth-6", depth(6)),
            ("table2-depth-10", depth(10)),
            ("table2-depth-12", depth(12)),
            ("table2-depth-14", depth(14)),
            ("table2-depth-16", depth(16)),
            ("table2-nt-xent", L),
            ("table2-lambda-0.25", lambda(0.25, L)),
            ("table2-lambda-0.75", lambda(0.75, L)),
            ("table2-lambda-1", lambda(1.0, L)),
            ("table2-dupa", L),
            // Table 3
            ("table3-sit-b", plain(B)),
            ("table3-ddt-b", plain(B)),
            ("table3-dupa-b", B),
            ("table3-sit-l", plain(L)),
            ("table3-ddt-l", plain(L)),
            ("table3-dupa-l", L),
            ("table3-sit-xl", plain(XL)),
            ("table3-ddt-xl", plain(XL)),
            ("table3-dupa-xl", XL),
            // Table 4
            ("table4-ddt", plain(L)),
            ("table4-dual-path", lambda(0.0, L)),
            ("table4-dupa", L),
            // Figure 3a
            ("figure3a-k1", plain(L)),
            ("figure3a-k2", L),
            ("figure3a-k3", views(3, L)),
            ("figure3a-k4", views(4, L)),
            ("figure3a-ddt-2b", Expected(24, 1024, 16, 8, 0.0, 1, 400, 512)),
        ];
        for (name, expected) in &rows {
            let config = preset(name);
            let TrainConfig { model, objective, train, .. } = &config;
            let found =
                (model.depth, model.hidden, model.heads, model.encoder_depth, objective.lambda, objective.views);
            let Expected(layers, width, heads, depth, lambda, views, steps, batch) = *expected;
            assert_eq!(found, (layers, width, heads, depth, lambda, views), "{name}");
            assert_eq!((train.steps, train.batch, model.patch), (1000 * steps, batch, 2), "{name}");
            assert_eq!(model.backbone == Backbone::Sit, name.contains("sit"), "{name}");
            assert_eq!(objective.aligns(), objective.lambda > 0.0, "{name}");
            let kept = [objective.resample_t, objective.resample_noise];
            assert_eq!(kept, [*name != "table2-noise", *name != "table2-t"], "{name}");
            assert_eq!(objective.similarity == Similarity::NtXent, *name == "table2-nt-xent", "{name}");
            // Table 7, and batches as they are named in the text.
            let OptimiserConfig { lr, beta1, beta2, weight_decay, .. } = config.optimiser;
            assert_eq!((lr, beta1, beta2, weight_decay, config.ema.decay), (1e-4, 0.9, 0.999, 0.0, 0.9999), "{name}");
        }
        let tested = rows.iter().filter(|(name, _)| ROWS.iter().any(|(row, ..)| row == name)).count();
        assert_eq!(tested, ROWS.len(), "a row of the tables is not tested");
    }
    /// The paper's objective, and what its baselines and REPA's code have where it is silent.
    const DUPA: ObjectiveConfig = ObjectiveConfig {
        views: 2,
        lambda: 0.5,
        similarity: Similarity::Cosine,
        temperature: 0.5,
        pool_tokens: false,
        aligned: Aligned::Output,
        stop_gradient: false,
        centre: false,
        resample_t: true,
        resample_noise: true,
        resample_posterior: false,
        time: TimeDistribution::Uniform,
        label_drop: 0.1,
        share_label_drop: false,
        velocity_views: Reduction::Mean,
        velocity_elements: Reduction::Mean,
        dispersive: 0.0,
        dispersive_temperature: 0.5,
        contrastive: 0.0,
    };

    #[test]
    fn families_have_the_sizes_of_table_5_with_any_patch_and_differ_in_what_they_are_named_for() {
        let plain = ObjectiveConfig { views: 1, lambda: 0.0, ..DUPA };
        // The backbone, whether there is a projector, and the objective.
        let families = [
            ("dupa", Backbone::Ddt, true, DUPA),
            ("dupa-sit", Backbone::Sit, true, DUPA),
            ("dual-path", Backbone::Ddt, false, ObjectiveConfig { lambda: 0.0, ..DUPA }),
            ("ddt", Backbone::Ddt, false, plain.clone()),
            ("sit", Backbone::Sit, false, plain.clone()),
            ("dispersive", Backbone::Sit, false, ObjectiveConfig { dispersive: 0.5, ..plain.clone() }),
            ("delta-fm", Backbone::Sit, false, ObjectiveConfig { contrastive: 0.05, ..plain }),
        ];
        assert_eq!(families.len(), FAMILIES.len(), "a family is not tested");
        let of_family = |(family, backbone, projects, objective): &(&str, Backbone, bool, ObjectiveConfig),
                         size: &str,
                         patch: i64| {
            let name = format!("{family}-{size}/{patch}");
            let config = preset(&name);
            assert_eq!(config.objective, *objective, "{name}");
            let ModelConfig { projector_hidden, projector_out, projector_layers, projector_bias, .. } = config.model;
            let projector = if *projects { (2048, 768, 3, true) } else { (0, 0, 3, true) };
            assert_eq!((projector_hidden, projector_out, projector_layers, projector_bias), projector, "{name}");
            assert_eq!(
                (config.model.backbone, config.model.patch, config.model.mlp_ratio),
                (*backbone, patch, 4),
                "{name}"
            );
            let OptimiserConfig { lr, clip, eps, warmup_steps, decay_fraction, .. } = config.optimiser;
            assert_eq!((lr, clip, eps, warmup_steps, decay_fraction), (1e-4, 1.0, 1e-8, 0, 0.0), "{name}");
            assert_eq!((config.ema.decay, config.ema.warmup), (0.9999, false), "{name}");
            assert_eq!((config.train.steps, config.train.batch), (400_000, 256), "{name}");
            let ModelConfig { depth, hidden, heads, encoder_depth, .. } = config.model;
            (depth, hidden, heads, encoder_depth)
        };
        for family in &families {
            for (size, Expected(depth, hidden, heads, encoder_depth, ..)) in [("s", S), ("b", B), ("l", L), ("xl", XL)]
            {
                for patch in [2, 4, 8] {
                    let found = of_family(family, size, patch);
                    assert_eq!(found, (depth, hidden, heads, encoder_depth), "{}-{size}/{patch}", family.0);
                }
            }
        }
    }
}
