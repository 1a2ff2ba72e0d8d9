//! The parameters of a network: names, shapes and initialisation, in the order of the flat buffer.
//!
//! Names are those of SiT and REPA, with `s_embedder.*` for the condition encoder's own patch embedding and
//! `projectors.0.*` for z_phi, so that weights go both ways by copying. The fixed position embedding is no parameter;
//! it is written to weight files as `pos_embed`, as SiT does, and counted in [`parameter_count`] as SiT's logs do.

use tch::{Device, Tensor};
use xxhash_rust::xxh3::xxh3_64;

use super::config::{Backbone, LatentShape, ModelConfig};
use super::random::{self, Purpose};
use crate::native::NativeError;

/// Width of the sinusoidal features of t.
pub const TIME_FEATURES: i64 = 256;

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All 0: biases, and the last layer of every modulation ("adaLN-Zero"), so that a fresh network is the identity
    /// on its tokens and predicts 0.
    Zero,
    /// N(0, std^2).
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Xavier uniform: U(-a, a), a = gain * sqrt(6 / (fan_in + fan_out)).
    Xavier {
        /// Factor on a.
        gain: f64,
    },
    /// Kaiming normal for a rectifier: N(0, 2 / fan_in).
    Kaiming,
}

/// One parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterSpec {
    /// Key in weight files.
    pub name: String,
    /// Shape, as PyTorch's modules have it (`[out, in]` for a linear layer).
    pub shape: Vec<i64>,
    /// Initialisation.
    pub init: Init,
}

impl ParameterSpec {
    /// Number of values.
    pub fn len(&self) -> i64 {
        self.shape.iter().product()
    }

    /// A parameter always has values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Draws the starting values, f32 on `device`. Depends on (seed, name, shape) and the kind of device alone.
    ///
    /// # Errors
    /// libtorch's; none are known.
    pub fn draw(&self, seed: u64, device: Device) -> Result<Tensor, NativeError> {
        let seed = random::seed_of(seed, xxh3_64(self.name.as_bytes()), Purpose::Initial);
        // A convolution's kernel is viewed as [out, in * k * k].
        let fan_out = self.shape[0];
        let fan_in = self.len() / fan_out;
        Ok(match self.init {
            Init::Zero => Tensor::zeros(&self.shape, (tch::Kind::Float, device)),
            Init::Normal { std } => random::normal(&self.shape, device, seed)? * std,
            Init::Xavier { gain } => {
                let a = gain * (6.0 / (fan_in + fan_out) as f64).sqrt();
                random::uniform(&self.shape, device, seed)? * (2.0 * a) - a
            }
            Init::Kaiming => random::normal(&self.shape, device, seed)? * (2.0 / fan_in as f64).sqrt(),
        })
    }
}

/// Name of a linear layer of the projector: a SiLU takes every second number, as in a `Sequential` of PyTorch.
pub fn projector_layer(layer: i64) -> String {
    format!("projectors.0.{}", 2 * layer)
}

/// All parameters of a network, in the order of the flat buffer.
pub fn layout(model: &ModelConfig, data: &LatentShape) -> Vec<ParameterSpec> {
    let mut specs = Specs(Vec::new());
    let d = model.hidden;
    let mlp = d * model.mlp_ratio;
    const XAVIER: Init = Init::Xavier { gain: 1.0 };
    let embedding = Init::Normal { std: 0.02 };

    specs.weight_and_bias("x_embedder.proj", &[d, data.channels, model.patch, model.patch], XAVIER);
    if model.backbone == Backbone::Ddt {
        specs.weight_and_bias("s_embedder.proj", &[d, data.channels, model.patch, model.patch], XAVIER);
    }
    specs.weight_and_bias("t_embedder.mlp.0", &[d, TIME_FEATURES], embedding);
    specs.weight_and_bias("t_embedder.mlp.2", &[d, d], embedding);
    // One row more than classes: the null class of guidance.
    specs.push("y_embedder.embedding_table.weight", &[data.classes + 1, d], embedding);
    for i in 0..model.depth {
        specs.weight_and_bias(&format!("blocks.{i}.attn.qkv"), &[3 * d, d], XAVIER);
        specs.weight_and_bias(&format!("blocks.{i}.attn.proj"), &[d, d], XAVIER);
        specs.weight_and_bias(&format!("blocks.{i}.mlp.fc1"), &[mlp, d], XAVIER);
        specs.weight_and_bias(&format!("blocks.{i}.mlp.fc2"), &[d, mlp], XAVIER);
        specs.weight_and_bias(&format!("blocks.{i}.adaLN_modulation.1"), &[6 * d, d], Init::Zero);
    }
    specs.weight_and_bias("final_layer.linear", &[model.patch * model.patch * data.channels, d], Init::Zero);
    specs.weight_and_bias("final_layer.adaLN_modulation.1", &[2 * d, d], Init::Zero);
    if model.has_projector() {
        // Section 5.1: Kaiming first, reduced-gain Xavier after, and never all zero, or the aligned features would
        // agree from the start.
        let reduced = Init::Xavier { gain: model.projector_gain };
        let (h, last) = (model.projector_hidden, model.projector_layers - 1);
        for layer in 0..model.projector_layers {
            let (from, init) = if layer == 0 { (d, Init::Kaiming) } else { (h, reduced) };
            let to = if layer == last { model.projector_out } else { h };
            let name = projector_layer(layer);
            specs.push(&format!("{name}.weight"), &[to, from], init);
            if model.projector_bias {
                specs.push(&format!("{name}.bias"), &[to], Init::Zero);
            }
        }
    }
    specs.0
}

/// Number of values of a network, with the fixed position embedding, with or without the projector: the figure that
/// papers and logs print.
pub fn parameter_count(model: &ModelConfig, data: &LatentShape, with_projector: bool) -> i64 {
    let tokens = (data.height / model.patch) * (data.width / model.patch);
    let parameters: i64 = layout(model, data)
        .iter()
        .filter(|spec| with_projector || !spec.name.starts_with("projectors."))
        .map(ParameterSpec::len)
        .sum();
    parameters + tokens * model.hidden
}

struct Specs(Vec<ParameterSpec>);

impl Specs {
    fn push(&mut self, name: &str, shape: &[i64], init: Init) {
        self.0.push(ParameterSpec { name: name.to_owned(), shape: shape.to_vec(), init });
    }

    fn weight_and_bias(&mut self, layer: &str, shape: &[i64], init: Init) {
        self.push(&format!("{layer}.weight"), shape, init);
        self.push(&format!("{layer}.bias"), &shape[..1], Init::Zero);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGENET: LatentShape = LatentShape { channels: 4, height: 32, width: 32, classes: 1000 };

    /// The published counts: with the 4-channel output of REPA, position embedding included.
    #[test]
    fn parameter_counts_are_those_of_the_papers() {
        let sizes = [
            ("s/2", 32_957_200, 32_963_728, 6_558_464),
            ("b/2", 130_500_112, 130_513_168, 7_344_896),
            ("l/2", 458_086_416, 458_103_824, 7_869_184),
            ("xl/2", 675_111_184, 675_130_768, 8_131_328),
        ];
        for (size, sit, ddt, projector) in sizes {
            let model = |backbone| ModelConfig::named(backbone, size).unwrap();
            assert_eq!(parameter_count(&model(Backbone::Sit), &IMAGENET, false), sit, "SiT-{size}");
            assert_eq!(parameter_count(&model(Backbone::Ddt), &IMAGENET, false), ddt, "DDT-{size}");
            assert_eq!(parameter_count(&model(Backbone::Ddt), &IMAGENET, true), ddt + projector, "DUPA-{size}");
        }
    }

    #[test]
    fn initial_values_have_the_spread_that_their_rule_says() {
        let spec = |init| ParameterSpec { name: "w".into(), shape: vec![400, 300], init };
        let std = |init| spec(init).draw(0, Device::Cpu).unwrap().std(false).double_value(&[]);
        assert!((std(Init::Normal { std: 0.02 }) - 0.02).abs() < 2e-4);
        assert!((std(Init::Xavier { gain: 1.0 }) - (2.0f64 / 700.0).sqrt()).abs() < 2e-4);
        assert!((std(Init::Kaiming) - (2.0f64 / 300.0).sqrt()).abs() < 1e-3);
    }

    #[test]
    fn the_projector_never_starts_at_zero() {
        let model = ModelConfig::demo();
        let weights = layout(&model, &IMAGENET).into_iter();
        for spec in weights.filter(|s| s.name.starts_with("projectors.") && s.name.ends_with("weight")) {
            assert!(spec.draw(3, Device::Cpu).unwrap().abs().mean(tch::Kind::Float).double_value(&[]) > 1e-3);
        }
    }
}
