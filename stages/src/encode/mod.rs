//! From a folder of labelled images to latent shards.
//!
//! ```text
//! ListImages      class-per-folder tree, seeded order   -> ImageRef
//! Decode          JPEG or PNG, by content               -> Decoded      u8 [H, W, 3]
//! AdmCrop         centre square, as Pillow 12 makes it  -> Decoded      u8 [S, S, 3]
//! Gather          blocks of 64, none across two shards  -> PixelBatch   u8 [B, 3, S, S]
//! VaeEncode       posterior of the autoencoder          -> MomentsBatch f16 mean, logvar [B, C, h, w]
//! WriteShards     shards of 8,192 positions, manifest last
//! ```
//!
//! Everything after the list is a function of it: neither the number of workers nor an interruption changes a byte of
//! what is written. How a file becomes a flow of these stages is the business of the `encode` command.

pub mod crop;
pub mod decode;
pub mod gather;
pub mod list;
mod stats;
pub mod vae;
pub mod write;

#[cfg(test)]
mod tests;
