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
//! [`frechet`] is the distance of two sets of features; so far the features are latents.
//!
//! Not here yet: FID, sFID, IS, precision and recall, which need the features of an Inception network. For work of
//! ImageNet's size, the folder of PNG files that `pipeline sample` writes can be given to an existing evaluator.

pub mod frechet;
pub mod neighbours;
pub mod samples;
