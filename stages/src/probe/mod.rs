//! What a network has learned, measured on data that it was not trained on.
//!
//! ```text
//! load::batches     -> HostBatch      f16 moments, in the order of a seed
//! CollectLatents    =  Latents        f32 [N, C, h, w], the posteriors' modes
//!
//! velocity::by_time                   Eq. 7 on noisy versions of them, by t
//! layers::features  -> LayerFeatures  f32 [N, D], the output of a block at a time t, averaged over tokens
//! linear::accuracy                    what a linear classifier reads from these, fitted to the end
//! Recipe::accuracy                    the same, trained as MAE or REPA train it
//! Neighbours::cknna                   how far they agree with another network's on which images are alike
//! Sweep::run        -> LayerResult    both, for several layers and times
//!
//! views::similarity                   how alike two noisy views of an image are, by their times
//! ```
//!
//! docs/probing.md says what each number is and where it comes from.

pub mod cknna;
pub mod collect;
pub mod files;
#[cfg(test)]
mod fixture;
pub mod layers;
pub mod linear;
pub mod recipe;
pub mod sweep;
pub mod velocity;
pub mod views;

use crate::native::NativeError;

/// Why something cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The network gave infinity or no number.
    #[error(
        "the features of layer {layer} at t = {t} of latent {row} (counted from 0) are not finite; the weights have diverged, \
         or the latent is damaged"
    )]
    NotFinite {
        /// Block, from 1.
        layer: i64,
        /// Time.
        t: f64,
        /// Row of the latents.
        row: i64,
    },
    /// There is nothing to measure with so few.
    #[error("{what} needs at least {least} latents, and has {got}")]
    TooFew {
        /// What was to be measured.
        what: &'static str,
        /// As given.
        got: i64,
        /// The fewest that work.
        least: i64,
    },
    /// Not so many neighbours.
    #[error("--topk {topk} must lie in 2..={}: each of the {rows} latents has {} others", rows - 1, rows - 1)]
    TopK {
        /// As asked.
        topk: i64,
        /// Latents.
        rows: i64,
    },
    /// No quantile.
    #[error("--outlier-q {q} must lie in 0..=1")]
    Quantile {
        /// As asked.
        q: f64,
    },
    /// A classifier came to infinity.
    #[error("the linear probe diverged at a rate of {rate}; give a smaller --probe-rate")]
    Diverged {
        /// The highest of its training.
        rate: f64,
    },
    /// Random numbers could not be drawn.
    #[error(transparent)]
    Native(#[from] NativeError),
}
