//! Training: one step, the optimiser, checkpoints, sample grids and the run directory.
//!
//! ```text
//! HostBatch -> Trainer::step (algorithm 1, clip, AdamW, EMA) -> metrics.jsonl, tensorboard/, checkpoints/, samples/
//! ```
//!
//! Where several train together ([`together`]), rank 0 alone writes, and what it writes is of all.
//!
//! What is drawn, and how the loss is made, is `method`; what is read, and in which order, is `load`.

pub mod checkpoint;
pub mod config;
#[cfg(test)]
mod equality;
pub mod grids;
#[cfg(test)]
mod numerics;
pub mod optimiser;
pub mod run_dir;
pub mod sink;
pub mod step;
pub mod tensorboard;
pub mod together;
pub mod trial;
mod window;
