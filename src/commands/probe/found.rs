//! What a probe found, as JSON and as text.

use serde::Serialize;
use stages::evaluate::frechet::LatentDistance;
use stages::probe::cknna::Alignment;
use stages::probe::recipe::{Optimiser, Recipe};
use stages::probe::sweep::LayerResult;
use stages::probe::views::{GapSimilarity, Similarity, ViewSimilarity};

#[derive(Debug, Serialize)]
pub(super) struct Found {
    /// Of this program.
    pub(super) version: &'static str,
    pub(super) checkpoint: String,
    pub(super) step: u64,
    /// xxh3 of the averaged weights, f32 in the order of the layout.
    pub(super) weights_xxh3: String,
    /// Dtype of the network.
    pub(super) precision: &'static str,
    /// Of noise, times and samples.
    pub(super) seed: u64,
    /// Identity of the held-out dataset, as its manifest has it.
    pub(super) dataset: String,
    /// Of that which classifiers were fitted to; none if that was half of the held-out one.
    pub(super) fit_dataset: Option<String>,
    /// Held-out latents that were read, in whole batches.
    pub(super) count: i64,
    /// Those that the dataset has.
    pub(super) held_out: u64,
    /// Mean over all t.
    pub(super) velocity_loss: f64,
    /// By tenths of t.
    pub(super) velocity_loss_by_t: Vec<f64>,
    /// That of the aligned layer at the first time; none if that was not asked for.
    pub(super) linear_probe: Option<f64>,
    /// Share of the most frequent class among the latents that are classified.
    pub(super) linear_probe_chance: f64,
    /// The first time.
    pub(super) linear_probe_t: f64,
    pub(super) linear_probe_recipe: RecipeFound,
    /// Block whose output is the condition z_t: the last of the encoder.
    pub(super) aligned_layer: i64,
    /// By time, then by layer.
    pub(super) layers: Vec<LayerResult>,
    /// What CKNNA of the layers was measured against.
    pub(super) cknna: Option<CknnaFound>,
    pub(super) views: Option<ViewSimilarity>,
    pub(super) latent_frechet: Option<LatentFrechet>,
}

/// How linear classifiers were trained.
#[derive(Debug, Serialize)]
pub(super) struct RecipeFound {
    name: &'static str,
    /// Latents that they were trained on, and tested on.
    fit: i64,
    test: i64,
    /// None for softmax regression, which has no choice to make.
    #[serde(flatten)]
    training: Option<TrainingFound>,
}

#[derive(Debug, Serialize)]
struct TrainingFound {
    optimiser: &'static str,
    epochs: i64,
    warm_up_epochs: f64,
    /// As it was: never more than there are.
    batch: i64,
    rate: f64,
}

impl RecipeFound {
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn of(name: &'static str, recipe: Option<&Recipe>, fit: i64, test: i64) -> Self {
        let training = recipe.map(|recipe| TrainingFound {
            optimiser: match recipe.optimiser {
                Optimiser::Lars => "lars",
                Optimiser::Adam => "adam",
            },
            epochs: recipe.epochs,
            warm_up_epochs: recipe.warm_up,
            batch: recipe.batch,
            rate: recipe.rate,
        });
        Self { name, fit, test, training }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct CknnaFound {
    features: String,
    tensor: Option<String>,
    /// Of the values of that tensor.
    xxh3: String,
    count: i64,
    topk: i64,
    normalize: bool,
    outlier_q: Option<f64>,
}

impl CknnaFound {
    /// `xxh3` is that of the values of `tensor`, or of a file that has one alone.
    pub(super) fn of(features: String, tensor: Option<String>, xxh3: u64, count: i64, settings: &Alignment) -> Self {
        let (Alignment { topk, normalize, outlier_q }, xxh3) = (*settings, format!("{xxh3:016x}"));
        Self { features, tensor, xxh3, count, topk, normalize, outlier_q }
    }
}

/// No FID.
#[derive(Debug, Serialize)]
pub(super) struct LatentFrechet {
    #[serde(flatten)]
    pub(super) distance: LatentDistance,
    pub(super) sampled: u64,
    pub(super) steps: usize,
}

impl Found {
    /// For a person.
    pub(super) fn table(&self) -> String {
        let by_t: Vec<_> = self.velocity_loss_by_t.iter().map(|loss| format!("{loss:.4}")).collect();
        let mut lines = vec![
            format!("step {}, {} of {} held-out latents, in whole batches", self.step, self.count, self.held_out),
            format!("velocity loss {:.4}; by tenths of t, from data to noise:", self.velocity_loss),
            format!("  {}", by_t.join(" ")),
        ];
        let recipe = self.linear_probe_recipe.name;
        let chance = format!("the most frequent class alone {:.1} %", 100.0 * self.linear_probe_chance);
        match &self.layers[..] {
            [LayerResult { layer, t, linear_probe, cknna: None }] if *layer == self.aligned_layer => {
                lines.push(format!(
                    "linear probe of the conditions at t = {t}: {:.1} % ({chance})",
                    100.0 * linear_probe
                ));
            }
            layers => {
                lines.push(format!(
                    "linear probe ({recipe}) by layer ({chance}; layer {} is aligned):",
                    self.aligned_layer
                ));
                let has_cknna = self.cknna.is_some();
                lines.push(format!("  layer      t  accuracy{}", if has_cknna { "   CKNNA" } else { "" }));
                for LayerResult { layer, t, linear_probe, cknna } in layers {
                    let cknna = match (has_cknna, cknna) {
                        (false, _) => String::new(),
                        (true, None) => "       –".to_owned(),
                        (true, Some(value)) => format!("  {value:>6.3}"),
                    };
                    lines.push(format!("  {layer:>5}  {t:>5}  {:>6.1} %{cknna}", 100.0 * linear_probe));
                }
            }
        }
        if let Some(CknnaFound { features, count, topk, .. }) = &self.cknna {
            lines.push(format!("CKNNA of {count} latents with {features}, {topk} neighbours"));
        }
        if let Some(views) = &self.views {
            let two = [("conditions", Some(&views.condition)), ("projected conditions", views.projected.as_ref())];
            for (name, Similarity { by_gap, .. }) in two.into_iter().filter_map(|(name, one)| Some((name, one?))) {
                let row = |of: fn(&GapSimilarity) -> f64| {
                    by_gap.iter().map(|gap| format!("{:.3}", of(gap))).collect::<Vec<_>>().join(" ")
                };
                lines.push(format!(
                    "cosine of the {name} of two views, {} images, by |t1 - t2| in tenths:",
                    views.count
                ));
                lines.push(format!("  {}", row(|gap| gap.cosine)));
                lines.push(format!("  {} (of different images)", row(|gap| gap.other_cosine)));
            }
        }
        if let Some(LatentFrechet { distance, sampled, steps }) = &self.latent_frechet {
            let LatentDistance { samples, real_halves } = distance;
            lines.push(format!(
                "Frechet distance of latents (no FID), {sampled} samples of {steps} Euler steps: {samples:.4} (two halves of \
                 the real ones: {real_halves:.4})"
            ));
        }
        lines.join("\n")
    }
}
