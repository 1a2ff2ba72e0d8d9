//! Statistics of a dataset's columns, as `dataset.json` holds them: per channel, and as histograms.
//!
//! They are computed by whoever writes the dataset and checked here only for sense: known columns, possible counts,
//! finite numbers. Whether they are true can be told only by reading every value.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::schema::{Column, Schema};

/// Most bins of a histogram.
pub const MAX_BINS: usize = 4096;

/// Statistics of one channel of a column over all samples, of the finite values as they are stored. Where there are
/// none, mean, standard deviation, smallest and largest value are 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelStats {
    /// Mean.
    pub mean: f64,
    /// Standard deviation, >= 0.
    pub std: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Values that are infinite or NaN.
    pub non_finite: u64,
}

/// How many values of a column lie in each of some equal intervals. Infinite values and NaN are not counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Histogram {
    /// Where bin 0 begins.
    pub low: f64,
    /// Width of a bin, > 0.
    pub width: f64,
    /// Bin `i` counts the values in `[low + i * width, low + (i + 1) * width)`; 1 to [`MAX_BINS`] bins.
    pub counts: Vec<u64>,
    /// Values below `low`.
    pub below: u64,
    /// Values from `low + counts.len() * width` on.
    pub above: u64,
}

/// A field that is wrong: its path, what is allowed, and what was found.
pub(crate) type Wrong = (String, String, String);

/// Checks `stats` and `histograms` of a manifest with `samples` samples.
pub(crate) fn check(
    schema: &Schema,
    samples: u64,
    stats: &BTreeMap<String, Vec<ChannelStats>>,
    histograms: &BTreeMap<String, Histogram>,
) -> Result<(), Wrong> {
    let declared = |field: &str, name: &String| {
        let column = schema.columns.iter().find(|column| column.name == *name);
        column.ok_or_else(|| (field.to_owned(), "names of the schema's columns".to_owned(), format!("{name:?}")))
    };
    for (name, channels) in stats {
        check_channels(name, declared("stats", name)?, samples, channels)?;
    }
    for (name, histogram) in histograms {
        check_histogram(name, declared("histograms", name)?, samples, histogram)?;
    }
    Ok(())
}

/// One entry for each channel, with finite numbers in order and no more values than there are.
fn check_channels(name: &str, column: &Column, samples: u64, channels: &[ChannelStats]) -> Result<(), Wrong> {
    let expected = channel_count(column);
    if channels.len() != expected {
        return Err((format!("stats.{name}"), format!("{expected} channels"), channels.len().to_string()));
    }
    let values = values(column, samples) / expected.max(1) as u128;
    for (c, stats) in channels.iter().enumerate() {
        let ChannelStats { mean, std, min, max, non_finite } = *stats;
        if ![mean, std, min, max].iter().all(|value| value.is_finite()) || std < 0.0 || min > max {
            let expected = "finite numbers with std >= 0 and min <= max".to_owned();
            return Err((format!("stats.{name}[{c}]"), expected, format!("{stats:?}")));
        }
        if u128::from(non_finite) > values {
            let field = format!("stats.{name}[{c}].non_finite");
            return Err((field, format!("at most {values}, the values of a channel,"), non_finite.to_string()));
        }
    }
    Ok(())
}

/// A sensible grid, and no more values than there are.
fn check_histogram(name: &str, column: &Column, samples: u64, histogram: &Histogram) -> Result<(), Wrong> {
    let field = |field: &str| format!("histograms.{name}.{field}");
    let Histogram { low, width, counts, below, above } = histogram;
    if counts.is_empty() || counts.len() > MAX_BINS {
        return Err((field("counts"), format!("1 to {MAX_BINS} bins"), counts.len().to_string()));
    }
    if !low.is_finite() {
        return Err((field("low"), "a finite number".into(), low.to_string()));
    }
    if !(*width > 0.0 && (low + counts.len() as f64 * width).is_finite()) {
        return Err((field("width"), "a number above 0 with finite bins".into(), width.to_string()));
    }
    // At most 4,098 numbers below 2^64.
    let counted: u128 = counts.iter().chain([below, above]).map(|&count| u128::from(count)).sum();
    let values = values(column, samples);
    if counted > values {
        return Err((field("counts"), format!("at most {values} values in all"), counted.to_string()));
    }
    Ok(())
}

/// Channels of a column: its first dimension, or 1 where a sample is a single number.
pub(crate) fn channel_count(column: &Column) -> usize {
    column.shape.first().map_or(1, |&channels| channels as usize)
}

/// Values of a column over all samples: below 2^64 times 2^64.
fn values(column: &Column, samples: u64) -> u128 {
    u128::from(samples) * (column.sample_bytes() / column.dtype.width()) as u128
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    const CHANNEL: ChannelStats = ChannelStats { mean: 0.5, std: 1.0, min: -1.0, max: 1.0, non_finite: 0 };

    /// Statistics of ten samples of [`fixture::schema`]: `mean` has 4 channels of 16 values, `logvar` 16 values in all.
    fn valid() -> (BTreeMap<String, Vec<ChannelStats>>, BTreeMap<String, Histogram>) {
        let histogram = Histogram { low: -30.0, width: 0.5, counts: vec![40, 40, 40], below: 20, above: 20 };
        let stats = BTreeMap::from([("mean".to_owned(), vec![ChannelStats { non_finite: 160, ..CHANNEL }; 4])]);
        (stats, BTreeMap::from([("logvar".to_owned(), histogram)]))
    }

    #[test]
    fn statistics_that_can_be_true_are_accepted() {
        let (stats, histograms) = valid();
        assert_eq!(check(&fixture::schema(4), 10, &stats, &histograms), Ok(()));
        assert_eq!(check(&fixture::schema(4), 10, &BTreeMap::new(), &BTreeMap::new()), Ok(()));
    }

    #[test]
    fn each_wrong_field_of_a_channel_is_named() {
        type Spoil = fn(&mut BTreeMap<String, Vec<ChannelStats>>);
        fn mean(stats: &mut BTreeMap<String, Vec<ChannelStats>>) -> &mut Vec<ChannelStats> {
            stats.get_mut("mean").unwrap()
        }
        let cases: &[(&str, Spoil)] = &[
            ("stats", |s| drop(s.insert("variance".into(), vec![CHANNEL; 4]))),
            ("stats.mean", |s| mean(s).truncate(3)),
            ("stats.mean", |s| mean(s).clear()),
            ("stats.mean[2]", |s| mean(s)[2].mean = f64::NAN),
            ("stats.mean[0]", |s| mean(s)[0].std = -0.1),
            ("stats.mean[0]", |s| mean(s)[0].std = f64::INFINITY),
            ("stats.mean[3]", |s| mean(s)[3].min = 1.5),
            ("stats.mean[3]", |s| mean(s)[3].max = f64::INFINITY),
            ("stats.mean[1].non_finite", |s| mean(s)[1].non_finite = 161),
        ];
        for (i, (field, spoil)) in cases.iter().enumerate() {
            let (mut stats, histograms) = valid();
            spoil(&mut stats);
            let wrong = check(&fixture::schema(4), 10, &stats, &histograms).unwrap_err();
            assert_eq!(wrong.0, *field, "case {i}: {wrong:?}");
        }
    }

    #[test]
    fn each_wrong_field_of_a_histogram_is_named() {
        type Spoil = fn(&mut Histogram);
        let cases: &[(&str, Spoil)] = &[
            ("histograms.logvar.counts", |h| h.counts.clear()),
            ("histograms.logvar.counts", |h| h.counts = vec![0; MAX_BINS + 1]),
            ("histograms.logvar.counts", |h| h.counts[0] += 1),
            ("histograms.logvar.counts", |h| (h.below, h.above) = (u64::MAX, u64::MAX)),
            ("histograms.logvar.low", |h| h.low = f64::NEG_INFINITY),
            ("histograms.logvar.width", |h| h.width = 0.0),
            ("histograms.logvar.width", |h| h.width = f64::NAN),
            ("histograms.logvar.width", |h| h.width = f64::MAX),
        ];
        for (i, (field, spoil)) in cases.iter().enumerate() {
            let (stats, mut histograms) = valid();
            spoil(histograms.get_mut("logvar").unwrap());
            let wrong = check(&fixture::schema(4), 10, &stats, &histograms).unwrap_err();
            assert_eq!(wrong.0, *field, "case {i}: {wrong:?}");
        }
        let (stats, mut histograms) = valid();
        let histogram = histograms.remove("logvar").unwrap();
        histograms.insert("Logvar".into(), histogram);
        assert_eq!(check(&fixture::schema(4), 10, &stats, &histograms).unwrap_err().0, "histograms");
    }
}
