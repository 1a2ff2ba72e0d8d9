//! A bounded dataflow engine of threads and channels that keeps order.
//!
//! A program is a list of stages that items flow through, from one source to one sink or, behind a split, to several:
//!
//! ```
//! use std::ops::ControlFlow;
//! use pipeline::{BoxError, Emit, End, Flow, Regroup, Runtime, Sink, Source, Stage, Stop};
//!
//! let finished = Flow::from(Count { next: 0, end: 10 }) //   -> u64
//!     .then(|_| Ok(Square)).workers(4)                  //   -> u64, still in order
//!     .regroup(Gather { size: 4, items: Vec::new() })   //   -> Vec<u64>
//!     .into(Collect::default())
//!     .run(&Runtime::default())?;
//!
//! assert_eq!(finished.output, [vec![0, 1, 4, 9], vec![16, 25, 36, 49], vec![64, 81]]);
//!
//! struct Count { next: u64, end: u64 }
//!
//! impl Source for Count {
//!     type Item = u64;
//!     fn next(&mut self, _stop: &Stop) -> Result<Option<u64>, BoxError> {
//!         self.next += 1;
//!         Ok((self.next <= self.end).then_some(self.next - 1))
//!     }
//! }
//!
//! struct Square;
//!
//! impl Stage for Square {
//!     type In = u64;
//!     type Out = u64;
//!     fn process(&mut self, item: u64) -> Result<u64, BoxError> {
//!         item.checked_mul(item).ok_or_else(|| format!("the square of {item} does not fit into 64 bits").into())
//!     }
//! }
//!
//! struct Gather { size: usize, items: Vec<u64> }
//!
//! impl Regroup for Gather {
//!     type In = u64;
//!     type Out = Vec<u64>;
//!     fn push(&mut self, item: u64, out: &mut Emit<'_, Vec<u64>>) -> Result<(), BoxError> {
//!         self.items.push(item);
//!         if self.items.len() == self.size {
//!             out.send(std::mem::take(&mut self.items))?;
//!         }
//!         Ok(())
//!     }
//!     fn finish(&mut self, out: &mut Emit<'_, Vec<u64>>) -> Result<(), BoxError> {
//!         if !self.items.is_empty() {
//!             out.send(std::mem::take(&mut self.items))?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! #[derive(Default)]
//! struct Collect(Vec<Vec<u64>>);
//!
//! impl Sink for Collect {
//!     type In = Vec<u64>;
//!     type Output = Vec<Vec<u64>>;
//!     fn consume(&mut self, item: Vec<u64>) -> Result<ControlFlow<()>, BoxError> {
//!         self.0.push(item);
//!         Ok(ControlFlow::Continue(()))
//!     }
//!     fn finish(self, _end: End) -> Result<Vec<Vec<u64>>, BoxError> {
//!         Ok(self.0)
//!     }
//! }
//! # Ok::<(), pipeline::FlowError>(())
//! ```
//!
//! # What is guaranteed
//!
//! - **Order.** Every node sees its items in the order of the source, for any number of [`workers`](Flow::workers) and
//!   any timing. The output of a run whose stages are functions of their items depends on neither.
//! - **Bound.** Back-pressure is arithmetic. While its sink is stuck in its first item, the source has made exactly
//!   as many items as fit: let `taken` be 1 for a sink; going upstream, a node in front of a link of
//!   [`depth`](Flow::depth) `d` has
//!   - as a stage of `n` workers, taken `taken + d + n` items: results wait in the link, up to `d + n` when all are done;
//!   - as a regroup, sent or tried to send `taken + d + 1`, and taken the fewest items that make so many;
//!   - as a split of `n` into links of depth `d`, branch `b` stuck and the others not, taken `b + n * (taken + d) + 1`,
//!     the least of these if several are stuck (`taken` is that of the branch's first node);
//!   - as the source, made `taken + d + 1`.
//!
//!   So source, link `d1`, `n` workers, link `d2`, sink is `1 + d2 + n + d1 + 1` items in memory at most.
//! - **One error.** The first error or panic, in whatever call, ends the run as a [`FlowError`] that names stage and
//!   item. [`Line::run`] returns after every thread has joined, in any case.
//! - **No false end.** [`Sink::finish`] is called only on a stream that is whole ([`End::Complete`]), that the sink
//!   broke off, or that an [`Interrupt`] cut short behind a whole item; never on one that a failure tore.
//! - **Interrupt.** When it is requested, sources make nothing more, and all that was made reaches the sinks.
//! - **No silent halt.** A [`Report`] says at any time what every stage is doing, and a [`Watchdog`] that looks at
//!   reports ([`Line::observe`]) names the stage that holds everything up.
//! - **No locks.** The crate has no mutex and no condition variable. Items move through crossbeam's array channels,
//!   which park a thread only when it has to wait.
//!
//! Work that a stage wants done beside the flow, and done even if the flow fails, goes to a [`Background`].
//!
//! # What is not here
//!
//! No general graph: flows are trees from one source, without joins. No stealing, no timers, no async. No signal
//! handler: who sets the [`Interrupt`] is up to the program. Devices, tensors and files are the stages' business.

mod background;
#[cfg(test)]
mod closures;
mod deadline;
mod error;
mod flow;
mod link;
mod meter;
mod node;
#[cfg(test)]
mod properties;
mod report;
mod run;
mod slab;
mod stage;
mod stop;
#[cfg(test)]
mod supervision;
mod watchdog;

pub use background::Background;
pub use deadline::within;
pub use error::{BoxError, FlowError, Panicked, PlanError};
pub use flow::{Flow, Line, Parallel, Serial};
pub use report::{AtWork, Report, StageReport, Task, Wait, Waiting};
pub use run::{Finished, Runtime};
pub use slab::{Slab, Slabs};
pub use stage::{Emit, End, Regroup, Sink, Source, Stage, Worker};
pub use stop::{Interrupt, Stop, Stopped};
pub use watchdog::{How, Stall, Watchdog};
