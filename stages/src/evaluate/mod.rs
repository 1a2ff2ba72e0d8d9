//! How good samples are, measured against real images.
//!
//! ```text
//! NpzPictures, or ListImages, Decode, GatherPictures             -> PictureBatch   u8 [B, H, W, 3]
//! ExtractFeatures    Inception; or StoredFeatures, of a file     -> FeatureBatch
//! CollectFeatures                                                = Statistics
//!
//! EncodePictures     the autoencoder                             -> Tensor         f32 [B, 16 C]
//! CollectLatentFeatures                                          = Tensor          f32 [N, 16 C]
//!
//! ListImages         encode's; of a SampleList or of a tree      -> ImageRef
//! Decode, AdmCrop    encode's, to 32 pixels a side               -> Decoded        u8 [32, 32, 3]
//! CollectPictures    all of them in memory                       = Pictures        u8 [N, 3072], labels
//!
//! QueryBlocks        256 pictures at a time                      -> Range of rows
//! FindNearest        the nearest of another set, for each        -> Vec<Nearest>
//! CollectNearest     in the order of the pictures                = Vec<Nearest>
//! ```
//!
//! The first gives what the ADM evaluator computes, exactly: [`moments`] and [`frechet`] make FID and sFID of the statistics of
//! two sets, [`inception_score`] and [`precision_recall`] the rest; a [`reference`](mod@reference) file may hold statistics in place of
//! pictures. The second needs no weights but the autoencoder's: a Frechet distance of latents, which is not called FID.
//!
//! The last need no network: the nearest neighbour in pixel space says how often a sample's nearest real image is of the
//! sample's own class, and how close samples come to the images that were trained on. Pixels judge hue and layout, not what a
//! person would call the content; the measure is meant for small sets of plain pictures, such as the demonstration's, where
//! chance and real images in place of samples say how to read it.
//!
//! Not here: the evaluators of other image types (faces, video), which use other networks.

pub mod features;
pub mod frechet;
pub mod inception_score;
pub mod latent_features;
pub mod moments;
pub mod neighbours;
pub mod pictures;
pub mod precision_recall;
pub mod reference;
pub mod samples;
pub mod stored_features;

#[cfg(test)]
mod goldens;
