//! Work that one stage leaves to a thread of its own: to write a file, say, while the stage goes on.
//!
//! It is no node of a flow: it does not know the flow's [`Stop`](crate::Stop), so what was handed over is done even where
//! the flow fails. Who owns it waits for it.

use std::fmt;
use std::io;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::error::{BoxError, Panicked};

/// A thread that does the same work with one item after the other, in the order in which they are handed over.
///
/// At most two items exist at a time: one at work, and one that waits for it or is being made. Dropping it waits until
/// all that was handed over is done; an error is then lost, so [`finish`](Self::finish) should come before.
pub struct Background<T> {
    /// One message for each item that may be made.
    places: Receiver<()>,
    items: Option<Sender<T>>,
    thread: Option<JoinHandle<Result<(), BoxError>>>,
}

impl<T: Send + 'static> Background<T> {
    /// Starts the thread, which calls `work` with each item; after an error it takes no more.
    ///
    /// # Errors
    /// The system refuses the thread.
    pub fn start(name: &str, mut work: impl FnMut(T) -> Result<(), BoxError> + Send + 'static) -> io::Result<Self> {
        let (items, inlet) = bounded::<T>(1);
        let (free, places) = bounded(1);
        let body = move || {
            let _ = free.send(());
            for item in inlet {
                // The place of the item is free again as soon as it is at work. Nobody may want it any more.
                let _ = free.send(());
                work(item)?;
            }
            Ok(())
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body)?;
        Ok(Self { places, items: Some(items), thread: Some(thread) })
    }

    /// Waits for a place, makes an item for it, and hands it over.
    ///
    /// # Errors
    /// That of an item before, told once; the new one is not done either.
    pub fn hand_over(&mut self, make: impl FnOnce() -> T) -> Result<(), BoxError> {
        let Some(items) = &self.items else { return Err("the background thread has ended".into()) };
        // No place will come free any more where the thread has failed.
        if self.places.recv().is_ok() && items.send(make()).is_ok() {
            return Ok(());
        }
        self.finish()?;
        Err("the background thread has ended".into())
    }

    /// Whether the thread has failed; [`finish`](Self::finish) says how. Never waits.
    pub fn has_failed(&self) -> bool {
        self.items.is_some() && self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }
}

impl<T> Background<T> {
    /// Waits until all that was handed over is done. Nothing can be handed over after it.
    ///
    /// # Errors
    /// The first of the work, or [`Panicked`]; once.
    pub fn finish(&mut self) -> Result<(), BoxError> {
        self.items = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(done)) => done,
            Some(Err(payload)) => Err(Panicked::caught(&*payload).into()),
            None => Ok(()),
        }
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

impl<T> fmt::Debug for Background<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background").field("thread", &self.thread).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts how many of it there are.
    struct Counted(Arc<AtomicUsize>);

    impl Counted {
        fn new(alive: &Arc<AtomicUsize>) -> Self {
            alive.fetch_add(1, Ordering::SeqCst);
            Self(Arc::clone(alive))
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn items_are_done_in_order_and_all_of_them_before_the_end() {
        let (sender, done) = bounded(100);
        let mut background = Background::start("test", move |item: u32| Ok(sender.send(item)?)).unwrap();
        (0..100).for_each(|item| background.hand_over(|| item).unwrap());
        background.finish().unwrap();
        assert_eq!(done.iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
        assert!(background.hand_over(|| 0).is_err());
    }

    #[test]
    fn an_item_is_made_only_when_no_other_waits_so_that_there_are_two_at_most() {
        let alive = Arc::new(AtomicUsize::new(0));
        let (go, gate) = bounded::<()>(10);
        let mut background = Background::start("test", move |item: Counted| {
            gate.recv()?;
            drop(item);
            Ok(())
        })
        .unwrap();
        for item in 0..5 {
            // Item 0 is at work and item 1 waits without any help; each one after them needs the end of another.
            if item >= 2 {
                go.send(()).unwrap();
            }
            background
                .hand_over(|| {
                    let made = Counted::new(&alive);
                    assert!(alive.load(Ordering::SeqCst) <= 2);
                    made
                })
                .unwrap();
        }
        (0..5).for_each(|_| go.send(()).unwrap());
        background.finish().unwrap();
        assert_eq!(alive.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn an_error_ends_it_and_is_told_once_to_who_hands_over_next_or_finishes() {
        let start = || {
            let work = |item: u32| if item == 1 { Err("no room".into()) } else { Ok(()) };
            let mut background = Background::start("test", work).unwrap();
            background.hand_over(|| 0).unwrap();
            assert!(!background.has_failed());
            background.hand_over(|| 1).unwrap();
            background
        };
        let mut background = start();
        let told = (2..).find_map(|item| background.hand_over(|| item).err()).unwrap();
        assert_eq!(told.to_string(), "no room");
        background.finish().unwrap();
        assert_eq!(start().finish().unwrap_err().to_string(), "no room");

        let background = start();
        while !background.has_failed() {
            thread::yield_now();
        }
    }

    #[test]
    fn a_panic_is_an_error() {
        let mut background = Background::start("test", |(): ()| panic!("a bug")).unwrap();
        background.hand_over(|| ()).unwrap();
        let error = background.finish().unwrap_err();
        assert_eq!(error.downcast::<Panicked>().unwrap().message, "a bug");
    }

    #[test]
    fn dropping_it_waits_for_what_was_handed_over() {
        let (sender, done) = bounded(1);
        let mut background = Background::start("test", move |item: u32| Ok(sender.send(item)?)).unwrap();
        background.hand_over(|| 7).unwrap();
        drop(background);
        assert_eq!(done.try_recv(), Ok(7));
    }
}
