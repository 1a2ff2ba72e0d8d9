//! The command line: one variant a subcommand, whose file holds its arguments and what it does.

use anyhow::Result;
use clap::{Parser, Subcommand};
use pipeline::Runtime;

use crate::commands::{
    bench, demo, encode, evaluate, export, export_weights, import, import_weights, inspect, make_ref, probe, report,
    sample, train, verify,
};
use crate::exit::Outcome;

/// Dual-path condition alignment for diffusion transformers: labelled images in, samples out.
#[derive(Debug, Parser)]
#[command(name = "pipeline", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Encode(encode::EncodeArgs),
    Train(train::TrainArgs),
    Sample(sample::SampleArgs),
    Evaluate(evaluate::EvaluateArgs),
    MakeRef(make_ref::MakeRefArgs),
    Probe(probe::ProbeArgs),
    Report(report::ReportArgs),
    Inspect(inspect::InspectArgs),
    Verify(verify::VerifyArgs),
    Export(export::ExportArgs),
    Import(import::ImportArgs),
    ExportWeights(export_weights::ExportWeightsArgs),
    ImportWeights(import_weights::ImportWeightsArgs),
    Bench(bench::BenchArgs),
    Demo(demo::DemoArgs),
}

impl Cli {
    /// What the words asked for.
    pub(crate) fn into_command(self) -> Command {
        self.command
    }

    pub(crate) fn run(&self, runtime: &Runtime) -> Result<Outcome> {
        match &self.command {
            Command::Encode(args) => encode::run(args, runtime).map(|ended| ended.outcome),
            Command::Train(args) => train::run(args, runtime).map(|ended| ended.outcome),
            Command::Sample(args) => sample::run(args, runtime).map(|ended| ended.outcome),
            Command::Evaluate(args) => evaluate::run(args, runtime),
            Command::MakeRef(args) => make_ref::run(args, runtime),
            Command::Probe(args) => probe::run(args, runtime),
            Command::Report(args) => report::run(args),
            Command::Inspect(args) => inspect::run(args, runtime),
            Command::Verify(args) => verify::run(args, runtime),
            Command::Export(args) => export::run(args, runtime).map(|ended| ended.outcome),
            Command::Import(args) => import::run(args, runtime).map(|ended| ended.outcome),
            Command::ExportWeights(args) => export_weights::run(args),
            Command::ImportWeights(args) => import_weights::run(args),
            Command::Bench(args) => bench::run(args, runtime),
            Command::Demo(args) => demo::run(args, runtime),
        }
    }
}
