//! `pipeline bench`: how fast a part of the program is on this machine, and what holds it up.

mod encode;
mod load;
mod step;

use anyhow::Result;
use clap::{Args, Subcommand};
use pipeline::Runtime;

use crate::exit::Outcome;

/// Measure how fast a part of the program is on this machine.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Clone, Subcommand)]
enum Part {
    Encode(encode::BenchEncodeArgs),
    Load(load::BenchLoadArgs),
    Step(step::BenchStepArgs),
}

pub(crate) fn run(args: &BenchArgs, runtime: &Runtime) -> Result<Outcome> {
    match &args.part {
        Part::Encode(args) => encode::run(args, runtime),
        Part::Load(args) => load::run(args, runtime),
        Part::Step(args) => step::run(args),
    }
}
