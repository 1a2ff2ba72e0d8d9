//! For tests: the goldens (`stages/golden/probing.py`), features that tell classes apart, a network and latents.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor, no_grad};

use super::collect::Latents;
use crate::method::config::{Backbone, LatentShape, ModelConfig};
use crate::method::layout::layout;
use crate::method::network::Network;
use crate::method::parameters::Parameters;
use crate::method::random;

pub(super) fn golden() -> BTreeMap<String, Tensor> {
    let path = format!("{}/golden/probing.safetensors", env!("CARGO_MANIFEST_DIR"));
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

/// Two features that tell three classes apart, at very different scales, and six of noise.
pub(super) fn labelled(seed: u64, n: i64) -> (Tensor, Tensor) {
    let noise = random::normal(&[n, 9], Device::Cpu, seed).unwrap();
    // A normal value is below -0.43 in a third of all cases, and above 0.43 in another.
    let label = noise.select(1, 8);
    let labels = label.ge(-0.43).to_kind(Kind::Int64) + label.ge(0.43).to_kind(Kind::Int64);
    let centres = Tensor::from_slice(&[0.0f32, 2.0, -2.0, 1.0, -1.0, 0.5]).view([3, 2]);
    let told = centres.index_select(0, &labels) + noise.narrow(1, 0, 2) * 0.3;
    let told = told * Tensor::from_slice(&[1e-3f32, 1e3]);
    (Tensor::cat(&[told, noise.narrow(1, 2, 6)], 1), labels)
}

/// A network of three blocks, two of them the encoder's, that all do something, and eleven latents.
pub(super) fn network(backbone: Backbone, run: impl FnOnce(&Network, &Latents)) {
    let data = LatentShape { channels: 2, height: 4, width: 4, classes: 3 };
    let model = ModelConfig { backbone, depth: 3, encoder_depth: 2, hidden: 16, heads: 2, ..ModelConfig::demo() };
    let parameters = Parameters::init(layout(&model, &data), 0, Device::Cpu, Kind::Float).unwrap();
    no_grad(|| {
        for (seed, weight) in (0..).zip(parameters.leaves().values()) {
            let change = random::normal(&weight.size(), Device::Cpu, seed).unwrap() * 0.1;
            let _ = weight.shallow_clone().g_add_(&change);
        }
    });
    let latents = random::normal(&[11, 2, 4, 4], Device::Cpu, 1).unwrap();
    let labels = Tensor::ones([11], (Kind::Int64, Device::Cpu));
    let latents = Latents { latents, labels, positions: (0..11).collect() };
    run(&Network::new(&model, &data, parameters.leaves()), &latents);
}
