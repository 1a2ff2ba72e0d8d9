//! How long one consumer waited for its data: a histogram of durations in fixed memory.
//!
//! A mean hides the one batch in a thousand that holds a device up, and a list of all waits grows with the run. Here
//! every power of two of nanoseconds is divided into 32 buckets of one width, so a quantile is right to 1/64 (1.6 %)
//! whether waits are nanoseconds or hours, in 8 kB and with one addition a wait; count, sum and maximum are exact.
//!
//! Not here: a clock. Who waits measures, and says what counts as a wait.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Each power of two has `1 << DIVISION` buckets: the middle of one is within 1/64 of all that lies in it.
const DIVISION: u32 = 5;
/// Below this every nanosecond has a bucket of its own.
const LINEAR: u64 = 1 << DIVISION;
/// The powers of two from 2^5 to 2^63, and the bucket for each nanosecond below: 1,920.
const BUCKETS: usize = (u64::BITS - DIVISION + 1) as usize * LINEAR as usize;

/// The waits of one consumer; those of several are merged.
#[derive(Clone, PartialEq, Eq)]
pub struct Waits {
    /// How many waits lie in each bucket; full ones stay at 2^32 - 1.
    buckets: Box<[u32]>,
    count: u64,
    total: Duration,
    max: Duration,
}

/// What is told of [`Waits`], for files. Quantiles are right to 1.6 %, the others exact; all are 0 if there was no wait.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WaitFigures {
    /// How many waits, those of no time among them.
    pub count: u64,
    /// Sum of all, in seconds.
    pub total_s: f64,
    /// Half of the waits were not longer, in milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 were not longer, in milliseconds.
    pub p99_ms: f64,
    /// 999 of 1,000 were not longer, in milliseconds.
    pub p999_ms: f64,
    /// The longest, in milliseconds.
    pub max_ms: f64,
}

impl Default for Waits {
    fn default() -> Self {
        Self::new()
    }
}

impl Waits {
    /// No waits yet. All memory is taken here.
    pub fn new() -> Self {
        let buckets = vec![0; BUCKETS].into_boxed_slice();
        Self { buckets, count: 0, total: Duration::ZERO, max: Duration::ZERO }
    }

    /// Counts one wait; a wait of no time counts too, since quantiles are over all batches.
    pub fn add(&mut self, wait: Duration) {
        let bucket = &mut self.buckets[bucket(nanoseconds(wait))];
        *bucket = bucket.saturating_add(1);
        self.count += 1;
        self.total = self.total.saturating_add(wait);
        self.max = self.max.max(wait);
    }

    /// Counts all waits of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (ours, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *ours = ours.saturating_add(*theirs);
        }
        self.count += other.count;
        self.total = self.total.saturating_add(other.total);
        self.max = self.max.max(other.max);
    }

    /// How many waits.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Sum of all waits.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// The longest wait; zero if there was none.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// The least duration that at least the part `q` of all waits did not exceed (nearest rank), right to 1/64; `q` is
    /// cut to 0..=1, and 1 gives the exact maximum. Zero if there was no wait.
    pub fn quantile(&self, q: f64) -> Duration {
        // At least the first: the quantile 0 is the shortest wait.
        let rank = ((q.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).max(1);
        if rank >= self.count {
            return self.max;
        }
        let mut passed = 0;
        for (index, waits) in self.buckets.iter().enumerate() {
            passed += u64::from(*waits);
            if passed >= rank {
                return Duration::from_nanos(middle(index)).min(self.max);
            }
        }
        self.max
    }

    /// All figures at once.
    pub fn figures(&self) -> WaitFigures {
        let ms = |wait: Duration| wait.as_nanos() as f64 / 1e6;
        WaitFigures {
            count: self.count,
            total_s: self.total.as_secs_f64(),
            p50_ms: ms(self.quantile(0.5)),
            p99_ms: ms(self.quantile(0.99)),
            p999_ms: ms(self.quantile(0.999)),
            max_ms: ms(self.max),
        }
    }
}

impl fmt::Debug for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Waits").field(&self.figures()).finish()
    }
}

/// 584 years fit; what is longer lies in the last bucket.
fn nanoseconds(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)
}

/// The bucket of a wait: its power of two, and the five bits that follow the leading one.
fn bucket(nanoseconds: u64) -> usize {
    if nanoseconds < LINEAR {
        return nanoseconds as usize;
    }
    let power = nanoseconds.ilog2() - DIVISION;
    // 32..=63: the leading bit and five more.
    let leading = nanoseconds >> power;
    (u64::from(power) * LINEAR + leading) as usize
}

/// The middle of a bucket, in nanoseconds; exact where a bucket is one nanosecond wide.
fn middle(bucket: usize) -> u64 {
    let index = bucket as u64;
    if index < LINEAR {
        return index;
    }
    let power = index / LINEAR - 1;
    let low = (index % LINEAR + LINEAR) << power;
    low + ((1 << power) >> 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn waits(list: &[u64]) -> Waits {
        let mut waits = Waits::new();
        list.iter().for_each(|wait| waits.add(Duration::from_nanos(*wait)));
        waits
    }

    /// Of any size: as many of 10 ns as of 10 s.
    fn any_wait() -> impl Strategy<Value = u64> {
        (0..=63u32, any::<u64>()).prop_map(|(power, bits)| bits >> power)
    }

    proptest! {
        #[test]
        fn quantiles_are_those_of_the_sorted_list_to_one_sixty_fourth(
            mut list in prop::collection::vec(any_wait(), 1..400),
            q in prop_oneof![Just(0.0), Just(0.5), Just(0.99), Just(0.999), Just(1.0), 0.0..=1.0f64],
        ) {
            let measured = waits(&list).quantile(q);
            list.sort_unstable();
            let rank = ((q * list.len() as f64).ceil() as usize).max(1);
            let exact = u128::from(list[rank - 1]);
            prop_assert!(measured.as_nanos().abs_diff(exact) * 64 <= exact, "{measured:?} for {exact} ns");
        }

        #[test]
        fn count_total_and_maximum_are_exact(list in prop::collection::vec(any_wait(), 0..100)) {
            let measured = waits(&list);
            prop_assert_eq!(measured.count(), list.len() as u64);
            prop_assert_eq!(measured.total().as_nanos(), list.iter().map(|wait| u128::from(*wait)).sum::<u128>());
            prop_assert_eq!(measured.max(), Duration::from_nanos(list.iter().copied().max().unwrap_or(0)));
            prop_assert_eq!(measured.quantile(1.0), measured.max());
        }

        #[test]
        fn merged_waits_are_the_waits_of_both(
            a in prop::collection::vec(any_wait(), 0..100),
            b in prop::collection::vec(any_wait(), 0..100),
        ) {
            let mut merged = waits(&a);
            merged.merge(&waits(&b));
            prop_assert_eq!(merged, waits(&[a, b].concat()));
        }
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
        for power in 0..64 {
            let edge = 1u64 << power;
            assert!((0..=1).contains(&(bucket(edge) - bucket(edge - 1))), "at 2^{power}");
        }
        for index in 0..BUCKETS {
            assert_eq!(bucket(middle(index)), index);
        }
    }

    #[test]
    fn of_no_waits_all_figures_are_zero() {
        let none = WaitFigures { count: 0, total_s: 0.0, p50_ms: 0.0, p99_ms: 0.0, p999_ms: 0.0, max_ms: 0.0 };
        assert_eq!(Waits::new().figures(), none);
    }

    #[test]
    fn one_long_wait_in_a_thousand_shows_in_the_last_figures_only() {
        let mut list = vec![1_000; 1998];
        list.extend([50_000_000, 80_000_000]);
        let figures = waits(&list).figures();
        assert!((figures.p50_ms - 0.001).abs() < 0.00002 && figures.p99_ms == figures.p50_ms, "{figures:?}");
        assert_eq!((figures.count, figures.p999_ms, figures.max_ms), (2000, figures.p50_ms, 80.0));
        list.push(50_000_000);
        let figures = waits(&list).figures();
        assert!((figures.p999_ms - 50.0).abs() < 0.8, "{figures:?}");
    }

    #[test]
    fn a_wait_longer_than_the_scale_is_the_maximum_all_the_same() {
        let mut waits = Waits::new();
        waits.add(Duration::MAX);
        waits.add(Duration::from_secs(1));
        assert_eq!((waits.max(), waits.total(), waits.count()), (Duration::MAX, Duration::MAX, 2));
    }
}
