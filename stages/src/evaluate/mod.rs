//! How good samples are, measured against real images.
//!
//! ```text
//! ListImages         encode's; of a SampleList or of a tree      -> ImageRef
//! Decode, AdmCrop    encode's, to 32 pixels a side               -> Decoded        u8 [32, 32, 3]
//! CollectPictures    all of them in memory                       = Pictures        u8 [N, 3072], labels
//!
//! QueryBlocks        256 pictures at a time                      -> Range of rows
//! FindNearest        the nearest of another set, for each        -> Vec<Nearest>
//! CollectNearest     in the order of the pictures                = Vec<Nearest>
//! ```
//!
//! There is one measure so far: the nearest neighbour in pixel space. It says how often a sample's nearest real image
//! is of the sample's own class, and how close samples come to the images that were trained on. Pixels judge hue and
//! layout, not what a person would call the content; the measure is meant for small sets of plain pictures, such as the
//! demonstration's, where chance and real images in place of samples say how to read it.
//!
//! What the ADM evaluator computes from features is here, exactly: [`moments`] and [`frechet`] (FID, sFID), [`inception_score`] and
//! [`precision_recall`]. The features are those of [`crate::nets::inception`]. The Frechet distance is also taken of latents, by
//! `pipeline probe`, and is not called FID there.
//!
//! Not here yet: the stages that bring pictures and reference files to these, so no command prints the five numbers. The
//! folder of PNG files that `pipeline sample` writes can be given to an existing evaluator.

pub mod features;
pub mod frechet;
pub mod inception_score;
pub mod moments;
pub mod neighbours;
pub mod pictures;
pub mod precision_recall;
pub mod reference;
pub mod samples;

#[cfg(test)]
mod goldens;
