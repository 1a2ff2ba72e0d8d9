//! What every stage counts, and the report of it.
//!
//! Counters are relaxed atomics: they order nothing, and a report of a run that goes on is a picture in which single
//! counters may be one item apart. Clocks are read around the work of each item, and around a wait only if there is
//! one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A sum of durations, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Nanos(AtomicU64);

impl Nanos {
    /// Adds; 584 years fit.
    pub(crate) fn add(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The sum so far.
    pub(crate) fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    /// Runs `work` and adds its time.
    pub(crate) fn time<R>(&self, work: impl FnOnce() -> R) -> R {
        let started = Instant::now();
        let result = work();
        self.add(started.elapsed());
        result
    }
}

/// The counters of one node, shared by its workers.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    items: AtomicU64,
    pub(crate) busy: Nanos,
    pub(crate) starved: Nanos,
    pub(crate) blocked: Nanos,
}

impl Meter {
    /// Counts one item.
    pub(crate) fn count(&self) {
        self.items.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs `work` of a node with one thread and adds its time to busy, less what it was blocked inside the call.
    pub(crate) fn serial<R>(&self, work: impl FnOnce() -> R) -> R {
        let blocked = self.blocked.get();
        let started = Instant::now();
        let result = work();
        self.busy.add(started.elapsed().saturating_sub(self.blocked.get() - blocked));
        result
    }
}

/// How many items lie in a link.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Gauge {
    /// One more lies in the link.
    pub(crate) fn sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// One was taken out.
    pub(crate) fn received(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    fn queued(&self) -> u64 {
        let received = self.received.load(Ordering::Relaxed);
        self.sent.load(Ordering::Relaxed).saturating_sub(received)
    }
}

/// What a report needs of one node.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) name: String,
    pub(crate) workers: usize,
    pub(crate) meter: Arc<Meter>,
    /// Of the link that enters the node; a source has none.
    pub(crate) input: Option<Arc<Gauge>>,
}

/// The state of a run, or its account after the end.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Time since the threads were started.
    pub wall: Duration,
    /// In order of the flow; behind a split, branch after branch.
    pub stages: Vec<StageReport>,
}

/// The account of one stage. Durations are sums over its workers; what is still going on is added when it ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StageReport {
    /// Short type name, or the name given by `named`; behind a split with the branch: `feed[1]`.
    pub name: String,
    /// Number of threads.
    pub workers: usize,
    /// Items made (source), or worked on to the end (all others).
    pub items: u64,
    /// Time in the stage's own code, waits for room downstream and for slabs not counted.
    pub busy: Duration,
    /// Time spent waiting for input.
    pub starved: Duration,
    /// Time spent waiting for room downstream or for a free slab.
    pub blocked: Duration,
    /// Items now waiting in its input; 0 for a source.
    pub queued: u64,
}

impl Report {
    pub(crate) fn of(probes: &[Probe], started: Instant) -> Self {
        Self { wall: started.elapsed(), stages: probes.iter().map(StageReport::of).collect() }
    }
}

impl StageReport {
    fn of(probe: &Probe) -> Self {
        Self {
            name: probe.name.clone(),
            workers: probe.workers,
            items: probe.meter.items.load(Ordering::Relaxed),
            busy: probe.meter.busy.get(),
            starved: probe.meter.starved.get(),
            blocked: probe.meter.blocked.get(),
            queued: probe.input.as_ref().map_or(0, |gauge| gauge.queued()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_blocked_inside_a_call_is_not_busy() {
        let meter = Meter::default();
        meter.serial(|| meter.blocked.add(Duration::from_secs(3600)));
        assert_eq!(meter.busy.get(), Duration::ZERO);
        meter.serial(|| std::hint::black_box((0..1000).sum::<u64>()));
        assert!(meter.busy.get() > Duration::ZERO);
    }

    #[test]
    fn a_gauge_never_goes_below_zero() {
        let gauge = Gauge::default();
        gauge.received();
        assert_eq!(gauge.queued(), 0);
        gauge.sent();
        gauge.sent();
        assert_eq!(gauge.queued(), 1);
    }
}
