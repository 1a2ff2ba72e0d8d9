//! The five numbers from pictures on, against torch-fidelity and the ADM evaluator's arithmetic
//! (`stages/golden/evaluation.py`), with weights and pictures that both sides draw.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use stages::nets::inception::Inception;
use stages::procedural::Classes;
use stages::splitmix::SplitMix64;

use crate::program::{refuse, succeed};

/// As `weights` of evaluation.py: tensor number j is drawn with seed j.
fn weights(folder: &Path) -> PathBuf {
    let values = |j: u64, name: &str, shape: &[i64]| -> Vec<u8> {
        let (fan_in, len) = (shape[1..].iter().product::<i64>(), shape.iter().product::<i64>());
        let width = (24.0 / fan_in as f64).sqrt() as f32;
        let value = |u: f32| match () {
            () if shape.len() == 4 => (u - 0.5) * width,
            () if name.ends_with("bn.weight") => 0.9 + 0.2 * u,
            () if name.ends_with("running_var") => 0.5 + u,
            () if name == "fc.weight" => (u - 0.5) * 0.25,
            () => (u - 0.5) * 0.2,
        };
        let unit = |k: u64| (SplitMix64::output(j, k) >> 40) as f32 * 2f32.powi(-24);
        (0..len as u64).flat_map(|k| value(unit(k)).to_le_bytes()).collect()
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = (0..)
        .zip(Inception::tensors())
        .map(|(j, (name, shape))| {
            let bytes = values(j, &name, &shape);
            (name, shape.iter().map(|&dim| dim as usize).collect(), bytes)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("lengths fit")));
    let path = folder.join("inception.safetensors");
    safetensors::serialize_to_file(views, None, &path).expect("a temporary folder can be written");
    path
}

/// As `pictures` of evaluation.py, as PNG files.
fn pictures(folder: &Path, seed: u64, count: u64) {
    const HEIGHT: u64 = 40;
    const WIDTH: u64 = 56;
    fs::create_dir_all(folder).expect("a temporary folder can be written");
    let level = |seed, k| (SplitMix64::output(seed, k) >> 57) as u8;
    for i in 0..count {
        let value =
            |y: u64, x: u64, c: u64| level(seed, ((i * HEIGHT + y) * WIDTH + x) * 3 + c) + level(seed + 1, i * 3 + c);
        let picture = image::RgbImage::from_fn(WIDTH as u32, HEIGHT as u32, |x, y| {
            image::Rgb([0, 1, 2].map(|c| value(y.into(), x.into(), c)))
        });
        picture.save(folder.join(format!("{i:06}.png"))).expect("a temporary folder can be written");
    }
}

fn golden() -> impl Fn(&str) -> f64 {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("stages/golden/metrics.safetensors");
    let bytes = fs::read(path).expect("the golden is there");
    move |key| {
        let stored = safetensors::SafeTensors::deserialize(&bytes).expect("the golden is safetensors");
        let value = stored.tensor(&format!("run.{key}")).expect("the golden has the number");
        f64::from_le_bytes(value.data().try_into().expect("a number is f64"))
    }
}

#[test]
fn the_five_numbers_are_those_of_torch_fidelity_and_the_adm_evaluator() {
    let folder = tempfile::tempdir().unwrap();
    let (samples, reference) = (folder.path().join("samples"), folder.path().join("reference"));
    let (inception, record) = (weights(folder.path()), folder.path().join("record.json"));
    pictures(&samples, 3000, 12);
    pictures(&reference, 4000, 10);
    let line = "evaluate --samples {} --reference {} --inception {} --devices cpu";
    let paths = [samples.as_path(), &reference, &inception];
    let found = succeed(&format!("{line} --record {{}} --json"), &[&samples, &reference, &inception, &record]);
    assert_eq!(found.trim_end(), fs::read_to_string(&record).unwrap());
    let found: Value = serde_json::from_str(&found).unwrap();
    let number = |key: &str| found[key].as_f64().unwrap_or_else(|| panic!("{key} in {found}"));
    let expected = golden();
    // With fewer pictures than features the distances are sensitive to rounding.
    for (key, tolerance) in [("fid", 1e-3), ("sfid", 1e-3), ("is", 1e-4), ("precision", 0.0), ("recall", 0.0)] {
        let (ours, theirs) = (number(key), expected(key));
        assert!((ours - theirs).abs() <= tolerance * theirs.abs(), "{key}: {ours} for {theirs}");
    }
    assert_eq!((number("count"), number("reference_count"), &found["distances"]), (12.0, 10.0, &"f16".into()));

    // The same from features that were kept, against statistics and pictures of a reference file.
    let (features, file) = (folder.path().join("features.npz"), folder.path().join("reference.npz"));
    succeed(&format!("{line} --save-features {{}}"), &[&samples, &reference, &inception, &features]);
    let make = "make-ref --images {} --inception {} --out {} --devices cpu";
    succeed(make, &[&reference, &inception, &file]);
    refuse(make, &[&reference, &inception, &file], "exists already");
    let again = succeed(&format!("{line} --json"), &[&features, &file, &inception]);
    let again: Value = serde_json::from_str(&again).unwrap();
    for key in ["fid", "sfid", "is", "precision", "recall", "count", "reference_count", "inception"] {
        assert_eq!(again[key], found[key], "{key}");
    }
    assert_eq!(again["reference_statistics_stored"], true);
    fs::copy(reference.join("000000.png"), reference.join("a.jpg")).unwrap();
    image::RgbImage::new(8, 8).save(reference.join("b.png")).unwrap();
    refuse(line, &paths, "b.png: 8x8 pixels, and those before it have 56x40");
}

#[test]
fn what_cannot_be_measured_is_refused_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let (empty, other) = (folder.path().join("empty"), folder.path().join("other.safetensors"));
    fs::create_dir(&empty).unwrap();
    let bytes = [0; 4];
    let tensor = TensorView::new(Dtype::F32, vec![1], &bytes).unwrap();
    safetensors::serialize_to_file([("fc.bias", tensor)], None, &other).unwrap();
    let line = "evaluate --samples {} --reference {} --inception {} --devices cpu";
    refuse(line, &[&empty, &empty, &other], "holds no image files");
    let (samples, smaller, one) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
    pictures(&samples, 3000, 4);
    pictures(&one, 3000, 1);
    fs::create_dir(&smaller).unwrap();
    image::RgbImage::new(8, 8).save(smaller.join("0.png")).unwrap();
    refuse(line, &[&samples, &samples, &other], "the weights do not fit the network: 471 missing: ");
    refuse(line, &[&samples, &samples, &folder.path().join("none")], "the weights cannot be read");
    refuse(line, &[&one, &samples, &other], "holds 1 picture, and a distance of distributions needs two at least");
    // The reference is looked at before the samples go through the network, and before the weights are read.
    refuse(line, &[&samples, &smaller, &other], "56x40 pixels and the pictures of the reference of 8x8");
    refuse(line, &[&samples, &folder.path().join("none.npz"), &other], "none.npz: cannot be read");
}

#[test]
fn without_inception_weights_latents_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = |first: u64| {
        let dir = folder.path().join(format!("{first}"));
        fs::create_dir(&dir).unwrap();
        for seed in first..first + 8 {
            let rgb = Classes::Named.image(seed as usize, seed, 32, 32);
            image::RgbImage::from_raw(32, 32, rgb).unwrap().save(dir.join(format!("{seed}.png"))).unwrap();
        }
        dir
    };
    let (samples, reference) = (pictures(0), pictures(8));
    let line = "evaluate --samples {} --reference {} --features vae --devices cpu";
    let found: Value = serde_json::from_str(&succeed(&format!("{line} --json"), &[&samples, &reference])).unwrap();
    assert!(found.get("fid").is_none(), "{found}");
    assert_eq!((&found["count"], &found["vae"]), (&8.into(), &"tiny".into()));
    let same: Value = serde_json::from_str(&succeed(&format!("{line} --json"), &[&samples, &samples])).unwrap();
    // Fewer pictures than features: eigenvalues that should be 0 are rounded.
    let distance = |found: &Value| found["latent_frechet"].as_f64().unwrap();
    assert!(distance(&same).abs() < 1e-6 * distance(&found), "{same}");
    let said = succeed(line, &[&samples, &reference]);
    assert!(said.contains("Frechet distance of latents (no FID)"), "{said}");
}
