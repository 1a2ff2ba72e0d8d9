//! The five numbers from pictures on, against torch-fidelity and the ADM evaluator's arithmetic
//! (`stages/golden/evaluation.py`), with weights and pictures that both sides draw.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use stages::nets::inception::Inception;
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
    refuse(line, &[&empty, &empty, &other], "the weights do not fit the network: 471 missing: ");
    refuse(line, &[&empty, &empty, &folder.path().join("none")], "the weights cannot be read");
}
