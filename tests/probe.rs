//! `pipeline probe` as a whole program.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::program::{images, refuse, succeed};

const SMALL: &str = "--preset dupa-demo --set train.batch=8 --set model.hidden=64 --set model.depth=3 --set train.log_every=1 --steps 2";

#[test]
fn a_run_is_probed_on_held_out_data_and_says_what_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let (images, data) = (images(folder.path(), 3, 12), folder.path().join("data"));
    succeed("encode --images {} --out {} --size 64", &[&images, &data]);
    let run = folder.path().join("run");
    succeed(&format!("train --data {{}} --run {{}} {SMALL}"), &[&data, &run]);
    let probe = |words: &str| -> Value {
        serde_json::from_str(&succeed(&format!("probe --run {{}} --data {{}} --json {words}"), &[&run, &data])).unwrap()
    };
    let found = probe("--samples 8 --steps 2");
    assert_eq!((found["step"].as_u64(), found["count"].as_u64()), (Some(2), Some(32)));
    let by_t: Vec<f64> =
        found["velocity_loss_by_t"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
    assert_eq!(by_t.len(), 10);
    let mean = by_t.iter().sum::<f64>() / 10.0;
    assert!((found["velocity_loss"].as_f64().unwrap() - mean).abs() < 1e-9 && mean > 0.5, "{found}");
    let share = found["linear_probe"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&share) && found["linear_probe_chance"].as_f64() >= Some(1.0 / 3.0), "{found}");
    assert!(found["latent_frechet"]["samples"].as_f64() > found["latent_frechet"]["real_halves"].as_f64(), "{found}");
    assert_eq!(probe("--samples 8 --steps 2"), found, "the same command measures the same");
    assert_eq!((&found["version"], &found["precision"]), (&env!("CARGO_PKG_VERSION").into(), &"f32".into()));
    assert_eq!((&found["seed"], &found["fit_dataset"]), (&0.into(), &Value::Null));
    let config: toml::Table = fs::read_to_string(run.join("config.toml")).unwrap().parse().unwrap();
    assert_eq!(found["dataset"].as_str(), config["data"]["dataset"].as_str());
    assert_eq!(found["weights_xxh3"].as_str().map(str::len), Some(16));
    let fitted = succeed("probe --run {} --data {} --fit {} --samples 0 --seed 3 --json", &[&run, &data, &data]);
    let fitted: Value = serde_json::from_str(&fitted).unwrap();
    assert_eq!((&fitted["fit_dataset"], &fitted["seed"]), (&found["dataset"], &3.into()));
    assert_eq!(fitted["weights_xxh3"], found["weights_xxh3"]);
    let shown = succeed("probe --run {} --data {} --samples 0 --t 0.5", &[&run, &data]);
    assert!(shown.contains("linear probe of the conditions at t = 0.5"), "{shown}");

    let sweep = probe("--samples 0 --layers all --t 0,0.5");
    let layers: Vec<_> =
        sweep["layers"].as_array().unwrap().iter().map(|l| (l["t"].as_f64(), l["layer"].as_u64())).collect();
    let expected: Vec<_> = [0.0, 0.5].iter().flat_map(|t| (1..=3).map(|layer| (Some(*t), Some(layer)))).collect();
    assert_eq!(layers, expected);
    let aligned = sweep["aligned_layer"].as_u64().unwrap() as usize;
    assert_eq!(
        sweep["layers"][aligned - 1]["linear_probe"],
        found["linear_probe"],
        "one pass gives what another gives"
    );
    assert_eq!(sweep["linear_probe"], found["linear_probe"]);
    let shown = succeed("probe --run {} --data {} --samples 0 --layers 3,1", &[&run, &data]);
    assert!(shown.contains("linear probe (softmax) by layer") && !shown.contains("\n      2 "), "{shown}");
    refuse("probe --run {} --data {} --layers 4", &[&run, &data], "--layers 4: the network has the blocks 1 to 3");

    refuse("probe --run {} --data {} --t 2", &[&run, &data], "--t 2 must lie in 0..=1");
    refuse("probe --run {} --data {} --samples 1", &[&run, &data], "--samples 1: a Frechet distance needs 4 to");
    refuse("probe --run {} --data {} --samples 4 --steps 0", &[&run, &data], "--steps 0 makes no samples");
    refuse("probe --run {} --data {} --count 20", &[&run, &data], "at least 32 are needed");
    refuse("probe --run {} --data {}", &[&data, &data], "holds no run");
}

/// A run of two steps and the data that it was trained on, 36 images; and an empty place beside them.
fn trained(folder: &Path) -> (PathBuf, PathBuf) {
    let (images, data, run) = (images(folder, 3, 12), folder.join("data"), folder.join("run"));
    succeed("encode --images {} --out {} --size 64", &[&images, &data]);
    succeed(&format!("train --data {{}} --run {{}} {SMALL}"), &[&data, &run]);
    (run, data)
}

fn json(line: &str, paths: &[&Path]) -> Value {
    serde_json::from_str(&succeed(&format!("probe --run {{}} --data {{}} --samples 0 --json {line}"), paths)).unwrap()
}

#[test]
fn recipes_of_papers_are_trained_as_the_flags_say_and_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let (run, data) = trained(folder.path());
    for (line, optimiser, rate) in [
        ("--recipe mae --probe-epochs 12 --probe-batch 8", "lars", 0.1 * 8.0 / 256.0),
        ("--recipe repa --probe-epochs 12 --probe-batch 8", "adam", 0.001),
        ("--recipe repa --probe-epochs 12 --probe-batch 8 --probe-rate 0.0064", "adam", 0.0064),
    ] {
        let found = json(line, &[&run, &data]);
        let recipe = &found["linear_probe_recipe"];
        assert_eq!((recipe["optimiser"].as_str(), recipe["rate"].as_f64()), (Some(optimiser), Some(rate)));
        let numbers = ["epochs", "batch", "fit", "test"].map(|key| recipe[key].as_u64());
        assert_eq!(numbers, [12, 8, 16, 16].map(Some), "{recipe}");
        assert_eq!(json(line, &[&run, &data]), found, "the seed decides");
    }
    let softmax = json("", &[&run, &data]);
    assert_eq!(softmax["linear_probe_recipe"], serde_json::json!({ "name": "softmax", "fit": 16, "test": 16 }));
    let line = "probe --run {} --data {} --samples 0";
    refuse(&format!("{line} --recipe mae --probe-epochs 10"), &[&run, &data], "rises for 10 epochs");
    refuse(&format!("{line} --probe-epochs 3"), &[&run, &data], "--probe-epochs belongs to --recipe mae");
    refuse(&format!("{line} --recipe mae --probe-rate=-1"), &[&run, &data], "--probe-rate -1 must be above 0");
}

#[test]
fn layers_are_compared_with_features_that_were_saved_or_given_by_position() {
    let folder = tempfile::tempdir().unwrap();
    let (run, data) = trained(folder.path());
    let saved = folder.path().join("saved.safetensors");
    json("--layers all --t 0,0.5 --save-features {}", &[&run, &data, &saved]);
    let bytes = fs::read(&saved).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let layer = file.tensor("layer.2.t.0").unwrap();
    assert_eq!((layer.dtype(), layer.shape()), (Dtype::F32, &[32, 64][..]));
    assert_eq!(file.names().len(), 3 * 2 + 2);

    let line = "--layers all --topk 5 --cknna {} --cknna-tensor layer.2.t.0";
    let found = json(line, &[&run, &data, &saved]);
    let cknna = |found: &Value, layer: usize| found["layers"][layer - 1]["cknna"].as_f64().unwrap();
    // 1, but for the 1e-6 of the denominator.
    assert!((0.9..1.0).contains(&cknna(&found, 2)), "{found}");
    // The decoder begins with other weights.
    assert!(cknna(&found, 3) < cknna(&found, 2) - 0.01, "{found}");
    assert_eq!((found["cknna"]["count"].as_u64(), found["cknna"]["topk"].as_u64()), (Some(32), Some(5)));

    // The same rows in another order, each with its position: nothing changes.
    let positions = file.tensor("positions").unwrap();
    let turned = |bytes: &[u8], row: usize| bytes.chunks(row).rev().flatten().copied().collect::<Vec<_>>();
    let (rows, places) = (turned(layer.data(), 256), turned(positions.data(), 8));
    let other = folder.path().join("other.safetensors");
    let tensors = [
        ("dino", TensorView::new(Dtype::F32, vec![32, 64], &rows).unwrap()),
        ("positions", TensorView::new(Dtype::I64, vec![32], &places).unwrap()),
    ];
    safetensors::serialize_to_file(tensors, None, &other).unwrap();
    let again = json("--layers all --topk 5 --cknna {}", &[&run, &data, &other]);
    assert_eq!(again["layers"], found["layers"]);
    let hash = |found: &Value| found["cknna"]["xxh3"].as_str().unwrap().to_owned();
    assert!(hash(&found).len() == 16 && hash(&found) != hash(&again), "rows in another order are other values");

    // Without positions a row belongs to the sample of its number, of which there are 36.
    let mut whole = vec![0; 36 * 256];
    for (row, place) in layer.data().chunks(256).zip(positions.data().chunks(8)) {
        let at = 256 * i64::from_le_bytes(place.try_into().unwrap()) as usize;
        whole[at..at + 256].copy_from_slice(row);
    }
    let npy = folder.path().join("features.npy");
    let header = format!("{:<117}\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (36, 64), }");
    let start = [&b"\x93NUMPY\x01\x00"[..], &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat();
    fs::write(&npy, [start.clone(), whole.clone()].concat()).unwrap();
    let again = json("--layers all --topk 5 --cknna {}", &[&run, &data, &npy]);
    assert_eq!(again["layers"], found["layers"]);

    let line = "probe --run {} --data {} --samples 0 --cknna {}";
    refuse(line, &[&run, &data, &saved], "name one with --cknna-tensor");
    refuse(&format!("{line} --topk 32"), &[&run, &data, &other], "--topk 32 must lie in 2..=31");
    refuse(&format!("{line} --outlier-q 2"), &[&run, &data, &other], "--outlier-q 2 must lie in 0..=1");
    let start = String::from_utf8_lossy(&start[10..]).replace("(36, 64)", "(32, 64)");
    fs::write(&npy, [&b"\x93NUMPY\x01\x00\x76\x00"[..], start.as_bytes(), &whole[..32 * 256]].concat()).unwrap();
    refuse(line, &[&run, &data, &npy], "it has 32 rows, and the dataset 36 samples");
    refuse("probe --run {} --data {} --save-features {}", &[&run, &data, &saved], "exists already");
}

#[test]
fn layers_and_views_are_measured_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let (run, data) = trained(folder.path());
    let plot = folder.path().join("probe.svg");
    let found = json("--layers all --t 0,0.25,0.5 --views 20 --plot {}", &[&run, &data, &plot]);
    let views = &found["views"];
    assert_eq!((views["count"].as_u64(), views["times"].as_array().unwrap().len()), (Some(20), 10));
    for kind in ["condition", "projected"] {
        let gaps = views[kind]["by_gap"].as_array().unwrap();
        let cosine = |gap: usize, key: &str| gaps[gap][key].as_f64().unwrap();
        assert!(gaps.len() == 10 && cosine(0, "cosine") > cosine(0, "other_cosine"), "{views}");
        assert_eq!(views[kind]["cosine"].as_array().unwrap().len(), 10);
    }
    let drawing = fs::read_to_string(&plot).unwrap();
    for part in ["Linear probe (softmax)", ">t = 0.25<", "behind the projector", "while training"] {
        assert!(drawing.contains(part), "{part}");
    }
    let shown = succeed("probe --run {} --data {} --samples 0 --views 4", &[&run, &data]);
    assert!(shown.contains("cosine of the projected conditions of two views, 4 images"), "{shown}");
    refuse("probe --run {} --data {} --plot a.png", &[&run, &data], "must end in .svg or .html");
}
