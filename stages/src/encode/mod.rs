//! From a folder of labelled images to latent shards.

pub mod crop;
pub mod decode;
pub mod list;
