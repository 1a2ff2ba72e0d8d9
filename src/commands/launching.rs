//! Flags of commands that several processes may run: together, or each its share of one folder.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use pipeline::Interrupt;
use stages::world::launch::{DEFAULT_TIMEOUT, Launch, LaunchFlags};
use stages::world::meeting::Meeting;
use stages::world::share::Share;

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
        value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

/// Which share of the work this process does, without a word to the others. torchrun and srun say it by themselves.
#[derive(Debug, Clone, Args)]
pub(crate) struct ShareArgs {
    /// Processes that share the work; torchrun and srun set it by themselves
    #[arg(long, value_name = "N", help_heading = "Several processes")]
    world: Option<u64>,
    /// This process, from 0
    #[arg(long, value_name = "R", help_heading = "Several processes")]
    rank: Option<u64>,
}

impl ShareArgs {
    /// All of the work, whoever started the program.
    pub(crate) fn all() -> Self {
        Self { world: Some(Share::ALL.world), rank: Some(Share::ALL.rank) }
    }

    /// What flags, torchrun or srun say, all of it where they say nothing; and the number of this process on its machine, which
    /// chooses its GPU.
    pub(crate) fn share(&self) -> Result<(Share, usize)> {
        let (share, local) = match (self.rank, self.world) {
            (Some(rank), Some(world)) => (Share { rank, world }, 0),
            (None, None) => match Launch::find(&LaunchFlags::default(), |name| std::env::var(name).ok())? {
                Some(Launch { process, processes, local, .. }) => {
                    (Share { rank: process as u64, world: processes as u64 }, local)
                }
                None => (Share::ALL, 0),
            },
            _ => bail!("--world and --rank belong together"),
        };
        if share.rank >= share.world {
            bail!(
                "--rank {}: ranks of a world of {} are 0 to {}",
                share.rank,
                share.world,
                share.world.saturating_sub(1)
            );
        }
        Ok((share, local))
    }
}

impl LaunchArgs {
    /// What flags, torchrun or srun say; `None` for a process that is alone.
    pub(crate) fn launch(&self) -> Result<Option<Launch>> {
        let Self { world, rank, ref master, .. } = *self;
        Ok(Launch::find(&LaunchFlags { world, rank, master: master.clone() }, |name| std::env::var(name).ok())?)
    }

    /// Meets the other processes. `None` where one device is all there is.
    pub(crate) fn meet(
        &self,
        launch: Option<Launch>,
        devices: usize,
        interrupt: &Interrupt,
    ) -> Result<Option<Meeting>> {
        let launch = launch.unwrap_or_else(Launch::alone);
        if launch.processes * devices == 1 {
            return Ok(None);
        }
        let meeting = Meeting::open(launch, devices, Duration::from_secs(self.timeout))?;
        Ok(Some(meeting.watching(interrupt.clone())))
    }
}
