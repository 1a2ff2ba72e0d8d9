//! What every thread of a node counts, and what it is doing now.
//!
//! All of it is relaxed atomics: they order nothing, and a report of a run that goes on is a picture in which single
//! counters may be one item apart. Each thread has a [`Meter`] to itself, on cache lines of its own, and a report adds
//! them up; so counting costs no exchange between the threads of a node. Clocks are read around the work on each item,
//! and around a wait only if there is one; what a thread is doing and since when is stored with the same reading.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use crate::report::{AtWork, Task, Wait, Waiting};

/// A sum of durations, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Nanos(AtomicU64);

impl Nanos {
    /// Adds; 584 years fit.
    fn add(&self, time: Duration) {
        self.0.fetch_add(nanos(time), Ordering::Relaxed);
    }

    /// The sum so far.
    pub(crate) fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// The counters of one thread, which is the only one that writes them.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Meter {
    /// What times are counted from: the start of the run.
    started: Instant,
    items: AtomicU64,
    waits: AtomicU64,
    busy: Nanos,
    starved: Nanos,
    blocked: Nanos,
    /// A [`Doing`] in the lowest bits, and above them since when, in nanoseconds since `started`.
    doing: AtomicU64,
    /// Number of the item, while that is [`Doing::AtItem`].
    item: AtomicU64,
}

/// What a thread is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Moves items, or has not begun: the engine's own code, which never takes long.
    Moving,
    AtItem,
    InFactory,
    Finishing,
    Starved,
    Blocked,
    NoBuffer,
    Ended,
}

/// Bits of a [`Doing`]; those above hold 73 years.
const DOING_BITS: u32 = 3;

impl Doing {
    const ALL: [Self; 1 << DOING_BITS] = [
        Self::Moving,
        Self::AtItem,
        Self::InFactory,
        Self::Finishing,
        Self::Starved,
        Self::Blocked,
        Self::NoBuffer,
        Self::Ended,
    ];

    fn at_work(self) -> bool {
        matches!(self, Self::AtItem | Self::InFactory | Self::Finishing)
    }
}

/// What a thread is doing at the time of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Now {
    Moving,
    AtWork(AtWork),
    Waiting(Waiting),
    Ended,
}

impl Default for Meter {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

impl Meter {
    /// For one thread of a run that was started then.
    pub(crate) fn new(started: Instant) -> Self {
        Self {
            started,
            items: AtomicU64::default(),
            waits: AtomicU64::default(),
            busy: Nanos::default(),
            starved: Nanos::default(),
            blocked: Nanos::default(),
            doing: AtomicU64::default(),
            item: AtomicU64::default(),
        }
    }

    /// Counts one item.
    pub(crate) fn count(&self) {
        bump(&self.items, 1);
    }

    /// Runs the stage's own code for one item and adds its time to busy, less what it was blocked inside the call.
    pub(crate) fn at_item<R>(&self, item: u64, work: impl FnOnce() -> R) -> R {
        self.item.store(item, Ordering::Relaxed);
        self.timed(Doing::AtItem, work)
    }

    /// Runs `finish`, which counts as busy like an item.
    pub(crate) fn finishing<R>(&self, work: impl FnOnce() -> R) -> R {
        self.timed(Doing::Finishing, work)
    }

    /// Runs a factory. Its time is not busy: a rate is of the items.
    pub(crate) fn in_factory<R>(&self, work: impl FnOnce() -> R) -> R {
        self.set(Doing::InFactory, Instant::now());
        let result = work();
        self.moving();
        result
    }

    fn timed<R>(&self, doing: Doing, work: impl FnOnce() -> R) -> R {
        let blocked = self.blocked.get();
        let started = Instant::now();
        self.set(doing, started);
        let result = work();
        self.moving();
        let busy = started.elapsed().saturating_sub(self.blocked.get() - blocked);
        bump(&self.busy.0, nanos(busy));
        result
    }

    /// Runs something that parks the thread until there is what it needs, and counts the wait.
    pub(crate) fn wait<R>(&self, on: Wait, park: impl FnOnce() -> R) -> R {
        let outer = decode(self.doing.load(Ordering::Relaxed)).0;
        let (doing, waited) = match on {
            Wait::Starved => (Doing::Starved, &self.starved),
            Wait::Blocked => (Doing::Blocked, &self.blocked),
            Wait::NoBuffer => (Doing::NoBuffer, &self.blocked),
        };
        let started = Instant::now();
        self.set(doing, started);
        let result = park();
        let ended = Instant::now();
        waited.add(ended.saturating_duration_since(started));
        self.waits.fetch_add(1, Ordering::Relaxed);
        // Back in the stage's own code, if that is what waited.
        if outer.at_work() {
            self.set(outer, ended);
        } else {
            self.moving();
        }
        result
    }

    /// The thread has ended.
    pub(crate) fn end(&self) {
        self.doing.store(Doing::Ended as u64, Ordering::Relaxed);
    }

    fn set(&self, doing: Doing, now: Instant) {
        let since = nanos(now.saturating_duration_since(self.started));
        // Released, so that whoever sees that a thread is at an item sees which.
        self.doing.store(since << DOING_BITS | doing as u64, Ordering::Release);
    }

    fn moving(&self) {
        self.doing.store(Doing::Moving as u64, Ordering::Relaxed);
        // A number of the next item is not seen with the state before this one.
        fence(Ordering::Release);
    }

    /// What the thread is doing when the run has gone on for `wall`.
    pub(crate) fn now(&self, wall: Duration) -> Now {
        let (word, item) = loop {
            let word = self.doing.load(Ordering::Acquire);
            let item = self.item.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            // Read again if the thread went on to another item in between: number and time belong together.
            if self.doing.load(Ordering::Relaxed) == word {
                break (word, item);
            }
        };
        let (doing, since) = decode(word);
        let time = wall.saturating_sub(since);
        let at_work = |task| Now::AtWork(AtWork { task, time });
        let waiting = |on| Now::Waiting(Waiting { on, time });
        match doing {
            Doing::Moving => Now::Moving,
            Doing::AtItem => at_work(Task::Item(item)),
            Doing::InFactory => at_work(Task::Factory),
            Doing::Finishing => at_work(Task::Finish),
            Doing::Starved => waiting(Wait::Starved),
            Doing::Blocked => waiting(Wait::Blocked),
            Doing::NoBuffer => waiting(Wait::NoBuffer),
            Doing::Ended => Now::Ended,
        }
    }

    pub(crate) fn items(&self) -> u64 {
        self.items.load(Ordering::Relaxed)
    }

    pub(crate) fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }

    pub(crate) fn busy(&self) -> Duration {
        self.busy.get()
    }

    pub(crate) fn starved(&self) -> Duration {
        self.starved.get()
    }

    pub(crate) fn blocked(&self) -> Duration {
        self.blocked.get()
    }
}

/// Adds to a counter that only the calling thread writes.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn decode(word: u64) -> (Doing, Duration) {
    let doing = Doing::ALL[(word % Doing::ALL.len() as u64) as usize];
    (doing, Duration::from_nanos(word >> DOING_BITS))
}

/// How many items lie in a link, and lay there.
#[derive(Debug)]
pub(crate) struct Gauge {
    room: usize,
    sent: AtomicU64,
    received: AtomicU64,
    /// Sum, over the items received, of how many lay in the link when the receiver came for one.
    found: AtomicU64,
}

impl Gauge {
    /// Of a link with room for so many.
    pub(crate) fn new(room: usize) -> Self {
        Self { room, sent: AtomicU64::default(), received: AtomicU64::default(), found: AtomicU64::default() }
    }

    /// One more lies in the link.
    pub(crate) fn sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// One was taken out by a receiver that found so many. There is one receiver at any time.
    pub(crate) fn received(&self, found: u64) {
        bump(&self.received, 1);
        bump(&self.found, found);
    }

    /// How many items lie in the link, `room` at most. An item may be received before it is counted as sent, and the
    /// two counts are not read at one time.
    pub(crate) fn queued(&self) -> u64 {
        let received = self.received.load(Ordering::Relaxed);
        self.sent.load(Ordering::Relaxed).saturating_sub(received).min(self.room as u64)
    }

    /// How many items the receiver found on average; 0 before the first.
    pub(crate) fn queued_mean(&self) -> f64 {
        let received = self.received.load(Ordering::Relaxed);
        let found = self.found.load(Ordering::Relaxed) as f64;
        // The sum is read later, so it may hold items that were received in between.
        if received == 0 { 0.0 } else { (found / received as f64).min(self.room as f64) }
    }

    /// How many items the link has room for.
    pub(crate) fn room(&self) -> usize {
        self.room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn time_blocked_inside_a_call_is_not_busy() {
        let meter = Meter::default();
        meter.at_item(0, || meter.blocked.add(HOUR));
        assert_eq!(meter.busy(), Duration::ZERO);
        meter.at_item(1, || std::hint::black_box((0..1000).sum::<u64>()));
        assert!(meter.busy() > Duration::ZERO);
    }

    #[test]
    fn a_thread_is_at_work_only_while_it_is_in_the_stages_own_code() {
        let meter = Meter::default();
        let task = |now| match now {
            Now::AtWork(AtWork { task, time }) => {
                assert!(time <= HOUR && time > HOUR / 2, "{time:?}");
                task
            }
            other => panic!("not at work but {other:?}"),
        };
        assert_eq!(meter.now(HOUR), Now::Moving);
        meter.in_factory(|| assert_eq!(task(meter.now(HOUR)), Task::Factory));
        assert_eq!((meter.now(HOUR), meter.busy()), (Now::Moving, Duration::ZERO));
        meter.at_item(17, || {
            assert_eq!(task(meter.now(HOUR)), Task::Item(17));
            meter.wait(Wait::NoBuffer, || {
                assert!(matches!(meter.now(HOUR), Now::Waiting(Waiting { on: Wait::NoBuffer, .. })));
            });
            assert_eq!(task(meter.now(HOUR)), Task::Item(17), "the wait is over");
        });
        assert_eq!(meter.now(HOUR), Now::Moving);
        meter.finishing(|| assert_eq!(task(meter.now(HOUR)), Task::Finish));
        meter.wait(Wait::Starved, || {
            assert!(matches!(meter.now(HOUR), Now::Waiting(Waiting { on: Wait::Starved, .. })));
        });
        assert_eq!(meter.now(HOUR), Now::Moving);
        meter.end();
        assert_eq!(meter.now(HOUR), Now::Ended);
    }

    #[test]
    fn work_counts_from_the_end_of_a_wait_inside_it() {
        let meter = Meter::default();
        meter.at_item(0, || {
            let before = meter.doing.load(Ordering::Relaxed);
            meter.wait(Wait::Blocked, || std::hint::black_box((0..1000).sum::<u64>()));
            assert!(decode(meter.doing.load(Ordering::Relaxed)).1 > decode(before).1);
        });
    }

    #[test]
    fn every_wait_is_counted_as_what_it_was() {
        let meter = Meter::default();
        let park = || std::hint::black_box((0..1000).sum::<u64>());
        meter.wait(Wait::Starved, park);
        let starved = meter.starved();
        assert!(starved > Duration::ZERO && meter.blocked() == Duration::ZERO);
        meter.wait(Wait::Blocked, park);
        let blocked = meter.blocked();
        meter.wait(Wait::NoBuffer, park);
        assert!(meter.blocked() > blocked && blocked > Duration::ZERO);
        assert_eq!((meter.starved(), meter.waits()), (starved, 3));
    }

    #[test]
    fn every_state_is_read_back_as_it_was_stored() {
        for doing in Doing::ALL {
            let meter = Meter::default();
            meter.set(doing, meter.started + HOUR);
            assert_eq!(decode(meter.doing.load(Ordering::Relaxed)), (doing, HOUR));
        }
    }

    #[test]
    fn a_gauge_never_goes_below_zero_nor_above_its_room() {
        let gauge = Gauge::new(2);
        gauge.received(0);
        assert_eq!(gauge.queued(), 0);
        gauge.sent();
        gauge.sent();
        assert_eq!(gauge.queued(), 1);
        (0..9).for_each(|_| gauge.sent());
        assert_eq!(gauge.queued(), 2);
    }

    #[test]
    fn the_mean_of_a_gauge_is_over_the_items_received() {
        let gauge = Gauge::new(4);
        assert_eq!(gauge.queued_mean(), 0.0);
        [4, 3, 2, 0].into_iter().for_each(|found| gauge.received(found));
        assert_eq!(gauge.queued_mean(), 2.25);
    }
}
