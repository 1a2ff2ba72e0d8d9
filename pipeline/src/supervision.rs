//! How runs end: failures and panics anywhere, interrupts, sinks that break, and what is left behind.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::bounded;
use proptest::prelude::*;

use crate::closures::{count, each, first, keep, make, map, steps};
use crate::{BoxError, End, Flow, FlowError, Interrupt, Panicked, Runtime, Sink, Slab, Slabs, Stop, Stopped, Worker};

/// Longer than any run that is right: a test that waits for it has failed.
const NEVER: Duration = Duration::from_secs(60);

/// Where a run is made to fail.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Next,
    Factory,
    Process,
    Push,
    RegroupFinish,
    Consume,
    SinkFinish,
}

const PLACES: [Place; 7] =
    [Place::Next, Place::Factory, Place::Process, Place::Push, Place::RegroupFinish, Place::Consume, Place::SinkFinish];

/// Fails in one way at one place, at item `item` if that is a place of items. Every node has a clone.
#[derive(Debug, Clone)]
struct Trap {
    place: Place,
    item: u64,
    panics: bool,
    alive: Arc<()>,
    finished: Arc<AtomicBool>,
}

impl Trap {
    fn at(&self, place: Place, item: u64) -> Result<(), BoxError> {
        if self.place != place || self.item != item {
            return Ok(());
        }
        if self.panics {
            std::panic::resume_unwind(Box::new("sprung".to_owned()));
        }
        Err("sprung".into())
    }

    /// Places without an item fail whatever the item is.
    fn at_once(&self, place: Place) -> Result<(), BoxError> {
        self.at(place, self.item)
    }

    /// A flow of 100 numbers through one node of each kind.
    fn run(&self, workers: usize, depth: usize) -> Result<(), FlowError> {
        let (next, process, push, sink) = (self.clone(), self.clone(), self.clone(), self.clone());
        let mut numbers = 0..100;
        let source = make(move |_| {
            let number = numbers.next();
            next.at(Place::Next, number.unwrap_or(u64::MAX))?;
            Ok(number)
        });
        let factory = move |worker: Worker| {
            if worker.index + 1 == workers {
                process.at_once(Place::Factory)?;
            }
            let trap = process.clone();
            Ok(map(move |x| {
                trap.at(Place::Process, x)?;
                Ok(x)
            }))
        };
        let regroup = steps(move |item, out| match item {
            Some(item) => {
                push.at(Place::Push, item)?;
                Ok(out.send(item)?)
            }
            None => push.at_once(Place::RegroupFinish),
        });
        let line = Flow::from(source).named("next").depth(depth);
        let line = line.then(factory).named("process").workers(workers).depth(depth);
        let line = line.regroup(regroup).named("regroup").depth(depth);
        line.into(Trapped(sink)).run(&Runtime::default()).map(|finished| finished.output)
    }
}

struct Trapped(Trap);

impl Sink for Trapped {
    type In = u64;
    type Output = ();

    fn consume(&mut self, item: u64) -> Result<ControlFlow<()>, BoxError> {
        self.0.at(Place::Consume, item)?;
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, _: End) -> Result<(), BoxError> {
        self.0.finished.store(true, Ordering::SeqCst);
        self.0.at_once(Place::SinkFinish)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_failure_anywhere_names_its_place_and_leaves_nothing_behind(
        place in prop::sample::select(&PLACES[..]),
        item in 0..100_u64,
        panics: bool,
        workers in 1..5_usize,
        depth in 1..4_usize,
    ) {
        let trap = Trap { place, item, panics, alive: Arc::default(), finished: Arc::default() };
        let error = trap.run(workers, depth).unwrap_err();
        let (stage, item) = match place {
            Place::Next => ("next", Some(item)),
            Place::Factory => ("process", None),
            Place::Process => ("process", Some(item)),
            Place::Push => ("regroup", Some(item)),
            Place::RegroupFinish => ("regroup", None),
            Place::Consume => ("Trapped", Some(item)),
            Place::SinkFinish => ("Trapped", None),
        };
        prop_assert_eq!((error.stage.as_str(), error.item), (stage, item));
        let what = if panics { "panicked: sprung" } else { "sprung" };
        prop_assert_eq!(error.source.to_string(), what);
        prop_assert_eq!(error.source.is::<Panicked>(), panics);
        prop_assert_eq!(trap.finished.load(Ordering::SeqCst), place == Place::SinkFinish);
        prop_assert_eq!(Arc::strong_count(&trap.alive), 1, "a thread still has a node");
    }

    #[test]
    fn all_that_was_made_before_an_interrupt_reaches_the_sink(
        last in 0..100_u64,
        workers in 1..5_usize,
        depth in 1..4_usize,
        size in 1..5_usize,
    ) {
        let interrupt = Interrupt::default();
        let (runtime, mut numbers) = (Runtime::new(interrupt.clone()), 0..);
        let source = make(move |_| {
            let number = numbers.next();
            if number == Some(last) {
                interrupt.request();
            }
            Ok(number)
        });
        let mut held = Vec::new();
        let gather = steps(move |item, out| {
            let complete = item.is_none();
            held.extend(item);
            if held.len() == size || complete {
                out.send(std::mem::take(&mut held))?;
            }
            Ok(())
        });
        let line = Flow::from(source).depth(depth).then(|_| Ok(map(Ok::<u64, BoxError>))).workers(workers).depth(depth);
        let finished = line.regroup(gather).into(keep::<Vec<u64>>()).run(&runtime).unwrap();
        prop_assert_eq!(finished.output.0.concat(), (0..=last).collect::<Vec<_>>());
        prop_assert_eq!((finished.output.1, finished.interrupted), (End::Interrupted, true));
    }

    #[test]
    fn a_sink_that_breaks_has_the_first_items_and_the_run_ends_without_error(
        most in 1..50_usize,
        workers in 1..5_usize,
        depth in 1..4_usize,
    ) {
        let line = Flow::from(count(u64::MAX)).then(|_| Ok(map(Ok::<u64, BoxError>))).workers(workers).depth(depth);
        let finished = line.into(first(most)).run(&Runtime::default()).unwrap();
        prop_assert_eq!(finished.output, ((0..most as u64).collect(), End::Broken));
        prop_assert!(!finished.interrupted);
    }

    #[test]
    fn slabs_bound_a_flow_and_are_all_back_after_it(
        count in 1..4_usize,
        workers in 1..5_usize,
        fails in prop::option::of(0..60_u64),
    ) {
        let mut ids = 0..;
        let slabs = Slabs::new(count, || (ids.next().unwrap(), 0_u64));
        let in_use = Arc::new(AtomicUsize::new(0));
        let (pool, taken) = (slabs.clone(), Arc::clone(&in_use));
        let mut numbers = 0..60;
        let source = make(move |stop| {
            let Some(number) = numbers.next() else { return Ok(None) };
            let mut slab = pool.take(stop)?;
            slab.1 = number;
            if taken.fetch_add(1, Ordering::SeqCst) >= count {
                return Err("more slabs are in use than there are".into());
            }
            Ok(Some(slab))
        });
        let given_back = Arc::clone(&in_use);
        let factory = move |_| {
            let in_use = Arc::clone(&given_back);
            Ok(map(move |slab: Slab<(usize, u64)>| {
                if Some(slab.1) == fails {
                    in_use.fetch_sub(1, Ordering::SeqCst);
                    return Err("sprung".into());
                }
                Ok(slab)
            }))
        };
        let mut numbers = 0..;
        let sink = each(move |slab: Slab<(usize, u64)>| {
            if slab.0 >= count || Some(slab.1) != numbers.next() {
                return Err(format!("slab {} holds {}", slab.0, slab.1).into());
            }
            in_use.fetch_sub(1, Ordering::SeqCst);
            Ok(ControlFlow::Continue(()))
        });
        let run = Flow::from(source).then(factory).workers(workers).into(sink).run(&Runtime::default());
        let ended = run.map(|finished| finished.output).map_err(|error| (error.stage, error.item));
        prop_assert_eq!(ended, fails.map_or(Ok(End::Complete), |item| Err(("Map".into(), Some(item)))));
        prop_assert_eq!(slabs.available(), count);
    }

    #[test]
    fn a_branch_that_breaks_leaves_the_others_their_items(
        branches in 2..5_usize,
        broken in 0..5_usize,
        most in 1..10_usize,
        depth in 1..4_usize,
    ) {
        let broken = broken % branches;
        let line = Flow::from(count(60)).split(branches, |index, branch| {
            let most = if index == broken { most } else { usize::MAX };
            branch.depth(depth).then(|_| Ok(map(Ok::<u64, BoxError>))).workers(2).into(first(most))
        });
        for (index, (items, end)) in line.run(&Runtime::default()).unwrap().output.into_iter().enumerate() {
            let expected: Vec<_> = (index as u64..60).step_by(branches).collect();
            if index == broken {
                prop_assert_eq!((items.as_slice(), end), (&expected[..most], End::Broken));
            } else {
                prop_assert_eq!((items, end), (expected, End::Complete));
            }
        }
    }

    #[test]
    fn a_failure_in_a_branch_names_the_branch_and_ends_all(
        branches in 1..4_usize,
        failing in 0..4_usize,
        item in 0..20_u64,
    ) {
        let failing = failing % branches;
        let line = Flow::from(count(u64::MAX)).split(branches, |index, branch| {
            let mut seen = 0..;
            let work = move |x: u64| {
                if index == failing && seen.next() == Some(item) { Err("sprung".into()) } else { Ok(x) }
            };
            branch.then(move |_| Ok(map(work.clone()))).into(keep())
        });
        let error = line.run(&Runtime::default()).unwrap_err();
        prop_assert_eq!(error.to_string(), format!("stage \"Map[{failing}]\", item {item}: sprung"));
    }
}

#[test]
fn a_sink_that_breaks_after_an_interrupt_was_requested_ends_interrupted() {
    let interrupt = Interrupt::default();
    let runtime = Runtime::new(interrupt.clone());
    let sink = each(move |_: u64| {
        interrupt.request();
        Ok(ControlFlow::Break(()))
    });
    let finished = Flow::from(count(u64::MAX)).into(sink).run(&runtime).unwrap();
    assert_eq!((finished.output, finished.interrupted), (End::Interrupted, true));
}

#[test]
fn an_interrupt_after_the_last_item_was_made_takes_nothing_from_the_run() {
    let interrupt = Interrupt::default();
    let (runtime, mut made) = (Runtime::new(interrupt.clone()), false);
    let source = make(move |_| {
        if std::mem::replace(&mut made, true) {
            interrupt.request();
            return Ok(None);
        }
        Ok(Some(7_u64))
    });
    let finished = Flow::from(source).into(keep()).run(&runtime).unwrap();
    assert_eq!((finished.output, finished.interrupted), ((vec![7], End::Complete), false));
}

#[test]
fn an_error_upstream_does_not_count_once_the_sink_has_enough() {
    let (finishing, finish) = bounded(1);
    let mut made = false;
    let source = make(move |_| {
        if std::mem::replace(&mut made, true) {
            finish.recv_timeout(NEVER)?;
            return Err("nobody asked for a second item".into());
        }
        Ok(Some(()))
    });
    struct One(crossbeam_channel::Sender<()>);
    impl Sink for One {
        type In = ();
        type Output = End;
        fn consume(&mut self, (): ()) -> Result<ControlFlow<()>, BoxError> {
            Ok(ControlFlow::Break(()))
        }
        fn finish(self, end: End) -> Result<End, BoxError> {
            self.0.send(())?;
            Ok(end)
        }
    }
    assert_eq!(Flow::from(source).into(One(finishing)).run(&Runtime::default()).unwrap().output, End::Broken);
}

#[test]
fn an_error_of_a_sink_that_finishes_after_it_broke_does_count() {
    struct Torn;
    impl Sink for Torn {
        type In = u64;
        type Output = ();
        fn consume(&mut self, _: u64) -> Result<ControlFlow<()>, BoxError> {
            Ok(ControlFlow::Break(()))
        }
        fn finish(self, _: End) -> Result<(), BoxError> {
            Err("the disk is full".into())
        }
    }
    let error = Flow::from(count(u64::MAX)).into(Torn).run(&Runtime::default()).unwrap_err();
    assert_eq!(error.to_string(), "stage \"Torn\": the disk is full");
}

#[test]
fn a_source_that_waits_for_a_slab_is_woken_when_another_stage_fails() {
    let slabs = Slabs::new(1, || ());
    let (pool, kept) = (slabs.clone(), slabs.take(&Stop::never()).unwrap());
    let (waiting, wait) = bounded(1);
    let mut waits = false;
    let source = make(move |stop| {
        if std::mem::replace(&mut waits, true) {
            waiting.send(())?;
            pool.take(stop)?;
        }
        Ok(Some(()))
    });
    let sink = each(move |()| {
        wait.recv_timeout(NEVER)?;
        Err("sprung".into())
    });
    let error = Flow::from(source).into(sink).run(&Runtime::default()).unwrap_err();
    assert_eq!((error.stage.as_str(), error.item), ("Each", Some(0)));
    drop(kept);
    assert_eq!(slabs.available(), 1);
}

#[test]
fn a_stage_that_makes_stopped_up_has_failed() {
    let line = Flow::from(count(3)).then(|_| Ok(map(|_: u64| Err::<u64, _>(Stopped.into())))).into(keep());
    let error = line.run(&Runtime::default()).unwrap_err();
    assert_eq!(error.to_string(), "stage \"Map\", item 0: the run is being taken down");
}

#[test]
fn a_panic_in_the_drop_of_a_node_is_an_error() {
    struct Heavy;
    impl Drop for Heavy {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("dropped"));
        }
    }
    let (mut numbers, heavy) = (0..5_u64, Heavy);
    let source = make(move |_| {
        let _held = &heavy;
        Ok(numbers.next())
    });
    let error = Flow::from(source).named("numbers").into(keep()).run(&Runtime::default()).unwrap_err();
    assert_eq!(error.to_string(), "stage \"numbers\": panicked: dropped");
}

#[test]
fn a_panic_of_an_observer_is_an_error() {
    let (started, start) = bounded::<()>(1);
    let sink = each(move |_: u64| {
        // Ends when the observer, and the sender that it owns, are gone; or at once when there is a message.
        let _ = start.recv_timeout(NEVER);
        Ok(ControlFlow::Continue(()))
    });
    let line = Flow::from(count(2)).into(sink).observe(Duration::ZERO, move |_| {
        let _ = started.try_send(());
        std::panic::resume_unwind(Box::new("blind"));
    });
    assert_eq!(line.run(&Runtime::default()).unwrap_err().to_string(), "stage \"observe\": panicked: blind");
}

#[test]
fn an_observer_sees_the_end() {
    let (sender, seen) = bounded(9);
    let line = Flow::from(count(7)).into(keep()).observe(NEVER, move |report| {
        sender.send(report.stages.iter().map(|stage| stage.items).collect::<Vec<_>>()).unwrap();
    });
    line.run(&Runtime::default()).unwrap();
    assert_eq!(seen.iter().collect::<Vec<_>>(), [vec![7, 7]]);
}
