//! What a network has learned, measured on data that it was not trained on.
//!
//! ```text
//! load::batches     -> HostBatch      f16 moments, in the order of a seed
//! CollectLatents    =  Latents        f32 [N, C, h, w], the posteriors' modes
//!
//! velocity::by_time                   Eq. 7 on noisy versions of them, by t
//! layers::features  -> LayerFeatures  f32 [N, D], the output of a block at a time t, averaged over tokens
//! linear::accuracy                    what a linear classifier reads from these
//! ```
//!
//! docs/probing.md says what each number is and where it comes from.

pub mod collect;
pub mod layers;
pub mod linear;
pub mod velocity;

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
    /// Random numbers could not be drawn.
    #[error(transparent)]
    Native(#[from] NativeError),
}
