//! How well an order is shuffled, in figures that can be compared with those of a true permutation.
//!
//! *Distance*: how far apart two samples that follow each other in a batch lie in the dataset, in the mean, as a share of
//! its length. Of independent uniform positions it is 1/3; of data that are read as they lie it is nearly 0.
//! *Class entropy*: that of the labels in a batch, in bits, in the mean over the batches. An order that takes classes as
//! they lie has fewer classes in a batch than chance would give.
//! *Again*: how many positions of an epoch lie between a sample and the next of its own block in the order, in the mean,
//! as a share of the epoch. It is what the pool bounds.

use std::collections::HashMap;

use super::plan::{Plan, SampleRef};
use crate::splitmix::SplitMix64;

/// The figures of one order over one epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Mean distance of samples that follow each other in a batch, as a share of the dataset.
    pub distance: f64,
    /// Mean entropy of the classes in a batch, in bits.
    pub class_entropy: f64,
    /// Mean number of different classes in a batch.
    pub classes: f64,
    /// Mean number of blocks that the samples of a batch come from.
    pub blocks: f64,
    /// Mean number of positions between a sample and the next of its block, as a share of the epoch.
    pub again: f64,
}

/// The quality of epoch `epoch` of `plan`, and that of a uniform permutation of the same dataset in batches of the same
/// size. `labels` are those of all samples, by position.
pub fn compare(plan: &Plan, epoch: u64, labels: &[i32]) -> (Quality, Quality) {
    let mut order = plan.epoch(epoch);
    let planned = quality(plan, &order, labels);
    // Any permutation of any order is uniform.
    SplitMix64::new(epoch).permute(&mut order);
    (planned, quality(plan, &order, labels))
}

fn quality(plan: &Plan, order: &[SampleRef], labels: &[i32]) -> Quality {
    let size = plan.batch_size();
    let batches = order.chunks_exact(size);
    let count = batches.len() as f64;
    let (mut distance, mut pairs, mut entropy, mut classes, mut blocks) = (0.0, 0u64, 0.0, 0usize, 0usize);
    for batch in batches {
        for pair in batch.windows(2) {
            distance += pair[0].position.abs_diff(pair[1].position) as f64;
            pairs += 1;
        }
        let (mut of_class, mut of_block) = (HashMap::new(), HashMap::new());
        for sample in batch {
            *of_class.entry(labels[sample.position as usize]).or_insert(0u32) += 1;
            *of_block.entry(sample.block).or_insert(0u32) += 1;
        }
        let share = |&n: &u32| f64::from(n) / size as f64;
        entropy -= of_class.values().map(share).map(|p| p * p.log2()).sum::<f64>();
        classes += of_class.len();
        blocks += of_block.len();
    }
    let (mut last, mut gaps, mut gap_count) = (HashMap::new(), 0.0, 0u64);
    for (at, sample) in order.iter().enumerate() {
        if let Some(before) = last.insert(sample.block, at) {
            gaps += (at - before) as f64;
            gap_count += 1;
        }
    }
    Quality {
        distance: distance / pairs.max(1) as f64 / plan.samples() as f64,
        class_entropy: entropy / count,
        classes: classes as f64 / count,
        blocks: blocks as f64 / count,
        again: gaps / gap_count.max(1) as f64 / order.len() as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::PlanConfig;
    use super::*;

    fn plan(pool_blocks: usize) -> Plan {
        Plan::new(PlanConfig { blocks: vec![64; 256], seed: 3, batch: 128, pool_blocks }).unwrap()
    }

    #[test]
    fn a_permutation_of_everything_is_as_good_as_another() {
        let labels: Vec<i32> = (0..64 * 256).map(|position| position / 64).collect();
        let (planned, uniform) = compare(&plan(256), 0, &labels);
        assert!((planned.distance - 1.0 / 3.0).abs() < 0.01 && (uniform.distance - 1.0 / 3.0).abs() < 0.01);
        assert!((planned.class_entropy - uniform.class_entropy).abs() < 0.02, "{planned:?} {uniform:?}");
        assert!((planned.again / uniform.again - 1.0).abs() < 0.02, "{planned:?} {uniform:?}");
    }

    #[test]
    fn a_small_pool_over_classes_in_a_row_shows() {
        // A block is a class, so a batch has at most as many classes as the pool has blocks, and one finished or begun.
        let labels: Vec<i32> = (0..64 * 256).map(|position| position / 64).collect();
        let (planned, uniform) = compare(&plan(4), 0, &labels);
        assert!(planned.classes < 8.0 && uniform.classes > 90.0, "{planned:?} {uniform:?}");
        assert!(planned.class_entropy < 3.0 && uniform.class_entropy > 6.0, "{planned:?} {uniform:?}");
        // Rows of a block come within 4 of 256 blocks, and in the mean over half of the dataset otherwise.
        assert!(planned.again < 0.12 * uniform.again, "{planned:?} {uniform:?}");
        assert_eq!(planned.classes, planned.blocks);
    }
}
