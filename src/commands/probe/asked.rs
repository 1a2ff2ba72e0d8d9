//! What the flags ask for, and whether the run has it.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use stages::probe::cknna::Alignment;
use stages::probe::recipe::{BATCH, EPOCHS, Recipe, WARM_UP};

/// `--layers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layers {
    All,
    Some(Vec<i64>),
}

/// `all`, or numbers with commas between them.
pub(super) fn layers(text: &str) -> Result<Layers, String> {
    if text == "all" {
        return Ok(Layers::All);
    }
    let number = |part: &str| part.trim().parse().map_err(|_| "give `all`, or blocks from 1 on as in 2,4,6".to_owned());
    text.split(',').map(number).collect::<Result<_, _>>().map(Layers::Some)
}

impl Layers {
    /// In ascending order, of a network of `depth` blocks.
    pub(super) fn of(&self, depth: i64) -> Result<Vec<i64>> {
        let Self::Some(asked) = self else { return Ok((1..=depth).collect()) };
        if let Some(wrong) = asked.iter().find(|layer| !(1..=depth).contains(*layer)) {
            bail!("--layers {wrong}: the network has the blocks 1 to {depth}");
        }
        let mut blocks = asked.clone();
        blocks.sort_unstable();
        blocks.dedup();
        Ok(blocks)
    }
}

/// At least one, each in 0..=1 and none twice.
pub(super) fn check_times(times: &[f64]) -> Result<()> {
    if let Some(wrong) = times.iter().find(|t| !(0.0..=1.0).contains(*t)) {
        bail!("--t {wrong} must lie in 0..=1, where 0 is data");
    }
    if let Some(twice) = times.iter().enumerate().find_map(|(i, t)| times[..i].contains(t).then_some(t)) {
        bail!("--t names {twice} twice");
    }
    Ok(())
}

/// Samples for the Frechet distance: each of its two halves, and the samples, need two to have a covariance; and all of them
/// stay in memory.
pub(super) fn check_samples(samples: u64, steps: usize) -> Result<()> {
    const LEAST: u64 = 4;
    const MOST: u64 = 1_000_000;
    if samples != 0 && !(LEAST..=MOST).contains(&samples) {
        bail!("--samples {samples}: a Frechet distance needs {LEAST} to {MOST} samples; 0 leaves it out");
    }
    if samples != 0 && steps == 0 {
        bail!("--steps 0 makes no samples; give at least 1, or --samples 0");
    }
    Ok(())
}

/// How linear probes are trained.
#[derive(Debug, Clone, Args)]
pub(crate) struct RecipeArgs {
    /// How the linear classifier is trained: softmax regression to the end, or as MAE (LARS) or REPA (Adam) do it; on features,
    /// so without random crops
    #[arg(long, value_enum, default_value_t = RecipeArg::Softmax)]
    recipe: RecipeArg,
    /// Epochs of --recipe mae or repa [default: 90]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    probe_epochs: Option<i64>,
    /// Samples of a batch of --recipe mae or repa, at most all [default: 16384]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(2..))]
    probe_batch: Option<i64>,
    /// Highest rate of --recipe mae or repa [default: 0.1 for each 256 samples of a batch of mae, 0.001 of repa]
    #[arg(long, value_name = "X")]
    probe_rate: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RecipeArg {
    Softmax,
    Mae,
    Repa,
}

impl RecipeArgs {
    /// Before anything is measured.
    pub(super) fn check(&self) -> Result<()> {
        let given = [
            ("--probe-epochs", self.probe_epochs.is_some()),
            ("--probe-batch", self.probe_batch.is_some()),
            ("--probe-rate", self.probe_rate.is_some()),
        ];
        if let (RecipeArg::Softmax, Some((flag, _))) = (self.recipe, given.iter().find(|(_, given)| *given)) {
            bail!("{flag} belongs to --recipe mae or --recipe repa; softmax regression is fitted to the end");
        }
        if let Some(rate) = self.probe_rate.filter(|rate| !(*rate > 0.0 && rate.is_finite())) {
            bail!("--probe-rate {rate} must be above 0");
        }
        if let (RecipeArg::Mae, Some(epochs)) = (self.recipe, self.probe_epochs)
            && epochs as f64 <= WARM_UP
        {
            bail!(
                "--probe-epochs {epochs}: the rate of --recipe mae rises for {WARM_UP} epochs, so give more than these"
            );
        }
        Ok(())
    }

    /// For a set of `samples`; `None` is softmax regression.
    pub(super) fn of(&self, samples: i64, seed: u64) -> Option<Recipe> {
        let (batch, epochs) = (self.probe_batch.unwrap_or(BATCH), self.probe_epochs.unwrap_or(EPOCHS));
        let recipe = match self.recipe {
            RecipeArg::Softmax => return None,
            RecipeArg::Mae => Recipe::mae(samples, batch, epochs, seed),
            RecipeArg::Repa => Recipe::repa(samples, batch, epochs, seed),
        };
        Some(Recipe { rate: self.probe_rate.unwrap_or(recipe.rate), ..recipe })
    }

    /// Its name.
    pub(super) fn name(&self) -> &'static str {
        match self.recipe {
            RecipeArg::Softmax => "softmax",
            RecipeArg::Mae => "mae",
            RecipeArg::Repa => "repa",
        }
    }
}

/// What features are compared with, and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct AlignmentArgs {
    /// Features by another network, for CKNNA: .npy or safetensors, f32 [N, D], a row for each sample of --data in the order
    /// of its shards, or `positions` beside them
    #[arg(long, value_name = "FEATURES")]
    pub(super) cknna: Option<PathBuf>,
    /// Which tensor of that file, if it has several
    #[arg(long, value_name = "NAME", requires = "cknna")]
    pub(super) cknna_tensor: Option<String>,
    /// Neighbours k of CKNNA
    #[arg(long, value_name = "K", default_value_t = 10)]
    topk: i64,
    /// Whether features are scaled to length 1 for CKNNA
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    normalize: bool,
    /// Limit features, before that, to the mean over images of this quantile of their absolute values; 0.95 is common
    #[arg(long, value_name = "Q")]
    outlier_q: Option<f64>,
}

impl AlignmentArgs {
    pub(super) fn settings(&self) -> Alignment {
        Alignment { topk: self.topk, normalize: self.normalize, outlier_q: self.outlier_q }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_all_or_some_in_order_and_within_the_network() {
        assert_eq!(layers("all").unwrap().of(3).unwrap(), [1, 2, 3]);
        assert_eq!(layers("6, 2,2").unwrap().of(6).unwrap(), [2, 6]);
        for wrong in ["", "2,", "two", "1.5"] {
            assert!(layers(wrong).unwrap_err().contains("as in 2,4,6"), "{wrong}");
        }
        let error = |text: &str| layers(text).unwrap().of(6).unwrap_err().to_string();
        assert_eq!(error("2,7"), "--layers 7: the network has the blocks 1 to 6");
        assert!(error("0").contains("--layers 0"));
    }

    #[test]
    fn times_lie_between_data_and_noise_and_come_once() {
        check_times(&[0.0, 0.25, 1.0]).unwrap();
        assert!(check_times(&[0.5, f64::NAN]).unwrap_err().to_string().contains("--t NaN must lie in 0..=1"));
        assert!(check_times(&[0.5, 0.0, 0.5]).unwrap_err().to_string().contains("--t names 0.5 twice"));
    }

    #[test]
    fn a_recipe_has_the_papers_numbers_unless_flags_say_others() {
        let asked = |recipe, probe_epochs, probe_batch, probe_rate| RecipeArgs {
            recipe,
            probe_epochs,
            probe_batch,
            probe_rate,
        };
        let mae = asked(RecipeArg::Mae, None, None, None).of(50_000, 1).unwrap();
        assert_eq!((mae.epochs, mae.batch, mae.rate), (90, 16_384, 6.4));
        let mae = asked(RecipeArg::Mae, Some(5), Some(512), None).of(50_000, 1).unwrap();
        assert_eq!((mae.epochs, mae.batch, mae.rate), (5, 512, 0.2));
        let repa = asked(RecipeArg::Repa, None, None, Some(0.0064)).of(1000, 1).unwrap();
        assert_eq!((repa.epochs, repa.batch, repa.rate), (90, 1000, 0.0064));
        assert!(asked(RecipeArg::Softmax, None, None, None).of(10, 1).is_none());
        let error = |args: RecipeArgs| args.check().unwrap_err().to_string();
        assert!(error(asked(RecipeArg::Softmax, None, Some(3), None)).starts_with("--probe-batch belongs to"));
        assert_eq!(error(asked(RecipeArg::Repa, None, None, Some(0.0))), "--probe-rate 0 must be above 0");
        assert!(error(asked(RecipeArg::Mae, Some(10), None, None)).contains("rises for 10 epochs"));
        asked(RecipeArg::Mae, Some(11), None, None).check().unwrap();
        asked(RecipeArg::Repa, Some(1), None, None).check().unwrap();
    }

    #[test]
    fn samples_are_none_or_enough_for_a_covariance() {
        for (samples, steps) in [(0, 0), (4, 1), (50_000, 50)] {
            check_samples(samples, steps).unwrap();
        }
        for (samples, steps) in [(1, 50), (3, 50), (u64::MAX, 50), (4, 0)] {
            assert!(check_samples(samples, steps).is_err(), "{samples} {steps}");
        }
    }
}
