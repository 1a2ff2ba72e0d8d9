//! Order and bound of any chain of stages, against a sequential model.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use proptest::prelude::*;

use crate::closures::{count, each, keep, make, map};
use crate::{BoxError, Emit, End, Flow, Line, Regroup, Runtime, Sink, Task, Wait};

/// Longer than any run that is right: a test that waits for it has failed.
const NEVER: Duration = Duration::from_secs(60);

/// What flows through a random chain.
type Item = Vec<u64>;

/// One node of a random chain, and the depth of the link behind it.
#[derive(Debug, Clone)]
enum Op {
    Map { workers: usize, depth: usize },
    Gather { size: usize, depth: usize },
    Scatter { depth: usize },
    Skip { every: usize, depth: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let depth = 1..=5_usize;
    prop_oneof![
        3 => (1..=4_usize, depth.clone()).prop_map(|(workers, depth)| Op::Map { workers, depth }),
        1 => (1..=4_usize, depth.clone()).prop_map(|(size, depth)| Op::Gather { size, depth }),
        1 => depth.clone().prop_map(|depth| Op::Scatter { depth }),
        1 => (2..=4_usize, depth).prop_map(|(every, depth)| Op::Skip { every, depth }),
    ]
}

fn triple(item: &Item) -> Item {
    item.iter().map(|x| x * 3 + 1).collect()
}

/// The model: what the node makes of a stream, and of its end if `complete`.
fn sequential(op: &Op, input: &[Item], complete: bool) -> Vec<Item> {
    match *op {
        Op::Map { .. } => input.iter().map(triple).collect(),
        Op::Gather { size, .. } if complete => input.chunks(size).map(<[Item]>::concat).collect(),
        Op::Gather { size, .. } => input.chunks_exact(size).map(<[Item]>::concat).collect(),
        Op::Scatter { .. } => input.iter().flatten().map(|&x| vec![x]).collect(),
        Op::Skip { every, .. } => {
            input.iter().enumerate().filter(|(k, _)| (k + 1) % every != 0).map(|(_, item)| item.clone()).collect()
        }
    }
}

/// The arithmetic of the crate's doc: how many items the source has made when the sink is stuck in item `stuck`.
fn made_when_stuck(ops: &[Op], source_depth: usize, stuck: usize) -> usize {
    let source: Vec<Item> = (0..20_000).map(|x| vec![x]).collect();
    let streams = ops.iter().scan(source, |stream, op| {
        let output = sequential(op, stream, false);
        Some(std::mem::replace(stream, output))
    });
    let streams: Vec<_> = streams.collect();
    let taken = ops.iter().zip(&streams).rev().fold(stuck + 1, |taken, (op, input)| match *op {
        Op::Map { workers, depth } => taken + depth + workers,
        Op::Gather { depth, .. } | Op::Scatter { depth } | Op::Skip { depth, .. } => {
            let tried = taken + depth + 1;
            let counts = (0..=input.len()).collect::<Vec<_>>();
            counts.partition_point(|&taken| sequential(op, &input[..taken], false).len() < tried)
        }
    });
    assert!(taken < 10_000, "the model's stream is too short for {taken} items");
    taken + source_depth + 1
}

/// The same nodes as the model, written as the engine wants them.
struct Step {
    op: Op,
    held: Vec<Item>,
    seen: usize,
}

impl Regroup for Step {
    type In = Item;
    type Out = Item;

    fn push(&mut self, item: Item, out: &mut Emit<'_, Item>) -> Result<(), BoxError> {
        self.seen += 1;
        match self.op {
            Op::Map { .. } => out.send(triple(&item))?,
            Op::Gather { size, .. } => {
                self.held.push(item);
                if self.held.len() == size {
                    out.send(std::mem::take(&mut self.held).concat())?;
                }
            }
            Op::Scatter { .. } => {
                for x in item {
                    out.send(vec![x])?;
                }
            }
            Op::Skip { every, .. } => {
                if !self.seen.is_multiple_of(every) {
                    out.send(item)?;
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Emit<'_, Item>) -> Result<(), BoxError> {
        if !self.held.is_empty() {
            out.send(std::mem::take(&mut self.held).concat())?;
        }
        Ok(())
    }
}

/// Works for a time that differs from item to item, so that workers finish out of order.
fn uneven(item: &Item) {
    let hash = item[0].wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
    (0..hash * 50).for_each(|_| std::hint::spin_loop());
    if hash.is_multiple_of(5) {
        std::thread::yield_now();
    }
}

/// Room behind the last node; whoever waits for it is woken if it is odd, and looks by itself if it is even.
fn room<T: Send + 'static, M>(flow: Flow<T, M>, depth: usize) -> Flow<T, M> {
    if depth.is_multiple_of(2) { flow.prefetch(depth) } else { flow.depth(depth) }
}

fn chain<M, K: Sink<In = Item>>(flow: Flow<Item, M>, ops: &[Op], sink: K) -> Line<K::Output> {
    let Some((op, rest)) = ops.split_first() else { return flow.into(sink) };
    match *op {
        Op::Map { workers, depth } => {
            let work = |item: Item| {
                uneven(&item);
                Ok(triple(&item))
            };
            chain(room(flow.then(move |_| Ok(map(work))).workers(workers), depth), rest, sink)
        }
        Op::Gather { depth, .. } | Op::Scatter { depth } | Op::Skip { depth, .. } => {
            let step = Step { op: op.clone(), held: Vec::new(), seen: 0 };
            chain(room(flow.regroup(step), depth), rest, sink)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_chain_gives_what_the_sequential_model_gives(
        ops in prop::collection::vec(op(), 0..5),
        depth in 1..=5_usize,
        items in 0..150_u64,
    ) {
        let mut numbers = 0..items;
        let flow = Flow::from(make(move |_| Ok(numbers.next().map(|x| vec![x])))).depth(depth);
        let finished = chain(flow, &ops, keep()).run(&Runtime::default()).unwrap();

        let source = (0..items).map(|x| vec![x]).collect();
        let expected = ops.iter().fold(source, |stream: Vec<Item>, op| sequential(op, &stream, true));
        prop_assert_eq!(finished.output, (expected, End::Complete));
        prop_assert!(!finished.interrupted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// From below: as many items are made while the sink is stuck. From above: at no time of the run, whether the
    /// sink is stuck or not, does the source make one more than fits. Each is checked for several items in a row.
    #[test]
    fn behind_a_stuck_sink_the_source_has_made_exactly_the_items_that_fit(
        ops in prop::collection::vec(op(), 0..4),
        depth in 1..=5_usize,
    ) {
        const ITEMS: usize = 4;
        let fits: Arc<[usize]> = (0..ITEMS).map(|stuck| made_when_stuck(&ops, depth, stuck)).collect();
        let released = Arc::new(AtomicUsize::new(0));
        let (made, mades) = unbounded();
        let (release, releases) = bounded::<()>(ITEMS);

        let source = {
            let (fits, released, mut next) = (Arc::clone(&fits), Arc::clone(&released), 0);
            make(move |_| {
                next += 1;
                // The sink counts before it takes the next item, so it may have taken `released + 1` by now, not more.
                let fit = fits.get(released.load(Ordering::SeqCst));
                if fit.is_some_and(|&fit| next > fit) {
                    return Err(format!("made item {next} where {fit:?} fit").into());
                }
                made.send(()).map_err(|_| "the test is gone")?;
                Ok(Some(vec![next as u64 - 1]))
            })
        };
        let sink = each(move |_: Item| {
            releases.recv_timeout(NEVER)?;
            let count = released.fetch_add(1, Ordering::SeqCst) + 1;
            Ok(if count == ITEMS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        let end = std::thread::scope(|scope| {
            let ops = &ops;
            let run = scope.spawn(move || {
                chain(Flow::from(source).depth(depth), ops, sink).run(&Runtime::default()).map(|finished| finished.output)
            });
            let mut count = 0;
            for &fit in fits.iter() {
                while count < fit && mades.recv_timeout(NEVER).is_ok() {
                    count += 1;
                }
                assert_eq!((count, mades.len()), (fit, 0));
                release.send(()).unwrap();
            }
            run.join().unwrap()
        });
        prop_assert_eq!(end.map_err(|error| error.to_string()), Ok(End::Broken));
    }

    #[test]
    fn a_split_deals_the_items_out_in_turn(
        branches in 1..5_usize,
        workers in 1..4_usize,
        depth in 1..4_usize,
        items in 0..100_u64,
    ) {
        let line = Flow::from(count(items)).split(branches, |_, branch| {
            branch.depth(depth).then(|_| Ok(map(|x: u64| Ok(x * 10)))).workers(workers).into(keep())
        });
        let finished = line.run(&Runtime::default()).unwrap();
        for (index, (output, end)) in finished.output.iter().enumerate() {
            let expected: Vec<_> = (index as u64..items).step_by(branches).map(|x| x * 10).collect();
            prop_assert_eq!(output, &expected);
            prop_assert_eq!(*end, End::Complete);
        }
    }

    #[test]
    fn behind_a_split_with_stuck_sinks_the_source_has_made_exactly_the_items_that_fit(
        depths in prop::collection::vec(1..5_usize, 1..4),
        depth in 1..5_usize,
    ) {
        let n = depths.len();
        let least = depths.iter().enumerate().map(|(b, depth)| b + n * (1 + depth) + 1).min().unwrap();
        let fit = least + depth + 1;
        let (made, mades) = unbounded();
        let (release, stuck) = bounded::<()>(1);
        let source = {
            let (mut next, stuck) = (0, stuck.clone());
            make(move |_| {
                next += 1;
                // Once the sinks are released there is nothing left to count, and the source ends.
                if next > fit && stuck.is_empty() {
                    return Err(format!("made item {next} where {fit} fit").into());
                }
                made.send(()).map_err(|_| "the test is gone")?;
                Ok((next <= fit).then_some(next))
            })
        };
        let end = std::thread::scope(|scope| {
            let run = scope.spawn(move || {
                let line = Flow::from(source).depth(depth).split(n, |branch, flow| {
                    let stuck = stuck.clone();
                    flow.depth(depths[branch]).into(each(move |_| {
                        // The message stays in the channel for the next one to see.
                        let began = Instant::now();
                        while stuck.is_empty() {
                            if began.elapsed() > NEVER {
                                return Err("the test has not released the sinks".into());
                            }
                            std::thread::yield_now();
                        }
                        Ok(ControlFlow::Continue(()))
                    }))
                });
                line.run(&Runtime::default()).map(|finished| finished.output)
            });
            let all = (0..fit).all(|_| mades.recv_timeout(NEVER).is_ok());
            let more = !mades.is_empty();
            // Released first, or a failure below would wait for sinks that never end.
            release.send(()).unwrap();
            let end = run.join().unwrap();
            assert!(all, "fewer than {fit} items were made while all sinks were stuck");
            assert!(!more, "more than {fit} items were made while all sinks were stuck");
            end
        });
        prop_assert_eq!(end.map_err(|error| error.to_string()), Ok(vec![End::Complete; n]));
    }
}

#[test]
fn a_late_item_holds_back_the_results_behind_it_and_the_items_that_have_no_room() {
    const WORKERS: usize = 3;
    const DEPTH: usize = 2;
    let (done, dones) = unbounded();
    let begun = Arc::new(AtomicUsize::new(0));
    let factory = move |_| {
        let (done, dones, begun) = (done.clone(), dones.clone(), Arc::clone(&begun));
        Ok(map(move |x: u64| {
            begun.fetch_add(1, Ordering::SeqCst);
            if x == 0 {
                // All others with room get done while this one is not.
                for _ in 1..WORKERS + DEPTH {
                    dones.recv_timeout(NEVER)?;
                }
                if begun.load(Ordering::SeqCst) != WORKERS + DEPTH {
                    return Err("an item was begun for whose result there is no room".into());
                }
            } else {
                done.send(())?;
            }
            Ok(x)
        }))
    };
    let line = Flow::from(count(100)).then(factory).workers(WORKERS).depth(DEPTH).into(keep());
    assert_eq!(line.run(&Runtime::default()).unwrap().output.0, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_report_of_a_stuck_run_shows_full_links_and_that_of_a_finished_run_empty_ones() {
    const WORKERS: usize = 2;
    let (release, stuck) = bounded::<()>(1);
    let mut first = true;
    let sink = each(move |_: u64| {
        if std::mem::take(&mut first) {
            stuck.recv_timeout(NEVER)?;
        }
        Ok(ControlFlow::Continue(()))
    });
    let line = Flow::from(count(100)).depth(3).named("numbers");
    let line = line.then(|_| Ok(map(Ok::<u64, BoxError>))).workers(WORKERS).depth(4).into(sink);
    let line = line.observe(Duration::from_millis(1), move |report| {
        let queued: Vec<_> = report.stages.iter().map(|stage| stage.queued).collect();
        let waiting = |index: usize| report.stages[index].waiting.map(|waiting| waiting.on);
        let at_work = report.stages.iter().map(|stage| stage.at_work.map(|work| work.task));
        // Nothing can move any more: this is a state, not a moment.
        if queued == [0, 3, 4 + WORKERS as u64]
            && report.stages[0].items == 1 + 6 + 3 + 1
            && at_work.eq([None, None, Some(Task::Item(0))])
            && [0, 1, 2].map(waiting) == [Some(Wait::Blocked), Some(Wait::Blocked), None]
            && report.stages.iter().all(|stage| !stage.ended)
        {
            let _ = release.try_send(());
        }
    });
    let report = line.run(&Runtime::default()).unwrap().report;
    let rows: Vec<_> = report.stages.iter().map(|s| (s.name.as_str(), s.workers, s.items, s.queued)).collect();
    assert_eq!(rows, [("numbers", 1, 100, 0), ("Map", WORKERS, 100, 0), ("Each", 1, 100, 0)]);
    assert!(report.stages.iter().all(|stage| stage.busy <= report.wall * stage.workers as u32));
    assert_eq!(report.stages.iter().map(|stage| stage.room).collect::<Vec<_>>(), [0, 3, 4 + WORKERS]);
    assert!(report.stages.iter().all(|stage| stage.ended && stage.at_work.is_none() && stage.waiting.is_none()));
    // Each worker of the stage and the source were blocked at least once.
    assert!(report.stages[0].waits >= 1 && report.stages[1].waits >= WORKERS as u64);
    // The sink found all 6 places taken at least once, after the item that it was stuck in.
    let mean = report.stages[2].queued_mean;
    assert!((6.0 / 100.0..=6.0).contains(&mean) && report.stages[0].queued_mean == 0.0, "{mean}");
}
