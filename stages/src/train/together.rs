//! A trainer as one of several: it starts from the state of rank 0, stops when any of them does, and is the same as they at all times.

use tch::{Device, Kind, Tensor};

use super::step::Trainer;
use crate::world::WorldError;
use crate::world::peers::{Joining, Peers};

/// The other ranks of a run in training. Owned by the thread that trains.
#[derive(Debug)]
pub struct Together {
    /// What all of them call together.
    pub peers: Peers,
}

impl Together {
    /// Waits for the other ranks, and puts the state of rank 0 into the trainer: of a fresh run the same, since all draw it from one
    /// seed; of one that is continued only rank 0 has read it.
    ///
    /// # Errors
    /// Not all of them come.
    pub fn join(joining: &Joining, trainer: &mut Trainer) -> Result<Self, WorldError> {
        let (peers, gradients) = joining.join(trainer.device())?;
        let mut step = Tensor::from_slice(&[trainer.step as i64]);
        let adamw = &mut trainer.optimiser;
        let shared = peers.share(&mut [
            &mut step,
            &mut trainer.parameters.master,
            &mut trainer.average,
            &mut adamw.exp_avg,
            &mut adamw.exp_avg_sq,
            &mut adamw.count,
        ]);
        shared.map_err(|error| peers.blame(error))?;
        trainer.step = step.int64_value(&[0]) as u64;
        trainer.parameters.refresh();
        trainer.exchange_in(gradients, joining.world, joining.bucket)?;
        Ok(Self { peers })
    }

    /// Makes sure that all ranks still have the same weights, and the same average of them.
    ///
    /// # Errors
    /// [`WorldError::Diverged`] and [`WorldError::Collective`].
    pub fn check(&self, trainer: &Trainer) -> Result<(), WorldError> {
        let buffers = [("", &trainer.parameters.master), ("the average of ", &trainer.average)];
        self.peers.check_equal(trainer.parameters.specs(), &buffers, trainer.step)
    }

    /// Means over the ranks of scalars, f32 on the device, as f64.
    ///
    /// # Errors
    /// [`WorldError::Collective`].
    pub fn means(&self, scalars: &[&Tensor]) -> Result<Vec<f64>, WorldError> {
        let flat: Vec<Tensor> = scalars.iter().map(|scalar| scalar.to_device(Device::Cpu)).collect();
        let values = Vec::<f64>::try_from(Tensor::stack(&flat, 0).to_kind(Kind::Double)).expect("one dimension");
        let world = self.peers.world() as f64;
        Ok(self.peers.sum(&values)?.into_iter().map(|sum| sum / world).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use tch::no_grad;

    use super::*;
    use crate::data::LatentBatch;
    use crate::method::config::ModelConfig;
    use crate::method::parameters::{BUCKET, views};
    use crate::method::random;
    use crate::train::config::TrainConfig;
    use crate::train::equality::{assert_equal_by_parameter, config, descended, relative, trainer_of, updated};
    use crate::world::launch::Launch;
    use crate::world::meeting::Meeting;

    /// Images of a global batch: 1 x 64, 2 x 32, 4 x 16.
    const BATCH: i64 = 64;

    /// Values of a bucket: so few that the small network has many.
    const SMALL: i64 = 500;

    fn batch_of_64(micro_batches: u64) -> TrainConfig {
        let mut config = config(micro_batches);
        config.train.batch = BATCH as u64;
        let small = ModelConfig { depth: 2, encoder_depth: 1, hidden: 16, ..config.model };
        config.model = ModelConfig { projector_hidden: 24, projector_out: 12, ..small };
        config
    }

    fn trainer(micro_batches: u64, kind: Kind) -> Trainer {
        trainer_of(batch_of_64(micro_batches), kind)
    }

    /// Runs `run` for every rank of a world of `world`, each with a trainer of its own, and gives what they return.
    fn ranks<T: Send>(
        world: usize,
        bucket: i64,
        make: impl Fn(usize) -> Trainer + Sync,
        run: impl Fn(&mut Trainer, &Together) -> T + Sync,
    ) -> Vec<T> {
        let meeting = Meeting::open(Launch::alone(), world, Duration::from_secs(120)).unwrap().in_buckets(bucket);
        thread::scope(|scope| {
            let (make, run) = (&make, &run);
            let join = |rank: usize| {
                let joining = meeting.joining(rank);
                scope.spawn(move || {
                    let mut trainer = make(rank);
                    let together = Together::join(&joining, &mut trainer).unwrap();
                    run(&mut trainer, &together)
                })
            };
            let threads: Vec<_> = (0..world).map(join).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// This rank's slice of global batch number g, and its gradients.
    fn gradients(trainer: &mut Trainer, together: Option<&Together>) {
        let [rank, world] = together.map_or([0, 1], |t| [t.peers.rank(), t.peers.world()]);
        let len = BATCH / world as i64;
        let start = rank as i64 * len;
        let whole = random::normal(&[1, BATCH, 4, 8, 8], Device::Cpu, 1000 + trainer.step).unwrap();
        let labels = Tensor::arange(BATCH, (Kind::Int64, Device::Cpu)).remainder(3);
        let rows = LatentBatch { latents: whole.narrow(1, start, len), labels: labels.narrow(0, start, len) };
        let views = trainer.draw_views().unwrap().slice(start, len);
        let _ = trainer.compute_gradients(&rows, &views, false).unwrap();
    }

    /// Gradients of the first step, by parameter; in ranks, and in ranks of several micro-batches; in one bucket and in many.
    #[test]
    fn slices_of_a_batch_have_its_gradients() {
        let mut whole = trainer(1, Kind::Float);
        gradients(&mut whole, None);
        let specs = whole.parameters.specs().to_vec();
        for (world, micro_batches, bucket) in [(2, 1, BUCKET), (2, 1, SMALL), (4, 1, SMALL), (2, 2, SMALL)] {
            let found = ranks(
                world,
                bucket,
                |_| trainer(micro_batches, Kind::Float),
                |trainer, together| {
                    gradients(trainer, Some(together));
                    (trainer.parameters.gradients.copy(), trainer.sent().unwrap())
                },
            );
            for (found, sent) in found {
                let what = format!("{world} ranks, {micro_batches} pieces");
                assert_equal_by_parameter(&what, &specs, &found, &whole.parameters.gradients, 1e-6);
                if bucket == BUCKET {
                    assert_eq!(sent.buckets, 1);
                } else {
                    // Most of them while the backward pass still computed others.
                    assert!(sent.buckets > 8 && 2 * sent.early > sent.buckets, "{sent:?}");
                }
            }
        }
    }

    /// 50 steps of plain gradient descent, by parameter, and 50 of AdamW by flat norms of weights, average and moments: AdamW divides
    /// by the size of a gradient, so that where the true one is 0, rounding is all there is.
    #[test]
    fn ranks_train_as_one_does() {
        let descend = |trainer: &mut Trainer, together: Option<&Together>| {
            descended(trainer, |trainer| gradients(trainer, together))
        };
        let adamw = |trainer: &mut Trainer, together: Option<&Together>| {
            let ended = updated(trainer, |trainer| {
                if let Some(together) = together.filter(|_| trainer.step.is_multiple_of(10)) {
                    together.check(trainer).unwrap();
                }
                gradients(trainer, together);
            });
            if let Some(together) = together {
                together.check(trainer).unwrap();
            }
            ended
        };
        let specs = trainer(1, Kind::Float).parameters.specs().to_vec();
        let (one_descended, one_updated) =
            (descend(&mut trainer(1, Kind::Float), None), adamw(&mut trainer(1, Kind::Float), None));
        for world in [2, 4] {
            let found = ranks(world, SMALL, |_| trainer(1, Kind::Float), |t, together| descend(t, Some(together)));
            for found in found {
                assert_equal_by_parameter(&format!("{world} ranks"), &specs, &found, &one_descended, 1e-5);
            }
            let found = ranks(world, SMALL, |_| trainer(1, Kind::Float), |t, together| adamw(t, Some(together)));
            for found in &found {
                for (what, (found, expected)) in found.iter().zip(&one_updated).enumerate() {
                    let error = relative(found, expected);
                    assert!(error < 1e-4, "{world} ranks, buffer {what}: {error:e}");
                }
            }
            assert!(found.iter().all(|flats| flats.iter().zip(&found[0]).all(|(flat, first)| flat.equal(first))));
        }
    }

    #[test]
    fn bf16_is_exchanged_in_f32() {
        let mut whole = trainer(1, Kind::BFloat16);
        gradients(&mut whole, None);
        let found = ranks(
            2,
            SMALL,
            |_| trainer(1, Kind::BFloat16),
            |trainer, together| {
                gradients(trainer, Some(together));
                (trainer.parameters.gradients.copy(), trainer.sent().unwrap())
            },
        );
        assert!(found[0].0.equal(&found[1].0));
        let error = relative(&found[0].0, &whole.parameters.gradients);
        assert!(error < 0.02, "{error:e}");
        for (_, sent) in found {
            assert!(sent.buckets > 8 && 2 * sent.early > sent.buckets, "{sent:?}");
        }
    }

    #[test]
    fn all_start_from_rank_0_and_who_differs_later_is_named() {
        let make = |rank: usize| {
            let mut config = config(1);
            config.train.seed = rank as u64;
            let mut trainer = trainer_of(config, Kind::Float);
            trainer.step = 7 * (1 - rank.min(1)) as u64;
            trainer
        };
        let name = "blocks.1.attn.qkv.weight";
        let weight = |trainer: &Trainer, flat: &Tensor| views(trainer.parameters.specs(), flat)[name].flatten(0, -1);
        let found = ranks(3, SMALL, make, |trainer, together| {
            let checked = together.check(trainer).is_ok();
            let is_odd = together.peers.rank() == 1;
            let error = |trainer: &Trainer| together.check(trainer).unwrap_err().to_string();
            if is_odd {
                // The last bit of one weight.
                let bit = weight(trainer, &trainer.parameters.master).get(5);
                let _ = no_grad(|| bit.view_dtype(Kind::Int).g_add_scalar_(1));
            }
            let of_bit = error(trainer);
            if is_odd {
                let bit = weight(trainer, &trainer.parameters.master).get(5);
                let _ = no_grad(|| bit.view_dtype(Kind::Int).g_sub_scalar_(1));
                // Two values of the average that are exchanged.
                let average = weight(trainer, &trainer.average);
                let (mut one, mut other) = (average.get(3), average.get(4));
                let kept = one.copy();
                one.copy_(&other);
                other.copy_(&kept);
            }
            (checked, trainer.step, of_bit, error(trainer))
        });
        for (checked, step, of_bit, of_exchange) in found {
            assert!(checked && step == 7);
            let said =
                |first: &str| format!("at step 7 the weights of rank 1 are not those of rank 0, first in {first}");
            assert!(of_bit.starts_with(&said(name)), "{of_bit}");
            assert!(of_exchange.starts_with(&said(&format!("the average of {name}"))), "{of_exchange}");
        }
    }
}
