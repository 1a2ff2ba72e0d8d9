//! Flags of commands that several processes may run together.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use stages::world::launch::{DEFAULT_TIMEOUT, Launch, LaunchFlags};
use stages::world::meeting::Meeting;

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
    /// The run ends where a process does not answer for so long; longer than the longest step
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT.as_secs(), help_heading = "Several processes",
        value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

impl LaunchArgs {
    /// What flags, torchrun or srun say; `None` for a process that is alone.
    pub(crate) fn launch(&self) -> Result<Option<Launch>> {
        let Self { world, rank, ref master, .. } = *self;
        Ok(Launch::find(&LaunchFlags { world, rank, master: master.clone() }, |name| std::env::var(name).ok())?)
    }

    /// Meets the other processes. `None` where one device is all there is.
    pub(crate) fn meet(&self, launch: Option<Launch>, devices: usize) -> Result<Option<Meeting>> {
        if launch.is_none() && devices == 1 {
            return Ok(None);
        }
        let launch = launch.unwrap_or_else(Launch::alone);
        Ok(Some(Meeting::open(launch, devices, Duration::from_secs(self.timeout))?))
    }
}
