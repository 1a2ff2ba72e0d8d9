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
        peers.share(&mut [
            &mut step,
            &mut trainer.parameters.master,
            &mut trainer.average,
            &mut adamw.exp_avg,
            &mut adamw.exp_avg_sq,
            &mut adamw.count,
        ])?;
        trainer.step = step.int64_value(&[0]) as u64;
        trainer.parameters.refresh();
        trainer.exchange_in(gradients, joining.world)?;
        Ok(Self { peers })
    }

    /// Makes sure that all ranks still have the same weights.
    ///
    /// # Errors
    /// [`WorldError::Diverged`], and a rank that does not answer.
    pub fn check(&self, trainer: &Trainer) -> Result<(), WorldError> {
        self.peers.check_equal(trainer.parameters.specs(), &trainer.parameters.master, trainer.step)
    }

    /// Means over the ranks of scalars, f32 on the device, as f64.
    ///
    /// # Errors
    /// A rank does not answer.
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
    use crate::method::parameters::views;
    use crate::train::equality::{batch, config, trainer, trainer_of};
    use crate::world::launch::Launch;
    use crate::world::meeting::Meeting;

    /// Runs `run` for every rank of a world of `world`, each with a trainer of its own, and gives what they return.
    fn ranks<T: Send>(
        world: usize,
        make: impl Fn(usize) -> Trainer + Sync,
        run: impl Fn(&mut Trainer, &Together) -> T + Sync,
    ) -> Vec<T> {
        let meeting = Meeting::open(Launch::alone(), world, Duration::from_secs(120)).unwrap();
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
        let len = 8 / world as i64;
        let start = rank as i64 * len;
        let whole = batch(trainer.step);
        let rows =
            LatentBatch { latents: whole.latents.narrow(1, start, len), labels: whole.labels.narrow(0, start, len) };
        let views = trainer.draw_views().unwrap().slice(start, len);
        let _ = trainer.compute_gradients(&rows, &views, false).unwrap();
    }

    fn relative(found: &Tensor, expected: &Tensor) -> f64 {
        (found - expected).norm().double_value(&[]) / expected.norm().double_value(&[])
    }

    /// Gradients of the first step, by parameter; in ranks, and in ranks of several micro-batches.
    #[test]
    fn slices_of_a_batch_have_its_gradients() {
        let mut whole = trainer(1, Kind::Float);
        gradients(&mut whole, None);
        let specs = whole.parameters.specs().to_vec();
        let expected = views(&specs, &whole.parameters.gradients);
        for (world, micro_batches) in [(2, 1), (4, 1), (2, 2)] {
            let found = ranks(
                world,
                |_| trainer(micro_batches, Kind::Float),
                |trainer, together| {
                    gradients(trainer, Some(together));
                    trainer.parameters.gradients.copy()
                },
            );
            for found in found {
                for (name, gradient) in views(&specs, &found) {
                    let error = relative(&gradient, &expected[&name]);
                    assert!(error < 1e-6, "{world} ranks, {micro_batches} pieces, {name}: {error:e}");
                }
            }
        }
    }

    /// 50 steps of plain gradient descent, by parameter, and 20 of AdamW by the flat norm: AdamW divides by the size of a
    /// gradient, so that where the true one is 0, rounding is all there is.
    #[test]
    fn ranks_train_as_one_does() {
        let descend = |trainer: &mut Trainer, together: Option<&Together>| {
            for _ in 0..50 {
                gradients(trainer, together);
                let change = &trainer.parameters.gradients * -0.05;
                let _ = no_grad(|| trainer.parameters.master.g_add_(&change));
                trainer.step += 1;
            }
            trainer.parameters.master.copy()
        };
        let adamw = |trainer: &mut Trainer, together: Option<&Together>| {
            for _ in 0..20 {
                gradients(trainer, together);
                let _ = trainer.update().unwrap();
                if let Some(together) = together {
                    together.check(trainer).unwrap();
                }
            }
            Tensor::cat(&[&trainer.parameters.master, &trainer.average], 0)
        };
        let specs = trainer(1, Kind::Float).parameters.specs().to_vec();
        let (descended, updated) =
            (descend(&mut trainer(1, Kind::Float), None), adamw(&mut trainer(1, Kind::Float), None));
        let expected = views(&specs, &descended);
        for world in [2, 4] {
            let found = ranks(world, |_| trainer(1, Kind::Float), |t, together| descend(t, Some(together)));
            for found in found {
                for (name, weights) in views(&specs, &found) {
                    let error = relative(&weights, &expected[&name]);
                    assert!(error < 1e-5, "{world} ranks, {name}: {error:e}");
                }
            }
            let found = ranks(world, |_| trainer(1, Kind::Float), |t, together| adamw(t, Some(together)));
            assert!(found.iter().all(|flat| flat.equal(&found[0])));
            let error = relative(&found[0], &updated);
            assert!(error < 1e-4, "{world} ranks: {error:e}");
        }
    }

    #[test]
    fn bf16_is_exchanged_in_f32() {
        let mut whole = trainer(1, Kind::BFloat16);
        gradients(&mut whole, None);
        let found = ranks(
            2,
            |_| trainer(1, Kind::BFloat16),
            |trainer, together| {
                gradients(trainer, Some(together));
                trainer.parameters.gradients.copy()
            },
        );
        assert!(found[0].equal(&found[1]));
        let error = relative(&found[0], &whole.parameters.gradients);
        assert!(error < 0.02, "{error:e}");
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
        let found = ranks(3, make, |trainer, together| {
            let checked = together.check(trainer).is_ok();
            if together.peers.rank() == 1 {
                // The last bit of one weight.
                let weight = views(trainer.parameters.specs(), &trainer.parameters.master)["blocks.1.attn.qkv.weight"]
                    .flatten(0, -1)
                    .get(5);
                let _ = no_grad(|| weight.view_dtype(Kind::Int).g_add_scalar_(1));
            }
            (checked, trainer.step, together.check(trainer).unwrap_err().to_string())
        });
        for (checked, step, error) in found {
            assert!(checked && step == 7);
            assert!(
                error.starts_with(
                    "at step 7 the weights of rank 1 are not those of rank 0, first in blocks.1.attn.qkv.weight"
                ),
                "{error}"
            );
        }
    }
}
