//! What a network has learned, measured on data that it was not trained on.
//!
//! ```text
//! load::batches     -> HostBatch      f16 moments, in the order of a seed
//! CollectLatents    =  Latents        f32 [N, C, h, w], the posteriors' modes
//!
//! velocity::by_time                   Eq. 7 on noisy versions of them, by t
//! linear::features, linear::accuracy  what a linear classifier reads from the conditions z_t
//! ```
//!
//! Not here yet: other layers than the aligned one, CKNNA, the recipes of MAE and REPA for linear probes.

pub mod collect;
pub mod linear;
pub mod velocity;
