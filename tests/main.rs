//! One end-to-end binary: libtorch is linked once.
//!
//! What a stage computes is tested beside it; here is whether the commands are hooked up, what a person reads when
//! something is wrong, and the rules of the repository's layout.

mod encode;
mod errors;
mod evaluate;
mod exchange;
mod layering;
mod line;
mod load;
mod lost;
mod method;
mod probe;
mod program;
mod report;
mod sample;
mod step;
mod train;
mod verify;
mod weights;
mod world;
