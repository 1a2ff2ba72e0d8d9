//! The command line: one variant a subcommand, whose file holds its arguments and what it does.

use anyhow::Result;
use clap::{Parser, Subcommand};
use pipeline::Runtime;

use crate::commands::{demo, encode, inspect, sample, train};
use crate::exit::Outcome;

/// Dual-path condition alignment for diffusion transformers: labelled images in, samples out.
#[derive(Debug, Parser)]
#[command(name = "pipeline", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Encode(encode::EncodeArgs),
    Train(train::TrainArgs),
    Sample(sample::SampleArgs),
    Inspect(inspect::InspectArgs),
    Demo(demo::DemoArgs),
}

impl Cli {
    pub(crate) fn run(&self, runtime: &Runtime) -> Result<Outcome> {
        match &self.command {
            Command::Encode(args) => encode::run(args, runtime),
            Command::Train(args) => train::run(args, runtime),
            Command::Sample(args) => sample::run(args, runtime),
            Command::Inspect(args) => inspect::run(args),
            Command::Demo(args) => demo::run(args, runtime),
        }
    }
}
