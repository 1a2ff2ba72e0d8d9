//! `pipeline sample` as a whole program: killed, stopped, run again, with given noise, in both formats.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::program::{images, killed_when, random, refuse, run as run_of, start, succeed};

const TRAIN: &str = "train --data {} --run {} --steps 40 --preset dupa-demo --set train.batch=8 --set model.hidden=64 \
    --set model.depth=3 --set model.encoder_depth=2 --set optimiser.lr=0.003 --set ema.decay=0.9";

/// A run of some steps, enough that classes differ, on images of 64 x 64, so latents of [4, 8, 8]; three classes.
pub(crate) fn trained(folder: &Path) -> PathBuf {
    let images = images(folder, 3, 4);
    let (data, run) = (folder.join("data"), folder.join("run"));
    succeed("encode --images {} --out {} --size 64", &[&images, &data]);
    succeed(TRAIN, &[&data, &run]);
    run
}

/// Every file of a folder with its bytes.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// How many images are there, of a folder that is not finished.
fn images_in(folder: &Path) -> usize {
    let rows = fs::metadata(folder.join("samples.npz.part")).map_or(0, |part| part.len() / (64 * 64 * 3));
    let is_image = |entry: &fs::DirEntry| entry.file_name().to_str().unwrap().ends_with(".png");
    rows as usize + fs::read_dir(folder).map_or(0, |entries| entries.filter(|e| is_image(e.as_ref().unwrap())).count())
}

fn record(folder: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(folder.join("samples.json")).unwrap()).unwrap()
}

#[test]
fn killed_at_random_points_and_run_again_gives_the_same_images_in_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path());
    let mut state = 7;
    for format in ["png", "npz"] {
        let line = format!("sample --run {{}} --out {{}} --count 45 --batch 4 --steps 12 --cfg 1.5 --format {format}");
        let whole = folder.path().join(format!("whole-{format}"));
        succeed(&line, &[&run, &whole]);
        let expected = files(&whole);
        let (mut kills, mut left) = (0, Vec::new());
        while kills < 8 {
            let out = folder.path().join(format!("{format}-{kills}"));
            // Killed again and again in one folder, at once or some images later, until it gets to its end.
            while kills < 8 {
                let enough = images_in(&out) + (random(&mut state) * 12.0) as usize;
                if !killed_when(&mut start(&line, &[&run, &out]), || images_in(&out) >= enough) {
                    break;
                }
                kills += 1;
                left.push(images_in(&out));
            }
            succeed(&line, &[&run, &out]);
            let found = files(&out);
            assert!(found.keys().eq(expected.keys()), "{:?} and {:?}", found.keys(), expected.keys());
            assert!(found == expected, "{format}, after kills that left {left:?} images");
        }
        assert!(left.iter().any(|there| (1..45).contains(there)), "no kill fell between images: {left:?}");
    }
}

#[test]
fn a_finished_folder_is_left_as_it_is_and_other_settings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path());
    for format in ["png", "npz"] {
        let out = folder.path().join(format);
        let line = format!("sample --run {{}} --out {{}} --count 3 --steps 2 --format {format}");
        succeed(&line, &[&run, &out]);
        let times = |folder: &Path| -> Vec<_> {
            let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
            entries.map(|e| (e.file_name(), e.metadata().unwrap().modified().unwrap())).collect()
        };
        let before = times(&out);
        let text = succeed(&line, &[&run, &out]);
        assert!(text.contains("holds its 3 images already"), "{text}");
        assert_eq!(times(&out), before);
        for (flag, part) in [
            ("--seed 1", "settings.seed: 0 there, 1 here"),
            ("--sampler heun", "settings.sampler: \"sde\" there, \"heun\" here"),
            ("--diffusion sigma", "settings.diffusion: \"2sigma\" there, \"sigma\" here"),
            ("--share-encoder 2", "settings.share_encoder: 1 there, 2 here"),
            ("--rounding sit", "rounding: \"repa\" there, \"sit\" here"),
            ("--classes 1", "classes: a list of 3 there, a list of 1 here"),
        ] {
            refuse(&format!("{line} {flag}"), &[&run, &out], part);
        }
        refuse(&line.replace("--count 3", "--count 4"), &[&run, &out], "count: 3 there, 4 here");
        assert_eq!(times(&out), before);
        // Settings are compared by what files hold: the run may lie elsewhere meanwhile.
        let moved = folder.path().join(format!("moved-{format}"));
        fs::rename(&run, &moved).unwrap();
        assert!(succeed(&line, &[&moved, &out]).contains("holds its 3 images already"));
        fs::rename(&moved, &run).unwrap();
    }
    let recorded = record(&folder.path().join("png"));
    let text = |key: &str| recorded[key].as_str().unwrap_or_else(|| panic!("{key} in {recorded}")).to_owned();
    assert!(["f32", "bf16"].contains(&text("precision").as_str()), "{recorded}");
    assert_eq!((text("device"), text("version")), ("cpu".to_owned(), env!("CARGO_PKG_VERSION").to_owned()));
    assert!(recorded["batch"] == 3 && recorded["scaling_factor"].is_f64() && recorded["shift_factor"] == 0.0);
}

#[test]
fn what_the_command_line_alone_shows_is_refused_before_anything_is_read() {
    let (run, out) = (Path::new("no-such-run"), Path::new("no-such-folder"));
    for (flag, part) in [
        ("--count 0", "--count 0: give 1 to 100000000 images"),
        ("--count 18446744073709551615", "--count 18446744073709551615: give 1 to 100000000 images"),
        ("--batch 0", "--batch 0: give 1 to 1048576 images"),
        ("--steps 0", "--steps 0: give 1 to 1000000"),
        ("--steps 18446744073709551615", "give 1 to 1000000"),
        ("--cfg 0.5", "--cfg 0.5 must be at least 1, which is no guidance"),
        ("--cfg nan", "--cfg NaN must be at least 1"),
        ("--interval 1,0", "--interval 1,0: give two numbers, of which the first does not exceed the second"),
        ("--interval nan,1", "--interval NaN,1: give two numbers"),
        ("--interval 0,inf", "--interval 0,inf: give two numbers"),
        ("--interval 0.5", "--interval takes two times"),
    ] {
        refuse(&format!("sample --run {{}} --out {{}} {flag}"), &[run, out], part);
    }
    assert!(!out.exists());
}

/// Levels of all images, and their share that differs between two folders; no level differs by more than one.
#[track_caller]
fn share_that_differs(one: &Path, other: &Path, count: usize) -> f64 {
    let levels = |folder: &Path| -> Vec<u8> {
        let read = |i| image::open(folder.join(format!("{i:06}.png"))).unwrap().into_rgb8().into_raw();
        (0..count).flat_map(read).collect()
    };
    let (one, other) = (levels(one), levels(other));
    let apart: Vec<_> = one.iter().zip(&other).map(|(a, b)| a.abs_diff(*b)).filter(|apart| *apart > 0).collect();
    assert!(apart.iter().all(|apart| *apart == 1), "a level differs by {:?}", apart.iter().max());
    apart.len() as f64 / one.len() as f64
}

#[test]
fn another_batch_size_or_number_of_devices_changes_a_level_in_a_thousandth_of_the_values_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path());
    let at = |name: &str| folder.path().join(name);
    let line = "sample --run {} --out {} --count 12 --steps 8 --cfg 1.5 --precision f32 --devices";
    succeed(&format!("{line} cpu --batch 4"), &[&run, &at("fours")]);
    for (name, flags) in [("ones", "cpu --batch 1"), ("fives", "cpu:2 --batch 5")] {
        succeed(&format!("{line} {flags}"), &[&run, &at(name)]);
        let share = share_that_differs(&at("fours"), &at(name), 12);
        assert!(share <= 1e-3, "{name}: {share} of the values");
    }
    // Begun in batches of four, and gone on with in fives on two devices.
    let resumed = at("resumed");
    fs::create_dir(&resumed).unwrap();
    let begun = |name: &&String| name.as_str() < "000006.png" || *name == "samples.json";
    for name in files(&at("fours")).keys().filter(begun) {
        fs::copy(at("fours").join(name), resumed.join(name)).unwrap();
    }
    let kept = files(&resumed);
    assert_eq!(kept.len(), 7, "{:?}", kept.keys());
    let output = run_of(&format!("{line} cpu:2 --batch 5"), &[&run, &resumed]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("was begun with --batch 4"), "{said}");
    let found = files(&resumed);
    let images = kept.iter().filter(|(name, _)| *name != "samples.json");
    assert!(images.into_iter().all(|(name, bytes)| found[name] == *bytes), "an image that was there has changed");
    let record: serde_json::Value = serde_json::from_slice(&found["samples.json"]).unwrap();
    assert_eq!(record["batch"], serde_json::json!([4, 5]));
    let share = share_that_differs(&at("fours"), &resumed, 12);
    assert!(share <= 1e-3, "resumed: {share} of the values");
    refuse(
        &format!("{line} cpu --batch 5 --world 2 --rank 0"),
        &[&run, &resumed],
        "shares of several processes are whole batches",
    );
}

#[test]
fn both_formats_hold_the_same_pixels_and_a_sweep_is_its_single_commands() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path());
    let at = |name: &str| folder.path().join(name);
    let line = "sample --run {} --out {} --count 5 --steps 3 --sampler heun --rounding sit --labels balanced";
    succeed(&format!("{line} --cfg 1.5,20"), &[&run, &at("sweep")]);
    succeed(&format!("{line} --cfg 20"), &[&run, &at("single")]);
    assert!(files(&at("sweep/cfg-20")) == files(&at("single")));
    let first = |folder: &str| fs::read(at(folder).join("000000.png")).unwrap();
    assert!(first("sweep/cfg-1.5") != first("single"), "the scale changes nothing");
    assert_eq!(record(&at("sweep/cfg-1.5"))["settings"]["guidance"]["scale"], 1.5);
    let text = succeed(&format!("{line} --cfg 1.5,20"), &[&run, &at("sweep")]);
    assert_eq!(text.matches("already").count(), 2, "{text}");

    // Batches of two, once on one device and once on two.
    for devices in ["cpu", "cpu:2"] {
        succeed(&format!("{line} --cfg 20 --batch 2 --devices {devices}"), &[&run, &at(devices)]);
    }
    assert!(files(&at("cpu")) == files(&at("cpu:2")));

    succeed(&format!("{line} --cfg 20 --format npz"), &[&run, &at("npz")]);
    let bytes = fs::read(at("npz/samples.npz")).unwrap();
    let pixels: Vec<u8> = (0..5)
        .flat_map(|i| image::open(at("single").join(format!("{i:06}.png"))).unwrap().into_rgb8().into_raw())
        .collect();
    assert!(bytes.windows(pixels.len()).any(|window| window == pixels), "the rows are not in the archive");
    let labels: Vec<u8> = [0i64, 0, 1, 1, 2].iter().flat_map(|label| label.to_le_bytes()).collect();
    assert!(bytes.windows(labels.len()).any(|window| window == labels), "the classes are not in the archive");
    let recorded = record(&at("npz"));
    assert_eq!((&recorded["format"], &recorded["rounding"]), (&"npz".into(), &"sit".into()));
    assert_eq!(recorded["labels"], serde_json::json!([0, 0, 1, 1, 2]));
}

fn write_noise(path: &Path, noise: &[f32], labels: &[i64]) {
    let bytes: Vec<u8> = noise.iter().flat_map(|value| value.to_le_bytes()).collect();
    let label_bytes: Vec<u8> = labels.iter().flat_map(|label| label.to_le_bytes()).collect();
    let shape = vec![labels.len(), 4, 8, 8];
    let tensors = [
        ("noise", TensorView::new(Dtype::F32, shape, &bytes).unwrap()),
        ("labels", TensorView::new(Dtype::I64, vec![labels.len()], &label_bytes).unwrap()),
    ];
    safetensors::serialize_to_file(tensors, None, path).unwrap();
}

fn latents(path: &Path) -> (Vec<usize>, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let latents = file.tensor("latents").unwrap();
    assert_eq!(latents.dtype(), Dtype::F32);
    let values = latents.data().chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect();
    (latents.shape().to_vec(), values)
}

#[test]
fn rows_of_a_noise_file_are_images_whatever_stands_beside_them_and_their_latents_are_saved() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path());
    let at = |name: &str| folder.path().join(name);
    let mut state = 3;
    let noise: Vec<f32> = (0..4 * 256).map(|_| 2.0 * random(&mut state) as f32 - 1.0).collect();
    write_noise(&at("noise"), &noise, &[2, 0, 1, 2]);
    // The same rows the other way round.
    let turned: Vec<f32> = noise.chunks(256).rev().flatten().copied().collect();
    write_noise(&at("turned"), &turned, &[2, 1, 0, 2]);

    let line = "sample --run {} --noise {} --out {} --save-latents {} --count 4 --steps 3 --sampler ode --cfg 1.5";
    succeed(line, &[&run, &at("noise"), &at("a"), &at("a.safetensors")]);
    succeed(&format!("{line} --seed 9"), &[&run, &at("turned"), &at("b"), &at("b.safetensors")]);
    let ((shape, a), (_, b)) = (latents(&at("a.safetensors")), latents(&at("b.safetensors")));
    assert_eq!(shape, [4, 4, 8, 8]);
    let farthest =
        a.chunks(256).zip(b.chunks(256).rev()).flat_map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).abs()));
    assert!(farthest.fold(0.0, f32::max) < 1e-5);
    assert!(a[..256] != a[768..], "two rows gave one image");
    let recorded = record(&at("a"));
    assert_eq!((&recorded["label_scheme"], &recorded["labels"]), (&"given".into(), &serde_json::json!([2, 0, 1, 2])));

    let short = line.replace("--count 4", "--count 5");
    let (noise, out, new, old) = (at("noise"), at("c"), at("c.safetensors"), at("a.safetensors"));
    let paths: [&Path; 4] = [&run, &noise, &out, &new];
    refuse(&short, &paths, "holds noise for 4 images, and --count asks for 5");
    refuse(&format!("{line} --classes 1"), &paths, "leave out --labels and --classes");
    refuse(&line.replace("--cfg 1.5", "--cfg 1.5,20"), &paths, "the latents of several --cfg");
    refuse(line, &[&run, &noise, &out, &old], "a.safetensors exists already");
    // Finite, and what the network makes of it is not.
    let large = at("large");
    write_noise(&large, &[3e38; 2 * 256], &[2, 0]);
    let short = "sample --run {} --noise {} --out {} --count 2 --steps 3 --sampler ode";
    refuse(short, &[&run, &large, &at("d")], "image 0: its latents are not finite");
    assert!(!at("d/000000.png").exists());
    // The other noise under the same name is another sample.
    write_noise(&noise, &turned, &[2, 0, 1, 2]);
    refuse(line, &[&run, &noise, &at("a"), &old], "noise_xxh3");
}
