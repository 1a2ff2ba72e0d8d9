//! Features of a network's layers.
//!
//! The feature of an image at layer l and time t is the output of block l, after its residual, averaged over tokens, for the
//! noisy latent x_t and without a label (the null class). Blocks are counted from 1 to `depth`; of a decoupled network the
//! encoder's come first, then the decoder's, and block `encoder_depth` gives the condition z_t that is aligned.
//!
//! All layers come from one pass. Noise is a function of (seed, t) and of the row alone, so that two networks are measured
//! on the same noisy latents.

use tch::{Device, Kind, Tensor, no_grad};

use super::ProbeError;
use super::collect::Latents;
use crate::method::network::Network;
use crate::method::path;
use crate::method::random::{self, Purpose, seed_of};

/// What one layer makes of latents at one time.
#[derive(Debug)]
pub struct LayerFeatures {
    /// Block, in `1..=depth`.
    pub layer: i64,
    /// Time in [0, 1], 0 is data.
    pub t: f64,
    /// f32 `[N, D]`, finite.
    pub values: Tensor,
}

/// The features of `data` at time `t` in [0, 1] by the blocks `layers`, in their order, each in `1..=depth`. Above 0 noise
/// is added, drawn from `seed`. `batch` latents go through the network together.
///
/// # Errors
/// [`ProbeError::NotFinite`], and where noise cannot be drawn.
pub fn features(
    network: &Network,
    data: &Latents,
    layers: &[i64],
    t: f64,
    seed: u64,
    batch: i64,
) -> Result<Vec<LayerFeatures>, ProbeError> {
    let device = data.latents.device();
    no_grad(|| {
        let noise_seed = seed_of(seed, (t * 1e6) as u64, Purpose::ProbeNoise);
        let noise = random::normal(&data.latents.size(), Device::Cpu, noise_seed)?.to_device(device);
        let mut parts: Vec<Vec<Tensor>> = layers.iter().map(|_| Vec::new()).collect();
        for start in (0..data.len()).step_by(batch.max(1) as usize) {
            let len = batch.max(1).min(data.len() - start);
            let part = |x: &Tensor| x.narrow(0, start, len);
            let times = Tensor::full([len], t, (Kind::Float, device));
            let x_t = path::interpolate(&part(&data.latents), &part(&noise), &times);
            let null = Tensor::full([len], network.null_class(), (Kind::Int64, device));
            network.forward_observed(&x_t, &times, &null, |block, tokens| {
                for (_, parts) in layers.iter().zip(&mut parts).filter(|(layer, _)| **layer == block) {
                    let tokens = tokens.to_kind(Kind::Float);
                    parts.push(tokens.mean_dim([1i64].as_slice(), false, Kind::Float));
                }
            });
        }
        let all = layers.iter().zip(&parts).map(|(&layer, parts)| {
            let values = Tensor::cat(parts, 0);
            let finite = values.isfinite().all_dim(1, false).to_kind(Kind::Int64);
            match finite.min().int64_value(&[]) {
                0 => Err(ProbeError::NotFinite { layer, t, row: finite.argmin(0, false).int64_value(&[]) }),
                _ => Ok(LayerFeatures { layer, t, values }),
            }
        });
        all.collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::config::Backbone;
    use crate::probe::fixture::network as given;

    fn near(a: &Tensor, b: &Tensor) -> bool {
        (a - b).abs().max().double_value(&[]) < 1e-5
    }

    #[test]
    fn layers_of_one_pass_are_those_of_several_in_any_batch_and_the_aligned_one_is_the_condition() {
        for backbone in [Backbone::Ddt, Backbone::Sit] {
            given(backbone, |network, data| {
                let all = features(network, data, &[1, 2, 3], 0.5, 4, 64).unwrap();
                let sizes: Vec<_> = all.iter().map(|part| (part.layer, part.values.size())).collect();
                assert_eq!(sizes, [1, 2, 3].map(|layer| (layer, vec![11, 16])));
                for part in &all {
                    let alone = features(network, data, &[part.layer], 0.5, 4, 4).unwrap();
                    assert!(near(&alone[0].values, &part.values), "{backbone:?} {}", part.layer);
                }
                assert!(!near(&all[0].values, &all[1].values) && !near(&all[1].values, &all[2].values));

                let clean = features(network, data, &[2], 0.0, 4, 64).unwrap();
                let zero = Tensor::zeros([11], (Kind::Float, Device::Cpu));
                let null = Tensor::full([11], 3, (Kind::Int64, Device::Cpu));
                let condition = no_grad(|| network.forward(&data.latents, &zero, &null).condition);
                assert!(near(&clean[0].values, &condition.mean_dim([1i64].as_slice(), false, Kind::Float)));
                assert!(!near(&clean[0].values, &all[1].values));
            });
        }
    }

    #[test]
    fn the_blocks_are_seen_in_order_and_the_prediction_is_the_same() {
        given(Backbone::Ddt, |network, data| {
            let (t, labels) = (Tensor::full([11], 0.3, (Kind::Float, Device::Cpu)), &data.labels);
            let mut seen = Vec::new();
            no_grad(|| {
                let observed = network.forward_observed(&data.latents, &t, labels, |layer, tokens| {
                    seen.push((layer, tokens.size()));
                });
                assert!(observed.velocity.equal(&network.forward(&data.latents, &t, labels).velocity));
            });
            assert_eq!(seen, (1..=3).map(|layer| (layer, vec![11, 4, 16])).collect::<Vec<_>>());
        });
    }

    #[test]
    fn a_feature_that_is_no_number_is_named() {
        given(Backbone::Ddt, |network, data| {
            let _ = data.latents.get(6).fill_(f64::NAN);
            let error = features(network, data, &[1, 3], 0.25, 0, 4).unwrap_err().to_string();
            assert!(
                error.starts_with("the features of layer 1 at t = 0.25 of latent 6 (counted from 0) are not finite")
            );
        });
    }
}
