//! One file a subcommand: its arguments, and `run`, which reads as a list of stages.

pub(crate) mod bench;
pub(crate) mod demo;
pub(crate) mod encode;
pub(crate) mod evaluate;
pub(crate) mod export;
pub(crate) mod export_weights;
pub(crate) mod import;
pub(crate) mod import_weights;
pub(crate) mod inspect;
pub(crate) mod launching;
pub(crate) mod make_ref;
pub(crate) mod probe;
pub(crate) mod reading;
pub(crate) mod report;
pub(crate) mod sample;
pub(crate) mod train;
pub(crate) mod verify;
pub(crate) mod writing;
