//! From labelled images to latent shards.
//!
//! ```text
//! ListImages      folders or tars, in the dataset's order -> ImageRef
//! Decode          JPEG or PNG, by content                 -> Decoded      u8 [H, W, 3]
//! AdmCrop         centre square, as Pillow 12 makes it    -> Decoded      u8 [S, S, 3]
//! Gather          batches, none across two blocks         -> PixelBatch   u8 [B, 3, S, S]
//! VaeEncode       posterior of the autoencoder            -> MomentsBatch f16 [B, C, h, w] for each column
//! WriteShards     blocks of 64, shards of 8,192 positions, manifest last
//! ```
//!
//! Everything after the list is a function of it: neither the number of workers nor an interruption changes a byte of
//! what is written. How a file becomes a flow of these stages is the business of the `encode` command.

pub mod crop;
pub mod decode;
mod fetch;
pub mod gather;
pub mod list;
pub(crate) mod stats;
pub mod store;
pub mod vae;
pub mod write;

#[cfg(test)]
mod tests;
