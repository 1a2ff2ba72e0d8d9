//! The sizes of a network, from the shapes of its tensors.
//!
//! Some of what a network is leaves no trace in any shape. The number of heads, and where the encoder ends, come from the
//! file where it is one of ours, else from the user, else from Table 5 of the paper by width and depth. All other keys are
//! then at their defaults: [`untold`] names those of a network that are not, so that no file without them is written of it.

use serde_json::Value;

use super::stored::{Float, Stored};
use super::torch::Tensors;
use crate::method::config::{Backbone, LARGEST, LatentShape, ModelConfig};
use crate::method::layout::{layout, projector_layer};

/// What the user says about a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// `ddt` gives plain SiT weights a second patch embedding, a copy of the first.
    pub backbone: Option<Backbone>,
    /// Attention heads.
    pub heads: Option<i64>,
    /// Blocks of the condition encoder.
    pub encoder_depth: Option<i64>,
    /// Side of the latents, for files without a position embedding.
    pub latent: Option<i64>,
}

/// What is known of a network.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sizes {
    pub(super) model: ModelConfig,
    pub(super) latent: LatentShape,
    /// Whether the one patch embedding of plain SiT serves both streams of a ddt.
    pub(super) one_embedder: bool,
    pub(super) notes: Vec<String>,
}

/// Side of the latents of images of 256 pixels.
const USUAL_LATENT: i64 = 32;

/// Sizes from shapes and hints, or a sentence on what is missing or strange. `known` is what the file or its run says
/// itself.
pub(super) fn infer(
    tensors: &Tensors,
    known: Option<(ModelConfig, LatentShape)>,
    hints: &Hints,
) -> Result<Sizes, String> {
    if let Some(reason) = foreign(tensors) {
        return Err(reason);
    }
    let (mut notes, mut one_embedder) = (Vec::new(), false);
    let (mut model, mut latent) = match known {
        Some(known) => known,
        None => shapes(tensors, hints, &mut notes)?,
    };
    match (hints.backbone, model.backbone) {
        (Some(Backbone::Sit), Backbone::Ddt) => {
            return Err("these are weights of a ddt (they have s_embedder.*); leave out --backbone sit".to_owned());
        }
        (Some(Backbone::Ddt), Backbone::Sit) => {
            model.backbone = Backbone::Ddt;
            one_embedder = true;
            notes.push("x_embedder was copied into s_embedder: a ddt whose encoder and decoder begin alike".to_owned());
        }
        _ => {}
    }
    if let Some(side) = hints.latent.filter(|side| *side < 1) {
        return Err(format!("--latent {side} must be at least 1"));
    }
    model.heads = hints.heads.unwrap_or(model.heads);
    model.encoder_depth = hints.encoder_depth.unwrap_or(model.encoder_depth);
    if let Some(side) = hints.latent
        && !tensors.contains_key("pos_embed")
    {
        (latent.height, latent.width) = (side, side);
    }
    match model.problem(&latent) {
        Some(problem) => Err(problem),
        None => Ok(Sizes { model, latent, one_embedder, notes }),
    }
}

/// The keys, as `model.key = value`, that make another network of these tensors and that [`infer`] does not learn from
/// them and from the user: what a file of tensors alone would lose. Empty if there are none.
pub(super) fn untold(model: &ModelConfig, latent: &LatentShape) -> Result<Vec<String>, String> {
    let tensors = layout(model, latent).into_iter().filter_map(|spec| {
        let shape = spec.shape.iter().map(|&side| side as u64).collect();
        Some((spec.name, Stored::contiguous(Some(Float::F32), 0, u64::MAX, shape).ok()?))
    });
    let hints = Hints {
        backbone: None,
        heads: Some(model.heads),
        encoder_depth: Some(model.encoder_depth),
        latent: Some(latent.height),
    };
    let told = infer(&tensors.collect(), None, &hints)?.model;
    // It is for the first weights alone, and a network without a projector has no use for any key of one.
    let mut own = ModelConfig { projector_gain: told.projector_gain, ..model.clone() };
    if !own.has_projector() {
        let ModelConfig { projector_out, projector_layers, projector_bias, .. } = told;
        own = ModelConfig { projector_out, projector_layers, projector_bias, ..own };
    }
    let keys = |model: &ModelConfig| serde_json::to_value(model).map_err(|e| e.to_string());
    let (own, told) = (keys(&own)?, keys(&told)?);
    let differs =
        |(key, value): (&String, &Value)| (told.get(key) != Some(value)).then(|| format!("model.{key} = {value}"));
    Ok(own.as_object().into_iter().flatten().filter_map(differs).collect())
}

/// Why these cannot be weights of SiT blocks, if they are those of another known network.
fn foreign(tensors: &Tensors) -> Option<String> {
    let has = |part: &str| tensors.keys().any(|name| name.contains(part));
    if has("blocks.0.mlp.w1.") {
        Some(
            "these are weights of the official DDT, whose blocks (RMSNorm, SwiGLU, rotary positions) are others".into(),
        )
    } else if has(".attn.q_norm.") {
        Some("these weights have normalised queries and keys (qk_norm), which this network has not".into())
    } else {
        None
    }
}

fn shapes(tensors: &Tensors, hints: &Hints, notes: &mut Vec<String>) -> Result<(ModelConfig, LatentShape), String> {
    let shape = |name: &str| -> Result<Vec<i64>, String> {
        let tensor = tensors.get(name).ok_or_else(|| format!("it has no tensor {name}, so it holds no SiT"))?;
        match tensor.shape.iter().all(|&side| (1..=LARGEST as u64).contains(&side)) {
            true => Ok(tensor.shape.iter().map(|&side| side as i64).collect()),
            false => Err(format!("tensor {name} has the shape {:?}", tensor.shape)),
        }
    };
    let matrix = |name: &str| match shape(name)?[..] {
        [rows, columns] => Ok((rows, columns)),
        ref other => Err(format!("tensor {name} has the shape {other:?} where two sides are expected")),
    };
    let embedder = "x_embedder.proj.weight";
    let (hidden, channels, patch) = match shape(embedder)?[..] {
        [hidden, channels, rows, columns] if rows == columns => (hidden, channels, rows),
        ref other => {
            return Err(format!(
                "tensor {embedder} has the shape {other:?} where [D, channels, patch, patch] is expected"
            ));
        }
    };
    let has = |name: &str| tensors.contains_key(name);
    let depth = (0..).take_while(|i| has(&format!("blocks.{i}.attn.qkv.weight"))).count() as i64;
    let (mlp, _) = matrix("blocks.0.mlp.fc1.weight")?;
    let (rows, _) = matrix("y_embedder.embedding_table.weight")?;

    let mut model = ModelConfig::demo();
    model.backbone = if has("s_embedder.proj.weight") { Backbone::Ddt } else { Backbone::Sit };
    (model.depth, model.hidden, model.patch, model.mlp_ratio) = (depth, hidden, patch, mlp / hidden);
    let projector = |layer: i64| format!("{}.weight", projector_layer(layer));
    match (0..).take_while(|&layer| has(&projector(layer))).count() as i64 {
        0 => (model.projector_hidden, model.projector_out) = (0, 0),
        layers => {
            (model.projector_hidden, model.projector_out) =
                (matrix(&projector(0))?.0, matrix(&projector(layers - 1))?.0);
            model.projector_layers = layers;
            model.projector_bias = has(&format!("{}.bias", projector_layer(0)));
        }
    }
    let table5 = || ["s/2", "b/2", "l/2", "xl/2"].iter().filter_map(|size| ModelConfig::named(model.backbone, size));
    let heads = table5().find(|size| size.hidden == hidden).map(|size| size.heads);
    let encoder = table5().find(|size| (size.hidden, size.depth) == (hidden, depth)).map(|size| size.encoder_depth);
    let becomes_ddt = model.backbone == Backbone::Ddt || hints.backbone == Some(Backbone::Ddt);
    model.heads = hints.heads.or(heads).ok_or_else(|| {
        let and = if becomes_ddt && hints.encoder_depth.is_none() { ", and --encoder-depth" } else { "" };
        format!(
            "a width of {hidden} is none of Table 5 (384, 768, 1024, 1152); give the attention heads with --heads{and}"
        )
    })?;
    model.encoder_depth = match hints.encoder_depth.or(encoder) {
        Some(depth) => depth,
        // On plain SiT it only says which block is aligned: a third of the way, as in Table 5.
        None if !becomes_ddt => (depth + 2) / 3,
        None => return Err(format!("{depth} blocks of width {hidden} are no size of Table 5; give --encoder-depth")),
    };

    let side = match tensors.get("pos_embed") {
        Some(tensor) => {
            let tokens = tensor.shape.iter().rev().nth(1).copied().unwrap_or(0);
            let grid = tokens.isqrt();
            if grid == 0 || grid * grid != tokens || grid > LARGEST as u64 {
                return Err(format!("pos_embed has the shape {:?}, which is no square of tokens", tensor.shape));
            }
            grid as i64 * patch
        }
        None => hints.latent.unwrap_or_else(|| {
            notes.push(format!(
                "no pos_embed says how large the latents are; took {USUAL_LATENT} x {USUAL_LATENT} (else --latent N)"
            ));
            USUAL_LATENT
        }),
    };
    Ok((model, LatentShape { channels, height: side, width: side, classes: rows - 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATENT: LatentShape = LatentShape { channels: 4, height: 32, width: 32, classes: 1000 };

    fn tensors(model: &ModelConfig, position: Option<u64>) -> Tensors {
        let stored = |shape: Vec<u64>| Stored::contiguous(Some(Float::F32), 0, u64::MAX, shape).unwrap();
        let specs = layout(model, &LATENT);
        let own = specs.iter().map(|s| (s.name.clone(), stored(s.shape.iter().map(|&side| side as u64).collect())));
        let position = position.map(|tokens| ("pos_embed".to_owned(), stored(vec![1, tokens, model.hidden as u64])));
        own.chain(position).collect()
    }

    #[test]
    fn every_size_of_table_5_is_recognised() {
        for backbone in [Backbone::Sit, Backbone::Ddt] {
            for size in ["s/2", "s/8", "b/4", "l/2", "xl/2"] {
                let model = ModelConfig::named(backbone, size).unwrap();
                let tokens = (32 / model.patch as u64).pow(2);
                let found = infer(&tensors(&model, Some(tokens)), None, &Hints::default()).unwrap();
                assert_eq!((found.model, found.latent, found.notes), (model, LATENT, vec![]), "{backbone:?} {size}");
            }
        }
    }

    #[test]
    fn what_no_shape_tells_is_asked_for() {
        let mut model = ModelConfig::demo();
        model.projector_hidden = 0;
        model.projector_out = 0;
        let all = tensors(&model, Some(256));
        let problem = |hints: &Hints| infer(&all, None, hints).unwrap_err();
        assert!(problem(&Hints::default()).ends_with("give the attention heads with --heads, and --encoder-depth"));
        assert!(problem(&Hints { heads: Some(4), ..Default::default() }).contains("--encoder-depth"));
        let hints = Hints { heads: Some(4), encoder_depth: Some(2), ..Default::default() };
        assert_eq!(infer(&all, None, &hints).unwrap().model, model);
        assert!(problem(&Hints { heads: Some(3), ..hints.clone() }).contains("model.heads"));
        assert!(problem(&Hints { backbone: Some(Backbone::Sit), ..hints.clone() }).contains("--backbone sit"));
        assert!(problem(&Hints { latent: Some(0), ..hints.clone() }).contains("--latent 0 must be at least 1"));

        let unplaced = tensors(&model, None);
        let found = infer(&unplaced, None, &hints).unwrap();
        assert!(found.latent.height == 32 && found.notes[0].contains("--latent"), "{:?}", found.notes);
        let found = infer(&unplaced, None, &Hints { latent: Some(16), ..hints }).unwrap();
        assert!(found.latent.height == 16 && found.notes.is_empty());
    }

    #[test]
    fn projectors_of_any_depth_are_recognised_with_and_without_biases() {
        for layers in 2..=8 {
            for bias in [true, false] {
                let mut model = ModelConfig::named(Backbone::Ddt, "s/2").unwrap();
                (model.projector_layers, model.projector_bias) = (layers, bias);
                (model.projector_hidden, model.projector_out) = (24, 16);
                let found = infer(&tensors(&model, Some(256)), None, &Hints::default()).unwrap();
                assert_eq!(found.model, model, "{layers} layers, biases {bias}");
                assert_eq!(untold(&model, &LATENT).unwrap(), [""; 0]);
            }
        }
    }

    /// Every key, changed alone, is learned from the tensors, given by the user, of no use to trained weights, or named.
    #[test]
    fn no_key_of_a_network_is_lost_in_silence() {
        let usual = ModelConfig::demo();
        let Value::Object(keys) = serde_json::to_value(&usual).unwrap() else { panic!("a table of keys") };
        let mut named = Vec::new();
        for (key, value) in &keys {
            let other = match value {
                Value::Bool(value) => (!value).into(),
                Value::Number(number) if number.is_f64() => 0.25.into(),
                Value::Number(number) => (2 * number.as_i64().unwrap()).into(),
                _ => "sit".into(),
            };
            let mut changed = keys.clone();
            changed.insert(key.clone(), other);
            let model: ModelConfig = serde_json::from_value(Value::Object(changed)).unwrap();
            let untold = untold(&model, &LATENT).unwrap();
            let hints =
                Hints { heads: Some(model.heads), encoder_depth: Some(model.encoder_depth), ..Hints::default() };
            let told = infer(&tensors(&model, Some((32 / model.patch as u64).pow(2))), None, &hints).unwrap().model;
            assert_eq!(untold.is_empty(), told == model || key == "projector_gain", "{key}: {untold:?}");
            named.extend(untold);
        }
        for expected in ["model.decoder_label = true", "model.decoder_position = false"] {
            assert!(named.iter().any(|key| key == expected), "{named:?}");
        }
        let without = ModelConfig { projector_hidden: 0, projector_layers: 2, projector_bias: false, ..usual };
        assert_eq!(untold(&without, &LATENT).unwrap(), [""; 0]);
    }

    #[test]
    fn other_networks_are_told_apart() {
        let model = ModelConfig::named(Backbone::Sit, "s/2").unwrap();
        let mut all = tensors(&model, Some(256));
        let weight = all["blocks.0.attn.proj.weight"].clone();
        let with = |name: &str| {
            let mut all = all.clone();
            all.insert(name.to_owned(), weight.clone());
            infer(&all, None, &Hints::default()).unwrap_err()
        };
        assert!(with("blocks.0.mlp.w1.weight").contains("official DDT"));
        assert!(with("blocks.0.attn.q_norm.weight").contains("qk_norm"));
        assert!(with("pos_embed").contains("no square"));
        all.remove("y_embedder.embedding_table.weight");
        assert!(infer(&all, None, &Hints::default()).unwrap_err().contains("y_embedder.embedding_table.weight"));
    }
}
