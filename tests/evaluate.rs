//! The five numbers from pictures on, against torch-fidelity and the ADM evaluator's arithmetic
//! (`stages/golden/evaluation.py`), with weights and pictures that both sides draw.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use stages::exchange::npz::{Npz, NpzFile};
use stages::nets::inception::Inception;
use stages::procedural::Classes;
use stages::splitmix::SplitMix64;

use crate::program::{refuse, run, succeed};
use crate::sample::trained;

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
    assert!(found["sampling"].is_null() && found["samples"].is_string(), "{found}");
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
    (0..2).for_each(|i| image::RgbImage::new(8, 8).save(smaller.join(format!("{i}.png"))).unwrap());
    refuse(line, &[&samples, &samples, &other], "the weights do not fit the network: 471 missing: ");
    refuse(line, &[&samples, &samples, &folder.path().join("none")], "none: no such file; docs/evaluation.md says how");
    refuse(line, &[&one, &samples, &other], "holds 1 picture, and a distance of distributions needs two at least");
    // The reference is looked at before the samples go through the network, and before the weights are read.
    refuse(line, &[&samples, &smaller, &other], "56x40 pixels and the pictures of the reference of 8x8");
    refuse(line, &[&samples, &folder.path().join("none.npz"), &other], "none.npz: cannot be read");
    refuse(
        line,
        &[&samples, &one, &other],
        "c: holds 1 picture and no mu and sigma; a reference is two pictures at least",
    );
    let make = "make-ref --images {} --inception {} --out {} --devices cpu";
    let new = folder.path().join("new.npz");
    refuse(make, &[&one, &other, &new], "c: two pictures at least are needed for statistics");
    refuse(&format!("{make} --crop 0"), &[&samples, &other, &new], "--crop 0: a picture has a pixel at least");

    let npz = folder.path().join("pictures.npz");
    let write = |shape: &[u64]| {
        let mut file = NpzFile::create(&npz).unwrap();
        file.array("arr_0", "|u1", shape).unwrap();
        file.append(&vec![7; shape.iter().product::<u64>() as usize]).unwrap();
        file.finish().unwrap();
    };
    write(&[0, 40, 56, 3]);
    refuse(line, &[&npz, &samples, &other], "array \"arr_0\": it holds no pictures");
    write(&[4, 8, 8, 3]);
    refuse(line, &[&samples, &npz, &other], "56x40 pixels and the pictures of the reference of 8x8");
    refuse(&format!("{line} --crop 8"), &[&samples, &npz, &other], "--crop is for the pictures of a folder");
    let bytes = fs::read(&npz).unwrap();
    fs::write(&npz, &bytes[..300]).unwrap();
    refuse(line, &[&npz, &samples, &other], "pictures.npz: ");

    let latents = "evaluate --samples {} --reference {} --features vae --devices cpu";
    refuse(latents, &[&one, &samples], "c: 4 pictures at least are needed, and it holds 1");
    let odd = folder.path().join("odd");
    fs::create_dir(&odd).unwrap();
    (0..4).for_each(|i| image::RgbImage::new(12, 16).save(odd.join(format!("{i}.png"))).unwrap());
    refuse(
        latents,
        &[&odd, &odd],
        "odd: pictures of 12x16 pixels, and the autoencoder takes sides that are multiples of 8",
    );
    assert!(!new.exists() && !folder.path().join("a.inception.json").exists());
}

/// What a reference file lacks makes a number unavailable, and no error.
#[test]
fn a_reference_of_statistics_or_of_pictures_alone_gives_the_numbers_that_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let inception = weights(folder.path());
    pictures(&at("samples"), 3000, 5);
    pictures(&at("images"), 4000, 6);
    let make = "make-ref --images {} --inception {} --out {} --devices cpu --crop 32";
    succeed(&format!("{make} --pictures 4"), &[&at("images"), &inception, &at("some.npz")]);
    succeed(&format!("{make} --pictures 0"), &[&at("images"), &inception, &at("none.npz")]);
    let some = Npz::open(&at("some.npz")).unwrap();
    assert_eq!(some.array("arr_0").unwrap().shape(), [4, 32, 32, 3]);
    assert!(!Npz::open(&at("none.npz")).unwrap().has("arr_0"));

    // The samples' features, so that they go through the network once; the pictures of `some.npz` go through it again.
    let line = "evaluate --samples {} --reference {} --inception {} --devices cpu";
    fs::create_dir(at("cropped")).unwrap();
    for i in 0..5 {
        let name = format!("{i:06}.png");
        let picture = image::open(at("samples").join(&name)).unwrap().crop_imm(0, 0, 32, 32);
        picture.save(at("cropped").join(name)).unwrap();
    }
    let evaluate = |samples: &str, reference: &str, more: &str| -> Value {
        let found = succeed(&format!("{line} --json {more}"), &[&at(samples), &at(reference), &inception]);
        serde_json::from_str(&found).unwrap()
    };
    let keep = format!("--save-features {}", at("features.npz").display());
    let whole = evaluate("cropped", "some.npz", &keep);
    for key in ["fid", "sfid", "is", "precision", "recall"] {
        assert!(whole[key].is_f64(), "{key} in {whole}");
    }
    assert_eq!((&whole["reference_count"], &whole["reference_statistics_stored"]), (&4.into(), &true.into()));
    let said = succeed(line, &[&at("features.npz"), &at("none.npz"), &inception]);
    assert_eq!(said.matches("unavailable: that needs four samples and four reference pictures").count(), 2, "{said}");
    let alone: Value = serde_json::from_str(&fs::read_to_string(at("features.inception.json")).unwrap()).unwrap();
    assert_eq!((&alone["fid"], &alone["sfid"]), (&whole["fid"], &whole["sfid"]));
    assert!(alone["precision"].is_null() && alone["recall"].is_null() && alone["reference_count"] == 0, "{alone}");

    // The statistics of Inception's pool alone, and pictures alone.
    let copy = |names: &[&str], to: &str| {
        let source = Npz::open(&at("some.npz")).unwrap();
        let mut file = NpzFile::create(&at(to)).unwrap();
        for name in names {
            let mut array = source.array(name).unwrap();
            let shape: Vec<u64> = array.shape().iter().map(|&side| side as u64).collect();
            let width = if *name == "arr_0" { 1 } else { 8 };
            let mut bytes = vec![0; shape.iter().product::<u64>() as usize * width];
            array.read(&mut bytes).unwrap();
            file.array(name, array.descr(), &shape).unwrap();
            file.append(&bytes).unwrap();
        }
        file.finish().unwrap();
    };
    copy(&["mu", "sigma"], "pool.npz");
    let pool = evaluate("features.npz", "pool.npz", "");
    assert!(pool["fid"] == whole["fid"] && pool["sfid"].is_null(), "{pool}");
    copy(&["arr_0"], "pictures.npz");
    let alone = evaluate("features.npz", "pictures.npz", "");
    assert_eq!((&alone["precision"], &alone["recall"]), (&whole["precision"], &whole["recall"]));
    assert!(
        alone["fid"].is_f64() && alone["fid"] != whole["fid"] && alone["reference_statistics_stored"] == false,
        "{alone}"
    );

    let mut file = NpzFile::create(&at("foreign.npz")).unwrap();
    file.array("arr_0", "|u1", &[4, 32, 32, 3]).unwrap();
    file.append(&[7; 4 * 32 * 32 * 3]).unwrap();
    file.array("made_with", "|u1", &[16]).unwrap();
    file.append(b"0123456789abcdef").unwrap();
    file.finish().unwrap();
    let paths = [at("features.npz"), at("foreign.npz"), inception.clone()];
    refuse(
        line,
        &[&paths[0], &paths[1], &paths[2]],
        "it was made with other Inception weights (0123456789abcdef) than ",
    );
}

/// The keys that a reader needs to compare numbers: what sampled, what measured, and against what.
#[test]
fn every_evaluation_of_samples_keeps_what_decides_its_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (run_folder, reference) = (trained(folder.path()), at("images"));
    let inception = weights(folder.path());
    succeed("sample --run {} --out {} --count 4 --steps 2 --cfg 1.5", &[&run_folder, &at("samples")]);
    let nearest = "evaluate --samples {} --reference {}";
    let output = run(nearest, &[&at("samples"), &reference]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("--inception F.safetensors") && said.contains("--features vae"),
        "{said}"
    );
    assert!(said.contains("samples.nearest.json"), "{said}");
    let cropped = format!("{nearest} --devices cpu --crop 64");
    succeed(&format!("{cropped} --features vae"), &[&at("samples"), &reference]);
    let measured = format!("{cropped} --inception {{}}");
    succeed(
        &format!("{measured} --save-features {{}}"),
        &[&at("samples"), &reference, &inception, &at("features.npz")],
    );
    let of_sampling = ["sampler", "steps", "guidance/scale", "guidance/low", "guidance/high", "diffusion", "seed"];
    for (kind, own) in [
        ("nearest", &["nearest_neighbour_accuracy", "chance"][..]),
        ("vae", &["latent_frechet", "vae", "vae_xxh3", "batch", "crop"]),
        (
            "inception",
            &["fid", "sfid", "is", "precision", "recall", "distances", "inception", "is_parts", "batch", "crop"],
        ),
    ] {
        let text = fs::read_to_string(at(&format!("samples.{kind}.json"))).unwrap();
        let record: Value = serde_json::from_str(&text).unwrap();
        let settings = of_sampling.iter().map(|key| format!("sampling/settings/{key}"));
        let sampling = ["label_scheme", "rounding", "vae", "vae_xxh3", "weights_xxh3", "precision", "batch", "version"];
        let sampling = sampling.iter().map(|key| format!("sampling/{key}"));
        let common = ["reference", "count", "reference_count", "device", "version"].iter().chain(own);
        for key in settings.chain(sampling).chain(common.map(|key| (*key).to_owned())) {
            let found = record.pointer(&format!("/{key}"));
            assert!(found.is_some_and(|value| !value.is_null()), "{kind} lacks {key}: {record}");
        }
        assert_eq!((&record["count"], &record["sampling"]["labels"]), (&4.into(), &Value::Null), "{kind}");
    }
    refuse(nearest, &[&at("features.npz"), &reference], "features.npz: nearest real images are looked for among");
    let said = succeed("report {} {}", &[&at("samples.nearest.json"), &at("samples.vae.json")]);
    assert!(said.contains("| latent Frechet | nearest neighbour accuracy |") && !said.contains("by_class"), "{said}");
    // Features know where they come from.
    succeed(&measured, &[&at("features.npz"), &reference, &inception]);
    let [of_features, of_samples] = ["features", "samples"].map(|name| {
        let text = fs::read_to_string(at(&format!("{name}.inception.json"))).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()
    });
    assert!(of_features["sampling"].is_object() && of_features["sampling"] == of_samples["sampling"], "{of_features}");

    // Part of the samples is another set, and so are several sets.
    fs::remove_file(at("samples/000002.png")).unwrap();
    let vae = format!("{cropped} --features vae");
    refuse(
        &vae,
        &[&at("samples"), &reference],
        "samples.json says 4 pictures, and it holds 3; the command of `pipeline sample`",
    );
    refuse(nearest, &[&at("samples"), &reference], "000002.png: missing");
    refuse(&vae, &[folder.path(), &reference], "holds folders of samples, such as samples; give one of them");
    fs::write(at("samples/samples.json"), "{ half").unwrap();
    refuse(&vae, &[&at("samples"), &reference], "samples.json is not JSON");
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
    // The same names with another pixel are another reference; and it is kept where nobody said where.
    let first = reference.join("8.png");
    let mut picture = image::open(&first).unwrap().into_rgb8();
    picture.put_pixel(3, 3, image::Rgb([1, 2, 3]));
    picture.save(&first).unwrap();
    let other: Value = serde_json::from_str(&succeed(&format!("{line} --json"), &[&samples, &reference])).unwrap();
    let kept = fs::read_to_string(folder.path().join("0.vae.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), other);
    let hash = |found: &Value, key: &str| found[key].as_str().unwrap_or_else(|| panic!("{key} in {found}")).to_owned();
    assert_ne!(hash(&other, "reference"), hash(&found, "reference"));
    assert_eq!(hash(&other, "samples"), hash(&found, "samples"));
    let said = succeed(line, &[&samples, &reference]);
    assert!(said.contains("Frechet distance of latents (no FID)"), "{said}");
}
