//! The diffusion transformer: SiT blocks, as plain SiT or decoupled (DDT), and the projector z_phi.
//!
//! Conventions are those of SiT and REPA: LayerNorm without affine, eps 1e-6; modulation x (1 + scale) + shift in the
//! order shift, scale, gate for attention, then for the MLP; GELU in its tanh form; t fed unscaled; cos before sin in
//! the features of t; position embedding fixed, 2-D, columns first; output channels of a patch ordered (row, column,
//! channel).
//!
//! Shapes: N samples (images times views), T tokens, D hidden width. The network computes in the dtype of its
//! weights; noisy latents come in and velocities go out as f32. On a CPU each block is one operation, of `native`.

#[cfg(test)]
mod fused;

use tch::{Device, Kind, Tensor};

use super::config::{Backbone, LatentShape, ModelConfig};
use super::layout::{TIME_FEATURES, projector_layer};
use super::parameters::NamedTensors;
use crate::native::block::{self as native, BlockWeights};

/// What one pass gives (Eq. 4).
#[derive(Debug)]
pub struct Prediction {
    /// v_theta(x_t, t, y): f32 `[N, C, h, w]`.
    pub velocity: Tensor,
    /// z_t, the raw output of the last encoder block: `[N, T, D]` in the compute dtype. This is what is aligned.
    pub condition: Tensor,
    /// The embedding of t: `[N, 1, D]` in the compute dtype.
    pub time: Tensor,
}

/// What images are conditioned on, `[N, 1, D]` each in the compute dtype: the embedding of t, and its sum with that of the label.
struct Given {
    time: Tensor,
    image: Tensor,
}

/// A network over given weights. It owns views, not weights: an optimiser step under it is seen at once.
#[derive(Debug)]
pub struct Network {
    model: ModelConfig,
    data: LatentShape,
    kind: Kind,
    x_embedder: PatchEmbedding,
    s_embedder: Option<PatchEmbedding>,
    t_embedder: TimeEmbedding,
    label_table: Tensor,
    position: Tensor,
    blocks: Vec<Block>,
    final_layer: FinalLayer,
    projector: Vec<Linear>,
}

impl Network {
    /// Builds the network over `weights`, which must hold every tensor of [`super::layout::layout`].
    ///
    /// # Panics
    /// If a weight is missing: loading checks names and shapes before.
    pub fn new(model: &ModelConfig, data: &LatentShape, weights: &NamedTensors) -> Self {
        let linear = |name: &str| Linear::new(weights, name);
        let label_table = weights["y_embedder.embedding_table.weight"].shallow_clone();
        let (kind, device) = (label_table.kind(), label_table.device());
        Self {
            model: model.clone(),
            data: *data,
            kind,
            x_embedder: PatchEmbedding { linear: linear("x_embedder.proj"), patch: model.patch },
            s_embedder: (model.backbone == Backbone::Ddt)
                .then(|| PatchEmbedding { linear: linear("s_embedder.proj"), patch: model.patch }),
            t_embedder: TimeEmbedding { first: linear("t_embedder.mlp.0"), second: linear("t_embedder.mlp.2") },
            label_table,
            position: position_embedding(model.hidden, data.height / model.patch).to_device(device).to_kind(kind),
            blocks: (0..model.depth).map(|i| Block::new(weights, i, model)).collect(),
            final_layer: FinalLayer {
                linear: linear("final_layer.linear"),
                modulation: linear("final_layer.adaLN_modulation.1"),
            },
            projector: match model.has_projector() {
                true => (0..model.projector_layers).map(|layer| linear(&projector_layer(layer))).collect(),
                false => Vec::new(),
            },
        }
    }

    /// Index of the null class, which stands for "no label".
    pub fn null_class(&self) -> i64 {
        self.data.classes
    }

    /// The latents that the network was built for.
    pub fn data(&self) -> &LatentShape {
        &self.data
    }

    /// Its sizes.
    pub fn model(&self) -> &ModelConfig {
        &self.model
    }

    /// Eq. 4: `x_t` f32 `[N, C, h, w]`, `t` f32 `[N]` in [0, 1] (0 is data), `labels` i64 `[N]` in `0..=classes`.
    pub fn forward(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Prediction {
        self.forward_observed(x_t, t, labels, |_, _| ())
    }

    /// [`Self::forward`], which shows the output of each block to `observe`: `[N, T, D]` in the compute dtype, with its number
    /// in `1..=depth`, the encoder's blocks before the decoder's. That of block `encoder_depth` is z_t.
    pub fn forward_observed(
        &self,
        x_t: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        mut observe: impl FnMut(i64, &Tensor),
    ) -> Prediction {
        let mut layer = 0;
        let mut seen = |tokens: &Tensor| {
            layer += 1;
            observe(layer, tokens);
        };
        let (x_t, given) = (x_t.to_kind(self.kind), self.given(t, labels));
        let condition = self.encode(&x_t, &given, &mut seen);
        let velocity = self.decode(&x_t, &given, &condition, &mut seen);
        Prediction { velocity, condition, time: given.time }
    }

    /// The first half of [`forward`](Self::forward), z_t `[N, T, D]`. Only DDT's decoder can be given that of another time.
    pub fn condition(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Tensor {
        self.encode(&x_t.to_kind(self.kind), &self.given(t, labels), &mut |_| ())
    }

    /// The second half, v_t f32 `[N, C, h, w]`, from the `condition` of this or of a near time.
    pub fn velocity(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor, condition: &Tensor) -> Tensor {
        self.decode(&x_t.to_kind(self.kind), &self.given(t, labels), condition, &mut |_| ())
    }

    fn given(&self, t: &Tensor, labels: &Tensor) -> Given {
        let time = self.t_embedder.forward(t, self.kind);
        let image = &time + self.label_table.index_select(0, labels).unsqueeze(1);
        Given { time, image }
    }

    fn embed(&self, embedder: &PatchEmbedding, x_t: &Tensor, with_position: bool) -> Tensor {
        let patches = embedder.forward(x_t);
        if with_position { patches + &self.position } else { patches }
    }

    /// z_t, with one condition for each image.
    fn encode(&self, x_t: &Tensor, given: &Given, seen: &mut impl FnMut(&Tensor)) -> Tensor {
        let (encoder, _) = self.blocks.split_at(self.model.encoder_depth as usize);
        let embedder = self.s_embedder.as_ref().unwrap_or(&self.x_embedder);
        let tokens = self.embed(embedder, x_t, self.model.encoder_position);
        run(encoder, tokens, &given.image, seen)
    }

    /// v_t. DDT starts again from the noisy latent, with one condition for each token, and sees the label through z_t only;
    /// SiT goes on with its one stream.
    fn decode(&self, x_t: &Tensor, given: &Given, condition: &Tensor, seen: &mut impl FnMut(&Tensor)) -> Tensor {
        let (_, decoder) = self.blocks.split_at(self.model.encoder_depth as usize);
        let (tokens, decoder_condition) = match self.s_embedder {
            Some(_) => {
                let tokens = self.embed(&self.x_embedder, x_t, self.model.decoder_position);
                let from = if self.model.decoder_label { &given.image } else { &given.time };
                (tokens, from + condition)
            }
            None => (condition.shallow_clone(), given.image.shallow_clone()),
        };
        let tokens = run(decoder, tokens, &decoder_condition, seen);
        let patches = self.final_layer.forward(&tokens, &decoder_condition); //                   [N, T, p p C]
        self.unpatchify(&patches).to_kind(Kind::Float)
    }

    /// z_phi: linear layers with SiLU between them, on each token. `[.., D]` to `[.., projector_out]`; `condition` itself if
    /// the model has no projector.
    pub fn project(&self, condition: &Tensor) -> Tensor {
        let Some((first, others)) = self.projector.split_first() else { return condition.shallow_clone() };
        others.iter().fold(first.forward(condition), |x, layer| layer.forward(&x.silu()))
    }

    /// `[N, T, p p C]` with channels ordered (row, column, channel) to `[N, C, h, w]`.
    fn unpatchify(&self, patches: &Tensor) -> Tensor {
        let LatentShape { channels, height, width, .. } = self.data;
        let p = self.model.patch;
        patches
            .view([-1, height / p, width / p, p, p, channels])
            .permute([0, 5, 1, 3, 2, 4])
            .reshape([-1, channels, height, width])
    }
}

/// `seen` is shown the output of each block.
fn run(blocks: &[Block], tokens: Tensor, condition: &Tensor, mut seen: impl FnMut(&Tensor)) -> Tensor {
    // Every modulation starts with the same SiLU of the same condition.
    let condition = condition.silu();
    blocks.iter().fold(tokens, |tokens, block| {
        let tokens = block.forward(&tokens, &condition);
        seen(&tokens);
        tokens
    })
}

#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    fn new(weights: &NamedTensors, name: &str) -> Self {
        let weight = weights[&format!("{name}.weight")].shallow_clone();
        Self { weight, bias: weights.get(&format!("{name}.bias")).map(Tensor::shallow_clone) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }

    /// Weight and bias of a layer of a block.
    fn tensors(&self) -> [&Tensor; 2] {
        [&self.weight, self.bias.as_ref().expect("every layer of a block has a bias")]
    }
}

/// A convolution with stride = kernel = patch, written as a product: tokens row-major.
#[derive(Debug)]
struct PatchEmbedding {
    linear: Linear,
    patch: i64,
}

impl PatchEmbedding {
    /// `[N, C, h, w]` to `[N, T, D]`.
    fn forward(&self, x: &Tensor) -> Tensor {
        let [n, c, h, w] = x.size()[..] else { unreachable!("latents have four dimensions") };
        let p = self.patch;
        let patches =
            x.view([n, c, h / p, p, w / p, p]).permute([0, 2, 4, 1, 3, 5]).reshape([n, (h / p) * (w / p), c * p * p]);
        patches.linear(&self.linear.weight.flatten(1, -1), self.linear.bias.as_ref())
    }
}

#[derive(Debug)]
struct TimeEmbedding {
    first: Linear,
    second: Linear,
}

impl TimeEmbedding {
    /// f32 `[N]` to `[N, 1, D]`.
    fn forward(&self, t: &Tensor, kind: Kind) -> Tensor {
        let features = time_features(t).to_kind(kind);
        self.second.forward(&self.first.forward(&features).silu()).unsqueeze(1)
    }
}

/// `[N]` to f32 `[N, 256]`: cos(t f_i) then sin(t f_i), f_i = 10000^(-i / 128). t is not scaled.
fn time_features(t: &Tensor) -> Tensor {
    let half = TIME_FEATURES / 2;
    let index = Tensor::arange(half, (Kind::Float, t.device()));
    let frequency = (index * (-(10000f64.ln()) / half as f64)).exp();
    let angle = t.to_kind(Kind::Float).unsqueeze(1) * frequency.unsqueeze(0);
    Tensor::cat(&[angle.cos(), angle.sin()], 1)
}

#[derive(Debug)]
struct Block {
    heads: i64,
    modulation: Linear,
    qkv: Linear,
    proj: Linear,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    fn new(weights: &NamedTensors, index: i64, model: &ModelConfig) -> Self {
        let linear = |name: &str| Linear::new(weights, &format!("blocks.{index}.{name}"));
        Self {
            heads: model.heads,
            modulation: linear("adaLN_modulation.1"),
            qkv: linear("attn.qkv"),
            proj: linear("attn.proj"),
            fc1: linear("mlp.fc1"),
            fc2: linear("mlp.fc2"),
        }
    }

    /// `x` is `[N, T, D]`; `condition`, already through SiLU, is `[N, 1, D]` for one vector an image or `[N, T, D]`
    /// for one a token.
    fn forward(&self, x: &Tensor, condition: &Tensor) -> Tensor {
        if x.device() != Device::Cpu {
            return self.composed(x, condition);
        }
        native::block(x, condition, self.weights(), self.heads)
            .expect("one condition an image or a token, and weights whose shapes were checked when they were loaded")
    }

    /// The same, composed of libtorch's operations: what runs on a GPU, and what the CPU's is tested against.
    fn composed(&self, x: &Tensor, condition: &Tensor) -> Tensor {
        let [shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp] =
            <[Tensor; 6]>::try_from(self.modulation.forward(condition).chunk(6, -1))
                .expect("6 D columns make six chunks");
        let x = x + gate_msa * self.attention(&modulate(&layer_norm(x), &shift_msa, &scale_msa));
        let hidden = self.fc1.forward(&modulate(&layer_norm(&x), &shift_mlp, &scale_mlp)).gelu("tanh");
        &x + gate_mlp * self.fc2.forward(&hidden)
    }

    fn weights(&self) -> BlockWeights<'_> {
        BlockWeights {
            modulation: self.modulation.tensors(),
            qkv: self.qkv.tensors(),
            proj: self.proj.tensors(),
            fc1: self.fc1.tensors(),
            fc2: self.fc2.tensors(),
        }
    }

    fn attention(&self, x: &Tensor) -> Tensor {
        let [n, tokens, d] = x.size()[..] else { unreachable!("tokens have three dimensions") };
        let qkv = self.qkv.forward(x).view([n, tokens, 3, self.heads, d / self.heads]).permute([2, 0, 3, 1, 4]);
        let (q, k, v) = (qkv.get(0), qkv.get(1), qkv.get(2)); // [N, heads, T, D / heads]
        let mixed = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false);
        self.proj.forward(&mixed.transpose(1, 2).reshape([n, tokens, d]))
    }
}

#[derive(Debug)]
struct FinalLayer {
    linear: Linear,
    modulation: Linear,
}

impl FinalLayer {
    fn forward(&self, x: &Tensor, condition: &Tensor) -> Tensor {
        let [shift, scale] = <[Tensor; 2]>::try_from(self.modulation.forward(&condition.silu()).chunk(2, -1))
            .expect("2 D columns make two chunks");
        self.linear.forward(&modulate(&layer_norm(x), &shift, &scale))
    }
}

fn layer_norm(x: &Tensor) -> Tensor {
    let width = *x.size().last().expect("tokens have a width");
    x.layer_norm([width], None::<&Tensor>, None::<&Tensor>, 1e-6, false)
}

fn modulate(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Tensor {
    x * (scale + 1.0) + shift
}

/// The fixed 2-D sine-cosine embedding, f32 `[grid * grid, D]`, tokens row-major: the first half of the channels
/// encodes the column, the second the row; each half is sin then cos of index * 10000^(-i / (D/4)).
pub fn position_embedding(hidden: i64, grid: i64) -> Tensor {
    let quarter = hidden / 4;
    let options = (Kind::Double, Device::Cpu);
    let frequency = (Tensor::arange(quarter, options) * (-(10000f64.ln()) / quarter as f64)).exp();
    let angle = Tensor::arange(grid, options).unsqueeze(1) * frequency.unsqueeze(0); // [grid, D/4]
    let axis = Tensor::cat(&[angle.sin(), angle.cos()], 1); //                           [grid, D/2]
    let column = axis.unsqueeze(0).expand([grid, grid, hidden / 2], false);
    let row = axis.unsqueeze(1).expand([grid, grid, hidden / 2], false);
    Tensor::cat(&[column, row], 2).view([grid * grid, hidden]).to_kind(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::super::layout::layout;
    use super::super::objective::alignment::view_cosine;
    use super::super::parameters::Parameters;
    use super::*;
    use crate::method::random;

    #[test]
    fn the_position_embedding_encodes_the_column_first() {
        let embedding = position_embedding(16, 4);
        let value = |token: i64, channel: i64| embedding.double_value(&[token, channel]);
        assert!((value(1, 0) - 1f64.sin()).abs() < 1e-7); // row 0, column 1
        assert_eq!([value(4, 0), value(4, 1), value(4, 2), value(4, 3)], [0.0; 4]); // row 1, column 0
        assert!((value(4, 8) - 1f64.sin()).abs() < 1e-7);
    }

    /// Two noisy views start out alike, because the fixed position embedding outweighs what differs: 0.94 for S up to
    /// 0.98 for XL (the paper's Appendix F starts its curve there). A fresh block is the identity, so one is enough.
    #[test]
    fn at_initialisation_the_network_predicts_zero_and_views_agree_as_the_position_embedding_makes_them() {
        for (size, expected) in [("s/2", 0.94), ("b/2", 0.97), ("l/2", 0.97), ("xl/2", 0.98)] {
            let data = LatentShape { channels: 4, height: 32, width: 32, classes: 1000 };
            let named = ModelConfig::named(Backbone::Ddt, size).unwrap();
            let model = ModelConfig { depth: 1, encoder_depth: 1, ..named };
            let parameters = Parameters::init(layout(&model, &data), 0, Device::Cpu, Kind::Float).unwrap();
            let network = Network::new(&model, &data, parameters.leaves());

            let draw = |seed| random::normal(&[16, 4, 32, 32], Device::Cpu, seed).unwrap();
            let labels = Tensor::arange(16, (Kind::Int64, Device::Cpu));
            // Times spread evenly over (0, 1), in another order for each view: a small sample of U(0, 1) would not be.
            let view = |seed: u64| {
                let t = (Tensor::arange(16, (Kind::Float, Device::Cpu)) * seed as f64 + 0.5).remainder(16.0) / 16.0;
                let x_t = super::super::path::interpolate(&draw(1), &draw(seed), &t);
                tch::no_grad(|| network.forward(&x_t, &t, &labels))
            };
            let (first, second) = (view(3), view(5));
            assert_eq!(first.velocity.abs().max().double_value(&[]), 0.0, "{size}");
            let cosine = view_cosine(&Tensor::stack(&[first.condition, second.condition], 0)).double_value(&[]);
            assert!((cosine - expected).abs() < 0.01, "{size}: {cosine}");
        }
    }

    /// `stages/golden/block.safetensors`: timm's attention and MLP, every weight random.
    fn block_golden() -> (NamedTensors, impl Fn(&str) -> Tensor) {
        let path = format!("{}/golden/block.safetensors", env!("CARGO_MANIFEST_DIR"));
        let golden: NamedTensors = Tensor::read_safetensors(path).unwrap().into_iter().collect();
        let weights = golden
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix("weights.")?, tensor)))
            .map(|(name, tensor)| match name.starts_with("t_embedder") {
                true => (name.to_owned(), tensor.shallow_clone()),
                false => (format!("blocks.0.{name}"), tensor.shallow_clone()),
            })
            .collect();
        (weights, move |name: &str| golden[name].shallow_clone())
    }

    fn assert_close(what: &str, a: &Tensor, b: &Tensor) {
        assert_eq!(a.size(), b.size(), "{what}");
        let error = (a - b).norm().double_value(&[]) / b.norm().double_value(&[]);
        assert!(error < 1e-5, "{what}: relative error {error:e}");
    }

    #[test]
    fn a_block_equals_the_reference_with_one_condition_an_image_and_one_a_token() {
        let (weights, golden) = block_golden();
        let model = ModelConfig { hidden: 24, heads: 3, ..ModelConfig::demo() };
        let block = Block::new(&weights, 0, &model);
        let image = block.forward(&golden("x"), &golden("c").unsqueeze(1).silu());
        assert_close("one an image", &image, &golden("y_vector"));
        let token = block.forward(&golden("x"), &golden("c_tokens").silu());
        assert_close("one a token", &token, &golden("y_tokens"));
    }

    #[test]
    fn embeddings_of_time_and_position_equal_the_reference() {
        let (weights, golden) = block_golden();
        assert_close("features of t", &time_features(&golden("t")), &golden("t_embedding_256"));
        let embedder = TimeEmbedding {
            first: Linear::new(&weights, "t_embedder.mlp.0"),
            second: Linear::new(&weights, "t_embedder.mlp.2"),
        };
        let embedded = embedder.forward(&golden("t"), Kind::Float).squeeze_dim(1);
        assert_close("embedding of t", &embedded, &golden("t_embedded"));
        assert_close("position", &position_embedding(16, 4), &golden("pos_embed_4x4_16"));
    }
}
