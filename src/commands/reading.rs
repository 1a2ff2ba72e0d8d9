//! Flags that say how a dataset is read, for the commands that stream one.

use std::num::NonZeroUsize;

use clap::{Args, ValueEnum};
use shards::Io;
use stages::load::{DEFAULT_PREFETCH, LEAST_PREFETCH, LoadConfig, OnBadBlock};

/// None of these changes what comes, only how fast, and what happens when it cannot be read.
#[derive(Debug, Clone, Args)]
pub(crate) struct ReadingArgs {
    /// Threads that read and inflate shards and fill batches
    #[arg(long, value_name = "N", default_value = "2")]
    pub(crate) workers: NonZeroUsize,
    /// How shards are read: mapped, by pread, or held in memory as they are stored; auto maps what lies on a local disk
    #[arg(long, value_enum, default_value_t = IoArg::Auto)]
    pub(crate) io: IoArg,
    /// Finished batches that wait for each device
    #[arg(long, value_name = "N", default_value_t = DEFAULT_PREFETCH, value_parser = prefetch_in_range)]
    pub(crate) prefetch: usize,
    /// What to do about a damaged block: fail, or put other samples of the batch in the place of its own, and count
    #[arg(long, value_enum, default_value_t = OnBadBlockArg::Fail)]
    pub(crate) on_bad_block: OnBadBlockArg,
}

impl ReadingArgs {
    /// The way of reading for opening a dataset.
    pub(crate) fn io(&self) -> Io {
        match self.io {
            IoArg::Auto => Io::Auto,
            IoArg::Mmap => Io::Mmap,
            IoArg::Pread => Io::Pread,
            IoArg::Ram => Io::Ram,
        }
    }

    /// `config` with these flags.
    pub(crate) fn apply(&self, config: LoadConfig) -> LoadConfig {
        let on_bad_block = match self.on_bad_block {
            OnBadBlockArg::Fail => OnBadBlock::Fail,
            OnBadBlockArg::Skip => OnBadBlock::Skip,
        };
        LoadConfig { workers: self.workers.get(), prefetch: self.prefetch, on_bad_block, ..config }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IoArg {
    Auto,
    Mmap,
    Pread,
    Ram,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnBadBlockArg {
    Fail,
    Skip,
}

fn prefetch_in_range(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (LEAST_PREFETCH..=1024).contains(&count) => Ok(count),
        _ => Err(format!("give a number from {LEAST_PREFETCH} to 1024")),
    }
}
