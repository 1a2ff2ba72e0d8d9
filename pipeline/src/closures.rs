//! Nodes made of closures, so that a test shows what its stages do.

use std::marker::PhantomData;
use std::ops::ControlFlow;

use crate::{BoxError, Emit, End, Regroup, Sink, Source, Stage, Stop};

/// A [`Source`] that calls `make`.
pub(crate) struct Make<F, T>(F, PhantomData<fn() -> T>);

pub(crate) fn make<T, F>(make: F) -> Make<F, T>
where
    F: FnMut(&Stop) -> Result<Option<T>, BoxError>,
{
    Make(make, PhantomData)
}

/// The numbers `0..end`.
pub(crate) fn count(end: u64) -> impl Source<Item = u64> {
    let mut numbers = 0..end;
    make(move |_| Ok(numbers.next()))
}

impl<T: Send + 'static, F: FnMut(&Stop) -> Result<Option<T>, BoxError> + Send + 'static> Source for Make<F, T> {
    type Item = T;

    fn next(&mut self, stop: &Stop) -> Result<Option<T>, BoxError> {
        (self.0)(stop)
    }
}

/// A [`Stage`] that calls `work`.
pub(crate) struct Map<F, T, U>(F, PhantomData<fn(T) -> U>);

pub(crate) fn map<T, U, F: FnMut(T) -> Result<U, BoxError>>(work: F) -> Map<F, T, U> {
    Map(work, PhantomData)
}

impl<T, U, F> Stage for Map<F, T, U>
where
    T: Send + 'static,
    U: Send + 'static,
    F: FnMut(T) -> Result<U, BoxError> + 'static,
{
    type In = T;
    type Out = U;

    fn process(&mut self, item: T) -> Result<U, BoxError> {
        (self.0)(item)
    }
}

/// A [`Regroup`] that calls `step` with each item, and with `None` at the end.
pub(crate) struct Steps<F, T, U>(F, PhantomData<fn(T) -> U>);

pub(crate) fn steps<T, U, F>(step: F) -> Steps<F, T, U>
where
    F: FnMut(Option<T>, &mut Emit<'_, U>) -> Result<(), BoxError>,
{
    Steps(step, PhantomData)
}

impl<T, U, F> Regroup for Steps<F, T, U>
where
    T: Send + 'static,
    U: Send + 'static,
    F: FnMut(Option<T>, &mut Emit<'_, U>) -> Result<(), BoxError> + Send + 'static,
{
    type In = T;
    type Out = U;

    fn push(&mut self, item: T, out: &mut Emit<'_, U>) -> Result<(), BoxError> {
        (self.0)(Some(item), out)
    }

    fn finish(&mut self, out: &mut Emit<'_, U>) -> Result<(), BoxError> {
        (self.0)(None, out)
    }
}

/// A [`Sink`] that calls `take`, and hands out why it ended.
pub(crate) struct Each<F, T>(F, PhantomData<fn(T)>);

pub(crate) fn each<T, F>(take: F) -> Each<F, T>
where
    F: FnMut(T) -> Result<ControlFlow<()>, BoxError>,
{
    Each(take, PhantomData)
}

impl<T: Send + 'static, F: FnMut(T) -> Result<ControlFlow<()>, BoxError> + Send + 'static> Sink for Each<F, T> {
    type In = T;
    type Output = End;

    fn consume(&mut self, item: T) -> Result<ControlFlow<()>, BoxError> {
        (self.0)(item)
    }

    fn finish(self, end: End) -> Result<End, BoxError> {
        Ok(end)
    }
}

/// A [`Sink`] that keeps `most` items and then breaks; hands them out, and why it ended.
pub(crate) struct Keep<T> {
    items: Vec<T>,
    most: usize,
}

/// Keeps all items.
pub(crate) fn keep<T>() -> Keep<T> {
    first(usize::MAX)
}

/// Keeps the first `most` items, at least one.
pub(crate) fn first<T>(most: usize) -> Keep<T> {
    Keep { items: Vec::new(), most }
}

impl<T: Send + 'static> Sink for Keep<T> {
    type In = T;
    type Output = (Vec<T>, End);

    fn consume(&mut self, item: T) -> Result<ControlFlow<()>, BoxError> {
        self.items.push(item);
        Ok(if self.items.len() >= self.most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn finish(self, end: End) -> Result<(Vec<T>, End), BoxError> {
        Ok((self.items, end))
    }
}
