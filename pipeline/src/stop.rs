//! The two ways in which a run ends early: it is taken down ([`Stop`]), or it is asked to come to an end
//! ([`Interrupt`]).
//!
//! *Stop* is raised by the engine alone: after the first error, or when no sink wants any more. Every blocking call
//! of the engine wakes up and returns [`Stopped`]; what is in flight is dropped. *Interrupt* is raised from outside
//! (Ctrl-C): sources make nothing more, and all that was made still reaches the sinks.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, never, select};

use crate::meter::Meter;
use crate::report::Wait;

/// The first nap of [`Stop::look`]: a few times what it costs to wake a thread.
const FIRST_NAP: Duration = Duration::from_micros(200);

/// The longest: how late at most a thread finds room after a standstill, that its consumer is gone, or the end.
const LONGEST_NAP: Duration = Duration::from_millis(2);

/// Says whether the run is being taken down, and lets blocking calls wait for that beside what they wait for.
///
/// It is a channel that nothing is ever sent on: the supervisor drops the sending end, and every receiver wakes up.
///
/// It belongs to the thread that it was handed to. A clone that waits on another thread is woken as well, but what a
/// report says of the first one is then mixed up with the second.
#[derive(Debug, Clone)]
pub struct Stop {
    raised: Receiver<Infallible>,
    /// Of the thread that this was handed to, so that waits inside its own calls count as blocked, not as busy.
    meter: Arc<Meter>,
}

/// The supervisor's end of all [`Stop`]s of a run: dropping it takes the run down.
#[derive(Debug)]
pub(crate) struct Raise {
    _held: Sender<Infallible>,
}

/// The run is being taken down. A stage that gets this from a blocking call passes it up with `?`; the engine takes it
/// as a quiet exit, not as a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the run is being taken down")]
pub struct Stopped;

impl Stop {
    /// One that is never raised: to call a [`Source`](crate::Source) outside a flow.
    pub fn never() -> Self {
        Self { raised: never(), meter: Arc::default() }
    }

    /// A stop that is raised when the second value is dropped. Capacity 1, never used, makes it an array channel,
    /// which is asked without a lock.
    pub(crate) fn new() -> (Self, Raise) {
        let (held, raised) = bounded(1);
        (Self { raised, meter: Arc::default() }, Raise { _held: held })
    }

    /// The same stop for one thread of a node.
    pub(crate) fn metered(&self, meter: Arc<Meter>) -> Self {
        Self { raised: self.raised.clone(), meter }
    }

    /// Whether the run is being taken down. A stage that works long on one item may look and return [`Stopped`].
    pub fn stopped(&self) -> bool {
        matches!(self.raised.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// Waits until the run is taken down.
    pub(crate) fn wait(&self) {
        // Nothing can arrive: the only way out is that the sending end is dropped.
        let _ = self.raised.recv();
    }

    /// The next message, or `None` when every sender is gone; a wait is counted as `on`.
    ///
    /// A node that failed keeps its sending ends until the stop is raised. "Every sender is gone and the run is not
    /// stopped" therefore always means a clean end of the stream, and the order of the two checks below matters.
    pub(crate) fn recv<T>(&self, from: &Receiver<T>, on: Wait) -> Result<Option<T>, Stopped> {
        self.receive(from, on, || {
            select! {
                recv(from) -> message => Ok(message.ok()),
                recv(self.raised) -> _ => Err(Stopped),
            }
        })
    }

    /// As [`recv`](Self::recv), but whoever sends never has to wake this thread: it looks again after a nap, which is
    /// as long as there was nothing so far.
    pub(crate) fn look<T>(&self, from: &Receiver<T>, on: Wait) -> Result<Option<T>, Stopped> {
        self.receive(from, on, || {
            let mut nap = FIRST_NAP;
            loop {
                if self.raised.recv_timeout(nap) == Err(RecvTimeoutError::Disconnected) {
                    return Err(Stopped);
                }
                match from.try_recv() {
                    Ok(message) => return Ok(Some(message)),
                    Err(TryRecvError::Disconnected) => return Ok(None),
                    Err(TryRecvError::Empty) => nap = (2 * nap).min(LONGEST_NAP),
                }
            }
        })
    }

    /// What is there, or what `park` waits for.
    fn receive<T>(
        &self,
        from: &Receiver<T>,
        on: Wait,
        park: impl FnOnce() -> Result<Option<T>, Stopped>,
    ) -> Result<Option<T>, Stopped> {
        if self.stopped() {
            return Err(Stopped);
        }
        let message = match from.try_recv() {
            Ok(message) => return Ok(Some(message)),
            Err(TryRecvError::Disconnected) => None,
            Err(TryRecvError::Empty) => self.meter.wait(on, park)?,
        };
        if message.is_none() && self.stopped() { Err(Stopped) } else { Ok(message) }
    }
}

impl Stopped {
    /// Whether `error` is this, or was caused by it.
    pub(crate) fn is(error: &(dyn Error + 'static)) -> bool {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if error.is::<Self>() {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// A request to come to an end with everything saved; cheap to clone, and all clones are one request.
///
/// It is a flag and nothing else: who sets it (a signal handler, a test) is not the engine's business.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Asks. It cannot be taken back.
    pub fn request(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether somebody asked.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::meter::Now;

    #[test]
    fn a_stop_is_raised_by_dropping_the_other_end_and_wakes_a_waiter() {
        let (stop, raise) = Stop::new();
        assert!(!stop.stopped());
        let waiter = stop.clone();
        let (_held, empty) = bounded::<u8>(1);
        let waiting = std::thread::spawn(move || waiter.recv(&empty, Wait::Starved));
        while !matches!(stop.meter.now(Duration::ZERO), Now::Waiting(_)) {
            std::thread::yield_now();
        }
        drop(raise);
        assert_eq!(waiting.join().unwrap(), Err(Stopped));
        assert!(stop.stopped());
        assert_eq!(stop.meter.waits(), 1);
    }

    #[test]
    fn the_end_of_a_stream_is_told_apart_from_a_stop() {
        let (stop, raise) = Stop::new();
        let (sender, receiver) = bounded::<u8>(1);
        sender.send(7).unwrap();
        drop(sender);
        assert_eq!(stop.recv(&receiver, Wait::Starved), Ok(Some(7)));
        assert_eq!(stop.recv(&receiver, Wait::Starved), Ok(None));
        drop(raise);
        assert_eq!(stop.recv(&receiver, Wait::Starved), Err(Stopped));
        assert_eq!(stop.meter.waits(), 0, "there was nothing to wait for");
    }

    #[test]
    fn stopped_is_found_behind_the_errors_that_wrap_it() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot fill the batch")]
        struct Wrapped(#[source] Stopped);

        assert!(Stopped::is(&Stopped));
        assert!(Stopped::is(&Wrapped(Stopped)));
        assert!(!Stopped::is(&std::fmt::Error));
    }

    #[test]
    fn a_stop_that_is_never_raised_lets_messages_through() {
        let (sender, receiver) = bounded(1);
        sender.send(1).unwrap();
        assert_eq!(Stop::never().recv(&receiver, Wait::Starved), Ok(Some(1)));
        assert!(!Stop::never().stopped());
    }

    #[test]
    fn all_clones_of_an_interrupt_are_one_request() {
        let interrupt = Interrupt::default();
        let clone = interrupt.clone();
        assert!(!interrupt.requested());
        clone.request();
        assert!(interrupt.requested());
    }
}
