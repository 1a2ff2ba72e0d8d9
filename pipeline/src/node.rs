//! What the threads of each kind of node do, item by item.
//!
//! A [`Body`] owns the node's ends of its links and runs user code inside [`Post::guard`]. What is shared by all: the
//! outgoing end of a node that failed is dropped only after the run is stopped, so that no one downstream takes a
//! failure for the end of the stream. The incoming end may go at once: upstream takes that for "nobody wants it".

use std::cell::Cell;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::error::{BoxError, Panicked};
use crate::link::{Inlet, Outlet, Refused, SerialOutlet};
use crate::meter::{Gauge, Meter};
use crate::report::Wait;
use crate::stage::{Emit, End, Regroup, Sink, Source, Stage, Worker};
use crate::stop::{Interrupt, Stop, Stopped};

/// One thread of a node.
pub(crate) type Body = Box<dyn FnOnce(&Post) + Send>;

/// What a thread needs of its run.
#[derive(Debug)]
pub(crate) struct Post {
    /// Name of the node, for errors.
    pub(crate) stage: String,
    pub(crate) stop: Stop,
    pub(crate) interrupt: Interrupt,
    /// Set by the source when an interrupt cut it short. It is set before the source drops its end of the link, so
    /// every sink that sees the end of its stream sees the flag too.
    pub(crate) cut: Arc<AtomicBool>,
    /// Of this thread.
    pub(crate) meter: Arc<Meter>,
    pub(crate) events: Sender<Event>,
}

/// What a thread tells the supervisor. That it has ended, it tells by dropping its sender.
#[derive(Debug)]
pub(crate) enum Event {
    /// User code failed or panicked.
    Failed { stage: String, item: Option<u64>, source: BoxError, sink: bool },
    /// A sink takes nothing more, and is about to finish.
    SinkEnded(End),
}

/// Why a thread leaves its loop before the end of its stream.
enum Halt {
    /// The run is being taken down, or nobody wants the output.
    Quiet,
    Failed(BoxError),
}

impl From<Stopped> for Halt {
    fn from(_: Stopped) -> Self {
        Self::Quiet
    }
}

impl From<Refused> for Halt {
    fn from(_: Refused) -> Self {
        Self::Quiet
    }
}

/// Number of the item that is worked on, if any.
type At = Cell<Option<u64>>;

impl Post {
    /// Runs the loop of a thread; reports its failure or panic, and then keeps the caller from dropping its ends
    /// before the run is stopped.
    fn guard(&self, sink: bool, work: impl FnOnce(&At) -> Result<(), Halt>) {
        let at = At::new(None);
        // Unwind safety: after a panic nothing that `work` touched is used again, it is only dropped.
        let source = match catch_unwind(AssertUnwindSafe(|| work(&at))) {
            Ok(Ok(()) | Err(Halt::Quiet)) => return,
            Ok(Err(Halt::Failed(error))) => error,
            Err(payload) => Panicked::caught(&*payload).into(),
        };
        // The supervisor listens until every sender is gone, so this cannot fail.
        let _ = self.events.send(Event::Failed { stage: self.stage.clone(), item: at.get(), source, sink });
        self.stop.wait();
    }

    /// Sorts out an error of user code. `Stopped` is quiet only if there was a reason for it: from a stage that made
    /// it up it would pass for the end of the stream.
    fn halt(&self, error: BoxError, gone: bool) -> Halt {
        if Stopped::is(&*error) && (gone || self.stop.stopped()) { Halt::Quiet } else { Halt::Failed(error) }
    }
}

/// The thread of a source.
pub(crate) fn source<S: Source>(source: S, outlet: Outlet<S::Item>) -> Body {
    Box::new(move |post| {
        let mut outlet = SerialOutlet::new(outlet);
        post.guard(false, |at| {
            let mut source = source;
            for made in 0.. {
                if post.interrupt.requested() {
                    post.cut.store(true, Ordering::Release);
                    break;
                }
                at.set(Some(made));
                let item =
                    post.meter.at_item(made, || source.next(&post.stop)).map_err(|error| post.halt(error, false))?;
                let Some(item) = item else { break };
                post.meter.count();
                outlet.send(item, &post.stop)?;
            }
            at.set(None);
            Ok(())
        });
    })
}

/// The threads of a stage, at least one.
pub(crate) fn stage<S, F>(factory: F, workers: usize, inlet: Inlet<S::In>, outlet: &Outlet<S::Out>) -> Vec<Body>
where
    S: Stage,
    F: Fn(Worker) -> Result<S, BoxError> + Send + Sync + 'static,
{
    let workers = workers.max(1);
    let factory = Arc::new(factory);
    // The workers hand around the receiving end: whoever has it is next. So items are taken in order by one at a time,
    // and the wait for an item wakes one worker, not all.
    let (give, take) = bounded(1);
    give.try_send(inlet).expect("the channel is empty and its receiver is in scope");
    let one = |index| {
        let (factory, outlet) = (Arc::clone(&factory), outlet.clone());
        let (give, take) = (give.clone(), take.clone());
        let body: Body = Box::new(move |post| {
            post.guard(false, |at| {
                let made = post.meter.in_factory(|| factory(Worker { index, workers }));
                let mut stage = made.map_err(|error| post.halt(error, false))?;
                work(&mut stage, &give, &take, &outlet, post, at)
            });
        });
        body
    };
    (0..workers).map(one).collect()
}

/// The loop of one worker.
fn work<S: Stage>(
    stage: &mut S,
    give: &Sender<Inlet<S::In>>,
    take: &Receiver<Inlet<S::In>>,
    outlet: &Outlet<S::Out>,
    post: &Post,
    at: &At,
) -> Result<(), Halt> {
    let Post { stop, meter, .. } = post;
    loop {
        // Room for the result comes first: see the module doc of `link`.
        let place = outlet.reserve(stop)?;
        let mut inlet = stop.recv(take, Wait::Starved)?.expect("the channel is open: this worker has a sender");
        let next = inlet.recv(stop)?;
        give.try_send(inlet).expect("there is one receiving end, so the channel for it is empty");
        let Some((ticket, item)) = next else { return Ok(()) };
        at.set(Some(ticket));
        let result = meter.at_item(ticket, || stage.process(item)).map_err(|error| post.halt(error, false))?;
        at.set(None);
        meter.count();
        place.fill(ticket, result)?;
    }
}

/// The thread of a regroup.
pub(crate) fn regroup<R: Regroup>(regroup: R, mut inlet: Inlet<R::In>, outlet: Outlet<R::Out>) -> Body {
    Box::new(move |post| {
        let mut outlet = SerialOutlet::new(outlet);
        post.guard(false, |at| {
            let mut regroup = regroup;
            while let Some((ticket, item)) = inlet.recv(&post.stop)? {
                at.set(Some(ticket));
                let pushed = post.meter.at_item(ticket, || regroup.push(item, &mut Emit::new(&mut outlet, &post.stop)));
                pushed.map_err(|error| post.halt(error, outlet.is_gone()))?;
                at.set(None);
                post.meter.count();
            }
            let finished = post.meter.finishing(|| regroup.finish(&mut Emit::new(&mut outlet, &post.stop)));
            finished.map_err(|error| post.halt(error, outlet.is_gone()))
        });
    })
}

/// The thread of a split: item `k` goes to branch `k % n`. A branch whose sink broke gets nothing more, while the
/// others still get exactly what is theirs.
pub(crate) fn split<T: Send + 'static>(mut inlet: Inlet<T>, branches: Vec<Outlet<T>>) -> Body {
    Box::new(move |post| {
        let mut branches: Vec<_> = branches.into_iter().map(SerialOutlet::new).collect();
        post.guard(false, |_| {
            while let Some((ticket, item)) = inlet.recv(&post.stop)? {
                let branch = (ticket % branches.len() as u64) as usize;
                let sent = match &mut branches[branch] {
                    gone if gone.is_gone() => continue,
                    open => open.send(item, &post.stop),
                };
                match sent {
                    Ok(()) => post.meter.count(),
                    Err(Refused::Stopped) => return Err(Halt::Quiet),
                    Err(Refused::Gone) if branches.iter().all(SerialOutlet::is_gone) => return Err(Halt::Quiet),
                    Err(Refused::Gone) => {}
                }
            }
            Ok(())
        });
    })
}

/// The thread of a sink. Its output goes to `output`, which has capacity for it.
pub(crate) fn sink<K: Sink>(sink: K, inlet: Inlet<K::In>, output: Sender<K::Output>) -> Body {
    Box::new(move |post| {
        post.guard(true, |at| {
            let (mut sink, mut inlet) = (sink, inlet);
            let end = loop {
                let Some((ticket, item)) = inlet.recv(&post.stop)? else {
                    break if post.cut.load(Ordering::Acquire) { End::Interrupted } else { End::Complete };
                };
                at.set(Some(ticket));
                let flow =
                    post.meter.at_item(ticket, || sink.consume(item)).map_err(|error| post.halt(error, false))?;
                at.set(None);
                post.meter.count();
                if flow == ControlFlow::Break(()) {
                    break if post.interrupt.requested() { End::Interrupted } else { End::Broken };
                }
            };
            // Upstream need not wait for what may be a long `finish`.
            drop(inlet);
            let _ = post.events.send(Event::SinkEnded(end));
            let result = post.meter.finishing(|| sink.finish(end)).map_err(Halt::Failed)?;
            // Capacity 1 and one output; the receiver is gone only if `run` itself was unwound.
            let _ = output.try_send(result);
            Ok(())
        });
    })
}

/// One node of a plan: its threads and what is known of it.
pub(crate) struct Node {
    pub(crate) name: String,
    /// Labels of the branches that it lies in, outermost first.
    pub(crate) branch: Vec<String>,
    pub(crate) bodies: Vec<Body>,
    pub(crate) input: Option<Arc<Gauge>>,
    /// How many places before it in the plan the node lies that feeds it; for the source, before the first.
    pub(crate) behind: usize,
    pub(crate) is_sink: bool,
    /// Why the plan cannot be run.
    pub(crate) fault: Option<crate::error::PlanError>,
}

impl Node {
    pub(crate) fn new(name: String, bodies: Vec<Body>, input: Option<Arc<Gauge>>) -> Self {
        Self { name, branch: Vec::new(), bodies, input, behind: 1, is_sink: false, fault: None }
    }

    /// Name in reports and errors.
    pub(crate) fn full_name(&self) -> String {
        if self.branch.is_empty() { self.name.clone() } else { format!("{}[{}]", self.name, self.branch.join(".")) }
    }
}
