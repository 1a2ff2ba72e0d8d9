//! The velocity loss on held-out latents, by time.
//!
//! Times and noises are a function of the seed alone, so that two networks are measured on the same noisy latents, and what
//! differs is them.

use tch::{Device, Kind, Tensor, no_grad};

use super::collect::Latents;
use crate::method::network::Network;
use crate::method::path;
use crate::method::random::{self, Purpose, seed_of};
use crate::native::NativeError;

/// Intervals of t, each 1 / 10 wide.
pub const INTERVALS: u64 = 10;

/// Mean of Eq. 7 over all latents, channels and pixels, for t drawn uniformly from each tenth of [0, 1]; every latent comes
/// once in each. Labels are given. `batch` go through the network together.
pub fn by_time(network: &Network, data: &Latents, seed: u64, batch: i64) -> Result<Vec<f64>, NativeError> {
    let device = data.latents.device();
    no_grad(|| {
        (0..INTERVALS)
            .map(|interval| {
                // On the CPU, so that it is the same on every device.
                let draw = random::uniform(&[data.len()], Device::Cpu, seed_of(seed, interval, Purpose::ProbeTime))?;
                let t = ((draw + interval as f64) / INTERVALS as f64).to_device(device);
                let noise_seed = seed_of(seed, interval, Purpose::ProbeNoise);
                let noise = random::normal(&data.latents.size(), Device::Cpu, noise_seed)?.to_device(device);
                let mut sum = 0.0;
                for start in (0..data.len()).step_by(batch.max(1) as usize) {
                    let part = |x: &Tensor| x.narrow(0, start, batch.min(data.len() - start));
                    let (x, noise, t) = (part(&data.latents), part(&noise), part(&t));
                    let prediction = network.forward(&path::interpolate(&x, &noise, &t), &t, &part(&data.labels));
                    let error = (prediction.velocity - path::velocity_target(&x, &noise)).square();
                    sum += error.sum(Kind::Double).double_value(&[]);
                }
                Ok(sum / data.latents.numel() as f64)
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::config::{LatentShape, ModelConfig};
    use crate::method::layout::layout;
    use crate::method::parameters::Parameters;

    #[test]
    fn a_fresh_network_that_predicts_nothing_has_the_power_of_the_targets_in_any_batch() {
        let data = LatentShape { channels: 2, height: 4, width: 4, classes: 3 };
        let model = ModelConfig { depth: 2, encoder_depth: 1, hidden: 16, heads: 2, ..ModelConfig::demo() };
        let parameters = Parameters::init(layout(&model, &data), 0, Device::Cpu, Kind::Float).unwrap();
        let network = Network::new(&model, &data, parameters.leaves());
        let latents = random::normal(&[37, 2, 4, 4], Device::Cpu, 1).unwrap() * 0.5;
        let latents =
            Latents { latents, labels: Tensor::zeros([37], (Kind::Int64, Device::Cpu)), positions: (0..37).collect() };
        let losses = by_time(&network, &latents, 3, 8).unwrap();
        assert_eq!(losses.len(), 10);
        // E (eps - x)^2 = 1 + 1/4.
        assert!(losses.iter().all(|loss| (loss - 1.25).abs() < 0.2), "{losses:?}");
        let whole = by_time(&network, &latents, 3, 37).unwrap();
        assert!(losses.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
