//! Says when a run has come to a halt, and which stage holds everything up.
//!
//! A [`Watchdog`] looks at one report after the other and has no clock of its own. From the sink that got nothing for
//! too long it goes upstream, past every stage that is itself without input, to the first one that is not:
//!
//! - one that is at work is the cause;
//! - one that waits for room is a split, of which another branch is full: from there it goes downstream, along the
//!   full links, to the stage that takes nothing out of them;
//! - one that waits for a free buffer has somebody downstream who keeps them, whom a report can name only if it is at
//!   work.

use std::fmt;
use std::time::Duration;

use crate::report::{Report, StageReport, Task, Wait};

/// Finds the stalls of one run; made to be called from [`Line::observe`](crate::Line::observe).
///
/// A stall is a sink that has not ended and has taken no item for a time, from the start on. Behind a split, one such
/// sink is enough.
#[derive(Debug)]
pub struct Watchdog {
    limit: Duration,
    /// One for each stage of the report; only those of sinks are used.
    seen: Vec<Seen>,
    /// The sink whose stall was reported last, and how long it was then.
    told: Option<(usize, Duration)>,
}

/// How things stood when a sink was first seen to have taken its last item.
#[derive(Debug, Clone, Default)]
struct Seen {
    taken: u64,
    report: Report,
}

/// A sink has got nothing for too long. Displayed as one sentence:
/// `nothing has reached TrainSteps for 30 s: Inflate has been at item 17 for 29 s`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stall {
    /// Name of the sink, as in the report.
    pub sink: String,
    /// How long ago the sink took its last item, or how long the run has gone on if it has taken none. A report late,
    /// at most.
    pub since_last_item: Duration,
    /// Name of the stage that holds everything up, as in the report; it may be the sink.
    pub stage: String,
    /// For how long it has done so. It may be less than `since_last_item`, by the time in which what was behind it
    /// ran dry.
    pub held: Duration,
    /// What it does instead.
    pub how: How,
}

/// What a stage does that holds everything up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// One of its workers has been at this for all of `held`.
    AtWork(Task),
    /// It waits for a free buffer, and no stage that could have one is at work.
    NoBuffer,
    /// It is not stuck: it got through so many items since the sink took its last one, and those were not enough.
    Slow {
        /// Number of items.
        items: u64,
    },
}

/// What a stage has been doing for so long that it matters.
enum Doing {
    AtWork(Task, Duration),
    Waiting(Wait, Duration),
    /// One item after the other.
    Moving,
}

impl Watchdog {
    /// Reports sinks that take nothing for `limit`, at least 1 ms.
    pub fn new(limit: Duration) -> Self {
        Self { limit: limit.max(Duration::from_millis(1)), seen: Vec::new(), told: None }
    }

    /// Looks at the next report of the run. A stall is returned when it begins and then whenever it has become twice
    /// as long; of several sinks, that of the one that got nothing for longest.
    pub fn look(&mut self, report: &Report) -> Option<Stall> {
        self.seen.resize_with(report.stages.len(), Seen::default);
        let mut longest: Option<(usize, Duration)> = None;
        for (sink, stage) in report.stages.iter().enumerate().filter(|&(index, _)| is_sink(report, index)) {
            let seen = &mut self.seen[sink];
            let taken = taken(stage);
            if taken > seen.taken {
                *seen = Seen { taken, report: report.clone() };
            }
            let since = report.wall.saturating_sub(seen.report.wall);
            if !stage.ended && since >= self.limit && longest.is_none_or(|(_, most)| since > most) {
                longest = Some((sink, since));
            }
        }
        let Some((sink, since)) = longest else {
            self.told = None;
            return None;
        };
        if self.told.is_some_and(|(told, length)| told == sink && since < length * 2) {
            return None;
        }
        self.told = Some((sink, since));
        let (stage, held, how) = Trace { report, before: &self.seen[sink].report, since }.cause(sink);
        let name = |index: usize| report.stages[index].name.clone();
        Some(Stall { sink: name(sink), since_last_item: since, stage: name(stage), held, how })
    }
}

/// No stage is fed by it.
fn is_sink(report: &Report, index: usize) -> bool {
    report.stages.iter().all(|stage| stage.upstream != Some(index))
}

/// How many items a sink has taken; it has taken the one that it is at, and its `finish` is one more.
fn taken(sink: &StageReport) -> u64 {
    match sink.at_work.map(|work| work.task) {
        Some(Task::Item(item)) => item + 1,
        Some(Task::Finish | Task::Factory) => sink.items + 1,
        None => sink.items,
    }
}

/// The way from a stalled sink to what holds it up.
struct Trace<'a> {
    report: &'a Report,
    /// When the sink took its last item.
    before: &'a Report,
    /// Time since then.
    since: Duration,
}

impl Trace<'_> {
    /// The stage that holds up `sink`, for how long, and how.
    fn cause(&self, sink: usize) -> (usize, Duration, How) {
        let mut at = sink;
        loop {
            match self.doing(at) {
                Doing::AtWork(task, time) => return (at, time, How::AtWork(task)),
                Doing::Waiting(Wait::Starved, _) => match self.report.stages[at].upstream.filter(|&up| up < at) {
                    Some(upstream) => at = upstream,
                    None => return self.slow(at),
                },
                Doing::Waiting(Wait::NoBuffer, time) => return self.no_buffer(at, time),
                Doing::Waiting(Wait::Blocked, _) => return self.full(at),
                Doing::Moving => return self.slow(at),
            }
        }
    }

    /// Goes downstream from a stage that waits for room.
    fn full(&self, mut at: usize) -> (usize, Duration, How) {
        loop {
            match self.doing(at) {
                Doing::AtWork(task, time) => return (at, time, How::AtWork(task)),
                Doing::Waiting(Wait::NoBuffer, time) => return self.no_buffer(at, time),
                Doing::Waiting(Wait::Blocked, _) => match self.fullest_behind(at) {
                    Some(next) => at = next,
                    None => return self.slow(at),
                },
                Doing::Waiting(Wait::Starved, _) | Doing::Moving => return self.slow(at),
            }
        }
    }

    /// Of the stages that `at` feeds, the one with the least room left.
    fn fullest_behind(&self, at: usize) -> Option<usize> {
        let fed = self.report.stages.iter().enumerate().skip(at + 1).filter(|(_, stage)| stage.upstream == Some(at));
        let left = |stage: &StageReport| (stage.room as u64).saturating_sub(stage.queued);
        fed.min_by_key(|(_, stage)| left(stage)).map(|(index, _)| index)
    }

    /// Whoever is at work downstream of a stage that waits for a buffer may have them all.
    fn no_buffer(&self, at: usize, waited: Duration) -> (usize, Duration, How) {
        let mut behind = vec![false; self.report.stages.len()];
        behind[at] = true;
        let mut keeper = (at, waited, How::NoBuffer);
        for (index, stage) in self.report.stages.iter().enumerate().skip(at + 1) {
            behind[index] = stage.upstream.is_some_and(|up| up < index && behind[up]);
            if let (true, Doing::AtWork(task, time)) = (behind[index], self.doing(index))
                && (keeper.0 == at || time > keeper.1)
            {
                keeper = (index, time, How::AtWork(task));
            }
        }
        keeper
    }

    fn slow(&self, at: usize) -> (usize, Duration, How) {
        let items = self.report.stages[at].items.saturating_sub(self.before(at).map_or(0, |before| before.items));
        (at, self.since, How::Slow { items })
    }

    fn before(&self, at: usize) -> Option<&StageReport> {
        self.before.stages.get(at)
    }

    /// What a stage is doing now may be a moment between two others: it counts as being at one thing if that goes on
    /// for half the stall or more. If not, it goes by where its time went.
    fn doing(&self, at: usize) -> Doing {
        let stage = &self.report.stages[at];
        if let Some(work) = stage.at_work.filter(|work| work.time >= self.since / 2) {
            return Doing::AtWork(work.task, work.time);
        }
        if let Some(waiting) = stage.waiting {
            return Doing::Waiting(waiting.on, waiting.time);
        }
        let grown = |time: fn(&StageReport) -> Duration| {
            time(stage).saturating_sub(self.before(at).map_or(Duration::ZERO, time))
        };
        let (busy, starved, blocked) = (grown(|s| s.busy), grown(|s| s.starved), grown(|s| s.blocked));
        if starved > busy.max(blocked) { Doing::Waiting(Wait::Starved, starved) } else { Doing::Moving }
    }
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sink, since_last_item, stage, held, how } = self;
        if sink != stage {
            write!(f, "nothing has reached {sink} for {}: ", Short(*since_last_item))?;
        }
        let held = Short(*held);
        match how {
            How::AtWork(task) => write!(f, "{stage} has been {task} for {held}"),
            How::NoBuffer => {
                write!(f, "{stage} has waited {held} for a free buffer, and no stage behind it is at work on one")
            }
            How::Slow { items: 0 } => write!(f, "{stage} has got through no item in {held}"),
            How::Slow { items: 1 } => write!(f, "{stage} is not stuck, but has got through only 1 item in {held}"),
            How::Slow { items } => write!(f, "{stage} is not stuck, but has got through only {items} items in {held}"),
        }
    }
}

/// `29 s`, `2.5 s`, `15 ms`; rounded down.
struct Short(Duration);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.as_secs(), self.0.subsec_millis()) {
            (0, milliseconds) => write!(f, "{milliseconds} ms"),
            (seconds @ ..10, milliseconds) => write!(f, "{seconds}.{} s", milliseconds / 100),
            (seconds, _) => write!(f, "{seconds} s"),
        }
    }
}

#[cfg(test)]
mod tests;
