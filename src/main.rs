//! `pipeline`: from labelled images to a trained and sampled diffusion transformer.
//!
//! Glue only: the command line, the configuration and one file a command. The work is in the crates `stages` (what
//! flows and what is done to it), `pipeline` (the engine that moves it) and `shards` (the format on disk).

mod allocator;
mod cli;
mod commands;
mod config;
mod exit;
mod presets;
mod report;
mod show;
mod trained;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    exit::silence_panics();
    let (runtime, signals) = exit::runtime_with_signals();
    exit::code_of(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cli.run(&runtime))), &signals)
}
