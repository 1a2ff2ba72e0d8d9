//! Which columns a dataset of posteriors has: the meaning of `--store`, `--flip` and `--codec`.

use shards::{Codec, Column, DType, Schema, Semantics};

use super::gather::Layout;

/// Range of the pixels that the autoencoder is given: `u8 / 127.5 - 1`.
pub(super) const PIXEL_RANGE: [f64; 2] = [-1.0, 1.0];

/// What is stored of each image. Everything is f16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Store {
    /// The posterior's log-variance beside its mean: training then draws from the posterior.
    pub logvar: bool,
    /// The same again of the horizontally mirrored image. Mirroring a latent is not the same: the autoencoder is not
    /// symmetric.
    pub flip: bool,
    /// How the columns are stored.
    pub codec: Codec,
}

impl Store {
    /// Names and meanings of the columns in their order: `mean`, `logvar`, `mean_flip`, `logvar_flip`, of which those
    /// that were not asked for are left out.
    pub fn columns(self) -> Vec<(&'static str, Semantics)> {
        let all = [
            ("mean", Semantics::PosteriorMean, true),
            ("logvar", Semantics::PosteriorLogvar, self.logvar),
            ("mean_flip", Semantics::PosteriorMean, self.flip),
            ("logvar_flip", Semantics::PosteriorLogvar, self.flip && self.logvar),
        ];
        all.into_iter().filter(|(_, _, stored)| *stored).map(|(name, semantics, _)| (name, semantics)).collect()
    }

    /// The schema of a dataset of latents `[channels, height, width]`.
    pub fn schema(self, latent: [usize; 3], scaling_factor: f64, shift_factor: f64, layout: Layout) -> Schema {
        let column = |(name, semantics): (&str, Semantics)| Column {
            name: name.to_owned(),
            dtype: DType::F16,
            shape: latent.map(|side| side as u32).to_vec(),
            codec: self.codec,
            semantics,
        };
        Schema {
            columns: self.columns().into_iter().map(column).collect(),
            block_samples: layout.block as u32,
            scaling_factor,
            shift_factor,
            scaling_applied: false,
            pixel_range: PIXEL_RANGE,
        }
    }
}
