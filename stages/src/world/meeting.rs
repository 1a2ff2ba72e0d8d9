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
//! | `pulse/P` | process P lives: another value every 2 s (`board.rs`) |
//! | `failed` | why a rank ended, of the first that did |
//! | `left/P` | process P knows that the run has ended |
//! | `joined/R` | rank R is about to join the others ([`super::peers`]) |
//! | `joined` | rank 0 knows that of all |
//! | `here/R` | rank R knows that ranks have lost each other, and answered then |
//! | `stays/R` | nobody sets it: who waits for it watches the pulse of rank R |

use std::time::{Duration, Instant};

use pipeline::Interrupt;

use super::WorldError;
use super::board::{Board, Pulse, SILENCE, Wanted};
use super::launch::Launch;
use super::peers::Joining;
use crate::load::plan::Ranks;
use crate::method::parameters::BUCKET;

/// So long the process that holds the store stays for others that have not come.
const LEAVE: Duration = Duration::from_secs(5);

/// A process that has reached the others' store.
#[derive(Debug)]
pub struct Meeting {
    launch: Launch,
    board: Board,
    /// Ranks of this process, and of every other.
    devices: usize,
    timeout: Duration,
    interrupt: Interrupt,
    bucket: i64,
    _pulse: Pulse,
}

impl Meeting {
    /// Opens the store, or reaches it. `devices`: how many ranks this process drives.
    ///
    /// # Errors
    /// [`WorldError::Unreachable`].
    pub fn open(launch: Launch, devices: usize, timeout: Duration) -> Result<Self, WorldError> {
        Self::open_patiently(launch, devices, timeout, SILENCE.min(timeout))
    }

    /// [`Self::open`]; a process that is silent for `silence` is lost.
    pub(crate) fn open_patiently(
        mut launch: Launch,
        devices: usize,
        timeout: Duration,
        silence: Duration,
    ) -> Result<Self, WorldError> {
        let opened = Board::open(&launch.place, launch.serve, timeout, silence);
        let board = opened.map_err(|source| WorldError::Unreachable {
            who: format!("process {}", launch.process),
            place: format!("{}:{}", launch.place.host, launch.place.port),
            source,
        })?;
        // Where it chose a port itself.
        launch.place.port = board.port();
        let pulse = Pulse::start(&launch.place, launch.process, timeout, silence);
        Ok(Self { launch, board, devices, timeout, interrupt: Interrupt::default(), bucket: BUCKET, _pulse: pulse })
    }

    /// Whoever waits here looks at `interrupt` too.
    pub fn watching(self, interrupt: Interrupt) -> Self {
        Self { interrupt, ..self }
    }

    /// Gradients are exchanged in buckets of at least so many values: the same in all processes.
    pub fn in_buckets(self, values: i64) -> Self {
        Self { bucket: values, ..self }
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
        self.board.set("config", config.as_bytes())
    }

    /// What rank 0 trains.
    ///
    /// # Errors
    /// It failed or is lost, or does not say so within the timeout.
    pub fn hear_config(&self) -> Result<String, WorldError> {
        self.hear("config", 0)
    }

    /// Compares this process with all others by what decides the result, each with a name that a person knows. All of them
    /// get the same answer.
    ///
    /// # Errors
    /// [`WorldError::Differ`] names the first difference of the first process that differs from process 0.
    pub fn agree(&self, facts: &[(String, String)]) -> Result<(), WorldError> {
        let process = self.launch.process;
        let own = [("devices of a process", self.devices as i64), ("values of a bucket", self.bucket)];
        let own = own.map(|(name, value)| (name.to_owned(), value.to_string()));
        let facts: Vec<(String, String)> = own.into_iter().chain(facts.iter().cloned()).collect();
        self.board.set(&format!("facts/{process}"), &serde_json::to_vec(&facts).expect("pairs of strings"))?;
        let of_first: Vec<(String, String)> = serde_json::from_str(&self.hear("facts/0", 0)?)
            .map_err(|_| WorldError::Differ("process 0 is another version of this program".to_owned()))?;
        let verdict = difference(&of_first, &facts, process).unwrap_or_default();
        self.board.set(&format!("verdict/{process}"), verdict.as_bytes())?;
        let verdicts = self.hear_all(&self.of_processes("verdict", 0))?;
        verdicts.into_iter().find(|verdict| !verdict.is_empty()).map_or(Ok(()), |found| Err(WorldError::Differ(found)))
    }

    /// Rank 0 says how many steps the run has done; the others hear it.
    ///
    /// # Errors
    /// Rank 0 failed or is lost, or does not say it within the timeout.
    pub fn start(&self, steps: u64) -> Result<u64, WorldError> {
        if self.leads() {
            self.board.set("start", steps.to_string().as_bytes())?;
            self.hear_all(&self.of_processes("started", 1))?;
            return Ok(steps);
        }
        let told = self.hear("start", 0)?;
        self.board.set(&format!("started/{}", self.launch.process), b"")?;
        told.parse().map_err(|_| WorldError::Failed(format!("rank 0 says that {told:?} steps are done")))
    }

    /// What the thread of the `index`-th device of this process joins the others with.
    pub fn joining(&self, index: usize) -> Joining {
        let Ranks { ranks, world } = self.ranks();
        Joining {
            launch: self.launch.clone(),
            board: self.board.clone(),
            rank: ranks.start + index,
            world,
            devices: self.devices,
            bucket: self.bucket,
            timeout: self.timeout,
        }
    }

    /// Tells the others why this process ends, unless one has ended before. The process that holds the store stays until those that
    /// live know it.
    pub fn tell_failure(&self, why: &str) {
        let Launch { process, .. } = self.launch;
        self.board.tell_failure(&format!("process {process} ended: {why}"), Some(format!("left/{process}")));
        if !self.leads() {
            return;
        }
        let began = Instant::now();
        let _ = self.board.watch(&self.of_processes("left", 1), self.timeout, |seen| {
            let given_up = if began.elapsed() < LEAVE { 0 } else { seen.absent.len() };
            seen.silent.len() + given_up == seen.missing.len()
        });
    }

    /// A key of each process from the `first`.
    fn of_processes(&self, key: &str, first: usize) -> Vec<Wanted> {
        let of = |process| Wanted { key: format!("{key}/{process}"), process, whom: format!("process {process}") };
        (first..self.launch.processes).map(of).collect()
    }

    /// The value of a key that a process sets.
    fn hear(&self, key: &str, process: usize) -> Result<String, WorldError> {
        let wanted = Wanted { key: key.to_owned(), process, whom: format!("process {process}") };
        self.hear_all(&[wanted]).map(|mut values| values.remove(0))
    }

    fn hear_all(&self, wanted: &[Wanted]) -> Result<Vec<String>, WorldError> {
        self.board.hear(&format!("process {}", self.launch.process), wanted, self.timeout, Some(&self.interrupt))
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
    use crate::world::wire::Wire;

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
            let error = meeting.hear_config().unwrap_err().to_string();
            // The first waits until it knows this.
            meeting.tell_failure(&error);
            (Some(error), meeting)
        });
        assert_eq!(found[1].0.as_deref(), Some("process 0 ended: the disk is full"));
        let found = meet(2, Duration::from_secs(1), |process, meeting| {
            ((process == 1).then(|| meeting.hear_config().unwrap_err().to_string()), meeting)
        });
        assert_eq!(
            found[1].0.as_deref(),
            Some("process 1 waited 1 s for process 0; start all ranks within --timeout, or give them longer")
        );
    }

    #[test]
    fn a_place_that_takes_connections_and_never_answers_is_unreachable() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut launch = Launch { processes: 2, process: 1, serve: false, ..Launch::alone() };
        launch.place.port = silent.local_addr().unwrap().port();
        let began = Instant::now();
        let error = Meeting::open(launch, 1, Duration::from_millis(500)).unwrap_err();
        assert!(error.to_string().starts_with("process 1 cannot reach the others at 127.0.0.1:"), "{error}");
        assert!(began.elapsed() < TIMEOUT);
    }

    /// Every call of a process, where the machine of the store stands still before it.
    #[test]
    fn no_call_waits_for_a_store_that_stands_still() {
        let first = Meeting::open(Launch { processes: 2, ..Launch::alone() }, 1, TIMEOUT).unwrap();
        let other = || {
            let wire = Wire::to(first.board.port());
            let mut launch = Launch { process: 1, serve: false, ..first.launch.clone() };
            launch.place.port = wire.port;
            let meeting = Meeting::open_patiently(launch, 1, TIMEOUT, Duration::from_secs(2)).unwrap();
            wire.cut();
            meeting
        };
        let began = Instant::now();
        let errors = [
            other().hear_config().unwrap_err(),
            other().agree(&[]).unwrap_err(),
            other().start(0).unwrap_err(),
            other().joining(0).join(tch::Device::Cpu).unwrap_err(),
        ];
        other().tell_failure("nobody hears it");
        for error in errors {
            assert!(matches!(&error, WorldError::Lost { whom, .. } if whom == "rank 0"), "{error}");
        }
        assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
    }

    /// Rank 2 dies, rank 0 notices it at once, rank 1 after it has computed for longer than a process may be silent.
    #[test]
    fn a_rank_that_computes_for_long_is_not_taken_for_lost() {
        let silence = Duration::from_secs(2);
        let first = Meeting::open_patiently(Launch { processes: 3, ..Launch::alone() }, 1, TIMEOUT, silence).unwrap();
        let launch = first.launch.clone();
        let computes = 3 * silence;
        let lost = |meeting: &Meeting, after: Duration| {
            let (peers, gradients) = meeting.joining(0).join(tch::Device::Cpu).unwrap();
            thread::sleep(after);
            drop(gradients);
            let began = Instant::now();
            let error = peers.any(false).map_err(|error| peers.blame(error)).unwrap_err();
            assert!(matches!(&error, WorldError::Lost { whom, .. } if whom == "rank 2"), "{error}");
            began.elapsed()
        };
        thread::scope(|scope| {
            let open = |process| {
                let launch = Launch { process, serve: false, ..launch.clone() };
                Meeting::open_patiently(launch, 1, TIMEOUT, silence).unwrap()
            };
            let slow = scope.spawn(move || lost(&open(1), computes));
            let dies = scope.spawn(move || drop(open(2).joining(0).join(tch::Device::Cpu).unwrap()));
            let waited = lost(&first, Duration::ZERO);
            assert!(waited > computes / 2, "{waited:?}");
            slow.join().unwrap();
            dies.join().unwrap();
        });
    }

    /// Rank 1 stood still while rank 0 gave it up: what rank 0 said before it ended is no sign of life.
    #[test]
    fn a_rank_that_has_ended_since_it_answered_is_lost() {
        let silence = Duration::from_secs(2);
        let first = Meeting::open_patiently(Launch { processes: 2, ..Launch::alone() }, 1, TIMEOUT, silence).unwrap();
        let launch = Launch { process: 1, serve: false, ..first.launch.clone() };
        thread::scope(|scope| {
            let other = scope.spawn(move || {
                let other = Meeting::open_patiently(launch, 1, TIMEOUT, silence).unwrap();
                drop(other.joining(0).join(tch::Device::Cpu).unwrap());
                other.board.set("here/1", b"").unwrap();
            });
            let (peers, _gradients) = first.joining(0).join(tch::Device::Cpu).unwrap();
            other.join().unwrap();
            let error = peers.any(false).map_err(|error| peers.blame(error)).unwrap_err();
            assert!(matches!(&error, WorldError::Lost { whom, .. } if whom == "rank 1"), "{error}");
        });
    }
}
