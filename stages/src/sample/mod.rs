//! From noise to pictures, as a list of stages.
//!
//! ```text
//! Requests -> SampleRequest -> Generate -> SampleLatents -> DecodeLatents -> SamplePixels -> WriteSamples
//! ```
//!
//! Image i is a function of (seed, i, its class) and the weights: the batch size, the number of images and the
//! number of devices do not enter its noise, nor does a resume. How to integrate is [`crate::method::sampler`].

pub mod collect;
pub mod decode;
pub mod generate;
pub mod latents;
pub mod noise;
pub mod npz;
pub mod reconstruct;
pub mod request;
pub mod trial;
pub mod write;
