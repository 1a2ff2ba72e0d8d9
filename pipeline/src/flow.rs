//! Writing a flow down: [`Flow`] while it is open at its end, [`Line`] once it ends in sinks.
//!
//! Nothing runs before [`Line::run`]. The last node of a flow is not linked until the next one is added, because
//! `workers`, `depth` and `named` may still change it.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;

use crate::error::{BoxError, FlowError, PlanError};
use crate::link::{Inlet, Outlet, Room, link};
use crate::meter::Gauge;
use crate::node::{self, Body, Node};
use crate::report::Report;
use crate::run::{self, Finished, Observer, Runtime};
use crate::stage::{Regroup, Sink, Source, Stage, Worker};

/// Most items that a link has room for. It guards against a slip of the pen: the slots alone would take 40 MB.
const MOST_ROOM: usize = 1 << 16;

/// The last node of the flow has one thread.
#[derive(Debug)]
pub enum Serial {}

/// The last node of the flow is a [`Stage`], and may be given workers.
#[derive(Debug)]
pub enum Parallel {}

/// A flow that is open at its end, where items of type `T` come out.
#[must_use = "a flow does nothing until it ends in a sink and is run"]
pub struct Flow<T, M = Serial> {
    nodes: Vec<Node>,
    last: Open<T>,
    mode: PhantomData<M>,
}

/// The last node, of which the outgoing link is not made yet.
struct Open<T> {
    name: String,
    /// `None` if the node is serial.
    workers: Option<usize>,
    depth: Option<usize>,
    room: Room,
    /// No node comes from the start of a branch: the split is its node.
    close: Box<dyn FnOnce(Sealed<T>) -> Option<Node>>,
}

/// What is settled about a node once the next one is added.
struct Sealed<T> {
    name: String,
    workers: usize,
    fault: Option<PlanError>,
    outlet: Outlet<T>,
}

/// A flow that ends in sinks, and can be run. `O` is what the sinks leave behind.
#[must_use = "a line does nothing until it is run"]
pub struct Line<O> {
    nodes: Vec<Node>,
    /// The sinks' output; `None` if one did not finish.
    collect: Box<dyn FnOnce() -> Option<O>>,
    observers: Vec<Observer>,
}

impl<T> Sealed<T> {
    fn node(self, input: Option<Arc<Gauge>>, threads: impl FnOnce(Outlet<T>, usize) -> Vec<Body>) -> Node {
        Node { fault: self.fault, ..Node::new(self.name, threads(self.outlet, self.workers), input) }
    }
}

impl<T: Send + 'static> Flow<T> {
    /// Starts with what `source` makes.
    pub fn from<S: Source<Item = T>>(source: S) -> Self {
        let name = source.name();
        let close = |end: Sealed<T>| Some(end.node(None, |outlet, _| vec![node::source(source, outlet)]));
        Self::open(Vec::new(), Open { name, workers: None, depth: None, room: Room::Wakes, close: Box::new(close) })
    }
}

impl<T: Send + 'static, M> Flow<T, M> {
    fn open(nodes: Vec<Node>, last: Open<T>) -> Self {
        Self { nodes, last, mode: PhantomData }
    }

    /// Puts each item through a stage, on one thread or on as many as [`workers`](Flow::workers) says. `factory` is
    /// called once on each worker's thread.
    pub fn then<S, F>(self, factory: F) -> Flow<S::Out, Parallel>
    where
        S: Stage<In = T>,
        F: Fn(Worker) -> Result<S, BoxError> + Send + Sync + 'static,
    {
        let (nodes, inlet) = self.seal();
        let close = |end: Sealed<S::Out>| {
            Some(end.node(Some(inlet.gauge()), |outlet, workers| node::stage(factory, workers, inlet, &outlet)))
        };
        Flow::open(
            nodes,
            Open { name: S::name(), workers: Some(1), depth: None, room: Room::Wakes, close: Box::new(close) },
        )
    }

    /// Puts the items through a serial many-to-many step.
    pub fn regroup<R: Regroup<In = T>>(self, regroup: R) -> Flow<R::Out> {
        let (nodes, inlet) = self.seal();
        let name = regroup.name();
        let close = |end: Sealed<R::Out>| {
            Some(end.node(Some(inlet.gauge()), |outlet, _| vec![node::regroup(regroup, inlet, outlet)]))
        };
        Flow::open(nodes, Open { name, workers: None, depth: None, room: Room::Wakes, close: Box::new(close) })
    }

    /// Sets how many finished items may wait behind the last node, at least 1. By default 2, or twice the workers of
    /// a stage. A stage has room for `depth` items beyond the one that each worker is at.
    ///
    /// On a branch, before any other node, it sets the room between the split and the branch.
    pub fn depth(mut self, items: usize) -> Self {
        self.last.depth = Some(items);
        self
    }

    /// As [`depth`](Self::depth), for a consumer that must not be held up: whoever finds the link full is not woken
    /// by the consumer's thread, but looks by itself, at least every 2 ms, whether there is room again: `items` should last longer than that.
    pub fn prefetch(mut self, items: usize) -> Self {
        self.last.room = Room::Looks;
        self.depth(items)
    }

    /// Names the last node in reports, errors and its threads. On a branch, before any other node, it labels the
    /// branch: `decode[cuda:1]` in place of `decode[1]`.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.last.name = name.into();
        self
    }

    /// Deals the items out to `n` branches: item `k` goes to branch `k % n`. `branch` is called for each and takes it
    /// to its own end; the outputs come in the order of the branches.
    ///
    /// A branch whose sink breaks takes nothing more, and the others still get exactly their items.
    pub fn split<O: 'static>(self, n: usize, mut branch: impl FnMut(usize, Flow<T>) -> Line<O>) -> Line<Vec<O>> {
        let (mut nodes, inlet) = self.seal();
        let at = nodes.len();
        let mut fault = if n == 0 { Some(PlanError::NoBranches) } else { None };
        let (mut outlets, mut collects, mut observers) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..n {
            let (give, take) = bounded(1);
            let close = move |end| {
                let _ = give.try_send(end);
                None
            };
            let start =
                Open { name: index.to_string(), workers: None, depth: None, room: Room::Wakes, close: Box::new(close) };
            let mut line = branch(index, Flow::open(Vec::new(), start));
            match take.try_recv() {
                Ok(Sealed { name, fault: bad, outlet, .. }) => {
                    fault = fault.or(bad);
                    outlets.push(outlet);
                    line.nodes.iter_mut().for_each(|node| node.branch.insert(0, name.clone()));
                }
                Err(_) => fault = fault.or(Some(PlanError::UnusedBranch { branch: index })),
            }
            // The split goes to `at`, in front of all branches.
            let behind = nodes.len() + 1 - at;
            line.nodes.iter_mut().take(1).for_each(|first| first.behind = behind);
            nodes.append(&mut line.nodes);
            collects.push(line.collect);
            observers.append(&mut line.observers);
        }
        let gauge = inlet.gauge();
        let mut split = Node::new("split".to_owned(), vec![node::split(inlet, outlets)], Some(gauge));
        split.fault = fault;
        nodes.insert(at, split);
        Line { nodes, collect: Box::new(|| collects.into_iter().map(|collect| collect()).collect()), observers }
    }

    /// Ends in `sink`.
    pub fn into<K: Sink<In = T>>(self, sink: K) -> Line<K::Output> {
        let (mut nodes, inlet) = self.seal();
        let (give, take) = bounded(1);
        let (name, gauge) = (sink.name(), inlet.gauge());
        let mut node = Node::new(name, vec![node::sink(sink, inlet, give)], Some(gauge));
        node.is_sink = true;
        nodes.push(node);
        Line { nodes, collect: Box::new(move || take.try_recv().ok()), observers: Vec::new() }
    }

    /// Makes the link behind the last node.
    fn seal(mut self) -> (Vec<Node>, Inlet<T>) {
        let Open { name, workers, depth, room: waits, close } = self.last;
        let threads = workers.unwrap_or(1);
        let depth = depth.unwrap_or(if workers.is_some() { threads.saturating_mul(2) } else { 2 });
        let room = depth.saturating_add(workers.unwrap_or(0));
        let fault = match (threads, depth) {
            (0, _) => Some(PlanError::NoWorkers),
            (_, 0) => Some(PlanError::NoDepth),
            _ if room > MOST_ROOM => Some(PlanError::TooDeep { room, most: MOST_ROOM }),
            _ => None,
        };
        let (room, threads) = if fault.is_some() { (1, 1) } else { (room, threads) };
        let (outlet, inlet) = link(room, waits);
        self.nodes.extend(close(Sealed { name, workers: threads, fault, outlet }));
        (self.nodes, inlet)
    }
}

impl<T> Flow<T, Parallel> {
    /// Sets the number of threads of the last stage, at least 1. Results keep their order.
    pub fn workers(mut self, n: usize) -> Self {
        self.last.workers = Some(n);
        self
    }

    /// The same flow, whose last stage keeps the workers that it has: of one type with flows that end in one thread.
    pub fn fixed(self) -> Flow<T> {
        Flow { nodes: self.nodes, last: self.last, mode: PhantomData }
    }
}

impl<O: 'static> Line<O> {
    /// Makes something else of what the sinks leave behind.
    pub fn map<P>(self, make: impl FnOnce(O) -> P + 'static) -> Line<P> {
        let Self { nodes, collect, observers } = self;
        Line { nodes, collect: Box::new(move || collect().map(make)), observers }
    }
}

impl<O> Line<O> {
    /// Calls `look` with the state of the run about once every `every` (at least 1 ms) and once at the end, on the
    /// thread that called [`run`](Self::run). It must not take long: errors are heard between calls.
    pub fn observe(mut self, every: Duration, look: impl FnMut(&Report) + 'static) -> Self {
        self.observers.push(Observer::new(every, Box::new(look)));
        self
    }

    /// Runs the flow on threads of its own, named after their stages, and blocks. Every thread has joined when it
    /// returns.
    ///
    /// # Errors
    ///
    /// The first error or panic of a stage, with its place, or a [`PlanError`]. An error of a stage upstream does not
    /// count once the last sink has all it wants.
    pub fn run(self, runtime: &Runtime) -> Result<Finished<O>, FlowError> {
        let (report, interrupted) = run::supervise(self.nodes, self.observers, runtime)?;
        let output = (self.collect)().expect("every sink has finished, since nothing failed");
        Ok(Finished { output, report, interrupted })
    }
}

impl<T, M> fmt::Debug for Flow<T, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.nodes.iter().map(Node::full_name).chain([self.last.name.clone()]).collect();
        f.debug_tuple("Flow").field(&names).finish()
    }
}

impl<O> fmt::Debug for Line<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Line").field(&self.nodes.iter().map(Node::full_name).collect::<Vec<_>>()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::closures::{count, keep, map};

    #[test]
    fn threads_are_named_after_their_stage() {
        let name = || std::thread::current().name().unwrap_or_default().to_owned();
        let line = Flow::from(count(1)).then(move |_| Ok(map(move |_| Ok(name())))).named("nul\0in it").depth(1);
        let line = line.then(move |_| Ok(map(move |one| Ok((one, name()))))).named("two").workers(2);
        let ((names, _), first) = (line.into(keep()).run(&Runtime::default()).unwrap().output, "nul in it".to_owned());
        let two = &names[0].1;
        assert_eq!(names[0].0, first);
        assert!(["two.0", "two.1"].contains(&two.as_str()), "{two}");
    }

    #[test]
    fn stages_behind_splits_are_named_with_their_branches() {
        let line = Flow::from(count(8)).split(2, |outer, branch| {
            let branch = if outer == 1 { branch.named("cuda:1") } else { branch };
            branch.split(2, |_, branch| branch.into(keep::<u64>()))
        });
        let finished = line.run(&Runtime::default()).unwrap();
        let items: Vec<_> = finished.output.into_iter().flatten().map(|(items, _)| items).collect();
        assert_eq!(items, [[0, 4], [2, 6], [1, 5], [3, 7]]);
        let names: Vec<_> = finished.report.stages.iter().map(|stage| stage.name.as_str()).collect();
        let expected = [
            "Make",
            "split",
            "split[0]",
            "Keep[0.0]",
            "Keep[0.1]",
            "split[cuda:1]",
            "Keep[cuda:1.0]",
            "Keep[cuda:1.1]",
        ];
        assert_eq!(names, expected);
        let upstream: Vec<_> = finished.report.stages.iter().map(|stage| stage.upstream).collect();
        assert_eq!(upstream, [None, Some(0), Some(1), Some(2), Some(2), Some(1), Some(5), Some(5)]);
    }

    #[test]
    fn a_plan_that_cannot_be_run_is_refused_with_its_place() {
        fn refused<O>(line: Line<O>) -> (String, PlanError) {
            let error = line.run(&Runtime::default()).err().expect("the plan is wrong");
            (error.stage, *error.source.downcast::<PlanError>().unwrap())
        }
        let numbers = || Flow::from(count(1));
        let same = |_| Ok(map(Ok::<u64, BoxError>));
        assert_eq!(refused(numbers().then(same).workers(0).into(keep())), ("Map".into(), PlanError::NoWorkers));
        assert_eq!(refused(numbers().depth(0).into(keep())), ("Make".into(), PlanError::NoDepth));
        assert_eq!(
            refused(numbers().then(same).depth(65_536).into(keep())),
            ("Map".into(), PlanError::TooDeep { room: 65_537, most: 65_536 })
        );
        assert!(matches!(refused(numbers().then(same).workers(usize::MAX).into(keep())).1, PlanError::TooDeep { .. }));
        assert_eq!(
            refused(numbers().split(0, |_, branch| branch.into(keep()))),
            ("split".into(), PlanError::NoBranches)
        );
        assert_eq!(
            refused(numbers().split(2, |_, _| numbers().into(keep()))),
            ("split".into(), PlanError::UnusedBranch { branch: 0 })
        );
        assert_eq!(refused(numbers().split(1, |_, b| b.depth(0).into(keep()))), ("split".into(), PlanError::NoDepth));
    }

    #[test]
    fn a_worker_is_told_its_index_once() {
        let (told, tell) = bounded(8);
        let factory = move |worker: Worker| {
            told.send(worker)?;
            Ok(map(Ok::<u64, BoxError>))
        };
        Flow::from(count(0)).then(factory).workers(4).into(keep()).run(&Runtime::default()).unwrap();
        let mut workers: Vec<_> = tell.iter().collect();
        workers.sort_by_key(|worker| worker.index);
        assert_eq!(workers, (0..4).map(|index| Worker { index, workers: 4 }).collect::<Vec<_>>());
    }
}
