//! Wrong input gets one clear sentence and exit code 2.

use std::fs;

use crate::program::{images, refuse, run as run_program, succeed};

const SMALL: &str = "--preset dupa-demo --set train.batch=4 --set model.hidden=32";

#[test]
fn a_folder_that_is_missing_or_empty_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (missing, empty, out) = (folder.path().join("missing"), folder.path().join("empty"), folder.path().join("out"));
    fs::create_dir(&empty).unwrap();
    refuse("encode --images {} --out {}", &[&missing, &out], "missing");
    refuse("encode --images {} --out {}", &[&empty, &out], "empty");
    refuse("train --data {} --run {}", &[&missing, &out], "missing");
    refuse("sample --run {} --out {}", &[&missing, &out], "holds no run");
    refuse("inspect {}", &[&empty], "pipeline encode");
    refuse("demo --out {} --per-class 1", &[&out], "at least 2");
}

#[test]
fn samples_go_into_no_folder_that_holds_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 2, 4);
    let (data, run) = (folder.path().join("data"), folder.path().join("run"));
    succeed("encode --images {} --out {} --size 64", &[&images, &data]);
    succeed(&format!("train --data {{}} --run {{}} --steps 1 {SMALL}"), &[&data, &run]);
    refuse("sample --run {} --out {} --count 2 --steps 1", &[&run, &images], "it is no folder of samples");
    let left = fs::read_dir(images.join("class-0")).unwrap().count();
    assert_eq!(left, 4);
}

#[test]
fn a_text_file_named_jpg_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 1, 1);
    fs::write(images.join("class-0/text.jpg"), "not an image").unwrap();
    let out = folder.path().join("out");
    refuse("encode --images {} --out {} --size 64", &[&images, &out], "text.jpg");
}

#[test]
fn unknown_presets_and_keys_name_the_nearest_and_a_run_of_another_configuration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 2, 4);
    let (data, run) = (folder.path().join("data"), folder.path().join("run"));
    succeed("encode --images {} --out {} --size 64", &[&images, &data]);
    refuse("train --data {} --run {} --preset dupa-xl2", &[&data, &run], "dupa-xl/2");
    refuse("train --data {} --run {} --set optimiser.lrr=1", &[&data, &run], "optimiser.lr");
    refuse("train --data {} --run {} --set train.batch=many", &[&data, &run], "integer");
    refuse("train --data {} --run {} --preset dupa-demo --set train.batch=64", &[&data, &run], "8");
    refuse("train --data {} --run {} --preset dupa-demo --set model.heads=3", &[&data, &run], "model.heads");
    assert!(!run.exists(), "a refused command begins no run");

    succeed(&format!("train --data {{}} --run {{}} --steps 1 {SMALL}"), &[&data, &run]);
    refuse(&format!("train --data {{}} --run {{}} --steps 1 {SMALL} --set ema.decay=0.5"), &[&data, &run], "ema.decay");
}

#[test]
fn damaged_data_end_with_exit_code_3_and_the_name_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 2, 4);
    let (data, run) = (folder.path().join("data"), folder.path().join("run"));
    succeed("encode --images {} --out {} --size 64", &[&images, &data]);
    let shard = data.join("shard-00000.lat");
    let mut bytes = fs::read(&shard).unwrap();
    // Blocks begin behind the padded header; the first frame is longer than this.
    bytes[4096 + 40] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let line = "train --data {} --run {} --preset dupa-demo --steps 1 --set train.batch=4";
    let output = run_program(line, &[&data, &run]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("shard-00000.lat") && stderr.contains("block 0"), "{stderr}");
    fs::remove_file(&shard).unwrap();
    let output = run_program("encode --images {} --out {} --size 64", &[&images, &data]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("shard-00000.lat"));
}

#[test]
fn what_cannot_be_evaluated_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let reference = images(folder.path(), 2, 2);
    let one_class = images(&folder.path().join("one"), 1, 2);
    let (samples, missing) = (folder.path().join("samples"), folder.path().join("missing"));
    fs::create_dir(&samples).unwrap();
    let line = "evaluate --samples {} --reference {}";
    let record = |labels: &[i64], names: &[&str]| {
        let record = serde_json::json!({ "labels": labels, "class_names": names });
        fs::write(samples.join("samples.json"), record.to_string()).unwrap();
    };

    refuse(line, &[&missing, &reference], "missing: no such folder");
    refuse(line, &[&samples, &reference], "no samples.json");
    fs::write(samples.join("samples.json"), r#"{"labels": "random"}"#).unwrap();
    refuse(line, &[&samples, &reference], "pipeline sample");
    record(&[], &["class-0", "class-1"]);
    refuse(line, &[&samples, &reference], "lists no images");
    record(&[1], &["class-0", "class-1"]);
    refuse(line, &[&samples, &reference], "000000.png: missing");

    let image = samples.join("000000.png");
    fs::write(&image, "not an image").unwrap();
    refuse(line, &[&samples, &reference], "000000.png");
    fs::copy(reference.join("class-1/000.jpg"), &image).unwrap();
    succeed(line, &[&samples, &reference]);
    refuse(line, &[&samples, &missing], "missing: no such folder");
    refuse(line, &[&samples, &one_class], "has none of the classes of the samples (such as \"class-1\")");
    record(&[0], &["class-0", "class-1"]);
    refuse(line, &[&samples, &one_class], "one class only");

    fs::copy(&image, samples.join("000001.png")).unwrap();
    record(&[0, 1], &["class-0", "other"]);
    refuse(line, &[&samples, &reference], "has no class \"other\"");
    record(&[0, 1], &["class-0", "class-1"]);
    let train = "evaluate --samples {} --reference {} --train {}";
    refuse(train, &[&samples, &reference, &one_class], "--train");
    refuse(train, &[&samples, &reference, &reference], "the same folder");
    fs::write(reference.join("class-0/text.jpg"), "not an image").unwrap();
    refuse(line, &[&samples, &reference], "text.jpg");
}
