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
    /// As a file of noise says it, beside the noise of each image.
    Given,
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
    /// The class of each image.
    labels: Vec<i64>,
    /// The images that are not wanted; empty for none.
    present: Vec<bool>,
    batch: u64,
    next: u64,
}

impl Requests {
    /// `count` images of `classes` (not empty), in batches of `batch`. `labels` is random or balanced.
    pub fn new(classes: &[i64], labels: Labels, count: u64, batch: u64, seed: u64) -> Self {
        let n = classes.len() as u64;
        let choice = |index: u64| match labels {
            Labels::Balanced => index * n / count,
            Labels::Random | Labels::Given => seed_of(seed, index, Purpose::SampleLabel) % n,
        };
        Self::given((0..count).map(|index| classes[choice(index) as usize]).collect(), batch)
    }

    /// An image of each of these classes, in batches of `batch`.
    pub fn given(labels: Vec<i64>, batch: u64) -> Self {
        Self { labels, present: Vec::new(), batch: batch.max(1), next: 0 }
    }

    /// Leaves out the batches all of whose images are `present`, one flag an image. A batch that lacks some is made as a
    /// whole: its images then have the bytes that they would have had, since how a product is summed may depend on the
    /// size of the batch.
    pub fn without(self, present: &[bool]) -> Self {
        Self { present: present.to_vec(), ..self }
    }

    /// The class of each image.
    pub fn labels(&self) -> &[i64] {
        &self.labels
    }
}

impl Source for Requests {
    type Item = SampleRequest;

    fn next(&mut self, _: &Stop) -> Result<Option<SampleRequest>, BoxError> {
        let count = self.labels.len() as u64;
        while self.next < count {
            let images = self.next..self.next.saturating_add(self.batch).min(count);
            self.next = images.end;
            if images.clone().any(|index| !self.present.get(index as usize).is_some_and(|present| *present)) {
                let labels = self.labels[images.start as usize..images.end as usize].to_vec();
                return Ok(Some(SampleRequest { indices: images.collect(), labels }));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balanced_labels_share_the_images_out_in_order() {
        let requests = Requests::new(&[4, 7], Labels::Balanced, 6, 4, 0);
        assert_eq!(requests.labels(), [4, 4, 4, 7, 7, 7]);
    }

    #[test]
    fn random_labels_do_not_depend_on_the_count_or_the_batch() {
        let labels = |count, batch| {
            let classes: Vec<_> = (0..10).collect();
            Requests::new(&classes, Labels::Random, count, batch, 5).labels()[..20].to_vec()
        };
        assert_eq!(labels(20, 3), labels(1000, 64));
        assert!(labels(20, 3).iter().collect::<std::collections::BTreeSet<_>>().len() > 4);
    }

    #[test]
    fn what_is_there_is_left_out_in_whole_batches() {
        let present: Vec<_> = (0..10).map(|i| i != 4 && i != 9).collect();
        let mut requests = Requests::given((10..20).collect(), 3).without(&present);
        let mut next = || requests.next(&Stop::never()).unwrap();
        assert_eq!(next(), Some(SampleRequest { indices: vec![3, 4, 5], labels: vec![13, 14, 15] }));
        assert_eq!(next(), Some(SampleRequest { indices: vec![9], labels: vec![19] }));
        assert_eq!(next(), None);
    }
}
