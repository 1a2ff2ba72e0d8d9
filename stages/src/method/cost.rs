//! What a step costs, by formula: multiply-accumulates (MAC) of a forward pass, FLOP of training, bytes on the device.
//!
//! T tokens of width D, L blocks (of which E make the encoder), an MLP r times as wide, patches of p x p pixels of C
//! channels, a projector of widths h and o. Of one view, in MAC:
//!
//! | term | formula |
//! |---|---|
//! | attention | L (4 D² T + 2 T² D): queries, keys, values, output; then scores and their product with the values |
//! | MLP | L 2 r D² T |
//! | modulation, a vector an image | 6 D² for a block, 2 D² for the final layer: all of SiT, the encoder of DDT |
//! | modulation, a vector a token | 6 D² T for a block, 2 D² T for the final layer: the decoder of DDT |
//! | embeddings and output | D C p² T for each patch embedding (DDT has two) and for the output; 256 D + D² for t |
//! | projector of n layers | T (D h + (n - 2) h² + h o), where conditions are aligned |
//!
//! What papers print as "GFLOPs" of SiT and DiT are these MAC: 118.6 G for XL/2. A MAC is two FLOP, a backward pass
//! costs two forward passes, and each of K views is a pass, so an image costs 2 x 3 x K x MAC to train. Norms,
//! activations, softmax, losses and the optimiser are not counted, as nowhere else.

use tch::Kind;

use super::config::{Backbone, LatentShape, ModelConfig};
use super::layout::{TIME_FEATURES, layout};
use super::objective::config::ObjectiveConfig;
use super::parameters::flat_len;

/// Multiply-accumulates of the forward pass of one view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardMacs {
    /// Projections, scores and values of all blocks.
    pub attention: u64,
    /// The MLPs of all blocks.
    pub mlp: u64,
    /// Modulation by one vector an image.
    pub image_modulation: u64,
    /// Modulation by one vector a token: DDT's decoder.
    pub token_modulation: u64,
    /// Patches, time and output.
    pub ends: u64,
    /// z_phi on every token; 0 where nothing is aligned.
    pub projector: u64,
}

impl ForwardMacs {
    /// Of a model that was checked against its data ([`ModelConfig::problem`]).
    pub fn of(model: &ModelConfig, data: &LatentShape, objective: &ObjectiveConfig) -> Self {
        let [d, depth, ratio] = [model.hidden, model.depth, model.mlp_ratio].map(|n| n as u64);
        let tokens = tokens(model, data);
        let patch = (model.patch * model.patch * data.channels) as u64;
        // Blocks and final layers whose condition is one vector an image, and one a token.
        let ((image_blocks, image_final), (token_blocks, token_final), embedders) = match model.backbone {
            Backbone::Sit => ((depth, 1), (0, 0), 1),
            Backbone::Ddt => {
                let encoder = model.encoder_depth as u64;
                ((encoder, 0), (depth - encoder, 1), 2)
            }
        };
        let modulation = |blocks: u64, finals: u64| (6 * blocks + 2 * finals) * d * d;
        let [h, o] = [model.projector_hidden, model.projector_out].map(|n| n as u64);
        Self {
            attention: depth * (4 * d * d * tokens + 2 * tokens * tokens * d),
            mlp: depth * 2 * ratio * d * d * tokens,
            image_modulation: modulation(image_blocks, image_final),
            token_modulation: tokens * modulation(token_blocks, token_final),
            ends: (embedders + 1) * d * patch * tokens + TIME_FEATURES as u64 * d + d * d,
            projector: match projects(model, objective) {
                true => tokens * (d * h + (model.projector_layers as u64 - 2) * h * h + h * o),
                false => 0,
            },
        }
    }

    /// All but the projector: what samples cost, and what papers print.
    pub fn network(&self) -> u64 {
        let Self { attention, mlp, image_modulation, token_modulation, ends, projector: _ } = self;
        attention + mlp + image_modulation + token_modulation + ends
    }

    /// FLOP to train on one image with K `views`, forward and backward.
    pub fn training_flop(&self, views: i64) -> u64 {
        2 * 3 * views as u64 * (self.network() + self.projector)
    }
}

/// An estimate of the bytes that training holds on its device.
///
/// Weights, moments and average are exact; gradients are those of the end of a backward pass, when activations are
/// gone, so that the sum is more than the peak. Activations are by a rule: what autograd keeps of a block for the
/// backward pass is, for each token of each view, 12 + 2 r vectors of width D (input, norm, modulated and output of
/// both halves; q, k, v and what attention gives; two of the MLP's width), and 8 more where a token has a modulation of
/// its own; z_phi keeps 4 h + 2 o values. Scores are not kept: attention is computed in tiles. A kernel that fuses some
/// of this keeps less, an allocator's cache holds more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Master weights in f32, and their copy in the compute dtype if that is another.
    pub weights: u64,
    /// The flat buffer in f32, and what the backward pass leaves at the leaves, in the compute dtype.
    pub gradients: u64,
    /// Both moments of AdamW, f32.
    pub moments: u64,
    /// The average of the weights, f32.
    pub average: u64,
    /// Of one micro-batch with all its views.
    pub activations: u64,
}

impl DeviceMemory {
    /// With `images` in a micro-batch, computing in `kind` (f32 or bf16).
    pub fn of(model: &ModelConfig, data: &LatentShape, objective: &ObjectiveConfig, images: u64, kind: Kind) -> Self {
        let parameters = parameters(model, data);
        let value = if kind == Kind::Float { 4 } else { 2 };
        let master_and_copy = parameters * if kind == Kind::Float { 4 } else { 6 };
        let [d, depth, ratio] = [model.hidden, model.depth, model.mlp_ratio].map(|n| n as u64);
        let token_modulated = match model.backbone {
            Backbone::Sit => 0,
            Backbone::Ddt => depth - model.encoder_depth as u64,
        };
        let blocks = d * ((12 + 2 * ratio) * depth + 8 * token_modulated);
        let projector = match projects(model, objective) {
            true => (4 * model.projector_hidden + 2 * model.projector_out) as u64,
            false => 0,
        };
        // A batch may be as large as its user says; whatever is that large fits nowhere.
        let of_sample = tokens(model, data) * (blocks + projector) * value;
        Self {
            weights: master_and_copy,
            gradients: (4 + value) * parameters,
            moments: 8 * parameters,
            average: 4 * parameters,
            activations: of_sample.saturating_mul(images.saturating_mul(objective.views as u64)),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        let Self { weights, gradients, moments, average, activations } = self;
        (weights + gradients + moments + average).saturating_add(*activations)
    }
}

/// Bytes of the copy that a checkpoint is written from: weights, average and both moments, f32 on the host.
pub fn snapshot_bytes(model: &ModelConfig, data: &LatentShape) -> u64 {
    16 * parameters(model, data)
}

fn parameters(model: &ModelConfig, data: &LatentShape) -> u64 {
    flat_len(&layout(model, data)) as u64
}

fn tokens(model: &ModelConfig, data: &LatentShape) -> u64 {
    ((data.height / model.patch) * (data.width / model.patch)) as u64
}

fn projects(model: &ModelConfig, objective: &ObjectiveConfig) -> bool {
    model.has_projector() && objective.aligns()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::config::{DEEPEST, LARGEST};

    const IMAGENET: LatentShape = LatentShape { channels: 4, height: 32, width: 32, classes: 1000 };

    fn macs(backbone: Backbone, size: &str, objective: &ObjectiveConfig) -> ForwardMacs {
        ForwardMacs::of(&ModelConfig::named(backbone, size).unwrap(), &IMAGENET, objective)
    }

    /// The published figures of SiT (and DiT), and those of DDT on SiT blocks and of DUPA with K = 2 that follow from
    /// them.
    #[test]
    fn passes_and_training_steps_cost_what_is_published() {
        let published = [
            ("s/2", 6.05, 7.94, 115.4),
            ("b/2", 23.00, 30.53, 388.9),
            ("l/2", 80.69, 106.90, 1307.0),
            ("xl/2", 118.62, 159.91, 1944.0),
        ];
        let dupa = ObjectiveConfig::default();
        for (size, sit, ddt, training) in published {
            let forward = |backbone| macs(backbone, size, &dupa).network() as f64 / 1e9;
            assert!((forward(Backbone::Sit) - sit).abs() < 0.005, "SiT-{size}: {}", forward(Backbone::Sit));
            assert!((forward(Backbone::Ddt) - ddt).abs() < 0.005, "DDT-{size}: {}", forward(Backbone::Ddt));
            let flop = macs(Backbone::Ddt, size, &dupa).training_flop(2) as f64 / 1e9;
            assert!((flop / training - 1.0).abs() < 5e-4, "DUPA-{size}: {flop}");
        }
    }

    #[test]
    fn views_and_alignment_cost_what_they_add() {
        let dupa = ObjectiveConfig::default();
        let one_view = ObjectiveConfig { views: 1, ..dupa.clone() };
        let [both, one] = [&dupa, &one_view].map(|objective| macs(Backbone::Ddt, "b/2", objective));
        assert_eq!((one.projector, one.network()), (0, both.network()));
        assert_eq!(both.projector, 256 * (768 * 2048 + 2048 * 2048 + 2048 * 768));
        assert_eq!(both.training_flop(2) - 2 * one.training_flop(1), 12 * both.projector);
        // Of XL/2 attention's scores are the 3.6 % of SiT that are no matrix of weights.
        let xl = macs(Backbone::Sit, "xl/2", &one_view);
        let scores = xl.attention - 28 * 4 * 1152 * 1152 * 256;
        assert!((scores as f64 / xl.network() as f64 - 0.036).abs() < 5e-4);
        assert_eq!(xl.token_modulation, 0);
    }

    /// Sizes at the bounds of [`ModelConfig::problem`]: in a test, arithmetic that overflows panics.
    #[test]
    fn no_network_that_is_allowed_overflows() {
        let data = LatentShape { channels: 4, height: 256, width: 256, classes: 1000 };
        let deep =
            ModelConfig { depth: DEEPEST, encoder_depth: 1, hidden: 3072, heads: 1, patch: 1, ..ModelConfig::demo() };
        let wide = ModelConfig { depth: 1, encoder_depth: 1, hidden: 1 << 17, ..deep.clone() };
        let widest_mlp = ModelConfig { hidden: 4, mlp_ratio: LARGEST / 4, ..deep.clone() };
        let objective = ObjectiveConfig { views: 4, ..Default::default() };
        for model in [deep, wide, widest_mlp] {
            assert_eq!(model.problem(&data), None, "{model:?}");
            assert!(ForwardMacs::of(&model, &data, &objective).training_flop(4) > 0);
            let memory = DeviceMemory::of(&model, &data, &objective, 1 << 20, Kind::Float);
            assert!(memory.total() > memory.weights);
        }
    }

    #[test]
    fn memory_is_the_sum_of_what_the_rule_names() {
        let data = LatentShape { channels: 4, height: 8, width: 8, classes: 10 };
        let model = ModelConfig { depth: 3, encoder_depth: 1, hidden: 32, heads: 2, patch: 2, ..ModelConfig::demo() };
        let objective = ObjectiveConfig::default();
        let parameters = flat_len(&layout(&model, &data)) as u64;
        let memory = |kind| DeviceMemory::of(&model, &data, &objective, 5, kind);
        // 5 images of 2 views, 16 tokens: 3 blocks with 20 vectors, 2 with 8 more, and a projector of 256 and 128.
        let values = 5 * 2 * 16 * (32 * (3 * 20 + 2 * 8) + 4 * 256 + 2 * 128);
        let (f32, bf16) = (memory(Kind::Float), memory(Kind::BFloat16));
        assert_eq!((f32.activations, f32.total() - f32.activations), (4 * values, 24 * parameters));
        assert_eq!((bf16.activations, bf16.total() - bf16.activations), (2 * values, 24 * parameters));
        assert_eq!(snapshot_bytes(&model, &data), f32.weights + f32.average + f32.moments);
    }
}
