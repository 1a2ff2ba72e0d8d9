//! Per-channel statistics of the stored means, accumulated in the dataset's order.
//!
//! Sums are kept in f64 and added value by value, so the result is a function of the stored values alone: an encode that
//! was interrupted reads its finished shards again and arrives at the same bits.

use half::f16;
use shards::ChannelStats;

/// Running sums of each channel.
#[derive(Debug, Clone)]
pub(super) struct Stats {
    /// Values of one channel of one sample.
    area: usize,
    channels: Vec<Channel>,
}

#[derive(Debug, Clone, Copy)]
struct Channel {
    count: u64,
    sum: f64,
    squares: f64,
    min: f64,
    max: f64,
}

impl Stats {
    /// For samples of `channels` planes of `area` values (both at least 1).
    pub(super) fn new(channels: usize, area: usize) -> Self {
        let none = Channel { count: 0, sum: 0.0, squares: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY };
        Self { area, channels: vec![none; channels] }
    }

    /// Adds little-endian f16 values of whole samples.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let planes = bytes.chunks_exact(self.area * 2).zip((0..self.channels.len()).cycle());
        for (plane, channel) in planes {
            let channel = &mut self.channels[channel];
            channel.count += self.area as u64;
            for pair in plane.as_chunks::<2>().0 {
                let value = f16::from_le_bytes(*pair).to_f64();
                channel.sum += value;
                channel.squares += value * value;
                channel.min = channel.min.min(value);
                channel.max = channel.max.max(value);
            }
        }
    }

    /// Mean, standard deviation (of the population), smallest and largest; empty if nothing was added.
    pub(super) fn finish(&self) -> Vec<ChannelStats> {
        let channels = self.channels.iter().filter(|channel| channel.count > 0);
        let stats = channels.map(|&Channel { count, sum, squares, min, max }| {
            let mean = sum / count as f64;
            let variance = squares / count as f64 - mean * mean;
            ChannelStats { mean, std: variance.max(0.0).sqrt(), min, max }
        });
        stats.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_kept_apart() {
        let samples = [[1.0, 3.0, -2.0, -2.0], [1.0, 3.0, -4.0, 0.0]];
        let bytes: Vec<u8> = samples.concat().into_iter().flat_map(|v| f16::from_f64(v).to_le_bytes()).collect();
        let mut whole = Stats::new(2, 2);
        whole.add(&bytes);
        let expected = [
            ChannelStats { mean: 2.0, std: 1.0, min: 1.0, max: 3.0 },
            ChannelStats { mean: -2.0, std: 2f64.sqrt(), min: -4.0, max: 0.0 },
        ];
        assert_eq!(whole.finish(), expected);
        let mut parts = Stats::new(2, 2);
        bytes.chunks(8).for_each(|sample| parts.add(sample));
        assert_eq!(parts.finish(), expected);
        assert_eq!(Stats::new(2, 2).finish(), []);
    }
}
