//! What one flow did, as a record that outlives the run, and as a drawing: its stages from left to right, each with
//! the shares of its time.
//!
//! The engine's own [`Report`] is not stored as it is: it holds `Duration`s and a queue length that means nothing after
//! the end. The drawing is boxes of HTML and not SVG, so that long names wrap and a narrow screen stacks the stages.

use askama::Template;
use pipeline::Report;
use serde::{Deserialize, Serialize};

use super::grouped;

/// What one flow did, kept as JSON beside its output so that a page can be made later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FlowRecord {
    /// From the start of the threads to the end of the last, in seconds.
    pub(crate) wall_s: f64,
    /// In order of the flow; behind a split, branch after branch.
    pub(crate) stages: Vec<StageRecord>,
}

/// The account of one stage; times are in seconds and sums over its workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageRecord {
    /// As in the engine's report: a short type name or a given one.
    pub(crate) name: String,
    /// Number of threads.
    pub(crate) workers: usize,
    /// Items made (source), or worked on to the end (all others).
    pub(crate) items: u64,
    /// In the stage's own code.
    pub(crate) busy_s: f64,
    /// Waiting for input.
    pub(crate) starved_s: f64,
    /// Waiting for room downstream or for a free buffer.
    pub(crate) blocked_s: f64,
    /// Items that its input has room for; 0 for a source, and in records of old programs.
    #[serde(default)]
    pub(crate) room: usize,
    /// Items that lay in its input when it came for one, in the mean.
    #[serde(default)]
    pub(crate) queued_mean: f64,
    /// How often a thread of the stage found nothing ready and had to wait.
    #[serde(default)]
    pub(crate) waits: u64,
}

/// Parts of the time that a stage's workers had, wall times workers: 0..=1 each, up to the reading of clocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Shares {
    pub(crate) busy: f64,
    pub(crate) starved: f64,
    pub(crate) blocked: f64,
}

impl FlowRecord {
    /// The record of a flow that has ended, or of one that goes on, as far as it has come.
    pub(crate) fn of(report: &Report) -> Self {
        let stages = report.stages.iter().map(|stage| StageRecord {
            name: stage.name.clone(),
            workers: stage.workers,
            items: stage.items,
            busy_s: stage.busy.as_secs_f64(),
            starved_s: stage.starved.as_secs_f64(),
            blocked_s: stage.blocked.as_secs_f64(),
            room: stage.room,
            queued_mean: stage.queued_mean,
            waits: stage.waits,
        });
        Self { wall_s: report.wall.as_secs_f64(), stages: stages.collect() }
    }

    /// The stage that limits the flow: the one with the most busy time per worker. `None` if none did any work.
    pub(crate) fn bottleneck(&self) -> Option<&StageRecord> {
        let worked = self.stages.iter().filter(|stage| stage.busy_s > 0.0);
        worked.max_by(|a, b| a.busy_per_worker().total_cmp(&b.busy_per_worker()))
    }
}

impl StageRecord {
    /// The shares of the time that the workers had in a flow of `wall_s` seconds.
    pub(crate) fn shares(&self, wall_s: f64) -> Shares {
        let whole = (wall_s * self.workers as f64).max(1e-9);
        Shares { busy: self.busy_s / whole, starved: self.starved_s / whole, blocked: self.blocked_s / whole }
    }

    fn busy_per_worker(&self) -> f64 {
        self.busy_s / self.workers.max(1) as f64
    }
}

/// The drawing of a flow: an HTML list, to be styled by the page around it.
#[derive(Debug, Template)]
#[template(path = "flow.html", config = "src/report/askama.toml")]
pub(super) struct Drawing<'a> {
    stages: Vec<StageBox<'a>>,
}

#[derive(Debug)]
struct StageBox<'a> {
    name: &'a str,
    workers: usize,
    items: String,
    limits: bool,
    bar: [Segment; 3],
    /// How full its input was; a source has none.
    queue: Option<String>,
}

#[derive(Debug)]
struct Segment {
    kind: &'static str,
    /// In percent, cut to tenths so that rounding cannot make the bar too long.
    width: f64,
    percent: String,
}

impl<'a> Drawing<'a> {
    pub(super) fn of(flow: &'a FlowRecord) -> Self {
        let limiting = flow.bottleneck();
        let stages = flow.stages.iter().map(|stage| StageBox {
            name: &stage.name,
            workers: stage.workers,
            items: grouped(stage.items),
            limits: limiting.is_some_and(|limiting| std::ptr::eq(limiting, stage)),
            bar: bar(stage.shares(flow.wall_s)),
            queue: (stage.room > 0).then(|| format!("{:.1} of {}", stage.queued_mean, stage.room)),
        });
        Self { stages: stages.collect() }
    }
}

/// Clocks are read apart from each other, so shares may add up to a little more than the whole: then they are shrunk
/// to it.
fn bar(Shares { busy, starved, blocked }: Shares) -> [Segment; 3] {
    let whole = (busy + starved + blocked).max(1.0);
    [("busy", busy), ("starved", starved), ("blocked", blocked)].map(|(kind, share)| Segment {
        kind,
        width: (1000.0 * share / whole).floor().max(0.0) / 10.0,
        percent: format!("{:.0}", 100.0 * share),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn stage(name: &str, workers: usize, times: [f64; 3]) -> StageRecord {
        let [busy_s, starved_s, blocked_s] = times;
        let name = name.to_owned();
        StageRecord { name, workers, items: 1234, busy_s, starved_s, blocked_s, room: 0, queued_mean: 0.0, waits: 0 }
    }

    #[test]
    fn a_record_is_the_report_in_seconds_and_survives_json() {
        let measured = pipeline::StageReport {
            name: "Decode".to_owned(),
            workers: 2,
            items: 7,
            busy: Duration::from_millis(1500),
            starved: Duration::from_millis(250),
            blocked: Duration::from_millis(125),
            queued: 3,
            room: 4,
            queued_mean: 2.5,
            waits: 6,
            ..Default::default()
        };
        let record = FlowRecord::of(&Report { wall: Duration::from_secs(2), stages: vec![measured] });
        let expected =
            StageRecord { items: 7, room: 4, queued_mean: 2.5, waits: 6, ..stage("Decode", 2, [1.5, 0.25, 0.125]) };
        assert_eq!(record, FlowRecord { wall_s: 2.0, stages: vec![expected] });
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<FlowRecord>(&json).unwrap(), record);
    }

    #[test]
    fn records_of_programs_that_knew_no_queues_are_read_and_drawn_without() {
        let old = r#"{"wall_s":4.0,"stages":[{"name":"Decode","workers":1,"items":1234,
            "busy_s":2.0,"starved_s":1.0,"blocked_s":0.5}]}"#;
        let flow: FlowRecord = serde_json::from_str(old).unwrap();
        assert_eq!(flow.stages, [stage("Decode", 1, [2.0, 1.0, 0.5])]);
        assert!(!Drawing::of(&flow).render().unwrap().contains("queue"));
    }

    #[test]
    fn the_queue_before_a_stage_is_drawn_where_there_is_one() {
        let decode = StageRecord { room: 3, queued_mean: 2.149, ..stage("Decode", 1, [2.0, 1.0, 0.5]) };
        let flow = FlowRecord { wall_s: 4.0, stages: vec![stage("List", 1, [0.1, 0.0, 0.0]), decode] };
        let html = Drawing::of(&flow).render().unwrap();
        assert_eq!(html.matches("<dt>queue</dt>").count(), 1, "{html}");
        assert!(html.contains("<dd>2.1 of 3</dd>"), "{html}");
    }

    #[test]
    fn shares_are_of_the_time_of_all_workers() {
        let shares = stage("Decode", 2, [2.0, 1.0, 0.5]).shares(4.0);
        assert_eq!(shares, Shares { busy: 0.25, starved: 0.125, blocked: 0.0625 });
    }

    #[test]
    fn a_flow_without_time_has_no_shares_and_no_bottleneck() {
        let flow = FlowRecord { wall_s: 0.0, stages: vec![stage("List", 1, [0.0; 3])] };
        assert_eq!(flow.stages[0].shares(0.0), Shares { busy: 0.0, starved: 0.0, blocked: 0.0 });
        assert_eq!(flow.bottleneck(), None);
        assert!(!Drawing::of(&flow).render().unwrap().contains("bottleneck"));
    }

    #[test]
    fn the_bottleneck_has_the_most_busy_time_per_worker_and_is_the_only_one_marked() {
        let stages = vec![stage("Read", 1, [3.0, 0.0, 1.0]), stage("Decode", 4, [8.0, 4.0, 0.0])];
        let flow = FlowRecord { wall_s: 4.0, stages };
        assert_eq!(flow.bottleneck().unwrap().name, "Read");
        let html = Drawing::of(&flow).render().unwrap();
        assert_eq!(html.matches("bottleneck").count(), 1);
        assert!(html.find("bottleneck").unwrap() < html.find("Decode").unwrap());
    }

    #[test]
    fn a_bar_never_is_longer_than_its_track() {
        let widths = bar(Shares { busy: 0.7, starved: 0.35, blocked: 0.02 }).map(|segment| segment.width);
        assert!(widths.iter().sum::<f64>() <= 100.0, "{widths:?}");
        assert!(widths.iter().sum::<f64>() > 99.0, "{widths:?}");
    }

    #[test]
    fn names_are_escaped() {
        let flow = FlowRecord { wall_s: 1.0, stages: vec![stage("<b>&", 1, [1.0, 0.0, 0.0])] };
        let html = Drawing::of(&flow).render().unwrap();
        assert!(!html.contains("<b>&"), "{html}");
        assert!(html.contains("&#60;b&#62;&#38;"), "{html}");
    }
}
