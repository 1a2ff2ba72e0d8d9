//! The state of a run as an observer sees it, or its account after the end.
//!
//! A report may be made at any time. The clock is read first and then every thread once, so what a report says of one
//! thread holds together, while two threads may be seen an item apart.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::meter::{Gauge, Meter, Now};

/// What a report needs of one node.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) name: String,
    /// One for each of its threads.
    pub(crate) meters: Vec<Arc<Meter>>,
    /// Of the link that enters the node; a source has none.
    pub(crate) input: Option<Arc<Gauge>>,
    /// How many places before it in the list the node lies that feeds it.
    pub(crate) behind: usize,
}

/// The state of a run, or its account after the end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Time since the threads were started.
    pub wall: Duration,
    /// In order of the flow; behind a split, branch after branch.
    pub stages: Vec<StageReport>,
}

/// The account of one stage. Durations are sums over its workers; what is still going on is added when it ends.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StageReport {
    /// Short type name, or the name given by `named`; behind a split with the branch: `feed[1]`.
    pub name: String,
    /// Where in [`Report::stages`] the stage is that feeds this one, always further up; `None` for the source.
    pub upstream: Option<usize>,
    /// Number of threads.
    pub workers: usize,
    /// Items made (source), or worked on to the end (all others).
    pub items: u64,
    /// Time in the stage's own code, waits for room downstream and for slabs not counted, nor its factories.
    pub busy: Duration,
    /// Time spent waiting for input.
    pub starved: Duration,
    /// Time spent waiting for room downstream or for a free slab.
    pub blocked: Duration,
    /// How often one of its threads found nothing ready and had to wait, whatever for. Most waits park the thread in
    /// the kernel; a short one may end while the thread still spins.
    pub waits: u64,
    /// Items now waiting in its input, at most `room`; 0 for a source.
    pub queued: u64,
    /// How many items lay in its input when it came for one, on average over all that it took: 0 if it always had to
    /// wait, `room` if its input was always full; 0 for a source. Items behind one that is late count.
    pub queued_mean: f64,
    /// Items that its input has room for: the [`depth`](crate::Flow::depth) of that link, and one for each worker of
    /// the stage in front of it; 0 for a source.
    pub room: usize,
    /// What the worker does that is in the stage's own code for longest; `None` if no worker is. A worker that waits
    /// in there, for a slab or for room, is not at work.
    pub at_work: Option<AtWork>,
    /// What the stage waits for, if that is all its threads do now; several may wait for different things, and then
    /// it is the one that holds up the others: input, then buffers, then room.
    pub waiting: Option<Waiting>,
    /// Whether all its threads have ended.
    pub ended: bool,
}

/// A thread is in the stage's own code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtWork {
    /// At what.
    pub task: Task,
    /// For how long, at most [`Report::wall`]; since the last wait inside it, if there was one.
    pub time: Duration,
}

/// What a stage's own code was called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// To make the stage, on its worker's thread.
    Factory,
    /// For the item of this number in the stage's own input, from 0; for a source, the item that it is making.
    Item(u64),
    /// For the end of the stream, in a regroup or a sink.
    Finish,
}

/// A thread waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// For what.
    pub on: Wait,
    /// For how long, at most [`Report::wall`]; of several threads, the longest.
    pub time: Duration,
}

/// What a thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// For input. Its time is [`StageReport::starved`].
    Starved,
    /// For a free buffer, inside [`Slabs::take`](crate::Slabs::take). Its time is [`StageReport::blocked`].
    NoBuffer,
    /// For room downstream. Its time is [`StageReport::blocked`].
    Blocked,
}

impl fmt::Display for Task {
    /// As in "has been ...": `in its factory`, `at item 17`, `in its finish`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Factory => f.write_str("in its factory"),
            Self::Item(item) => write!(f, "at item {item}"),
            Self::Finish => f.write_str("in its finish"),
        }
    }
}

impl Report {
    pub(crate) fn of(probes: &[Probe], started: Instant) -> Self {
        let wall = started.elapsed();
        let stages = probes.iter().enumerate().map(|(index, probe)| {
            let upstream = index.checked_sub(probe.behind);
            StageReport { upstream, ..StageReport::of(probe, wall) }
        });
        Self { wall, stages: stages.collect() }
    }
}

impl StageReport {
    fn of(probe: &Probe, wall: Duration) -> Self {
        let mut report = Self { name: probe.name.clone(), workers: probe.meters.len(), ended: true, ..Self::default() };
        let mut all_wait = true;
        for meter in &probe.meters {
            report.items += meter.items();
            report.busy += meter.busy();
            report.starved += meter.starved();
            report.blocked += meter.blocked();
            report.waits += meter.waits();
            let now = meter.now(wall);
            report.ended &= now == Now::Ended;
            all_wait &= matches!(now, Now::Waiting(_) | Now::Ended);
            match now {
                Now::AtWork(work) if report.at_work.is_none_or(|longest| longest.time < work.time) => {
                    report.at_work = Some(work);
                }
                Now::Waiting(Waiting { on, time }) => {
                    let so_far = report.waiting.unwrap_or(Waiting { on, time });
                    report.waiting = Some(Waiting { on: so_far.on.min(on), time: so_far.time.max(time) });
                }
                _ => {}
            }
        }
        report.waiting = report.waiting.filter(|_| all_wait);
        if let Some(input) = &probe.input {
            report.queued = input.queued();
            report.queued_mean = input.queued_mean();
            report.room = input.room();
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// The report, after an hour, of a stage whose threads wait for these and are at these items.
    fn seen(waits: &[Wait], items: &[u64]) -> StageReport {
        fn nest(waits: &[Wait], items: &[u64], mut probe: Probe, started: Instant) -> StageReport {
            let meter = Arc::new(Meter::new(started));
            probe.meters.push(Arc::clone(&meter));
            match (waits, items) {
                ([on, waits @ ..], _) => meter.wait(*on, || nest(waits, items, probe, started)),
                ([], [item, items @ ..]) => meter.at_item(*item, || nest(waits, items, probe, started)),
                ([], []) => {
                    probe.meters.pop();
                    StageReport::of(&probe, HOUR)
                }
            }
        }
        let probe = Probe { name: "stage".into(), meters: Vec::new(), input: None, behind: 1 };
        nest(waits, items, probe, Instant::now())
    }

    #[test]
    fn a_stage_waits_only_if_all_its_threads_do_and_for_what_holds_up_the_others() {
        use Wait::{Blocked, NoBuffer, Starved};
        let on = |waits: &[Wait], items: &[u64]| seen(waits, items).waiting.map(|waiting| waiting.on);
        assert_eq!(on(&[Blocked, Starved, Blocked], &[]), Some(Starved));
        assert_eq!(on(&[Blocked, NoBuffer], &[]), Some(NoBuffer));
        assert_eq!(on(&[Blocked], &[]), Some(Blocked));
        assert_eq!(on(&[Blocked, Starved], &[3]), None);
    }

    #[test]
    fn the_worker_that_is_at_work_for_longest_is_shown() {
        let report = seen(&[Wait::Starved], &[17, 4, 5]);
        let work = report.at_work.unwrap();
        assert_eq!((work.task, report.workers, report.ended), (Task::Item(17), 4, false));
        assert!(work.time <= HOUR && work.time > HOUR / 2, "{:?}", work.time);
    }
}
