//! The Inception Score (Salimans et al. 2016) as the ADM evaluator computes it.
//!
//! exp of the mean of KL(p(class | image) || p(class)), for each 5,000 consecutive images on its own, and then their mean; the
//! last part may be short. The order of the images matters: where classes come one after the other each part has few of
//! them, and the score is a fraction of what it is in random order.

use tch::{Device, Kind, Tensor, no_grad};

/// Images whose classes are averaged together.
pub const SPLIT: i64 = 5000;

/// The score of images that come in batches.
#[derive(Debug)]
pub struct InceptionScore {
    split: i64,
    /// Of the part that is being filled: images, sum of p ln p, sum of p `[classes]`, f64.
    count: i64,
    entropy: f64,
    sum: Option<Tensor>,
    /// exp(KL) of the parts that are full.
    scores: Vec<f64>,
}

impl Default for InceptionScore {
    fn default() -> Self {
        Self::in_parts_of(SPLIT)
    }
}

impl InceptionScore {
    /// With another size of the parts, at least 1.
    pub fn in_parts_of(split: i64) -> Self {
        Self { split: split.max(1), count: 0, entropy: 0.0, sum: None, scores: Vec::new() }
    }

    /// Takes the logits of some images in, `[B, classes]`, any dtype and device. The softmax is f64: in f32 small
    /// probabilities become 0, and 0 ln 0 is not a number.
    pub fn push(&mut self, logits: &Tensor) {
        no_grad(|| {
            let log_p = logits.to_device(Device::Cpu).to_kind(Kind::Double).log_softmax(-1, Kind::Double);
            let mut from = 0;
            while from < log_p.size()[0] {
                let taken = (self.split - self.count).min(log_p.size()[0] - from);
                let log_p = log_p.narrow(0, from, taken);
                let p = log_p.exp();
                self.entropy += (&p * &log_p).sum(Kind::Double).double_value(&[]);
                let of_classes = p.sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
                self.sum = Some(self.sum.take().map_or_else(|| of_classes.shallow_clone(), |sum| sum + &of_classes));
                self.count += taken;
                from += taken;
                if self.count == self.split {
                    self.close();
                }
            }
        });
    }

    fn close(&mut self) {
        let Some(sum) = self.sum.take() else { return };
        let n = self.count as f64;
        let mean = sum / n;
        // A class that no image has is no part of the sum.
        let cross = mean.xlogy(&mean).sum(Kind::Double).double_value(&[]);
        self.scores.push((self.entropy / n - cross).exp());
        (self.count, self.entropy) = (0, 0.0);
    }

    /// The score, and how many parts it is the mean of; `None` without images.
    pub fn finish(mut self) -> Option<(f64, usize)> {
        no_grad(|| self.close());
        let parts = self.scores.len();
        (parts > 0).then(|| (self.scores.iter().sum::<f64>() / parts as f64, parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(classes: &[i64]) -> Tensor {
        // Certain to about 1e-17.
        Tensor::from_slice(classes).one_hot(4).to_kind(Kind::Float) * 40.0
    }

    fn score(split: i64, batches: &[Tensor]) -> f64 {
        let mut score = InceptionScore::in_parts_of(split);
        batches.iter().for_each(|batch| score.push(batch));
        score.finish().unwrap().0
    }

    #[test]
    fn certain_and_even_classes_score_their_number_and_one_class_scores_one() {
        assert!((score(100, &[logits(&[0, 1, 2, 3, 0, 1, 2, 3])]) - 4.0).abs() < 1e-9);
        assert!((score(100, &[logits(&[2; 6])]) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn parts_follow_the_order_of_the_images_and_not_the_batches() {
        let sorted = [logits(&[0, 0, 0]), logits(&[0, 1, 1, 1, 1])];
        assert!((score(4, &sorted) - 1.0).abs() < 1e-9);
        assert!((score(8, &sorted) - 2.0).abs() < 1e-9);
        // The last part is short.
        assert!((score(5, &sorted) - (0.8f64.powf(-0.8) * 0.2f64.powf(-0.2) + 1.0) / 2.0).abs() < 1e-9);
        assert!(InceptionScore::default().finish().is_none());
    }
}
