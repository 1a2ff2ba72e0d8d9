//! What flows through the pipeline, and what is done to it.
//!
//! Start with [`data`] for the nouns of every edge, and with [`method`] for the paper.

pub mod data;
pub mod device;
pub mod encode;
pub mod evaluate;
pub mod exchange;
pub mod load;
pub mod method;
pub mod native;
pub mod nets;
pub mod probe;
pub mod procedural;
pub mod sample;
pub mod splitmix;
pub mod train;
pub mod world;
