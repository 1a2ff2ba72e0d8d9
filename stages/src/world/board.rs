//! Keys that the processes share, as one of them sees them: what it waits for, and which of the others still live.
//!
//! The clients of c10d's store read from a socket without a deadline, and the machine of the store may stand still: every question is
//! asked on a thread that is left alone where no answer comes. Which processes live is told by their [`Pulse`]s, so that one that
//! computes for long is not taken for one that is gone.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use pipeline::{Interrupt, within};

use super::WorldError;
use crate::native::NativeError;
use crate::native::c10d::{Place, Store};

/// A process whose pulse does not change for so long is lost, and so is the one that holds the store where that does not answer.
/// Much longer than a busy processor keeps a thread waiting.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

/// So often a process says in that time that it lives.
const BEATS: u32 = 5;

/// So often a process that waits looks. A wait in the store itself would be one line of libtorch's on stderr each.
const LOOK: Duration = Duration::from_millis(50);

/// Why a rank ended, of the first that did.
const FAILED: &str = "failed";

/// What a process says again and again, counted.
fn pulse(process: usize) -> String {
    format!("pulse/{process}")
}

/// A key that a process is to set.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) key: String,
    /// Who sets it.
    pub(super) process: usize,
    /// In words.
    pub(super) whom: String,
}

/// What a look at keys found. Numbers are those of the keys.
#[derive(Debug)]
pub(super) struct Seen {
    values: Vec<Option<Vec<u8>>>,
    /// Not set.
    pub(super) missing: Vec<usize>,
    /// Of these, those of processes whose pulse has stopped,
    pub(super) silent: Vec<usize>,
    /// and of processes that have none yet.
    pub(super) absent: Vec<usize>,
    /// Why a rank ended.
    pub(super) failed: Option<String>,
}

/// Keys and values that all processes share.
#[derive(Debug, Clone)]
pub(super) struct Board {
    store: Arc<Store>,
    silence: Duration,
}

impl Board {
    /// Opens the store at `place`, or reaches it, within `timeout`.
    pub(super) fn open(place: &Place, serve: bool, timeout: Duration, silence: Duration) -> Result<Self, NativeError> {
        let place = place.clone();
        let store = bounded(timeout, move || Store::open(&place, serve, timeout))?;
        Ok(Self { store: Arc::new(store), silence })
    }

    /// The port of the store.
    pub(super) fn port(&self) -> u16 {
        self.store.port()
    }

    /// How long a process may be silent.
    pub(super) fn silence(&self) -> Duration {
        self.silence
    }

    /// Gives a key a value.
    pub(super) fn set(&self, key: &str, value: &[u8]) -> Result<(), WorldError> {
        let (key, value) = (key.to_owned(), value.to_vec());
        self.ask(move |store| store.set(&key, &value))
    }

    /// Says why this rank or process ends, unless one has ended before, and sets a key `also`. Whoever cannot be told finds out otherwise.
    pub(super) fn tell_failure(&self, why: &str, also: Option<String>) {
        let why = why.as_bytes().to_vec();
        let _ = self.ask(move |store| {
            if !store.has(FAILED)? {
                store.set(FAILED, &why)?;
            }
            also.map_or(Ok(()), |key| store.set(&key, b""))
        });
    }

    /// Looks at keys again and again until all are there, `done` says that it is enough, or `timeout` is over.
    pub(super) fn watch(
        &self,
        wanted: &[Wanted],
        timeout: Duration,
        mut done: impl FnMut(&Seen) -> bool,
    ) -> Result<Seen, WorldError> {
        let began = Instant::now();
        let mut values: Vec<Option<Vec<u8>>> = vec![None; wanted.len()];
        let mut pulses: Vec<Option<(Vec<u8>, Instant)>> = vec![None; wanted.len()];
        loop {
            let missing: Vec<usize> = (0..wanted.len()).filter(|&n| values[n].is_none()).collect();
            let of_missing = missing.iter().map(|&n| &wanted[n]);
            let keys = of_missing.clone().map(|wanted| wanted.key.clone());
            let keys = keys.chain(of_missing.map(|wanted| pulse(wanted.process))).chain([FAILED.to_owned()]);
            let mut found = self.look(keys.collect())?;
            let failed = found.pop().flatten().map(|why| String::from_utf8_lossy(&why).into_owned());
            for ((&n, pulse), value) in missing.iter().zip(found.split_off(missing.len())).zip(found) {
                values[n] = value;
                match pulse {
                    Some(pulse) if pulses[n].as_ref().is_none_or(|(last, _)| *last != pulse) => {
                        pulses[n] = Some((pulse, Instant::now()));
                    }
                    _ => {}
                }
            }
            let missing: Vec<usize> = missing.into_iter().filter(|&n| values[n].is_none()).collect();
            let is_silent = |n: &&usize| pulses[**n].as_ref().is_some_and(|(_, since)| since.elapsed() >= self.silence);
            let silent = missing.iter().filter(is_silent).copied().collect();
            let absent = missing.iter().filter(|&&n| pulses[n].is_none()).copied().collect();
            let seen = Seen { values, missing, silent, absent, failed };
            if seen.missing.is_empty() || done(&seen) || began.elapsed() >= timeout {
                return Ok(seen);
            }
            values = seen.values;
            thread::sleep(LOOK);
        }
    }

    /// The values of keys, once all of them are set. `who` waits for them, no longer than `timeout` or until `interrupt` is requested.
    ///
    /// # Errors
    /// A rank has failed, or one of those who are to set a key is lost or late.
    pub(super) fn hear(
        &self,
        who: &str,
        wanted: &[Wanted],
        timeout: Duration,
        interrupt: Option<&Interrupt>,
    ) -> Result<Vec<String>, WorldError> {
        let interrupted = || interrupt.is_some_and(Interrupt::requested);
        let enough = |seen: &Seen| seen.failed.is_some() || !seen.silent.is_empty() || interrupted();
        let seen = self.watch(wanted, timeout, enough)?;
        if seen.missing.is_empty() {
            return Ok(seen.values.iter().flatten().map(|value| String::from_utf8_lossy(value).into_owned()).collect());
        }
        if let Some(why) = seen.failed {
            return Err(WorldError::Failed(why));
        }
        if !seen.silent.is_empty() {
            let heard = format!("no sign of life for {} s", self.silence.as_secs());
            return Err(WorldError::Lost { whom: names(wanted, &seen.silent), heard });
        }
        if interrupted() {
            return Err(WorldError::Failed("interrupted before the processes had met".to_owned()));
        }
        Err(WorldError::Late { who: who.to_owned(), whom: names(wanted, &seen.missing), seconds: timeout.as_secs() })
    }

    /// Values of keys, where they are set.
    fn look(&self, keys: Vec<String>) -> Result<Vec<Option<Vec<u8>>>, WorldError> {
        let silence = self.silence;
        self.ask(move |store| {
            let value = |key: &String| if store.has(key)? { store.get(key, silence).map(Some) } else { Ok(None) };
            keys.iter().map(value).collect()
        })
    }

    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Store) -> Result<T, NativeError> + Send + 'static,
    ) -> Result<T, WorldError> {
        let store = Arc::clone(&self.store);
        bounded(self.silence, move || question(&store))
            .map_err(|error| WorldError::Lost { whom: "rank 0".to_owned(), heard: format!("its store: {error}") })
    }
}

/// What `work` returns, or an error after `timeout`.
pub(super) fn bounded<T: Send + 'static>(
    timeout: Duration,
    work: impl FnOnce() -> Result<T, NativeError> + Send + 'static,
) -> Result<T, NativeError> {
    match within(timeout, "world", work) {
        Ok(Some(done)) => done,
        Ok(None) => Err(NativeError(format!("no answer within {} s", timeout.as_secs_f64()))),
        Err(error) => Err(NativeError(format!("no thread can be had ({error})"))),
    }
}

/// The names of some of those who are to set keys.
pub(super) fn names(wanted: &[Wanted], numbers: &[usize]) -> String {
    let names: Vec<&str> = numbers.iter().map(|&n| wanted[n].whom.as_str()).collect();
    names.join(", ")
}

/// Says that a process lives, as long as it is kept.
#[derive(Debug)]
pub(super) struct Pulse {
    _stop: Sender<()>,
}

impl Pulse {
    /// On a thread and by a connection of its own: nobody else's question holds it up.
    pub(super) fn start(place: &Place, process: usize, timeout: Duration, silence: Duration) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        let place = place.clone();
        let beat = move || {
            let Ok(store) = Store::open(&place, false, timeout) else { return };
            for count in 0u64.. {
                let said = store.set(&pulse(process), &count.to_le_bytes());
                if said.is_err() || !matches!(stopped.recv_timeout(silence / BEATS), Err(RecvTimeoutError::Timeout)) {
                    return;
                }
            }
        };
        // Left alone at once: it ends with the process, or soon after this is dropped. Without a thread the process has no pulse, and
        // is waited for as long as the timeout.
        let _ = within(Duration::ZERO, "pulse", beat);
        Self { _stop: stop }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::wire::Wire;

    fn place(port: u16) -> Place {
        Place { host: "127.0.0.1".into(), port, prefix: "test".into() }
    }

    const SHORT: Duration = Duration::from_secs(2);

    fn wanted(process: usize) -> Wanted {
        Wanted { key: format!("key/{process}"), process, whom: format!("process {process}") }
    }

    #[test]
    fn a_process_without_a_pulse_is_told_from_one_that_takes_its_time_and_one_that_never_came() {
        let board = Board::open(&place(0), true, Duration::from_secs(60), SHORT).unwrap();
        let [lives, dies] =
            [0, 1].map(|process| Pulse::start(&place(board.port()), process, Duration::from_secs(60), SHORT));
        let all = [wanted(0), wanted(1), wanted(2)];
        let all_live = |seen: &Seen| seen.absent == [2];
        assert!(board.watch(&all, Duration::from_secs(60), all_live).unwrap().silent.is_empty());
        drop(dies);
        let seen = board.watch(&all, Duration::from_secs(60), |seen| !seen.silent.is_empty()).unwrap();
        assert_eq!((seen.missing, seen.silent, seen.absent), (vec![0, 1, 2], vec![1], vec![2]));
        let error = board.hear("process 0", &all, Duration::from_secs(60), None).unwrap_err();
        assert!(error.to_string().starts_with("process 1 no longer answers"), "{error}");
        let error = board.hear("process 0", &[wanted(0), wanted(2)], 3 * SHORT, None).unwrap_err();
        assert!(error.to_string().starts_with("process 0 waited 6 s for process 0, process 2"), "{error}");
        drop(lives);
    }

    #[test]
    fn a_board_that_cannot_be_asked_any_more_is_rank_0_lost() {
        let served = Board::open(&place(0), true, Duration::from_secs(60), SHORT).unwrap();
        let wire = Wire::to(served.port());
        let board = Board::open(&place(wire.port), false, Duration::from_secs(60), SHORT).unwrap();
        board.set("key/0", b"value").unwrap();
        assert_eq!(board.hear("process 1", &[wanted(0)], SHORT, None).unwrap(), ["value"]);
        wire.cut();
        let began = Instant::now();
        board.tell_failure("nobody hears it", None);
        for error in
            [board.set("key/1", b"").unwrap_err(), board.hear("process 1", &[wanted(0)], SHORT, None).unwrap_err()]
        {
            assert!(error.to_string().starts_with("rank 0 no longer answers"), "{error}");
        }
        assert!(began.elapsed() < 20 * SHORT, "{:?}", began.elapsed());
    }
}
