//! The whole line: images, shards, training, samples.

use std::fs;
use std::path::Path;

use crate::program::{images, refuse, succeed};

const SMALL: &str =
    "--preset dupa-demo --set train.batch=8 --set model.hidden=64 --set model.depth=3 --set train.log_every=1";

fn encode(folder: &Path, name: &str, images: &Path) -> std::path::PathBuf {
    let data = folder.join(name);
    succeed("encode --images {} --out {} --size 64", &[images, &data]);
    data
}

#[test]
fn images_become_shards_a_run_and_samples() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 3, 8);
    let data = encode(folder.path(), "data", &images);
    let described: serde_json::Value = serde_json::from_str(&succeed("inspect {} --json", &[&data])).unwrap();
    assert_eq!(described["samples"], 24);
    assert_eq!(described["samples_per_class"], serde_json::json!([8, 8, 8]));

    let run = folder.path().join("run");
    let shown = succeed(&format!("train --data {{}} --run {{}} --steps 3 --dry-run {SMALL}"), &[&data, &run]);
    assert!(shown.contains("[objective]") && shown.contains("views = 2"), "{shown}");
    assert!(shown.contains("\n# device memory: about ") && shown.contains("\n# checkpoints: "), "{shown}");
    let two = format!("train --data {{}} --run {{}} --steps 3 --dry-run {SMALL} --devices cpu:2");
    let shown = succeed(&two, &[&data, &run]);
    assert!(shown.contains("\n# device memory of each of 2 ranks: about "), "{shown}");
    succeed(&format!("train --data {{}} --run {{}} --steps 3 {SMALL}"), &[&data, &run]);
    assert_eq!(fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines().count(), 3);

    let out = folder.path().join("heun");
    for sampler in ["sde", "ode", "heun"] {
        let out = folder.path().join(sampler);
        let line = format!("sample --run {{}} --out {{}} --count 5 --steps 4 --cfg 1.5 --sampler {sampler}");
        succeed(&line, &[&run, &out]);
        let picture = image::open(out.join("000004.png")).unwrap();
        assert_eq!((picture.width(), picture.height()), (64, 64));
        assert!(out.join("grid.png").exists() && out.join("samples.json").exists());
    }

    let record: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(out.join("samples.json")).unwrap()).unwrap();
    assert_eq!(record["label_scheme"], "random");
    assert_eq!(record["class_names"], serde_json::json!(["class-0", "class-1", "class-2"]));
    let labels: Vec<_> = record["labels"].as_array().unwrap().iter().map(|label| label.as_u64().unwrap()).collect();
    assert!(labels.len() == 5 && labels.iter().all(|label| *label < 3), "{labels:?}");

    let evaluate = "evaluate --samples {} --reference {} --json";
    let found: serde_json::Value = serde_json::from_str(&succeed(evaluate, &[&out, &images])).unwrap();
    assert_eq!(found["count"], 5);
    assert!((found["chance"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-9, "{found}");
    let by_class = found["by_class"].as_object().unwrap();
    let hits: f64 = (0..3)
        .map(|class| {
            let count = labels.iter().filter(|label| **label == class).count();
            by_class.get(&format!("class-{class}")).map_or(0.0, |share| share.as_f64().unwrap() * count as f64)
        })
        .sum();
    assert!((found["nearest_neighbour_accuracy"].as_f64().unwrap() - hits / 5.0).abs() < 1e-9, "{found}");
    assert!(found["train_accuracy"].is_null() && found["distance_to_train"].is_null(), "{found}");
}

/// Samples that are training images themselves, one of them under the name of another class; the reference has a class
/// and images that training has not.
#[test]
fn copies_of_training_images_are_found_at_distance_zero_and_in_their_class() {
    let folder = tempfile::tempdir().unwrap();
    let train = images(&folder.path().join("train"), 2, 3);
    let reference = images(&folder.path().join("reference"), 3, 4);
    let samples = folder.path().join("samples");
    fs::create_dir(&samples).unwrap();
    for (index, file) in ["class-0/001.jpg", "class-1/000.jpg", "class-1/002.jpg"].iter().enumerate() {
        // What a file is, its content decides.
        fs::copy(train.join(file), samples.join(format!("{index:06}.png"))).unwrap();
    }
    let record = serde_json::json!({ "labels": [1, 2, 1], "class_names": ["none", "class-0", "class-1"] });
    fs::write(samples.join("samples.json"), record.to_string()).unwrap();

    let line = "evaluate --samples {} --reference {} --train {}";
    let paths = [samples.as_path(), reference.as_path(), train.as_path()];
    let found: serde_json::Value = serde_json::from_str(&succeed(&format!("{line} --json"), &paths)).unwrap();
    let expected = serde_json::json!({ "class-0": 0.5, "class-1": 1.0 });
    assert_eq!(found["by_class"], expected);
    assert!((found["nearest_neighbour_accuracy"].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-9, "{found}");
    assert_eq!(found["train_accuracy"], 1.0);
    let distances = &found["distance_to_train"];
    assert_eq!(distances["samples"], serde_json::json!({ "least": 0.0, "median": 0.0 }));
    assert_eq!(distances["reference"]["least"], 0.0);
    assert!(distances["reference"]["median"].as_f64().unwrap() > 0.0, "{found}");

    let text = succeed(line, &paths);
    assert!(text.starts_with("2 of 3 samples (66.7 %)") && text.contains("chance 33.3 %"), "{text}");
    assert!(
        text.contains("6 of 6 training images of these classes (100.0 %)")
            && text.contains("is a copy of a training image"),
        "{text}"
    );
}

#[test]
fn shards_do_not_depend_on_the_number_of_workers() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 2, 10);
    let bytes = |workers: usize| {
        let data = folder.path().join(format!("data-{workers}"));
        succeed(&format!("encode --images {{}} --out {{}} --size 64 --workers {workers}"), &[&images, &data]);
        (fs::read(data.join("shard-00000.lat")).unwrap(), fs::read(data.join("dataset.json")).unwrap())
    };
    assert_eq!(bytes(1), bytes(3));
}

#[test]
fn what_cannot_be_decoded_is_skipped_on_request_and_means_alone_can_be_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 2, 5);
    fs::write(images.join("class-1/text.jpg"), "not an image").unwrap();
    let (data, run) = (folder.path().join("data"), folder.path().join("run"));
    let flags = "--size 64 --on-error skip --store mean --resize fast --batch 3 --devices cpu:2 --limit 11";
    succeed(&format!("encode --images {{}} --out {{}} {flags}"), &[&images, &data]);
    let described: serde_json::Value = serde_json::from_str(&succeed("inspect {} --json", &[&data])).unwrap();
    assert_eq!(described["samples"], 10);
    assert_eq!(described["skipped"].as_array().unwrap().len(), 1);
    assert_eq!(described["schema"]["columns"].as_array().unwrap().len(), 1);
    succeed(&format!("train --data {{}} --run {{}} --steps 1 {SMALL}"), &[&data, &run]);
}

/// The demonstration at its smallest: all parts, and a loss that falls. A second run keeps latents and checkpoints, and
/// one with other settings is refused.
#[test]
fn the_demonstration_runs_and_its_loss_falls() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let demo = "demo --out {} --per-class 4 --held-out-per-class 2 --steps 25 --samples-per-class 1 --sample-steps 4";
    let shown = succeed(demo, &[&out]);
    assert!(shown.contains("of the samples look like their class (chance 12.5 %)"), "{shown}");
    let read = || -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(out.join("figures.json")).unwrap()).unwrap()
    };
    let figures = read();
    let loss = |which: &str| figures["velocity_loss"][which].as_f64().unwrap();
    assert!(loss("last") < 0.9 * loss("first"), "{figures}");
    assert!(out.join("samples/grid.png").exists());
    // 32 images of 8 classes to train on, 16 held out; real ones are told apart far better than by chance.
    assert_eq!(figures["evaluation"]["count"], 8);
    assert!(figures["evaluation"]["train_accuracy"].as_f64().unwrap() > 0.5, "{figures}");

    let page = fs::read_to_string(out.join("report.html")).unwrap();
    // 8 samples, 8 real images and their reconstructions, and the sample grid of the end of training.
    assert_eq!(page.matches("data:image/png;base64,").count(), 8 + 2 * 8 + 1);
    assert!(out.join("run/samples/step-00000025.png").exists());
    for part in ["red-dotted-disc", "VaeEncode", "TrainSteps", "pipeline encode --images photos/train", "<svg"] {
        assert!(page.contains(part), "the report lacks {part}");
    }
    let log = fs::read_to_string(out.join("log.txt")).unwrap();
    for part in [
        "1/5 draw",
        "2/5 pipeline encode",
        "3/5 pipeline train",
        "4/5 pipeline sample",
        "5/5 pipeline evaluate",
        "step 25/25",
    ] {
        assert!(log.contains(part), "the log lacks {part}:\n{log}");
    }
    let written = || {
        let checkpoints = fs::read_dir(out.join("run/checkpoints")).unwrap().map(|entry| entry.unwrap().path());
        let files = checkpoints.chain([out.join("latents/shard-00000.lat")]);
        files.map(|file| fs::metadata(file).unwrap().modified().unwrap()).collect::<Vec<_>>()
    };
    let before = written();
    succeed(demo, &[&out]);
    assert_eq!((written(), read()["steps"].as_u64()), (before, Some(25)));
    refuse(&format!("{demo} --seed 1"), &[&out], "--seed 0");
    refuse("demo --out {} --per-class 4", &[&out.join("images")], "new or empty");
}
