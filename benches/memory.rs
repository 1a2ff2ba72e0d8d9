//! Peak memory of the paths that 50,000 images take, past the networks: features that were computed before through all five
//! metrics, and images of a network of one small block into an npz file.
//!
//!     cargo bench --bench memory -- [--count 50000] [--reference 10000] [--side 64]
//!
//! Prints a table in Markdown. What the program holds apart from the images does not depend on their number, so the same commands
//! with 1,000 images are measured beside them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use safetensors::tensor::{Dtype, TensorView};
use stages::exchange::npz::NpzFile;
use stages::nets::inception::{CLASSES, Inception, POOL, SPATIAL};
use stages::procedural::Classes;
use stages::splitmix::SplitMix64;

const FEW: u64 = 1000;

fn main() {
    // Cargo itself adds --bench.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let number = |flag: &str, default: u64| {
        let given = words.iter().position(|word| word == flag).and_then(|at| words.get(at + 1));
        given.map_or(default, |text| text.parse().expect("a number"))
    };
    let (count, reference, side) = (number("--count", 50_000), number("--reference", 10_000), number("--side", 64));
    let folder = tempfile::tempdir().expect("the system's temporary folder can be written");
    let at = |name: &str| folder.path().join(name).display().to_string();

    println!("| | images | seconds | peak memory, MB |\n|---|---|---|---|");
    let line = |what: &str, images: u64, command: &mut Command| {
        let (seconds, peak) = measured(command);
        println!("| {what} | {images} | {seconds:.0} | {:.0} |", peak / 1e6);
    };
    weights(Path::new(&at("inception.safetensors")));
    features(Path::new(&at("reference.npz")), reference, 1);
    for images in [FEW, count] {
        features(Path::new(&at("samples.npz")), images, 2);
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.args(["evaluate", "--devices", "cpu", "--json", "--inception", &at("inception.safetensors")]);
        command.args(["--samples", &at("samples.npz"), "--reference", &at("reference.npz")]);
        line(&format!("evaluate, from features, against {reference}"), images, &mut command);
    }

    for class in 0..4 {
        let dir = folder.path().join("images").join(Classes::Named.name(class));
        fs::create_dir_all(&dir).expect("a temporary folder can be written");
        for seed in 0..8 {
            let rgb = Classes::Named.image(class, seed, side as usize, side as usize);
            let picture = image::RgbImage::from_raw(side as u32, side as u32, rgb).expect("the picture has that size");
            picture.save(dir.join(format!("{seed}.png"))).expect("a temporary folder can be written");
        }
    }
    let size = side.to_string();
    done(&["encode", "--images", &at("images"), "--out", &at("data"), "--size", &size]);
    let small = ["model.depth=1", "model.encoder_depth=1", "model.hidden=16", "model.heads=1", "model.backbone=sit"];
    let mut train = vec!["train", "--data", "", "--run", "", "--preset", "dupa-demo", "--steps", "1"];
    let (data, run) = (at("data"), at("run"));
    (train[2], train[4]) = (&data, &run);
    train.extend(small.iter().chain(&["train.batch=8", "train.sample_every=0"]).flat_map(|setting| ["--set", setting]));
    done(&train);
    for images in [FEW, count] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.args(["sample", "--run", &run, "--out", &at(&format!("samples-{images}")), "--devices", "cpu"]);
        command.args(["--count", &images.to_string(), "--steps", "1", "--sampler", "ode", "--format", "npz"]);
        line(&format!("sample, {side} x {side}, one step of one block, into npz"), images, &mut command);
    }
}

/// Runs a command: seconds, and the largest resident set in bytes that was seen, looked at every 20 ms.
fn measured(command: &mut Command) -> (f64, f64) {
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program can be started");
    let mut peak = 0.0;
    let status = format!("/proc/{}/status", child.id());
    loop {
        if let Ok(text) = fs::read_to_string(&status) {
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
            peak = line.trim().trim_end_matches(" kB").parse::<f64>().map_or(peak, |kilobytes| kilobytes * 1024.0);
        }
        if let Some(ended) = child.try_wait().expect("the program can be waited for") {
            assert!(ended.success(), "{command:?}");
            return (begun.elapsed().as_secs_f64(), peak);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn done(words: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_pipeline")).args(words).output().expect("the program can be started");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// f32 in [0, 1) as bytes.
fn random(seed: u64, len: u64) -> Vec<u8> {
    let unit = |k: u64| (SplitMix64::output(seed, k) >> 40) as f32 * 2f32.powi(-24);
    (0..len).flat_map(|k| unit(k).to_le_bytes()).collect()
}

fn features(path: &Path, count: u64, seed: u64) {
    let mut file = NpzFile::create(path).expect("a temporary folder can be written");
    for (name, width) in [("pool_3", POOL), ("spatial", SPATIAL), ("logits", CLASSES)] {
        file.array(name, "<f4", &[count, width as u64]).expect("a temporary folder can be written");
        for row in 0..count {
            let values = random(seed << 32 | row, width as u64);
            file.append(&values).expect("a temporary folder can be written");
        }
    }
    file.finish().expect("a temporary folder can be written");
}

/// Any weights: they are read, and no picture goes through them.
fn weights(path: &Path) {
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Inception::tensors()
        .into_iter()
        .map(|(name, shape)| {
            let len = shape.iter().product::<i64>() as u64;
            (name, shape.iter().map(|&side| side as usize).collect(), random(3, len))
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("lengths fit")));
    safetensors::serialize_to_file(views, None, path).expect("a temporary folder can be written");
}
