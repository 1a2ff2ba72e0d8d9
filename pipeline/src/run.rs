//! Supervision: starts the threads of a plan, hears of the first failure, and sees every thread out.
//!
//! The thread that calls `run` does nothing else. It hears events until the last thread has dropped its sender, so it
//! needs no count of threads and cannot miss one. It stops the run by dropping the [`Raise`] in two cases: at the
//! first failure, and when the last sink takes nothing more.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use crate::error::{BoxError, FlowError, Panicked};
use crate::meter::Meter;
use crate::node::{Event, Node, Post};
use crate::report::{Probe, Report};
use crate::stage::End;
use crate::stop::{Interrupt, Raise, Stop};

/// What runs have in common: the interrupt that they answer to.
#[derive(Debug, Clone, Default)]
pub struct Runtime {
    interrupt: Interrupt,
}

impl Runtime {
    /// Runs that come to an early end when `interrupt` is requested.
    pub fn new(interrupt: Interrupt) -> Self {
        Self { interrupt }
    }

    /// The interrupt, to give a clone of it to a sink that wants to break early.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

/// What a run leaves behind.
#[derive(Debug, Clone)]
pub struct Finished<O> {
    /// Output of the sink, or of all sinks in the order of their branches.
    pub output: O,
    /// What every stage did.
    pub report: Report,
    /// Whether an interrupt cut the run short: some sink ended with [`End::Interrupted`].
    pub interrupted: bool,
}

/// Someone who looks at the run from time to time.
pub(crate) struct Observer {
    every: Duration,
    look: Box<dyn FnMut(&Report)>,
}

impl Observer {
    pub(crate) fn new(every: Duration, look: Box<dyn FnMut(&Report)>) -> Self {
        Self { every: every.max(Duration::from_millis(1)), look }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").field("every", &self.every).finish_non_exhaustive()
    }
}

/// Runs the nodes to their end; the account of the run, and whether an interrupt cut it short.
pub(crate) fn supervise(
    mut nodes: Vec<Node>,
    observers: Vec<Observer>,
    runtime: &Runtime,
) -> Result<(Report, bool), FlowError> {
    for node in &mut nodes {
        if let Some(fault) = node.fault.take() {
            return Err(FlowError { stage: node.full_name(), item: None, source: fault.into() });
        }
    }
    let sinks = nodes.iter().filter(|node| node.is_sink).count();
    let (stop, raise) = Stop::new();
    let mut state = State { raise: Some(raise), failure: None, sinks, interrupted: false };
    let started = Instant::now();
    let Started { threads, probes, events } = start(nodes, &stop, runtime, started, &mut state);
    listen(&events, observers, &probes, started, &mut state);
    for (stage, thread) in threads {
        // A body catches what user code throws; what is left is a panic in the drop of something that it owned.
        if let Err(payload) = thread.join() {
            state.fail(FlowError { stage, item: None, source: Panicked::caught(&*payload).into() });
        }
    }
    match state.failure {
        Some(failure) => Err(failure),
        None => Ok((Report::of(&probes, started), state.interrupted)),
    }
}

/// What the supervisor has heard.
struct State {
    /// Held as long as the run shall go on.
    raise: Option<Raise>,
    failure: Option<FlowError>,
    /// Sinks that want more.
    sinks: usize,
    interrupted: bool,
}

impl State {
    fn fail(&mut self, failure: FlowError) {
        self.failure.get_or_insert(failure);
        self.raise = None;
    }

    fn hear(&mut self, event: Event) {
        match event {
            // Nobody would have got the result of a stage upstream, but a sink that cannot finish has failed.
            Event::Failed { sink: false, .. } if self.sinks == 0 => {}
            Event::Failed { stage, item, source, .. } => self.fail(FlowError { stage, item, source }),
            Event::SinkEnded(end) => {
                self.interrupted |= end == End::Interrupted;
                self.sinks -= 1;
                if self.sinks == 0 {
                    self.raise = None;
                }
            }
        }
    }
}

struct Started {
    /// With the names of their stages.
    threads: Vec<(String, JoinHandle<()>)>,
    probes: Vec<Probe>,
    events: Receiver<Event>,
}

/// Starts all threads, which wait at a gate until the last one is there: if one cannot be started, its ends of the
/// links are dropped with it, and no other thread may take that for the end of a stream.
fn start(nodes: Vec<Node>, stop: &Stop, runtime: &Runtime, started: Instant, state: &mut State) -> Started {
    let (closed, gate) = bounded::<()>(1);
    let bodies: usize = nodes.iter().map(|node| node.bodies.len()).sum();
    // A thread sends two events at most, a sink's end and a failure: sending never waits for an observer.
    let (sender, events) = bounded(2 * bodies);
    let cut = Arc::new(AtomicBool::new(false));
    let (mut threads, mut probes) = (Vec::with_capacity(bodies), Vec::with_capacity(nodes.len()));
    for node in nodes {
        let (stage, workers) = (node.full_name(), node.bodies.len());
        let mut meters = Vec::with_capacity(workers);
        for (index, body) in node.bodies.into_iter().enumerate() {
            let meter = Arc::new(Meter::new(started));
            meters.push(Arc::clone(&meter));
            let post = Post {
                stage: stage.clone(),
                stop: stop.metered(Arc::clone(&meter)),
                interrupt: runtime.interrupt.clone(),
                cut: Arc::clone(&cut),
                meter,
                events: sender.clone(),
            };
            let gate = gate.clone();
            let thread = move || {
                let _ = gate.recv();
                if !post.stop.stopped() {
                    body(&post);
                }
                post.meter.end();
            };
            match thread::Builder::new().name(thread_name(&stage, index, workers)).spawn(thread) {
                Ok(handle) => threads.push((stage.clone(), handle)),
                Err(error) => {
                    let source = BoxError::from(format!("cannot start thread {} of {workers}: {error}", index + 1));
                    state.fail(FlowError { stage: stage.clone(), item: None, source });
                }
            }
        }
        probes.push(Probe { name: stage, meters, input: node.input, behind: node.behind });
    }
    drop(closed);
    Started { threads, probes, events }
}

/// `decode.3` for one of several workers. The system may show only the first 15 bytes; a name with a NUL byte would be
/// refused by a panic.
fn thread_name(stage: &str, index: usize, workers: usize) -> String {
    let stage = stage.replace('\0', " ");
    if workers == 1 { stage } else { format!("{stage}.{index}") }
}

/// Hears events and calls observers until the last thread has ended, and once more then.
fn listen(events: &Receiver<Event>, observers: Vec<Observer>, probes: &[Probe], started: Instant, state: &mut State) {
    let mut due: Vec<_> = observers.into_iter().map(|observer| (started + observer.every, observer)).collect();
    loop {
        let heard = match due.iter().map(|(at, _)| *at).min() {
            Some(at) => events.recv_deadline(at),
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let ended = match heard {
            Ok(event) => {
                state.hear(event);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        let report = Report::of(probes, started);
        let now = Instant::now();
        for (at, observer) in due.iter_mut().filter(|(at, _)| ended || *at <= now) {
            *at = now + observer.every;
            let look = AssertUnwindSafe(|| (observer.look)(&report));
            if let Err(payload) = catch_unwind(look) {
                let source = Panicked::caught(&*payload).into();
                state.fail(FlowError { stage: "observe".to_owned(), item: None, source });
            }
        }
        if ended {
            return;
        }
    }
}
