//! What a probe found, as JSON and as text.

use serde::Serialize;
use stages::evaluate::frechet::LatentDistance;

#[derive(Debug, Serialize)]
pub(super) struct Found {
    pub(super) checkpoint: String,
    pub(super) step: u64,
    /// Held-out latents.
    pub(super) count: i64,
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
    /// Block whose output is the condition z_t: the last of the encoder.
    pub(super) aligned_layer: i64,
    /// By time, then by layer.
    pub(super) layers: Vec<LayerFound>,
    pub(super) latent_frechet: Option<LatentFrechet>,
}

/// One layer at one time.
#[derive(Debug, Serialize)]
pub(super) struct LayerFound {
    /// From 1.
    pub(super) layer: i64,
    pub(super) t: f64,
    /// Share of held-out latents whose class a linear classifier reads from the features, in 0..=1.
    pub(super) linear_probe: f64,
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
            format!("step {}, {} held-out latents", self.step, self.count),
            format!("velocity loss {:.4}; by tenths of t, from data to noise:", self.velocity_loss),
            format!("  {}", by_t.join(" ")),
        ];
        let chance = format!("the most frequent class alone {:.1} %", 100.0 * self.linear_probe_chance);
        match &self.layers[..] {
            [LayerFound { layer, t, linear_probe }] if *layer == self.aligned_layer => {
                lines.push(format!(
                    "linear probe of the conditions at t = {t}: {:.1} % ({chance})",
                    100.0 * linear_probe
                ));
            }
            layers => {
                lines.push(format!("linear probe by layer ({chance}; layer {} is aligned):", self.aligned_layer));
                lines.push("  layer      t   accuracy".to_owned());
                for LayerFound { layer, t, linear_probe } in layers {
                    lines.push(format!("  {layer:>5}  {t:>5}   {:>6.1} %", 100.0 * linear_probe));
                }
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
