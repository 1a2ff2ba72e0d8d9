//! Which process of how many this is, and where they meet: from flags, from torchrun's variables, or from SLURM's.

use std::time::Duration;

use crate::native::c10d::Place;

/// Unless asked otherwise: longer than any step, and than the pause that a checkpoint or a grid of samples makes on rank 0.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// Processes of a world, at most: more than any cluster has, and few enough for a rank's place in a sum to be counted in.
pub const MOST_PROCESSES: usize = 65_536;

/// What a command line says about the world.
#[derive(Debug, Clone, Default)]
pub struct LaunchFlags {
    /// Processes in all.
    pub world: Option<usize>,
    /// This one, from 0.
    pub rank: Option<usize>,
    /// `HOST:PORT` of the first.
    pub master: Option<String>,
}

/// A process of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Processes in all, at least 1.
    pub processes: usize,
    /// This one, from 0.
    pub process: usize,
    /// Its number among those of its machine, which chooses its GPU.
    pub local: usize,
    /// Where the keys are.
    pub place: Place,
    /// Whether this process holds them.
    pub serve: bool,
    /// Network interface of Gloo's connections; empty leaves the choice to it.
    pub interface: String,
}

/// Why it is not clear which process this is.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// Some flags of three.
    #[error("--world, --rank and --master belong together; {0} is missing")]
    Missing(&'static str),
    /// A variable that the others ask for.
    #[error("{of} sets {given}, but not {missing}")]
    NoVariable {
        /// Launcher.
        of: &'static str,
        /// What is there.
        given: &'static str,
        /// What is not.
        missing: &'static str,
    },
    /// Not a number.
    #[error("{name}={value} is not a number")]
    NotANumber {
        /// Flag or variable.
        name: String,
        /// Its value.
        value: String,
    },
    /// There is no such process.
    #[error("rank {rank} was given, of a world of {world}: ranks are 0 to {}", world.saturating_sub(1))]
    NoSuchRank {
        /// As given.
        rank: usize,
        /// As given.
        world: usize,
    },
    /// None, or too many.
    #[error("a world of {0} processes was asked for; it may have 1 to {MOST_PROCESSES}")]
    World(usize),
    /// No host, or no port.
    #[error("--master {0} is not of the form HOST:PORT")]
    Master(String),
}

impl Launch {
    /// Looks at flags first, then at what torchrun sets, then at what srun does. `None`: this process is alone.
    ///
    /// # Errors
    /// What there is does not say it.
    pub fn find(flags: &LaunchFlags, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, LaunchError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let found = match Self::from_flags(flags, &variable)? {
            Some(found) => Some(found),
            None => match Self::from_torchrun(&variable)? {
                Some(found) => Some(found),
                None => Self::from_slurm(&variable)?,
            },
        };
        if let Some(&Self { process, processes, local, .. }) = found.as_ref() {
            Member { process, processes, local }.checked()?;
        }
        Ok(found)
    }

    fn from_flags(
        flags: &LaunchFlags,
        variable: &impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, LaunchError> {
        let LaunchFlags { world, rank, master } = flags;
        let (processes, process, master) = match (world, rank, master) {
            (None, None, None) => return Ok(None),
            (Some(world), Some(rank), Some(master)) => (*world, *rank, master),
            (None, ..) => return Err(LaunchError::Missing("--world")),
            (_, None, _) => return Err(LaunchError::Missing("--rank")),
            (.., None) => return Err(LaunchError::Missing("--master")),
        };
        let wrong = || LaunchError::Master(master.clone());
        let (host, port) = master.rsplit_once(':').ok_or_else(wrong)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = port.parse().ok().filter(|port| *port > 0 && !host.is_empty()).ok_or_else(wrong)?;
        let place = Place { host, port, prefix: "dualpath".into() };
        // Every process of a machine is told what to do by hand, its GPU by --devices.
        Ok(Some(Self { processes, process, local: 0, place, serve: process == 0, interface: interface(variable) }))
    }

    fn from_torchrun(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Self>, LaunchError> {
        let Some(Member { process, processes, local }) = Member::of_torchrun(variable)? else { return Ok(None) };
        let missing = |missing| LaunchError::NoVariable { of: "torchrun", given: "RANK", missing };
        let host = variable("MASTER_ADDR").ok_or_else(|| missing("MASTER_ADDR"))?;
        let port = number(variable, "MASTER_PORT")?.ok_or_else(|| missing("MASTER_PORT"))?;
        // The agent's store outlives a restart of its workers.
        let attempt = number(variable, "TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0);
        let agent = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
        Ok(Some(Self {
            processes,
            process,
            local,
            place: Place { host, port, prefix: format!("dualpath/{attempt}") },
            serve: process == 0 && !agent,
            interface: interface(variable),
        }))
    }

    fn from_slurm(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Self>, LaunchError> {
        let Some(Member { process, processes, local }) = Member::of_slurm(variable)? else { return Ok(None) };
        let missing = |missing| LaunchError::NoVariable { of: "srun", given: "SLURM_STEP_NUM_TASKS", missing };
        let nodes = variable("SLURM_STEP_NODELIST").ok_or_else(|| missing("SLURM_STEP_NODELIST"))?;
        let job: usize = number(variable, "SLURM_JOB_ID")?.unwrap_or(0);
        let step: usize = number(variable, "SLURM_STEP_ID")?.unwrap_or(0);
        // Two jobs on one machine must not meet: below the ports that a system gives out by itself.
        let derived = 12_000 + ((job * 7 + step) % 20_000) as u16;
        let place = Place {
            host: variable("MASTER_ADDR").unwrap_or_else(|| first_node(&nodes)),
            port: number(variable, "MASTER_PORT")?.unwrap_or(derived),
            prefix: "dualpath".into(),
        };
        Ok(Some(Self { processes, process, local, place, serve: process == 0, interface: interface(variable) }))
    }

    /// Ranks of one process that drives several devices, and nobody else.
    pub fn alone() -> Self {
        let place = Place { host: "127.0.0.1".into(), port: 0, prefix: "dualpath".into() };
        Self { processes: 1, process: 0, local: 0, place, serve: true, interface: String::new() }
    }

    /// The address that Gloo binds to; empty leaves the choice to it.
    pub fn bind(&self) -> &'static str {
        let host = self.place.host.as_str();
        if host == "localhost" || host == "::1" || host.starts_with("127.") { "127.0.0.1" } else { "" }
    }
}

/// Which process of how many: all there is to know where they need not meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// This one, from 0.
    pub process: usize,
    /// Processes in all, at least 1.
    pub processes: usize,
    /// Its number among those of its machine, which chooses its GPU.
    pub local: usize,
}

impl Member {
    /// The only one.
    pub const ALONE: Self = Self { process: 0, processes: 1, local: 0 };

    /// Looks at what torchrun sets, then at what srun does; no address is asked for. `None`: this process is alone.
    ///
    /// # Errors
    /// What there is does not say it.
    pub fn find(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, LaunchError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let found = match Self::of_torchrun(&variable)? {
            Some(found) => Some(found),
            None => Self::of_slurm(&variable)?,
        };
        found.map(Self::checked).transpose()
    }

    /// That there is such a process.
    ///
    /// # Errors
    /// There is none, or the world has no such size.
    pub fn checked(self) -> Result<Self, LaunchError> {
        let Self { process: rank, processes: world, .. } = self;
        if !(1..=MOST_PROCESSES).contains(&world) {
            return Err(LaunchError::World(world));
        }
        if rank < world { Ok(self) } else { Err(LaunchError::NoSuchRank { rank, world }) }
    }

    /// `torchrun --no-python`; the names are those of torch.distributed.
    fn of_torchrun(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Self>, LaunchError> {
        let Some(process) = number(variable, "RANK")? else { return Ok(None) };
        let Some(processes) = number(variable, "WORLD_SIZE")? else {
            return Err(LaunchError::NoVariable { of: "torchrun", given: "RANK", missing: "WORLD_SIZE" });
        };
        Ok(Some(Self { process, processes, local: number(variable, "LOCAL_RANK")?.unwrap_or(0) }))
    }

    /// A step of `srun` with several tasks. A batch script itself has SLURM_PROCID too, and is no task of any step.
    fn of_slurm(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Self>, LaunchError> {
        let tasks = number(variable, "SLURM_STEP_NUM_TASKS")?;
        let Some(processes) = tasks.filter(|tasks| *tasks > 1) else { return Ok(None) };
        let Some(process) = number(variable, "SLURM_PROCID")? else {
            return Err(LaunchError::NoVariable { of: "srun", given: "SLURM_STEP_NUM_TASKS", missing: "SLURM_PROCID" });
        };
        Ok(Some(Self { process, processes, local: number(variable, "SLURM_LOCALID")?.unwrap_or(0) }))
    }
}

/// As torch.distributed has it: the first of several, separated by commas.
fn interface(variable: &impl Fn(&str) -> Option<String>) -> String {
    let names = variable("GLOO_SOCKET_IFNAME").unwrap_or_default();
    names.split(',').next().unwrap_or_default().trim().to_owned()
}

fn number<N: std::str::FromStr>(
    variable: &impl Fn(&str) -> Option<String>,
    name: &str,
) -> Result<Option<N>, LaunchError> {
    let Some(value) = variable(name) else { return Ok(None) };
    match value.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(LaunchError::NotANumber { name: name.to_owned(), value }),
    }
}

/// `gpu[03-05,9],cpu1` begins with `gpu03`.
fn first_node(list: &str) -> String {
    let mut name = String::new();
    let mut rest = list.chars();
    while let Some(letter) = rest.next() {
        match letter {
            ',' => break,
            '[' => {
                let mut first = true;
                for letter in rest.by_ref().take_while(|letter| *letter != ']') {
                    first &= letter.is_ascii_digit();
                    if first {
                        name.push(letter);
                    }
                }
            }
            letter => name.push(letter),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(flags: &LaunchFlags, variables: &[(&str, &str)]) -> Result<Option<Launch>, LaunchError> {
        Launch::find(flags, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn found(variables: &[(&str, &str)]) -> Launch {
        find(&LaunchFlags::default(), variables).unwrap().unwrap()
    }

    const TORCHRUN: [(&str, &str); 5] =
        [("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "node7"), ("MASTER_PORT", "29511")];
    const SLURM: [(&str, &str); 5] = [
        ("SLURM_STEP_NUM_TASKS", "16"),
        ("SLURM_PROCID", "0"),
        ("SLURM_LOCALID", "2"),
        ("SLURM_STEP_NODELIST", "gpu[03-05,9],cpu1"),
        ("SLURM_JOB_ID", "4711"),
    ];

    #[test]
    fn nothing_said_means_alone() {
        assert_eq!(find(&LaunchFlags::default(), &[]).unwrap(), None);
        // A batch script, and a step of one task.
        let script = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_JOB_ID", "4711")];
        assert_eq!(find(&LaunchFlags::default(), &script).unwrap(), None);
        assert_eq!(find(&LaunchFlags::default(), &[("SLURM_STEP_NUM_TASKS", "1")]).unwrap(), None);
    }

    #[test]
    fn torchruns_variables_are_read_and_its_agents_store_used() {
        let launch = found(&TORCHRUN);
        assert_eq!((launch.process, launch.processes, launch.local, launch.serve), (3, 8, 1, false));
        assert_eq!((launch.place.host.as_str(), launch.place.port, launch.bind()), ("node7", 29511, ""));
        let first = [&TORCHRUN[1..], &[("RANK", "0")]].concat();
        assert!(found(&first).serve);
        let agent = [&first[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", "2")]];
        let launch = found(&agent.concat());
        assert_eq!((launch.serve, launch.place.prefix.as_str()), (false, "dualpath/2"));
    }

    #[test]
    fn srun_is_read_and_two_jobs_meet_elsewhere() {
        let launch = found(&SLURM);
        assert_eq!((launch.process, launch.processes, launch.local, launch.serve), (0, 16, 2, true));
        assert_eq!(launch.place.host, "gpu03");
        let other = [&SLURM[..4], &[("SLURM_JOB_ID", "4712")]].concat();
        assert_ne!(found(&other).place.port, launch.place.port);
        let said = [&SLURM[..], &[("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "5000")]].concat();
        assert_eq!((found(&said).place.host.as_str(), found(&said).place.port), ("10.0.0.1", 5000));
    }

    #[test]
    fn who_need_not_meet_need_no_address() {
        let member = |variables: &[(&str, &str)]| {
            Member::find(|name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(member(&TORCHRUN[..2]), Ok(Some(Member { process: 3, processes: 8, local: 0 })));
        assert_eq!(member(&SLURM[..3]), Ok(Some(Member { process: 0, processes: 16, local: 2 })));
        assert_eq!(member(&[]), Ok(None));
        let none = member(&[("RANK", "8"), ("WORLD_SIZE", "8")]);
        assert_eq!(none, Err(LaunchError::NoSuchRank { rank: 8, world: 8 }));
    }

    #[test]
    fn names_of_first_nodes() {
        for (list, first) in [("a", "a"), ("a1,a2", "a1"), ("n[1,7]", "n1"), ("r[2-3]n[08-10]-ib", "r2n08-ib")] {
            assert_eq!(first_node(list), first);
        }
    }

    #[test]
    fn flags_come_before_variables() {
        let flags = LaunchFlags { world: Some(2), rank: Some(1), master: Some("[::1]:700".into()) };
        let launch = find(&flags, &TORCHRUN).unwrap().unwrap();
        assert_eq!((launch.process, launch.processes, launch.place.host.as_str()), (1, 2, "::1"));
        assert_eq!((launch.place.port, launch.bind()), (700, "127.0.0.1"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let flags = |world, rank, master: Option<&str>| LaunchFlags { world, rank, master: master.map(str::to_owned) };
        let of_flags = |flags| find(&flags, &[]).unwrap_err().to_string();
        assert_eq!(
            of_flags(flags(Some(2), None, Some("a:1"))),
            "--world, --rank and --master belong together; --rank is missing"
        );
        assert_eq!(of_flags(flags(Some(2), Some(0), Some("a"))), "--master a is not of the form HOST:PORT");
        assert_eq!(
            of_flags(flags(Some(2), Some(2), Some("a:1"))),
            "rank 2 was given, of a world of 2: ranks are 0 to 1"
        );
        assert_eq!(
            of_flags(flags(Some(0), Some(0), Some("a:1"))),
            "a world of 0 processes was asked for; it may have 1 to 65536"
        );
        assert_eq!(
            of_flags(flags(Some(65_537), Some(0), Some("a:1"))),
            "a world of 65537 processes was asked for; it may have 1 to 65536"
        );
        let of = |variables: &[(&str, &str)]| find(&LaunchFlags::default(), variables).unwrap_err().to_string();
        assert_eq!(of(&TORCHRUN[..3]), "torchrun sets RANK, but not MASTER_ADDR");
        assert_eq!(of(&SLURM[..1]), "srun sets SLURM_STEP_NUM_TASKS, but not SLURM_PROCID");
        assert_eq!(of(&[("RANK", "two")]), "RANK=two is not a number");
    }
}
