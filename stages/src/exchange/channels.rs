//! The values of one sample, in few numbers.

use std::collections::BTreeMap;

use half::f16;
use shards::{DType, Dataset, SampleRef, Scratch, ShardError};

/// Mean of each channel (first dimension) of every column of one sample, by name; NaN where a value is.
///
/// # Errors
/// As [`shards::ShardReader::read_block`].
pub fn channel_means(dataset: &Dataset, sample: SampleRef) -> Result<BTreeMap<String, Vec<f64>>, ShardError> {
    let shard = &dataset.shards[sample.block.shard];
    let mut scratch = Scratch::new();
    let mut means = BTreeMap::new();
    for (c, column) in shard.columns().iter().enumerate() {
        let mut block = vec![0; shard.block_len(sample.block.block) * column.sample_bytes()];
        shard.read_block(sample.block.block, c, &mut block, &mut scratch)?;
        let bytes = &block[sample.index * column.sample_bytes()..(sample.index + 1) * column.sample_bytes()];
        let values: Vec<f64> = match column.dtype {
            DType::F16 => bytes.as_chunks().0.iter().map(|pair| f16::from_le_bytes(*pair).to_f64()).collect(),
            DType::F32 => bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four).into()).collect(),
        };
        let channels = column.shape.first().map_or(1, |channels| *channels as usize);
        let area = values.len() / channels;
        let of = values.chunks_exact(area).map(|channel| channel.iter().sum::<f64>() / area as f64);
        means.insert(column.name.clone(), of.collect());
    }
    Ok(means)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{self, MEAN};
    use super::*;

    #[test]
    fn each_channel_of_a_sample_has_its_mean() {
        let dir = tempfile::tempdir().unwrap();
        let dataset = fixture::dataset(dir.path(), &fixture::schema(&[MEAN], DType::F16), &[70]);
        let values = fixture::values(DType::F16, 70, 0);
        let values: Vec<f64> = values.as_chunks().0.iter().map(|pair| f16::from_le_bytes(*pair).to_f64()).collect();
        let means = channel_means(&dataset, dataset.block_of(69).unwrap()).unwrap();
        let expected = values[69 * 18..].chunks(9).map(|channel| channel.iter().sum::<f64>() / 9.0).collect::<Vec<_>>();
        assert_eq!(means["mean"], expected);
    }
}
