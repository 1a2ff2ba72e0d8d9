//! Flags of commands that several processes may run: together, or each its share of one folder.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use pipeline::Interrupt;
use stages::method::parameters::BUCKET;
use stages::world::launch::{DEFAULT_TIMEOUT, Launch, LaunchFlags, Member};
use stages::world::meeting::Meeting;
use stages::world::share::Share;

/// Seconds of a week: longer than anybody waits.
const LONGEST_TIMEOUT: u64 = 604_800;

const MIB: u64 = 1 << 20;

/// A TiB: all gradients of any network in one.
const LARGEST_BUCKET: u64 = 1 << 20;

/// Which process of how many this is. torchrun and srun say it by themselves.
#[derive(Debug, Clone, Args)]
pub(crate) struct LaunchArgs {
    /// Processes that train together; torchrun and srun set it by themselves
    #[arg(long, value_name = "N", help_heading = "Several processes")]
    world: Option<usize>,
    /// This process, from 0
    #[arg(long, value_name = "R", help_heading = "Several processes")]
    rank: Option<usize>,
    /// Where process 0 is, and a free port there
    #[arg(long, value_name = "HOST:PORT", help_heading = "Several processes")]
    master: Option<String>,
    /// The run ends where a process does not answer for so long; longer than the longest step, and than a grid of samples takes
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT.as_secs(), help_heading = "Several processes",
        value_parser = clap::value_parser!(u64).range(1..=LONGEST_TIMEOUT))]
    timeout: u64,
    /// Gradients are exchanged in buckets of so many MiB, while the backward pass computes others
    #[arg(long, value_name = "MIB", default_value_t = BUCKET as u64 * 4 / MIB, help_heading = "Several processes",
        value_parser = clap::value_parser!(u64).range(1..=LARGEST_BUCKET))]
    bucket_mib: u64,
}

/// Which share of the work this process does, without a word to the others. torchrun and srun say it by themselves.
#[derive(Debug, Clone, Args)]
pub(crate) struct ShareArgs {
    /// Processes that share the work; torchrun and srun set it by themselves
    #[arg(long, value_name = "N", help_heading = "Several processes")]
    world: Option<usize>,
    /// This process, from 0
    #[arg(long, value_name = "R", help_heading = "Several processes")]
    rank: Option<usize>,
}

impl ShareArgs {
    /// All of the work, whoever started the program.
    pub(crate) fn all() -> Self {
        Self { world: Some(1), rank: Some(0) }
    }

    /// What flags, torchrun or srun say, all of it where they say nothing; and the number of this process on its machine, which
    /// chooses its GPU.
    pub(crate) fn share(&self) -> Result<(Share, usize)> {
        let Member { process, processes, local } = match (self.rank, self.world) {
            (Some(process), Some(processes)) => Member { process, processes, local: 0 }.checked()?,
            (None, None) => Member::find(|name| std::env::var(name).ok())?.unwrap_or(Member::ALONE),
            _ => bail!("--world and --rank belong together"),
        };
        Ok((Share { rank: process as u64, world: processes as u64 }, local))
    }
}

impl LaunchArgs {
    /// What flags, torchrun or srun say; `None` for a process that is alone.
    pub(crate) fn launch(&self) -> Result<Option<Launch>> {
        let Self { world, rank, ref master, .. } = *self;
        Ok(Launch::find(&LaunchFlags { world, rank, master: master.clone() }, |name| std::env::var(name).ok())?)
    }

    /// Meets the other processes. `None` where nobody says that there are several, and one device is all there is: a process that is
    /// started as the only one of a world goes the way of many.
    pub(crate) fn meet(
        &self,
        launch: Option<Launch>,
        devices: usize,
        interrupt: &Interrupt,
    ) -> Result<Option<Meeting>> {
        if launch.is_none() && devices == 1 {
            return Ok(None);
        }
        let launch = launch.unwrap_or_else(Launch::alone);
        let meeting = Meeting::open(launch, devices, Duration::from_secs(self.timeout))?;
        Ok(Some(meeting.watching(interrupt.clone()).in_buckets(self.bucket())))
    }

    /// Values of a bucket.
    fn bucket(&self) -> i64 {
        (self.bucket_mib * MIB / 4) as i64
    }
}
