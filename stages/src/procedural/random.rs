//! Random numbers of a scene, as a pure function of a seed.

use crate::splitmix::{SplitMix64, mix};

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub(super) struct Random(SplitMix64);

impl Random {
    /// The stream that belongs to `seed` and `stream`; streams of different pairs are unrelated.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Self(SplitMix64::new(mix(seed) ^ mix(!stream)))
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0.bits()
    }

    /// Uniform in [0, 1), with 24 bits.
    pub(super) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Uniform in [low, high).
    pub(super) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// Uniform in 0..n, for small n.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        ((self.bits() >> 32) * n) >> 32
    }
}
