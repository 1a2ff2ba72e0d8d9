//! Which images to make: their numbers and their classes.

use pipeline::{BoxError, Source, Stop};
use serde::{Deserialize, Serialize};

use crate::method::random::{Purpose, seed_of};

/// How the class of an image is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Labels {
    /// Uniform over the classes, a function of (seed, number of the image): the protocol of SiT and REPA.
    Random,
    /// Equally many of each class, in order: image i has class i * classes / count.
    Balanced,
}

/// Some images to make together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleRequest {
    /// Numbers of the images, from 0.
    pub indices: Vec<u64>,
    /// The class of each.
    pub labels: Vec<i64>,
}

/// The source of [`SampleRequest`]s.
#[derive(Debug)]
pub struct Requests {
    classes: Vec<i64>,
    labels: Labels,
    count: u64,
    batch: u64,
    seed: u64,
    next: u64,
}

impl Requests {
    /// `count` images of `classes` (not empty), in batches of `batch`.
    pub fn new(classes: Vec<i64>, labels: Labels, count: u64, batch: u64, seed: u64) -> Self {
        Self { classes, labels, count, batch: batch.max(1), seed, next: 0 }
    }

    /// The class of image `index`.
    pub fn label(&self, index: u64) -> i64 {
        let n = self.classes.len() as u64;
        let choice = match self.labels {
            Labels::Random => seed_of(self.seed, index, Purpose::SampleLabel) % n,
            Labels::Balanced => index * n / self.count,
        };
        self.classes[choice as usize]
    }
}

impl Source for Requests {
    type Item = SampleRequest;

    fn next(&mut self, _: &Stop) -> Result<Option<SampleRequest>, BoxError> {
        let end = (self.next + self.batch).min(self.count);
        let indices: Vec<u64> = (self.next..end).collect();
        self.next = end;
        let labels = indices.iter().map(|&index| self.label(index)).collect();
        Ok((!indices.is_empty()).then_some(SampleRequest { indices, labels }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balanced_labels_share_the_images_out_in_order() {
        let requests = Requests::new(vec![4, 7], Labels::Balanced, 6, 4, 0);
        assert_eq!((0..6).map(|i| requests.label(i)).collect::<Vec<_>>(), [4, 4, 4, 7, 7, 7]);
    }

    #[test]
    fn random_labels_do_not_depend_on_the_count_or_the_batch() {
        let labels = |count, batch| {
            let requests = Requests::new((0..10).collect(), Labels::Random, count, batch, 5);
            (0..20).map(|i| requests.label(i)).collect::<Vec<_>>()
        };
        assert_eq!(labels(20, 3), labels(1000, 64));
        assert!(labels(20, 3).iter().collect::<std::collections::BTreeSet<_>>().len() > 4);
    }
}
