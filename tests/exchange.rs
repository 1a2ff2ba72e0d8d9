//! Datasets leave in the forms of other programs and come back.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::program::{images, pipeline, refuse, run, succeed};

fn dataset(folder: &Path, flags: &str) -> PathBuf {
    let images = images(folder, 3, 30);
    let data = folder.join("data");
    succeed(&format!("encode --images {{}} --out {{}} --size 64 {flags}"), &[&images, &data]);
    data
}

/// Every file below `dir` with its contents, by its path below it.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push((path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap())),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_exported_as_repa_is_imported_and_exported_again_with_every_bit() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), "");
    let [first, imported, second] = ["first", "imported", "second"].map(|name| folder.path().join(name));
    let shown = succeed("export {} --to repa --out {} --workers 2", &[&data, &first]);
    assert!(shown.contains("exported 90 samples into 90 repa files"), "{shown}");
    succeed("import {} --from repa --out {}", &[&first, &imported]);
    succeed("export {} --to repa --out {}", &[&imported, &second]);
    assert_eq!(files(&first.join("vae-sd")), files(&second.join("vae-sd")));

    let shown: serde_json::Value = serde_json::from_str(&succeed("inspect {} --json", &[&imported])).unwrap();
    let classes = serde_json::json!(["class-0", "class-1", "class-2"]);
    assert_eq!((&shown["samples"], &shown["classes"]), (&90.into(), &classes));
    assert_eq!(
        (&shown["schema"]["scaling_factor"], &shown["provenance"]["vae"]["name"]),
        (&0.99968.into(), &"tiny".into())
    );
    assert_eq!(shown["samples_per_class"], serde_json::json!([30, 30, 30]));
    assert_eq!(shown["provenance"]["source"]["order"], "source order, not shuffled");
    assert_eq!(shown["schema"]["columns"][1]["semantics"], "posterior_std");
    succeed("verify {}", &[&imported]);
    // Again: nothing is left to do. And what is imported can be trained on.
    assert!(succeed("import {} --from repa --out {}", &[&first, &imported]).contains("is complete already"));
    assert!(succeed("export {} --to repa --out {}", &[&data, &first]).contains("is complete already"));
    let train = "train --data {} --run {} --steps 1 --preset dupa-demo --set train.batch=8 --set model.hidden=32";
    succeed(train, &[&imported, &folder.path().join("run")]);

    // What REPA's own preprocessing writes says neither.
    fs::remove_file(first.join("dataset_info.json")).unwrap();
    let foreign = folder.path().join("foreign");
    succeed("import {} --from repa --out {}", &[&first, &foreign]);
    let shown: serde_json::Value = serde_json::from_str(&succeed("inspect {} --json", &[&foreign])).unwrap();
    assert_eq!(shown["classes"], serde_json::json!(["0", "1", "2"]));
    assert_eq!(shown["schema"]["scaling_factor"], 0.18215);

    let half = folder.path().join("half");
    let shown = succeed("import {} --from repa --out {} --to f16", &[&first, &half]);
    assert!(shown.contains("largest error of mean in f16: 0.000e0 absolute"), "{shown}");
    assert!(shown.contains("largest error of std in f16: "), "{shown}");
}

#[test]
fn tensors_are_those_of_the_shards() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), "");
    let out = folder.path().join("out");
    succeed("export {} --to safetensors --out {}", &[&data, &out]);
    let bytes = fs::read(out.join("shard-00000.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<_> = tensors.names().into_iter().map(ToString::to_string).collect();
    names.sort();
    assert_eq!(names, ["flags", "labels", "logvar", "mean", "source_index"]);
    let mean = tensors.tensor("mean").unwrap();
    assert_eq!((mean.dtype(), mean.shape()), (safetensors::Dtype::F16, &[90, 4, 8, 8][..]));
    let keys: Vec<String> = serde_json::from_slice(&fs::read(out.join("keys.json")).unwrap()).unwrap();
    let labels = tensors.tensor("labels").unwrap();
    for (key, label) in keys.iter().zip(labels.data().as_chunks().0) {
        assert!(key.starts_with(&format!("class-{}/", i64::from_le_bytes(*label))), "{key}");
    }
}

/// What a run leaves that ended after its first part: that part stays as it is, and the rest is added.
#[test]
fn an_export_goes_on_after_its_finished_parts() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), "--shard-size 64");
    let (whole, begun) = (folder.path().join("whole"), folder.path().join("begun"));
    succeed("export {} --to safetensors --out {}", &[&data, &whole]);
    fs::create_dir(&begun).unwrap();
    for name in ["export.json", "shard-00000.safetensors"] {
        fs::copy(whole.join(name), begun.join(name)).unwrap();
    }
    let part = || fs::metadata(begun.join("shard-00000.safetensors")).unwrap();
    let before = (part().ino(), part().modified().unwrap());
    succeed("export {} --to safetensors --out {}", &[&data, &begun]);
    assert_eq!((part().ino(), part().modified().unwrap()), before);
    assert_eq!(files(&whole), files(&begun));
    assert!(begun.join("shard-00001.safetensors").exists());
}

/// SIGKILL once it has begun, wherever it is by then: the same command ends with the same files.
#[test]
fn an_export_that_is_killed_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), "");
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    succeed("export {} --to repa --out {}", &[&data, &whole]);
    let mut child = pipeline().args(["export", "--to", "repa", "--out"]).arg(&killed).arg(&data).spawn().unwrap();
    // Wherever it is by now: before, in the middle, or done.
    while child.try_wait().unwrap().is_none() && !killed.join("export.json").exists() {
        std::thread::yield_now();
    }
    let _ = child.kill();
    child.wait().unwrap();
    succeed("export {} --to repa --out {}", &[&data, &killed]);
    assert_eq!(files(&whole), files(&killed));
}

#[test]
fn what_cannot_be_exported_or_imported_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let means = dataset(folder.path(), "--store mean");
    let out = folder.path().join("out");
    refuse("export {} --to repa --out {}", &[&means, &out], "means alone");
    refuse("import {} --from repa --out {}", &[&means, &out], "is null or missing");
    refuse("export {} --to safetensors --out {}", &[&means, &means], "the folder is not empty");

    let repa = folder.path().join("repa");
    fs::create_dir_all(repa.join("00000")).unwrap();
    fs::write(repa.join("dataset.json"), r#"{"labels": [["00000/a.npy", 0]]}"#).unwrap();
    let header = "{'descr': '|O', 'fortran_order': False, 'shape': (8, 4, 4), }\n";
    let mut object = b"\x93NUMPY\x01\x00".to_vec();
    object.extend((header.len() as u16).to_le_bytes());
    object.extend(header.as_bytes());
    fs::write(repa.join("00000/a.npy"), &object).unwrap();
    refuse("import {} --from repa --out {}", &[&repa, &out], "a.npy: it holds pickled Python objects");
    refuse("import {} --from repa --out {} --scaling-factor 0", &[&repa, &out], "--scaling-factor 0");
    assert!(!out.join("dataset.json").exists());
}

#[test]
fn damage_ends_an_export_with_its_place_and_exit_code_3() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), "");
    let shard = data.join("shard-00000.lat");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[4096 + 40] ^= 1;
    fs::write(&shard, bytes).unwrap();
    for form in ["safetensors", "repa"] {
        let out = folder.path().join(form);
        let output = run(&format!("export {{}} --to {form} --out {{}}"), &[&data, &out]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains("shard-00000.lat") && stderr.contains("block 0"), "{stderr}");
        assert!(!out.join("dataset_info.json").exists());
    }
}
