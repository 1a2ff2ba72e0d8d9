//! Files that PyTorch wrote (`stages/golden/weights.py`), imported, and the forward pass of what comes out against the
//! answer of the independent network that wrote them.

use std::path::{Path, PathBuf};

use tch::{Kind, Tensor, no_grad};

use super::*;
use crate::method::config::Backbone;
use crate::method::layout::layout;
use crate::method::network::Network;
use crate::method::parameters::views;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn options(which: Which, heads: i64) -> ImportOptions {
    ImportOptions { which, hints: Hints { heads: Some(heads), ..Hints::default() }, ..ImportOptions::default() }
}

fn answers(key: &str) -> Tensor {
    let all = Tensor::read_safetensors(golden("weights.safetensors")).unwrap();
    all.into_iter().find(|(name, _)| name == key).unwrap_or_else(|| panic!("the golden has no {key}")).1
}

fn forward(weights: &NetworkWeights, x: &Tensor, t: &Tensor, labels: &Tensor) -> Tensor {
    let specs = layout(&weights.model, &weights.latent);
    let flat = Tensor::from_slice(&weights.flat);
    let network = Network::new(&weights.model, &weights.latent, &views(&specs, &flat));
    no_grad(|| network.forward(x, t, labels).velocity)
}

/// |a - b| / |b|.
fn error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    (a - &b).norm().double_value(&[]) / b.norm().double_value(&[])
}

#[test]
fn sit_is_imported_with_its_time_turned_and_its_variance_left_out() {
    let (x, t, labels) = (answers("sit.x"), answers("sit.t"), answers("sit.labels"));
    for (which, key) in [(Which::Ema, "ema"), (Which::Raw, "model")] {
        let Imported { weights, key: taken, floats, notes } =
            import(&golden("weights_sit.pt"), &options(which, 2)).unwrap();
        assert_eq!((taken.as_str(), floats.as_str()), (key, "f32"));
        let NetworkWeights { model, latent, .. } = &weights;
        assert_eq!((model.backbone, model.depth, model.hidden, model.patch), (Backbone::Sit, 2, 8, 2));
        assert_eq!((latent.channels, latent.height, latent.width, latent.classes), (4, 8, 8, 5));
        assert!(notes.len() == 2 && notes[0].contains("8 channels") && notes[1].contains("time"), "{notes:?}");

        let answer = -answers(&format!("sit.{key}"));
        let ours = forward(&weights, &x, &(1.0 - &t), &labels);
        assert!(error(&ours, &answer) < 1e-5, "{key}: {:e}", error(&ours, &answer));

        // As it lies in the file, when asked for.
        let as_is = ImportOptions { time: Time::Ours, ..options(which, 2) };
        let weights = import(&golden("weights_sit.pt"), &as_is).unwrap().weights;
        assert!(error(&forward(&weights, &x, &t, &labels), &-answer) < 1e-5);
    }
}

#[test]
fn repa_f16_and_bf16_answer_as_the_network_that_wrote_them() {
    for (name, heads, which, key, floats) in [
        ("repa", 3, Which::Ema, "bare", "f32"),
        ("f16", 3, Which::Raw, "ema", "f16"),
        ("bf16", 3, Which::Ema, "model", "bf16"),
    ] {
        let imported = import(&golden(&format!("weights_{name}.pt")), &options(which, heads)).unwrap();
        assert_eq!(imported.floats, floats, "{name}");
        assert_eq!(imported.key, if key == "bare" { "" } else { key }, "{name}");
        let [x, t, labels] = ["x", "t", "labels"].map(|input| answers(&format!("{name}.{input}")));
        let ours = forward(&imported.weights, &x, &t, &labels);
        let error = error(&ours, &answers(&format!("{name}.{key}")));
        assert!(error < 1e-5, "{name}: {error:e}");
    }
}

#[test]
fn the_first_projector_of_repa_is_kept() {
    let Imported { weights, notes, .. } = import(&golden("weights_repa.pt"), &options(Which::Ema, 3)).unwrap();
    assert_eq!((weights.model.projector_hidden, weights.model.projector_out), (16, 8));
    assert_eq!(notes, ["left out 6 tensors of further projectors, such as projectors.1.0.bias"]);
}

#[test]
fn plain_sit_becomes_a_ddt_whose_two_embeddings_are_alike() {
    let mut options = options(Which::Ema, 3);
    options.hints.backbone = Some(Backbone::Ddt);
    let refused = import(&golden("weights_repa.pt"), &options).unwrap_err().to_string();
    assert!(refused.contains("--encoder-depth"), "{refused}");
    options.hints.encoder_depth = Some(1);
    let Imported { weights, notes, .. } = import(&golden("weights_repa.pt"), &options).unwrap();
    assert_eq!((weights.model.backbone, weights.model.encoder_depth), (Backbone::Ddt, 1));
    assert!(notes.iter().any(|note| note.contains("s_embedder")), "{notes:?}");
    let flat = Tensor::from_slice(&weights.flat);
    let tensors = views(&layout(&weights.model, &weights.latent), &flat);
    for part in ["weight", "bias"] {
        assert!(tensors[&format!("s_embedder.proj.{part}")].equal(&tensors[&format!("x_embedder.proj.{part}")]));
    }
}

#[test]
fn what_is_written_is_read_again_with_every_bit() {
    let dir = tempfile::tempdir().unwrap();
    let original = import(&golden("weights_repa.pt"), &options(Which::Ema, 3)).unwrap().weights;
    for (form, name) in [(Form::Own, "a"), (Form::Safetensors, "b"), (Form::Torch, "c")] {
        let path = dir.path().join(name);
        write(&original, form, "a test", &path).unwrap();
        // A file of ours says itself what no shape tells.
        let hints = if form == Form::Torch { Hints { heads: Some(3), ..Hints::default() } } else { Hints::default() };
        let read = import(&path, &ImportOptions { hints, ..ImportOptions::default() }).unwrap();
        assert_eq!(read.weights, original, "{form:?}");
        assert!(read.notes.is_empty(), "{form:?}: {:?}", read.notes);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing temporary is left");
}

#[test]
fn a_file_that_cannot_be_written_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let weights = import(&golden("weights_repa.pt"), &options(Which::Ema, 3)).unwrap().weights;
    // A folder has the name.
    let path = dir.path().join("taken");
    std::fs::create_dir(&path).unwrap();
    let error = write(&weights, Form::Torch, "a test", &path).unwrap_err();
    assert!(matches!(error, WeightsFileError::Io { .. }), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
