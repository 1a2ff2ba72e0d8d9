//! Load.

pub mod plan;
