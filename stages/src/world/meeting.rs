//! The processes of a world find each other, and make sure that they are to do the same before one of them begins.
//!
//! All of it goes through the store, process by process, without a group: the threads of the ranks do not exist yet.
//!
//! | key | value |
//! |---|---|
//! | `config` | what rank 0 trains |
//! | `facts/P` | of process P: lines of `name = value` |
//! | `verdict/P` | what differs between process P and process 0, or nothing |
//! | `start` | steps that the run has done |
//! | `started/P` | process P knows them |
//! | `failed` | why a rank ended, of the first that did |
//! | `left/P` | process P knows that nothing is begun |
//! | `here/R` | rank R still answers ([`super::peers`]) |

use std::sync::Arc;
use std::time::{Duration, Instant};

use pipeline::{Interrupt, within};

use super::WorldError;
use super::launch::Launch;
use super::peers::{Joining, tell};
use crate::load::plan::Ranks;
use crate::native::c10d::Store;

/// So often a process that waits looks whether what it waits for is there, or another one has failed. A wait in the store itself
/// would be one line of libtorch's on stderr each.
const LOOK: Duration = Duration::from_millis(50);

/// So long the process that holds the store waits for the others to know why it ends.
const LEAVE: Duration = Duration::from_secs(5);

/// Why a rank ended, of the first that did.
pub(super) const FAILED: &str = "failed";

/// A process that has reached the others' store.
#[derive(Debug)]
pub struct Meeting {
    launch: Launch,
    store: Arc<Store>,
    /// Ranks of this process, and of every other.
    devices: usize,
    timeout: Duration,
    interrupt: Interrupt,
}

impl Meeting {
    /// Opens the store, or reaches it. `devices`: how many ranks this process drives.
    ///
    /// # Errors
    /// [`WorldError::Unreachable`].
    pub fn open(mut launch: Launch, devices: usize, timeout: Duration) -> Result<Self, WorldError> {
        let store = Store::open(&launch.place, launch.serve, timeout).map_err(|source| WorldError::Unreachable {
            who: format!("process {}", launch.process),
            place: format!("{}:{}", launch.place.host, launch.place.port),
            source,
        })?;
        // Where it chose a port itself.
        launch.place.port = store.port();
        Ok(Self { launch, store: Arc::new(store), devices, timeout, interrupt: Interrupt::default() })
    }

    /// Whoever waits here looks at `interrupt` too.
    pub fn watching(self, interrupt: Interrupt) -> Self {
        Self { interrupt, ..self }
    }

    /// The ranks of this process.
    pub fn ranks(&self) -> Ranks {
        let Self { launch, devices, .. } = self;
        Ranks { ranks: launch.process * devices..(launch.process + 1) * devices, world: launch.processes * devices }
    }

    /// Whether this process has rank 0, which reads and writes the run.
    pub fn leads(&self) -> bool {
        self.launch.process == 0
    }

    /// Rank 0 says what it trains.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn tell_config(&self, config: &str) -> Result<(), WorldError> {
        Ok(self.store.set("config", config.as_bytes())?)
    }

    /// What rank 0 trains.
    ///
    /// # Errors
    /// It failed, or does not say so within the timeout.
    pub fn hear_config(&self) -> Result<String, WorldError> {
        self.hear("config", "rank 0")
    }

    /// Compares this process with all others by what decides the result, each with a name that a person knows. All of them
    /// get the same answer.
    ///
    /// # Errors
    /// [`WorldError::Differ`] names the first difference of the first process that differs from process 0.
    pub fn agree(&self, facts: &[(String, String)]) -> Result<(), WorldError> {
        let process = self.launch.process;
        let devices = ("devices of a process".to_owned(), self.devices.to_string());
        let facts: Vec<(String, String)> = std::iter::once(devices).chain(facts.iter().cloned()).collect();
        self.store.set(&format!("facts/{process}"), &serde_json::to_vec(&facts).expect("pairs of strings"))?;
        let of_first = self.hear("facts/0", "process 0")?;
        let of_first: Vec<(String, String)> = serde_json::from_str(&of_first)
            .map_err(|_| WorldError::Differ("process 0 is another version of this program".to_owned()))?;
        let verdict = difference(&of_first, &facts, process).unwrap_or_default();
        self.store.set(&format!("verdict/{process}"), verdict.as_bytes())?;
        for other in 0..self.launch.processes {
            let verdict = self.hear(&format!("verdict/{other}"), &format!("process {other}"))?;
            if !verdict.is_empty() {
                return Err(WorldError::Differ(verdict));
            }
        }
        Ok(())
    }

    /// Rank 0 says how many steps the run has done; the others hear it.
    ///
    /// # Errors
    /// Rank 0 failed, or does not say it within the timeout.
    pub fn start(&self, steps: u64) -> Result<u64, WorldError> {
        if self.leads() {
            self.store.set("start", steps.to_string().as_bytes())?;
            self.hear_all("started", self.timeout)?;
            return Ok(steps);
        }
        let told = self.hear("start", "rank 0")?;
        self.store.set(&format!("started/{}", self.launch.process), b"")?;
        told.parse().map_err(|_| WorldError::Failed(format!("rank 0 says that {told:?} steps are done")))
    }

    /// What the thread of the `index`-th device of this process joins the others with.
    pub fn joining(&self, index: usize) -> Joining {
        let Ranks { ranks, world } = self.ranks();
        Joining { launch: self.launch.clone(), rank: ranks.start + index, world, timeout: self.timeout }
    }

    /// Tells the others why this process ends, unless one has ended before.
    pub fn tell_failure(&self, why: &str) {
        tell(&self.store, format!("process {} ended: {why}", self.launch.process));
        if self.leads() {
            // The store goes with it, and others may not even have come.
            let _ = self.hear_all("left", LEAVE.min(self.timeout));
        } else {
            let (store, key) = (Arc::clone(&self.store), format!("left/{}", self.launch.process));
            let _ = within(LEAVE, "leave", move || store.set(&key, b""));
        }
    }

    /// Waits until all other processes have set their key.
    fn hear_all(&self, key: &str, timeout: Duration) -> Result<(), WorldError> {
        let began = Instant::now();
        (1..self.launch.processes).try_for_each(|other| {
            let left = timeout.saturating_sub(began.elapsed());
            self.wait(&format!("{key}/{other}"), &format!("process {other}"), left, key == "started")
        })
    }

    /// The value of a key that `whom` sets.
    fn hear(&self, key: &str, whom: &str) -> Result<String, WorldError> {
        self.wait(key, whom, self.timeout, true)?;
        let value = self.store.get(key, self.timeout)?;
        Ok(String::from_utf8_lossy(&value).into_owned())
    }

    /// Waits for a key that `whom` sets; no longer where one has failed, unless that is known.
    fn wait(&self, key: &str, whom: &str, timeout: Duration, look: bool) -> Result<(), WorldError> {
        let began = Instant::now();
        loop {
            if self.has(key)? {
                return Ok(());
            }
            if look && self.has(FAILED)? {
                let why = self.store.get(FAILED, self.timeout)?;
                return Err(WorldError::Failed(String::from_utf8_lossy(&why).into_owned()));
            }
            if look && self.interrupt.requested() {
                return Err(WorldError::Failed("interrupted before the processes had met".to_owned()));
            }
            if began.elapsed() > timeout {
                return Err(WorldError::Late {
                    who: format!("process {}", self.launch.process),
                    whom: whom.to_owned(),
                    seconds: timeout.as_secs(),
                });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether a key is set; the machine of the store may stand still.
    fn has(&self, key: &str) -> Result<bool, WorldError> {
        let (store, key) = (Arc::clone(&self.store), key.to_owned());
        match within(self.timeout, "look", move || store.has(&key)) {
            Ok(Some(found)) => Ok(found?),
            _ => Err(WorldError::Lost { whom: "rank 0".to_owned(), heard: "its store does not answer".to_owned() }),
        }
    }
}

/// The first fact of `ours` that is another than in `theirs`, in words.
fn difference(theirs: &[(String, String)], ours: &[(String, String)], process: usize) -> Option<String> {
    let value = |facts: &[(String, String)], name: &str| {
        facts.iter().find(|(known, _)| known == name).map_or("nothing".to_owned(), |(_, value)| value.clone())
    };
    let names = ours.iter().chain(theirs).map(|(name, _)| name);
    let mut differing = names.filter(|name| value(ours, name) != value(theirs, name));
    differing.next().map(|name| {
        format!("{name} is {} on process 0 and {} on process {process}", value(theirs, name), value(ours, name))
    })
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Runs `process` for each of `processes` as a thread.
    fn meet<T: Send>(processes: usize, timeout: Duration, run: impl Fn(usize, Meeting) -> T + Sync) -> Vec<T> {
        // The first takes a free port; the others must know it.
        let first = Meeting::open(Launch { processes, ..Launch::alone() }, 2, timeout).unwrap();
        let launch = first.launch.clone();
        thread::scope(|scope| {
            let mut first = Some(first);
            let threads: Vec<_> = (0..processes)
                .map(|process| {
                    let (run, first) = (&run, first.take());
                    let launch = Launch { process, serve: false, ..launch.clone() };
                    scope.spawn(move || {
                        run(process, first.unwrap_or_else(|| Meeting::open(launch, 2, timeout).unwrap()))
                    })
                })
                .collect();
            // The store must outlive those that use it: all are joined before the first is dropped, in its own thread.
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn facts(values: &[(&str, &str)]) -> Vec<(String, String)> {
        values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    const TIMEOUT: Duration = Duration::from_secs(60);

    #[test]
    fn processes_that_are_to_do_the_same_begin_where_the_first_is() {
        let found = meet(3, TIMEOUT, |process, meeting| {
            if meeting.leads() {
                meeting.tell_config("steps = 3").unwrap();
            }
            assert_eq!(meeting.hear_config().unwrap(), "steps = 3");
            meeting.agree(&facts(&[("version", "1"), ("train.batch", "8")])).unwrap();
            let start = meeting.start(if process == 0 { 17 } else { 0 }).unwrap();
            (start, meeting.ranks().ranks, meeting)
        });
        let found: Vec<_> = found.into_iter().map(|(start, ranks, _)| (start, ranks)).collect();
        assert_eq!(found, [(17, 0..2), (17, 2..4), (17, 4..6)]);
    }

    #[test]
    fn all_are_told_the_same_difference() {
        let found = meet(3, TIMEOUT, |process, meeting| {
            let batch = if process == 0 { "8" } else { "16" };
            let facts = facts(&[("version", "1"), ("train.batch", batch)]);
            (meeting.agree(&facts).unwrap_err().to_string(), meeting)
        });
        for (error, _) in found {
            assert_eq!(
                error,
                "the processes are not to do the same: train.batch is 8 on process 0 and 16 on process 1; nothing was begun"
            );
        }
    }

    #[test]
    fn who_waits_is_told_of_a_failure_and_of_nobody() {
        let found = meet(2, TIMEOUT, |process, meeting| {
            if process == 0 {
                meeting.tell_failure("the disk is full");
                return (None, meeting);
            }
            (Some(meeting.hear_config().unwrap_err().to_string()), meeting)
        });
        assert_eq!(found[1].0.as_deref(), Some("process 0 ended: the disk is full"));
        let found = meet(2, Duration::from_secs(1), |process, meeting| {
            ((process == 1).then(|| meeting.hear_config().unwrap_err().to_string()), meeting)
        });
        assert_eq!(
            found[1].0.as_deref(),
            Some("process 1 waited 1 s for rank 0; start all ranks within --timeout, or give them longer")
        );
    }
}
