//! Networks that are tools and not the contribution: the autoencoder, the Inception of FID, and how any network gets its weights.
//!
//! Weights come from safetensors through [`weights`], strictly: every missing, unexpected or misshapen tensor is
//! named in one message. Nothing here draws random numbers or trains; the method's own network is not here.

pub mod autoencoder;
pub mod inception;
pub mod weights;
