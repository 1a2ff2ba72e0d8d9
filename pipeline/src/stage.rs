//! The four kinds of node: [`Source`], [`Stage`], [`Regroup`], [`Sink`].
//!
//! Only a [`Stage`] may run on several threads, and that is safe because its result depends on the item alone. All
//! that has state over items is serial, and sees them in order.

use std::ops::ControlFlow;

use crate::error::BoxError;
use crate::link::SerialOutlet;
use crate::stop::{Stop, Stopped};

/// Makes items, in order. Lives on a thread of its own.
pub trait Source: Send + 'static {
    /// What it makes.
    type Item: Send + 'static;

    /// The next item, or `None` at the end; it is not called again after that, nor once an interrupt was requested.
    ///
    /// # Errors
    ///
    /// Any; it ends the run. [`Stopped`] from a blocking call (`stop` goes to [`Slabs::take`](crate::Slabs::take))
    /// is passed up with `?`.
    fn next(&mut self, stop: &Stop) -> Result<Option<Self::Item>, BoxError>;

    /// Name in reports and errors; by default the type's name without path and parameters.
    fn name(&self) -> String {
        short_type_name::<Self>()
    }
}

/// Makes one item from one item. Results keep the order of their inputs for any number of workers.
///
/// The result must depend on the item alone, not on the items that this worker happened to see before. A stage is made
/// by a factory on its worker's own thread and stays there, so it need not be `Send`.
pub trait Stage: 'static {
    /// What it takes.
    type In: Send + 'static;
    /// What it makes.
    type Out: Send + 'static;

    /// Works on one item. It must not wait for other items, nor take slabs.
    ///
    /// # Errors
    ///
    /// Any; it ends the run.
    fn process(&mut self, item: Self::In) -> Result<Self::Out, BoxError>;

    /// Name in reports and errors; by default the type's name without path and parameters.
    fn name() -> String {
        short_type_name::<Self>()
    }
}

/// Makes any number of items from any number of items: gathers batches, takes them apart, shuffles, filters. Serial.
pub trait Regroup: Send + 'static {
    /// What it takes.
    type In: Send + 'static;
    /// What it makes.
    type Out: Send + 'static;

    /// Takes one item, and sends what is ready.
    ///
    /// # Errors
    ///
    /// Any; it ends the run. [`Stopped`] from `out` is passed up with `?`.
    fn push(&mut self, item: Self::In, out: &mut Emit<'_, Self::Out>) -> Result<(), BoxError>;

    /// The input is complete, or was cut short by an interrupt: sends what is left. Not called when the run is taken
    /// down.
    ///
    /// # Errors
    ///
    /// As for [`push`](Self::push).
    fn finish(&mut self, out: &mut Emit<'_, Self::Out>) -> Result<(), BoxError> {
        let _ = out;
        Ok(())
    }

    /// Name in reports and errors; by default the type's name without path and parameters.
    fn name(&self) -> String {
        short_type_name::<Self>()
    }
}

/// Takes the items, in order, and makes one output of the run. Serial.
pub trait Sink: Send + 'static {
    /// What it takes.
    type In: Send + 'static;
    /// What is left of it after the run: a count, a summary, a path.
    type Output: Send + 'static;

    /// Takes one item. [`ControlFlow::Break`] says that this was the last one wanted: what is in flight is dropped,
    /// and that is no error.
    ///
    /// # Errors
    ///
    /// Any; it ends the run.
    fn consume(&mut self, item: Self::In) -> Result<ControlFlow<()>, BoxError>;

    /// There are no more items, for the reason given. Not called when the run failed: then the sink is just dropped.
    ///
    /// # Errors
    ///
    /// Any; the run fails with it.
    fn finish(self, end: End) -> Result<Self::Output, BoxError>;

    /// Name in reports and errors; by default the type's name without path and parameters.
    fn name(&self) -> String {
        short_type_name::<Self>()
    }
}

/// Why a sink gets no more items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It got everything: the source came to its own end.
    Complete,
    /// It broke: it had enough.
    Broken,
    /// An interrupt was requested. Either the source was cut short, and the sink got all that had been made; or the
    /// sink itself broke after the request.
    Interrupted,
}

/// Which of a stage's workers a factory is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worker {
    /// From 0 to `workers - 1`. Behind a split, each branch counts from 0.
    pub index: usize,
    /// How many there are.
    pub workers: usize,
}

/// The way out of a [`Regroup`].
#[derive(Debug)]
pub struct Emit<'a, T> {
    outlet: &'a mut SerialOutlet<T>,
    stop: &'a Stop,
}

impl<'a, T> Emit<'a, T> {
    pub(crate) fn new(outlet: &'a mut SerialOutlet<T>, stop: &'a Stop) -> Self {
        Self { outlet, stop }
    }

    /// Sends one item when there is room for it. The wait counts as blocked.
    ///
    /// # Errors
    ///
    /// [`Stopped`] if the run is taken down, or nobody downstream wants any more.
    pub fn send(&mut self, item: T) -> Result<(), Stopped> {
        self.outlet.send(item, self.stop).map_err(|_| Stopped)
    }

    /// For other blocking calls, such as [`Slabs::take`](crate::Slabs::take).
    pub fn stop(&self) -> &Stop {
        self.stop
    }
}

/// `a::b::Gather<c::Pixels>` gives `Gather`.
fn short_type_name<T: ?Sized>() -> String {
    let name = std::any::type_name::<T>();
    let name = name.split('<').next().unwrap_or(name);
    name.rsplit("::").next().unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_named_by_its_type_without_path_and_parameters() {
        struct Decode;
        assert_eq!(short_type_name::<Decode>(), "Decode");
        assert_eq!(short_type_name::<Vec<std::ops::Range<u8>>>(), "Vec");
        assert_eq!(short_type_name::<u8>(), "u8");
    }
}
