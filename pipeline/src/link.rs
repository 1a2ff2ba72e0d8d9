//! The one kind of link between two nodes, for any number of threads on either side.
//!
//! Items on a link are numbered from 0 without gaps: their *tickets*. A link has room for `P` items, and is `P` slots,
//! each an array channel of capacity 1, plus a channel that holds one token for each free place:
//!
//! ```text
//! producers          reserve: take a token        slot t % P        receive ticket t = 0, 1, 2, ..     consumer
//! (any number)  ───────────────────────────►  [ ] [ ] [ ] [ ]  ─────────────────────────────────►  (one at a time)
//!               ◄────────────────────────────── give the token back ──────────────────────────────
//! ```
//!
//! **Order.** A producer first reserves room, then learns which ticket it works on, then fills slot `ticket % P`.
//! The workers of a stage take their items with tickets from the link before, in order, and send each result under
//! the same ticket. The receiving end has one owner at any time and receives ticket after ticket. So the tickets that
//! were reserved but not received always lie in a window of `P` consecutive numbers, no two of them share a slot, and
//! filling a slot never waits. However late a ticket is, the ones behind it wait in their own slots: order is restored
//! with no reorder buffer, no thread that dispatches, and no comparison of tickets.
//!
//! The token must be taken *before* the item. With slots alone, a quick worker would put ticket `t + P` into the slot
//! that is still empty because ticket `t` is late, and the consumer would take it for `t`.
//!
//! **No deadlock.** The oldest ticket that has not been received is in its slot, or held by a worker that can always
//! fill its slot, or next to be taken by a worker that holds a token already.
//!
//! **Bound.** At most `P` items lie in a link or are being worked on by the stage that fills it. That is the
//! back-pressure and the memory bound. The receiving end gives the token back on receipt, so the item a consumer works
//! on counts for the consumer.
//!
//! **Waking.** A token that is given back wakes the producer that waits for it, at the expense of the consumer's thread: tens
//! of microseconds, and the scheduler may let the producer run first. Behind a link with *prefetch* nobody is woken: a
//! producer that finds it full looks again by itself, after naps as long as the link has stood still so far, and 2 ms at
//! most. So a link whose items last longer than that, all together, is not empty by then.
//!
//! **End.** Producers drop their ends; the slots of tickets that never come are then empty for good. A consumer that
//! drops its end is *gone*: producers learn it when they reserve or fill.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::meter::Gauge;
use crate::report::Wait;
use crate::stop::{Stop, Stopped};

/// How producers wait for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// They are woken.
    Wakes,
    /// They look by themselves.
    Looks,
}

/// Makes a link with room for `room` items, at least 1.
pub(crate) fn link<T>(room: usize, waits: Room) -> (Outlet<T>, Inlet<T>) {
    let room = room.max(1);
    let (fill, take): (Vec<_>, Vec<_>) = (0..room).map(|_| bounded(1)).unzip();
    let (free, places) = bounded(room);
    for _ in 0..room {
        free.send(()).expect("the channel has capacity for every token and its receiver is in scope");
    }
    let gauge = Arc::new(Gauge::new(room));
    let outlet = Outlet { slots: fill.into(), places, waits, gauge: Arc::clone(&gauge) };
    (outlet, Inlet { slots: take.into(), free, next: 0, gauge })
}

/// A producer's end; cloned for every worker.
#[derive(Debug)]
pub(crate) struct Outlet<T> {
    slots: Arc<[Sender<T>]>,
    places: Receiver<()>,
    waits: Room,
    gauge: Arc<Gauge>,
}

/// The consumer's end. It is not `Clone`: workers hand it around, so that one of them has it at any time.
#[derive(Debug)]
pub(crate) struct Inlet<T> {
    slots: Box<[Receiver<T>]>,
    free: Sender<()>,
    next: u64,
    gauge: Arc<Gauge>,
}

/// One place in a link, reserved.
#[derive(Debug)]
#[must_use = "a place that is not filled is lost to the link"]
pub(crate) struct Place<'a, T>(&'a Outlet<T>);

/// Why an item could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The run is being taken down.
    Stopped,
    /// The consumer has dropped its end: nobody wants the item.
    Gone,
}

impl<T> Clone for Outlet<T> {
    fn clone(&self) -> Self {
        let Self { slots, places, waits, gauge } = self;
        Self { slots: Arc::clone(slots), places: places.clone(), waits: *waits, gauge: Arc::clone(gauge) }
    }
}

impl<T> Outlet<T> {
    /// Waits for a free place. The caller must not take its item before it has one.
    pub(crate) fn reserve(&self, stop: &Stop) -> Result<Place<'_, T>, Refused> {
        let place = match self.waits {
            Room::Wakes => stop.recv(&self.places, Wait::Blocked),
            Room::Looks => stop.look(&self.places, Wait::Blocked),
        };
        match place {
            Ok(Some(())) => Ok(Place(self)),
            Ok(None) => Err(Refused::Gone),
            Err(Stopped) => Err(Refused::Stopped),
        }
    }
}

impl<T> Place<'_, T> {
    /// Sends `item` under `ticket`; never waits, since the slot of a ticket within the window is empty.
    pub(crate) fn fill(self, ticket: u64, item: T) -> Result<(), Refused> {
        let Outlet { slots, gauge, .. } = self.0;
        slots[slot(ticket, slots.len())].send(item).map_err(|_| Refused::Gone)?;
        gauge.sent();
        Ok(())
    }
}

impl<T> Inlet<T> {
    /// The next item and its ticket, or `None` at the end of the stream.
    pub(crate) fn recv(&mut self, stop: &Stop) -> Result<Option<(u64, T)>, Stopped> {
        let found = self.gauge.queued();
        let Some(item) = stop.recv(&self.slots[slot(self.next, self.slots.len())], Wait::Starved)? else {
            return Ok(None);
        };
        // There are as many tokens as places, so this is never full; it fails when the producers are done.
        let _ = self.free.try_send(());
        self.gauge.received(found);
        let ticket = self.next;
        self.next += 1;
        Ok(Some((ticket, item)))
    }

    /// How many items lie in the link.
    pub(crate) fn gauge(&self) -> Arc<Gauge> {
        Arc::clone(&self.gauge)
    }
}

fn slot(ticket: u64, slots: usize) -> usize {
    (ticket % slots as u64) as usize
}

/// The end of the only producer of a link, which numbers its items itself.
#[derive(Debug)]
pub(crate) struct SerialOutlet<T> {
    outlet: Outlet<T>,
    next: u64,
    gone: bool,
}

impl<T> SerialOutlet<T> {
    pub(crate) fn new(outlet: Outlet<T>) -> Self {
        Self { outlet, next: 0, gone: false }
    }

    /// Sends the next item, when there is room.
    pub(crate) fn send(&mut self, item: T, stop: &Stop) -> Result<(), Refused> {
        let sent = self.outlet.reserve(stop).and_then(|place| place.fill(self.next, item));
        self.next += 1;
        self.gone |= sent == Err(Refused::Gone);
        sent
    }

    /// Whether an item was refused because the consumer is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reserve<T>(outlet: &Outlet<T>) -> Place<'_, T> {
        outlet.reserve(&Stop::never()).unwrap()
    }

    #[test]
    fn a_link_has_exactly_the_room_it_was_made_with() {
        for room in 1..6 {
            let (outlet, mut inlet) = link(room, Room::Wakes);
            for ticket in 0..room as u64 {
                reserve(&outlet).fill(ticket, ticket).unwrap();
            }
            assert_eq!(outlet.places.len(), 0);
            assert_eq!(inlet.recv(&Stop::never()), Ok(Some((0, 0))));
            assert_eq!(outlet.places.len(), 1);
        }
    }

    #[test]
    fn a_place_reserved_but_not_filled_counts_as_taken() {
        let (outlet, _inlet) = link::<u8>(2, Room::Wakes);
        let _first = reserve(&outlet);
        let _second = reserve(&outlet);
        assert_eq!(outlet.places.len(), 0);
    }

    #[test]
    fn a_consumer_waits_for_the_late_ticket_though_all_others_are_there() {
        let (outlet, mut inlet) = link(4, Room::Wakes);
        let places: Vec<_> = (0..4).map(|_| reserve(&outlet)).collect();
        for (ticket, place) in (1..4).chain([0]).zip(places) {
            assert!(ticket == 0 || inlet.slots[0].is_empty());
            place.fill(ticket, ticket * 10).unwrap();
        }
        let received: Vec<_> = (0..4).map(|_| inlet.recv(&Stop::never()).unwrap().unwrap().1).collect();
        assert_eq!(received, [0, 10, 20, 30]);
    }

    #[test]
    fn the_stream_ends_when_the_last_producer_is_dropped_and_the_slots_are_empty() {
        let (outlet, mut inlet) = link(3, Room::Wakes);
        let other = outlet.clone();
        reserve(&outlet).fill(0, 'a').unwrap();
        drop(outlet);
        reserve(&other).fill(1, 'b').unwrap();
        drop(other);
        assert_eq!(inlet.recv(&Stop::never()), Ok(Some((0, 'a'))));
        assert_eq!(inlet.recv(&Stop::never()), Ok(Some((1, 'b'))));
        assert_eq!(inlet.recv(&Stop::never()), Ok(None));
        assert_eq!(inlet.recv(&Stop::never()), Ok(None), "the end stays the end");
    }

    #[test]
    fn the_mean_fill_is_of_the_items_that_lay_there_when_one_was_taken() {
        let (outlet, mut inlet) = link(5, Room::Wakes);
        for ticket in 0..3 {
            reserve(&outlet).fill(ticket, ticket).unwrap();
        }
        (0..3).for_each(|_| assert!(inlet.recv(&Stop::never()).unwrap().is_some()));
        drop(outlet);
        assert_eq!(inlet.recv(&Stop::never()), Ok(None), "the end of the stream is no item");
        let gauge = inlet.gauge();
        assert_eq!((gauge.queued_mean(), gauge.queued(), gauge.room()), ((3.0 + 2.0 + 1.0) / 3.0, 0, 5));
    }

    #[test]
    fn a_producer_learns_that_its_consumer_is_gone() {
        let (outlet, inlet) = link(1, Room::Wakes);
        let mut outlet = SerialOutlet::new(outlet);
        outlet.send(1, &Stop::never()).unwrap();
        drop(inlet);
        assert!(!outlet.is_gone());
        assert_eq!(outlet.send(2, &Stop::never()), Err(Refused::Gone));
        assert!(outlet.is_gone());
    }

    #[test]
    fn a_producer_without_room_is_woken_by_the_stop() {
        for waits in [Room::Wakes, Room::Looks] {
            let (outlet, _inlet) = link(1, waits);
            let (stop, raise) = Stop::new();
            reserve(&outlet).fill(0, ()).unwrap();
            let waiting = std::thread::spawn(move || outlet.reserve(&stop).err());
            drop(raise);
            assert_eq!(waiting.join().unwrap(), Some(Refused::Stopped));
        }
    }

    #[test]
    fn a_producer_that_looks_finds_the_room_and_finds_the_consumer_gone() {
        let (outlet, mut inlet) = link(1, Room::Looks);
        reserve(&outlet).fill(0, 'a').unwrap();
        let (two, one) = (outlet.clone(), std::thread::spawn(move || outlet.reserve(&Stop::never()).map(|_| ())));
        assert_eq!(inlet.recv(&Stop::never()), Ok(Some((0, 'a'))));
        assert_eq!(one.join().unwrap(), Ok(()));
        let three = std::thread::spawn(move || two.reserve(&Stop::never()).map(|_| ()));
        drop(inlet);
        assert_eq!(three.join().unwrap(), Err(Refused::Gone));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against the model of a window: any producer whose ticket was reserved may be the next to fill its slot.
        #[test]
        fn results_filled_in_any_order_are_received_in_order(room in 1_usize..7, picks in prop::collection::vec(any::<prop::sample::Index>(), 1..200)) {
            let (outlet, mut inlet) = link(room, Room::Wakes);
            let (mut held, mut claimed, mut received) = (Vec::new(), 0, 0);
            let mut filled = std::collections::BTreeSet::new();
            for pick in picks {
                while claimed - received < room as u64 {
                    held.push((claimed, reserve(&outlet)));
                    claimed += 1;
                }
                prop_assert_eq!(outlet.places.len(), 0);
                let (ticket, place) = held.swap_remove(pick.index(held.len()));
                place.fill(ticket, ticket).unwrap();
                filled.insert(ticket);
                while filled.remove(&received) {
                    prop_assert_eq!(inlet.recv(&Stop::never()), Ok(Some((received, received))));
                    received += 1;
                }
            }
        }
    }
}
