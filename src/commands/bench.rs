//! `pipeline bench`: how fast a part of the program is on this machine, and what holds it up.

mod encode;
mod load;
mod sample;
mod step;

use anyhow::{Context, Result};
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
    Sample(sample::BenchSampleArgs),
    Step(step::BenchStepArgs),
}

pub(crate) fn run(args: &BenchArgs, runtime: &Runtime) -> Result<Outcome> {
    match &args.part {
        Part::Encode(args) => encode::run(args, runtime),
        Part::Load(args) => load::run(args, runtime),
        Part::Sample(args) => sample::run(args),
        Part::Step(args) => step::run(args),
    }
}

/// No device holds more images of one step, and sizes that are computed from far more overflow.
pub(crate) const MOST_BATCH: u64 = 1 << 20;

/// The largest resident set of the process so far. Not getrusage's, which begins with that of the process that started
/// this one.
fn peak_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().context("/proc/self/status has no VmHWM")?;
    Ok(kilobytes * 1024)
}
