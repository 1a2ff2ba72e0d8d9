//! Reports made by hand for every way to stall, and real runs in which the watchdog must find what is stuck.

use std::ops::ControlFlow;

use crossbeam_channel::{Receiver, bounded};

use super::*;
use crate::closures::{count, each, make, map, steps};
use crate::{AtWork, BoxError, Flow, Line, Runtime, Slabs, Stop, Waiting};

/// Longer than any run that is right: a test that waits for it has failed.
const NEVER: Duration = Duration::from_secs(60);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn stage(name: &str, upstream: Option<usize>) -> StageReport {
    StageReport { name: name.to_owned(), upstream, workers: 1, room: 4, ..StageReport::default() }
}

impl StageReport {
    fn done(self, items: u64) -> Self {
        Self { items, ..self }
    }

    fn at(self, task: Task, time: u64) -> Self {
        Self { at_work: Some(AtWork { task, time: seconds(time) }), ..self }
    }

    fn waits(self, on: Wait, time: u64) -> Self {
        Self { waiting: Some(Waiting { on, time: seconds(time) }), ..self }
    }
}

fn report<const N: usize>(wall: u64, stages: [StageReport; N]) -> Report {
    Report { wall: seconds(wall), stages: stages.into() }
}

/// A source, a stage and a sink, by what each does.
fn chain(wall: u64, [read, inflate, train]: [fn(StageReport) -> StageReport; 3]) -> Report {
    let stages = [stage("Read", None), stage("Inflate", Some(0)), stage("TrainSteps", Some(1))];
    let [a, b, c] = stages;
    report(wall, [read(a), inflate(b), train(c)])
}

/// What a watchdog of 30 s says of a report that is the first it sees.
fn said(report: &Report) -> String {
    Watchdog::new(seconds(30)).look(report).expect("nothing was taken for 30 s").to_string()
}

#[test]
fn a_stage_at_one_item_is_named_and_how_long_it_has_been() {
    let report = chain(
        30,
        [
            |read| read.waits(Wait::Blocked, 28),
            |inflate| inflate.at(Task::Item(17), 29),
            |train| train.waits(Wait::Starved, 30),
        ],
    );
    let stall = Watchdog::new(seconds(30)).look(&report).unwrap();
    let expected = Stall {
        sink: "TrainSteps".into(),
        since_last_item: seconds(30),
        stage: "Inflate".into(),
        held: seconds(29),
        how: How::AtWork(Task::Item(17)),
    };
    assert_eq!(stall, expected);
    assert_eq!(stall.to_string(), "nothing has reached TrainSteps for 30 s: Inflate has been at item 17 for 29 s");
}

#[test]
fn a_source_at_one_item_is_named_past_the_stages_that_starve() {
    let report = chain(
        31,
        [
            |read| read.at(Task::Item(0), 31),
            |inflate| inflate.waits(Wait::Starved, 31),
            |train| train.waits(Wait::Starved, 31),
        ],
    );
    assert_eq!(said(&report), "nothing has reached TrainSteps for 31 s: Read has been at item 0 for 31 s");
}

#[test]
fn a_stage_that_is_still_being_made_is_named() {
    let report = chain(
        31,
        [
            |read| read.waits(Wait::Blocked, 30),
            |inflate| inflate.at(Task::Factory, 31),
            |train| train.waits(Wait::Starved, 31),
        ],
    );
    assert_eq!(said(&report), "nothing has reached TrainSteps for 31 s: Inflate has been in its factory for 31 s");
}

#[test]
fn a_sink_at_one_item_is_the_cause_itself() {
    let stuck = |wall, time| {
        let blocked = |name, up| stage(name, up).waits(Wait::Blocked, 9);
        let train = stage("TrainSteps", Some(1)).done(3).at(Task::Item(3), time);
        report(wall, [blocked("Read", None), blocked("Inflate", Some(0)), train])
    };
    let mut watchdog = Watchdog::new(seconds(30));
    assert_eq!(watchdog.look(&stuck(40, 1)), None, "it took the item a second ago");
    assert_eq!(watchdog.look(&stuck(69, 30)), None);
    assert_eq!(watchdog.look(&stuck(70, 31)).unwrap().to_string(), "TrainSteps has been at item 3 for 31 s");
}

#[test]
fn a_sink_that_does_not_finish_is_named() {
    let report = |wall, time| {
        let ended = |name, up| StageReport { ended: true, ..stage(name, up) };
        report(wall, [ended("Read", None), stage("TrainSteps", Some(0)).done(8).at(Task::Finish, time)])
    };
    let mut watchdog = Watchdog::new(seconds(30));
    assert_eq!(watchdog.look(&report(100, 0)), None, "it took its last item just now");
    assert_eq!(watchdog.look(&report(131, 31)).unwrap().to_string(), "TrainSteps has been in its finish for 31 s");
}

#[test]
fn a_buffer_that_nobody_at_work_has_is_said_to_be_missing() {
    let report = chain(
        30,
        [
            |read| read.waits(Wait::NoBuffer, 29),
            |inflate| inflate.waits(Wait::Starved, 29),
            |train| train.waits(Wait::Starved, 30),
        ],
    );
    assert_eq!(
        said(&report),
        "nothing has reached TrainSteps for 30 s: Read has waited 29 s for a free buffer, and no stage behind it is at \
         work on one"
    );
}

/// A source, a split, and two branches of a stage and a sink.
fn branches(wall: u64, source: Wait, split: Wait, stages: [fn(StageReport) -> StageReport; 4]) -> Report {
    let [a, b, c, d] = stages;
    report(
        wall,
        [
            stage("Read", None).waits(source, 29),
            stage("split", Some(0)).waits(split, 29),
            a(stage("Inflate[0]", Some(1))),
            b(stage("Feed[0]", Some(2))),
            c(stage("Inflate[1]", Some(1))),
            d(stage("Feed[1]", Some(4))),
        ],
    )
}

#[test]
fn a_branch_that_starves_because_another_is_full_names_what_holds_up_the_other() {
    let full = |stage: StageReport| StageReport { queued: 4, ..stage };
    let starved: fn(StageReport) -> StageReport = |stage| stage.waits(Wait::Starved, 29);
    let mut watchdog = Watchdog::new(seconds(30));
    let report = |wall| {
        let mut report = branches(
            wall,
            Wait::Blocked,
            Wait::Blocked,
            [starved, starved, |inflate| inflate.waits(Wait::Blocked, 28), |feed| feed.done(6).at(Task::Item(6), 25)],
        );
        for index in [4, 5] {
            report.stages[index] = full(report.stages[index].clone());
        }
        report
    };
    assert_eq!(
        watchdog.look(&report(30)).unwrap().to_string(),
        "nothing has reached Feed[0] for 30 s: Feed[1] has been at item 6 for 25 s"
    );
}

#[test]
fn one_branch_is_enough_for_a_stall_and_one_that_has_ended_is_none() {
    let starved: fn(StageReport) -> StageReport = |stage| stage.waits(Wait::Starved, 1);
    let flowing = |wall| {
        let mut report = branches(
            wall,
            Wait::Starved,
            Wait::Starved,
            [|inflate| inflate.at(Task::Item(2), 29), |feed| feed.done(2).waits(Wait::Starved, 29), starved, starved],
        );
        report.stages[5].items = wall;
        report
    };
    let mut watchdog = Watchdog::new(seconds(30));
    assert_eq!(watchdog.look(&flowing(1)), None);
    assert_eq!(
        watchdog.look(&flowing(31)).unwrap().to_string(),
        "nothing has reached Feed[0] for 30 s: Inflate[0] has been at item 2 for 29 s"
    );
    let mut ended = flowing(90);
    ended.stages[3].ended = true;
    assert_eq!(watchdog.look(&ended), None);
}

#[test]
fn a_buffer_missing_in_one_branch_is_looked_for_in_the_other() {
    let starved: fn(StageReport) -> StageReport = |stage| stage.waits(Wait::Starved, 29);
    let report =
        branches(30, Wait::NoBuffer, Wait::Starved, [starved, starved, starved, |feed| feed.at(Task::Item(0), 27)]);
    assert_eq!(said(&report), "nothing has reached Feed[0] for 30 s: Feed[1] has been at item 0 for 27 s");
}

#[test]
fn a_source_that_makes_many_items_for_one_is_slow_and_not_stuck() {
    let gathers = |wall: u64| {
        let mut report = chain(
            wall,
            [
                |read| read.at(Task::Item(0), 0),
                |gather| gather.at(Task::Item(0), 0),
                |train| train.done(1).waits(Wait::Starved, 29),
            ],
        );
        // The stage between is caught at an item, but has waited for input nearly all of the time.
        report.stages[0] = StageReport { busy: seconds(wall), ..report.stages[0].clone() }.done(wall * 100);
        report.stages[1].starved = seconds(wall - 1);
        report
    };
    let mut watchdog = Watchdog::new(seconds(30));
    assert_eq!(watchdog.look(&gathers(10)), None);
    let stall = watchdog.look(&gathers(40)).unwrap();
    assert_eq!((stall.held, stall.how), (seconds(30), How::Slow { items: 3000 }));
    assert_eq!(
        stall.to_string(),
        "nothing has reached TrainSteps for 30 s: Read is not stuck, but has got through only 3000 items in 30 s"
    );
}

#[test]
fn a_stall_is_told_when_it_begins_and_each_time_it_has_doubled_and_a_later_one_anew() {
    let mut watchdog = Watchdog::new(seconds(30));
    let mut told = Vec::new();
    let mut look = |wall: u64, items: u64| {
        let train = stage("TrainSteps", Some(0)).done(items).waits(Wait::Starved, 1);
        if let Some(stall) = watchdog.look(&report(wall, [stage("Read", None).at(Task::Item(items), 999), train])) {
            told.push((wall, stall.since_last_item.as_secs()));
        }
    };
    (1..=250).for_each(|wall| look(wall, 0));
    (251..=300).for_each(|wall| look(wall, wall));
    (301..=370).for_each(|wall| look(wall, 300));
    assert_eq!(told, [(30, 30), (60, 60), (120, 120), (240, 240), (330, 30), (360, 60)]);
}

#[test]
fn a_report_that_contradicts_itself_is_no_panic_and_no_endless_search() {
    let starved = |name: &str, up| stage(name, up).waits(Wait::Starved, 9);
    let blocked = |name: &str, up| stage(name, up).waits(Wait::Blocked, 9);
    let lines = [
        report(60, [starved("a", None)]),
        report(60, [blocked("a", None)]),
        report(60, [starved("a", Some(7)), starved("b", Some(1)), starved("c", Some(0))]),
        report(60, [blocked("a", None), starved("b", Some(0)), blocked("c", Some(0))]),
    ];
    for report in &lines {
        assert!(said(report).ends_with(" has got through no item in 60 s"), "{}", said(report));
    }
    assert_eq!(Watchdog::new(Duration::ZERO).look(&Report::default()), None);
}

#[test]
fn lengths_are_short_and_rounded_down() {
    let short = |milliseconds| Short(Duration::from_millis(milliseconds)).to_string();
    assert_eq!([0, 999, 1000, 9999, 10_000, 75_900].map(short), ["0 ms", "999 ms", "1.0 s", "9.9 s", "10 s", "75 s"]);
}

/// Runs a line in which something is stuck until a watchdog says so: then `release` is called. A stall of 1 ms may
/// come from the scheduler, so others are passed over; if the right one never comes, the stage gives up after
/// [`NEVER`] and the run fails.
fn found<O>(line: Line<O>, stage: &str, how: How, mut release: impl FnMut() + 'static) {
    let (mut watchdog, stage) = (Watchdog::new(Duration::from_millis(1)), stage.to_owned());
    let line = line.observe(Duration::from_millis(1), move |report| {
        let stall = watchdog.look(report);
        if stall.is_some_and(|stall| stall.stage == stage && stall.how == how) {
            release();
        }
    });
    assert!(line.run(&Runtime::default()).is_ok(), "the watchdog has not said what was stuck");
}

/// A gate that opens once, and passes everybody from then on.
fn gate() -> (impl FnMut() + 'static, impl Fn() -> Result<(), BoxError> + Clone + Send + Sync + 'static) {
    let (keep, gate): (_, Receiver<()>) = bounded(0);
    let mut keep = Some(keep);
    let pass = move || match gate.recv_timeout(NEVER) {
        Err(error) if error.is_timeout() => Err(error.into()),
        _ => Ok(()),
    };
    (move || drop(keep.take()), pass)
}

fn continues() -> Result<ControlFlow<()>, BoxError> {
    Ok(ControlFlow::Continue(()))
}

#[test]
fn a_source_that_is_stuck_is_found_while_it_runs() {
    let ((open, pass), mut numbers) = (gate(), 0..20_u64);
    let source = make(move |_| {
        let number = numbers.next();
        if number == Some(7) {
            pass()?;
        }
        Ok(number)
    });
    let line = Flow::from(source).then(|_| Ok(map(Ok::<u64, BoxError>))).into(each(|_| continues()));
    found(line, "Make", How::AtWork(Task::Item(7)), open);
}

#[test]
fn a_worker_that_is_stuck_is_found_while_the_others_run() {
    let (open, pass) = gate();
    let factory = move |_| {
        let pass = pass.clone();
        Ok(map(move |x: u64| {
            if x == 17 {
                pass()?;
            }
            Ok(x)
        }))
    };
    let line = Flow::from(count(100)).then(factory).workers(3).into(each(|_| continues()));
    found(line, "Map", How::AtWork(Task::Item(17)), open);
}

#[test]
fn a_factory_that_is_stuck_is_found_while_it_runs() {
    let (open, pass) = gate();
    let factory = move |_| {
        pass()?;
        Ok(map(Ok::<u64, BoxError>))
    };
    found(Flow::from(count(9)).then(factory).into(each(|_| continues())), "Map", How::AtWork(Task::Factory), open);
}

#[test]
fn a_regroup_that_is_stuck_in_its_finish_is_found_while_it_runs() {
    let (open, pass) = gate();
    let regroup = steps(move |item: Option<u64>, out| match item {
        Some(item) => Ok(out.send(item)?),
        None => pass(),
    });
    let line = Flow::from(count(9)).regroup(regroup).into(each(|_| continues()));
    found(line, "Steps", How::AtWork(Task::Finish), open);
}

#[test]
fn a_sink_that_is_stuck_is_found_while_the_rest_waits() {
    let (open, pass) = gate();
    let sink = each(move |x: u64| {
        if x == 3 {
            pass()?;
        }
        continues()
    });
    found(Flow::from(count(50)).into(sink), "Each", How::AtWork(Task::Item(3)), open);
}

#[test]
fn a_branch_that_is_stuck_is_found_while_the_others_starve() {
    let (open, pass) = gate();
    let line = Flow::from(count(200)).split(3, |index, branch| {
        let pass = pass.clone();
        let factory = move |_| {
            let pass = pass.clone();
            Ok(map(move |x: u64| {
                // Item 4 of the branch.
                if index == 1 && x == 13 {
                    pass()?;
                }
                Ok(x)
            }))
        };
        branch.then(factory).workers(2).into(each(|_| continues()))
    });
    found(line, "Map[1]", How::AtWork(Task::Item(4)), open);
}

#[test]
fn a_source_without_a_free_slab_is_found_while_it_waits() {
    let slabs = Slabs::new(1, || ());
    let mut kept = Some(slabs.take(&Stop::never()).unwrap());
    let mut numbers = 0..20;
    let source = make(move |stop| numbers.next().map(|_: u64| Ok(slabs.take(stop)?)).transpose());
    let line = Flow::from(source).into(each(|_| continues()));
    found(line, "Make", How::NoBuffer, move || drop(kept.take()));
}
