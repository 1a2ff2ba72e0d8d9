//! Statistics of the stored values, accumulated in the dataset's order: per channel of every column, and a histogram of
//! the log-variances.
//!
//! Sums are kept in f64 and added value by value within a shard, then shard by shard, so the result is a function of the
//! stored values alone: an encode that was interrupted reads its finished shards again and arrives at the same bits.

use std::collections::BTreeMap;

use half::f16;
use shards::{ChannelStats, Column, DType, Histogram, Schema, Semantics};

/// Bins of the histogram of log-variances: from -30 to 20, the range that they are clamped to.
const LOGVAR_LOW: f64 = -30.0;
const LOGVAR_WIDTH: f64 = 0.5;
const LOGVAR_BINS: usize = 100;

/// Running sums of each column.
#[derive(Debug, Clone)]
pub(crate) struct Stats {
    columns: Vec<OfColumn>,
}

#[derive(Debug, Clone)]
struct OfColumn {
    name: String,
    dtype: DType,
    /// Values of one channel of one sample.
    area: usize,
    channels: Vec<Channel>,
    histogram: Option<Histogram>,
}

#[derive(Debug, Clone, Copy)]
struct Channel {
    count: u64,
    non_finite: u64,
    sum: f64,
    squares: f64,
    min: f64,
    max: f64,
}

impl Stats {
    /// For samples of this schema; the channels of a column are its first dimension.
    pub(crate) fn new(schema: &Schema) -> Self {
        Self { columns: schema.columns.iter().map(OfColumn::new).collect() }
    }

    /// Adds little-endian values of whole samples of one column.
    pub(crate) fn add(&mut self, column: usize, bytes: &[u8]) {
        let column = &mut self.columns[column];
        match column.dtype {
            DType::F16 => column.add(bytes, |pair: [u8; 2]| f16::from_le_bytes(pair).to_f64()),
            DType::F32 => column.add(bytes, |four: [u8; 4]| f64::from(f32::from_le_bytes(four))),
        }
    }

    /// Adds what was added to `other`, which is of the same schema.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (column, other) in self.columns.iter_mut().zip(&other.columns) {
            for (channel, other) in column.channels.iter_mut().zip(&other.channels) {
                channel.count += other.count;
                channel.non_finite += other.non_finite;
                channel.sum += other.sum;
                channel.squares += other.squares;
                channel.min = channel.min.min(other.min);
                channel.max = channel.max.max(other.max);
            }
            if let (Some(histogram), Some(other)) = (&mut column.histogram, &other.histogram) {
                histogram.below += other.below;
                histogram.above += other.above;
                histogram.counts.iter_mut().zip(&other.counts).for_each(|(count, other)| *count += other);
            }
        }
    }

    /// By column: mean, standard deviation (of the population), smallest and largest of each channel, 0 where no value
    /// is finite. Columns to which nothing was added are left out.
    pub(crate) fn channels(&self) -> BTreeMap<String, Vec<ChannelStats>> {
        let of = |column: &OfColumn| {
            let any = column.channels.iter().any(|channel| channel.count + channel.non_finite > 0);
            any.then(|| (column.name.clone(), column.channels.iter().map(Channel::finish).collect()))
        };
        self.columns.iter().filter_map(of).collect()
    }

    /// By column, of the columns that have one.
    pub(crate) fn histograms(&self) -> BTreeMap<String, Histogram> {
        let of = |column: &OfColumn| Some((column.name.clone(), column.histogram.clone()?));
        self.columns.iter().filter_map(of).collect()
    }
}

impl OfColumn {
    fn new(column: &Column) -> Self {
        let (channels, rest) = column.shape.split_first().map_or((1, &[][..]), |(first, rest)| (*first, rest));
        let none =
            Channel { count: 0, non_finite: 0, sum: 0.0, squares: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY };
        let histogram =
            Histogram { low: LOGVAR_LOW, width: LOGVAR_WIDTH, counts: vec![0; LOGVAR_BINS], below: 0, above: 0 };
        Self {
            name: column.name.clone(),
            dtype: column.dtype,
            area: rest.iter().map(|side| *side as usize).product(),
            channels: vec![none; channels as usize],
            histogram: (column.semantics == Semantics::PosteriorLogvar).then_some(histogram),
        }
    }

    fn add<const W: usize>(&mut self, bytes: &[u8], value: impl Fn([u8; W]) -> f64) {
        let planes = bytes.chunks_exact(self.area * W).zip((0..self.channels.len()).cycle());
        for (plane, channel) in planes {
            let channel = &mut self.channels[channel];
            for &raw in plane.as_chunks::<W>().0 {
                let value = value(raw);
                if !value.is_finite() {
                    channel.non_finite += 1;
                    continue;
                }
                channel.count += 1;
                channel.sum += value;
                channel.squares += value * value;
                channel.min = channel.min.min(value);
                channel.max = channel.max.max(value);
                if let Some(histogram) = &mut self.histogram {
                    count(histogram, value);
                }
            }
        }
    }
}

fn count(histogram: &mut Histogram, value: f64) {
    let bin = (value - histogram.low) / histogram.width;
    if bin < 0.0 {
        histogram.below += 1;
    } else if let Some(count) = histogram.counts.get_mut(bin as usize) {
        *count += 1;
    } else {
        histogram.above += 1;
    }
}

impl Channel {
    fn finish(&self) -> ChannelStats {
        let &Self { count, non_finite, sum, squares, min, max } = self;
        if count == 0 {
            return ChannelStats { mean: 0.0, std: 0.0, min: 0.0, max: 0.0, non_finite };
        }
        let mean = sum / count as f64;
        let variance = squares / count as f64 - mean * mean;
        ChannelStats { mean, std: variance.max(0.0).sqrt(), min, max, non_finite }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::gather::Layout;
    use crate::encode::store::Store;
    use shards::Codec;

    fn schema() -> Schema {
        let store = Store { logvar: true, flip: false, codec: Codec::None };
        store.schema([2, 1, 2], 1.0, 0.0, Layout::default())
    }

    fn bytes(values: &[f64]) -> Vec<u8> {
        values.iter().flat_map(|value| f16::from_f64(*value).to_le_bytes()).collect()
    }

    #[test]
    fn channels_and_columns_are_kept_apart() {
        let samples = [[1.0, 3.0, -2.0, -2.0], [1.0, 3.0, -4.0, 0.0]];
        let mut whole = Stats::new(&schema());
        whole.add(0, &bytes(&samples.concat()));
        let expected = [
            ChannelStats { mean: 2.0, std: 1.0, min: 1.0, max: 3.0, non_finite: 0 },
            ChannelStats { mean: -2.0, std: 2f64.sqrt(), min: -4.0, max: 0.0, non_finite: 0 },
        ];
        assert_eq!(whole.channels(), BTreeMap::from([("mean".to_owned(), expected.to_vec())]));
        let mut parts = Stats::new(&schema());
        for sample in &samples {
            let mut part = Stats::new(&schema());
            part.add(0, &bytes(sample));
            parts.merge(&part);
        }
        assert_eq!(parts.channels(), whole.channels());
        assert_eq!(Stats::new(&schema()).channels(), BTreeMap::new());
    }

    #[test]
    fn log_variances_fall_into_bins_and_values_that_are_none_are_counted_apart() {
        let mut stats = Stats::new(&schema());
        stats.add(1, &bytes(&[-30.0, -29.6, -29.5, 20.0, f64::NAN, -31.0, f64::INFINITY, 0.0]));
        let histogram = stats.histograms().remove("logvar").unwrap();
        let filled: Vec<_> = histogram.counts.iter().enumerate().filter(|(_, count)| **count > 0).collect();
        assert_eq!(filled, [(0, &2), (1, &1), (60, &1)]);
        assert_eq!((histogram.below, histogram.above), (1, 1));
        let non_finite: Vec<_> = stats.channels()["logvar"].iter().map(|channel| channel.non_finite).collect();
        assert_eq!(non_finite, [1, 1]);
    }
}
