//! Against torch-fidelity's extractor (`stages/golden/evaluation.py`), with weights that both sides draw for themselves.

use super::*;
use crate::splitmix::SplitMix64;

/// As `weights` of evaluation.py: tensor number j is drawn with seed j.
fn weights() -> Vec<(String, Tensor)> {
    let draw = |(j, (name, shape)): (u64, (String, Vec<i64>))| {
        let unit = |k: u64| (SplitMix64::output(j, k) >> 40) as f32 * 2f32.powi(-24);
        let of: Box<dyn Fn(f32) -> f32> = if shape.len() == 4 {
            let fan_in: i64 = shape[1..].iter().product();
            let width = (24.0 / fan_in as f64).sqrt() as f32;
            Box::new(move |u| (u - 0.5) * width)
        } else if name.ends_with("bn.weight") {
            Box::new(|u| 0.9 + 0.2 * u)
        } else if name.ends_with("running_var") {
            Box::new(|u| 0.5 + u)
        } else if name == "fc.weight" {
            Box::new(|u| (u - 0.5) * 0.25)
        } else {
            Box::new(|u| (u - 0.5) * 0.2)
        };
        let values: Vec<f32> = (0..shape.iter().product::<i64>() as u64).map(|k| of(unit(k))).collect();
        (name, Tensor::from_slice(&values).view(&shape[..]))
    };
    (0..).zip(Inception::tensors()).map(draw).collect()
}

/// As `pictures` of evaluation.py.
fn pictures(seed: u64, [count, height, width]: [i64; 3]) -> Tensor {
    let level = |seed, k: i64| (SplitMix64::output(seed, k as u64) >> 57) as u8;
    let values: Vec<u8> = (0..count * height * width * 3)
        .map(|k| level(seed, k) + level(seed + 1, k / (height * width * 3) * 3 + k % 3))
        .collect();
    Tensor::from_slice(&values).view([count, height, width, 3])
}

#[test]
fn features_are_those_of_torch_fidelity() {
    let path = format!("{}/golden/inception.safetensors", env!("CARGO_MANIFEST_DIR"));
    let golden: std::collections::BTreeMap<_, _> = Tensor::read_safetensors(path).unwrap().into_iter().collect();
    assert_eq!(Inception::tensors().len(), 472);
    let network = Inception::new(Weights::from_tensors(weights(), "drawn", Device::Cpu)).unwrap();
    for (name, seed, shape) in [("small", 1000, [3, 40, 56]), ("large", 2000, [1, 320, 310])] {
        let InceptionFeatures { pool, spatial, logits } = network.features(&pictures(seed, shape)).unwrap();
        for (what, found) in [("pool", pool), ("spatial", spatial), ("logits", logits)] {
            let exact = &golden[&format!("{name}.{what}")];
            assert_eq!(found.size(), exact.size());
            let largest = (&found - exact).abs().max().double_value(&[]);
            // Of the largest value: features have no other scale.
            let error = largest / exact.abs().max().double_value(&[]);
            assert!(error < 1e-5, "{name} {what}: {error:e}");
        }
    }
}

#[test]
fn training_counters_are_passed_over_and_what_is_missing_is_named() {
    let mut tensors: Vec<_> = weights().into_iter().filter(|(name, _)| name != "Mixed_6d.branch1x1.bn.bias").collect();
    tensors.push(("Mixed_6d.branch1x1.bn.num_batches_tracked".to_owned(), Tensor::from(7i64)));
    let refused = Inception::new(Weights::from_tensors(tensors, "f.safetensors", Device::Cpu)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "f.safetensors: the weights do not fit the network: 1 missing: Mixed_6d.branch1x1.bn.bias"
    );
}
