//! SiT's direction of time turned into ours.
//!
//! SiT calls noise t = 0 and data t = 1 and predicts data minus noise; REPA, DUPA and this program call data t = 0 and
//! predict noise minus data. So the network that is wanted is v(x, t) = -u(x, 1 - t), where u is SiT's.
//!
//! No flag in the network is needed for it. t enters through cos(f t) and sin(f t) for each frequency f, and
//!
//! ```text
//! cos(f (1 - t)) = cos f cos(f t) + sin f sin(f t)
//! sin(f (1 - t)) = sin f cos(f t) - cos f sin(f t)
//! ```
//!
//! is a reflection of that pair: the first layer of the time embedding takes it into its columns. The sign goes into
//! the last layer, whose output is linear in its weight and bias. Turning twice gives back the network.

use crate::method::layout::TIME_FEATURES;

/// Turns `t_embedder.mlp.0.weight`, `[D, 256]` row-major: columns i and 128 + i are multiplied by cos and sin of f_i t,
/// f_i = 10000^(-i / 128). Computed in f64, rounded once.
pub(super) fn turn_embedding(weight: &mut [f32]) {
    let half = TIME_FEATURES as usize / 2;
    for row in weight.chunks_exact_mut(2 * half) {
        let (cosines, sines) = row.split_at_mut(half);
        for (i, (of_cos, of_sin)) in cosines.iter_mut().zip(sines).enumerate() {
            let frequency = (-(10000f64.ln()) * i as f64 / half as f64).exp();
            let (sin, cos) = frequency.sin_cos();
            let (a, b) = (f64::from(*of_cos), f64::from(*of_sin));
            *of_cos = (a * cos + b * sin) as f32;
            *of_sin = (a * sin - b * cos) as f32;
        }
    }
}

/// Turns the sign of `final_layer.linear.weight` or `.bias`.
pub(super) fn negate(values: &mut [f32]) {
    for value in values {
        *value = -*value;
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor, no_grad};

    use super::*;
    use crate::method::config::{Backbone, LatentShape, ModelConfig};
    use crate::method::layout::layout;
    use crate::method::network::Network;
    use crate::method::parameters::{NamedTensors, flat_len, views};
    use crate::method::random;

    fn change(weights: &NamedTensors, name: &str, f: fn(&mut [f32])) {
        let mut view = weights[name].shallow_clone();
        let mut values = Vec::<f32>::try_from(view.flatten(0, -1)).unwrap();
        f(&mut values);
        no_grad(|| view.copy_(&Tensor::from_slice(&values).view_as(&view)));
    }

    #[test]
    fn the_turned_network_gives_minus_what_the_network_gives_at_one_minus_t() {
        let data = LatentShape { channels: 4, height: 8, width: 8, classes: 5 };
        for backbone in [Backbone::Sit, Backbone::Ddt] {
            let model =
                ModelConfig { backbone, depth: 2, encoder_depth: 1, hidden: 32, heads: 2, ..ModelConfig::demo() };
            let specs = layout(&model, &data);
            let flat = random::normal(&[flat_len(&specs)], Device::Cpu, 1).unwrap() * 0.2;
            let weights = views(&specs, &flat);
            let draw = |seed| random::normal(&[6, 4, 8, 8], Device::Cpu, seed).unwrap();
            let t = Tensor::from_slice(&[0.0f32, 0.125, 0.3, 0.5, 0.9, 1.0]);
            let labels = Tensor::from_slice(&[0i64, 1, 2, 3, 4, 5]);
            let at =
                |t: &Tensor| no_grad(|| Network::new(&model, &data, &weights).forward(&draw(2), t, &labels).velocity);
            let (before, same_time) = (at(&(1.0 - &t)), at(&t));

            change(&weights, "t_embedder.mlp.0.weight", turn_embedding);
            change(&weights, "final_layer.linear.weight", negate);
            change(&weights, "final_layer.linear.bias", negate);
            let after = at(&t);
            let error = |a: &Tensor| ((a - &after).norm() / after.norm()).double_value(&[]);
            assert!(error(&-&before) < 1e-5, "{backbone:?}: {:e}", error(&-&before));
            assert!(error(&-&same_time) > 1e-2, "{backbone:?}: t does not matter in this test");
        }
    }

    #[test]
    fn turning_twice_changes_nothing() {
        let original = Vec::<f32>::try_from(random::normal(&[3 * 256], Device::Cpu, 5).unwrap()).unwrap();
        let mut weight = original.clone();
        turn_embedding(&mut weight);
        assert!(weight.iter().zip(&original).any(|(a, b)| (a - b).abs() > 0.1));
        turn_embedding(&mut weight);
        assert!(weight.iter().zip(&original).all(|(a, b)| (a - b).abs() < 1e-6));
        assert_eq!(Tensor::from_slice(&weight).kind(), Kind::Float);
    }
}
