//! Buffers that are used again and again: a bounded channel of free ones.
//!
//! Take slabs at serial points only, in `Source::next` or `Regroup::push`, never in `Stage::process`. There they are
//! attached to items in ticket order, so the oldest item in flight has its slab already and will give it back. If
//! workers took slabs, late tickets could hold all of them while the earliest waits for one, and the results of the
//! late ones wait for the earliest: a deadlock.
//!
//! A `Regroup` that takes a slab for each item it keeps needs more slabs than it keeps items, for the same reason.

use std::fmt;
use std::ops::{Deref, DerefMut};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::report::Wait;
use crate::stop::{Stop, Stopped};

/// A fixed number of buffers. Clones share them.
pub struct Slabs<B> {
    free: Receiver<B>,
    home: Sender<B>,
}

/// One of the buffers; it goes back when dropped, wherever that happens. What it holds is what its last user left.
pub struct Slab<B> {
    buffer: Option<B>,
    home: Sender<B>,
}

impl<B> Slabs<B> {
    /// Makes `count` buffers now; none is ever made later. A count of 0 is taken as 1.
    pub fn new(count: usize, make: impl FnMut() -> B) -> Self {
        let count = count.max(1);
        let (home, free) = bounded(count);
        for buffer in std::iter::repeat_with(make).take(count) {
            home.try_send(buffer).expect("the channel has capacity for every buffer and its receiver is in scope");
        }
        Self { free, home }
    }

    /// Waits for a free buffer. The wait counts as blocked for the node whose `stop` is given, and its report
    /// shows [`Wait::NoBuffer`] meanwhile.
    ///
    /// # Errors
    ///
    /// [`Stopped`] if the run is taken down.
    pub fn take(&self, stop: &Stop) -> Result<Slab<B>, Stopped> {
        let buffer = stop.recv(&self.free, Wait::NoBuffer)?;
        let buffer = buffer.expect("the channel cannot be closed: `self` holds a sender");
        Ok(Slab { buffer: Some(buffer), home: self.home.clone() })
    }

    /// How many buffers are free now.
    pub fn available(&self) -> usize {
        self.free.len()
    }
}

impl<B> Clone for Slabs<B> {
    fn clone(&self) -> Self {
        Self { free: self.free.clone(), home: self.home.clone() }
    }
}

impl<B> fmt::Debug for Slabs<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slabs").field("available", &self.available()).finish_non_exhaustive()
    }
}

impl<B> Deref for Slab<B> {
    type Target = B;

    fn deref(&self) -> &B {
        self.buffer.as_ref().expect("a slab holds its buffer until it is dropped")
    }
}

impl<B> DerefMut for Slab<B> {
    fn deref_mut(&mut self) -> &mut B {
        self.buffer.as_mut().expect("a slab holds its buffer until it is dropped")
    }
}

impl<B> Drop for Slab<B> {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            // Never full: there is capacity for every buffer. It fails when all `Slabs` are gone, and frees the buffer.
            let _ = self.home.try_send(buffer);
        }
    }
}

impl<B: fmt::Debug> fmt::Debug for Slab<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slab").field(&**self).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_slab_goes_back_with_what_it_holds() {
        let slabs = Slabs::new(2, Vec::<u8>::new);
        let mut slab = slabs.take(&Stop::never()).unwrap();
        let other = slabs.take(&Stop::never()).unwrap();
        assert_eq!(slabs.available(), 0);
        slab.push(7);
        drop(slab);
        assert_eq!(slabs.available(), 1);
        assert_eq!(*slabs.take(&Stop::never()).unwrap(), [7]);
        drop(other);
    }

    #[test]
    fn a_wait_for_a_slab_ends_when_the_run_is_taken_down() {
        let slabs = Slabs::new(1, || 0_u8);
        let held = slabs.take(&Stop::never()).unwrap();
        let (stop, raise) = Stop::new();
        let waiter = slabs.clone();
        let waiting = std::thread::spawn(move || waiter.take(&stop).err());
        drop(raise);
        assert_eq!(waiting.join().unwrap(), Some(Stopped));
        drop(held);
        assert_eq!(slabs.available(), 1);
    }

    #[test]
    fn a_slab_outlives_its_slabs() {
        let slabs = Slabs::new(0, || vec![1]);
        let slab = slabs.take(&Stop::never()).unwrap();
        drop(slabs);
        assert_eq!(*slab, [1]);
    }
}
