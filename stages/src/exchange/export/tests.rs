//! What an export writes, and how one that was interrupted goes on.

use half::f16;
use pipeline::{Flow, Interrupt, Runtime};
use shards::{DType, Semantics};

use super::super::fixture::{self, LOGVAR, MEAN, STD};
use super::super::npy::Npy;
use super::*;

fn export(dataset: &Arc<Dataset>, format: Format, dir: &Path) -> Result<Option<Exported>, ExportError> {
    let export = match Export::open(Arc::clone(dataset), format, dir)? {
        Opened::Complete => return Ok(None),
        Opened::Unfinished(export) => *export,
    };
    let flow = Flow::from(export.parts()).then(export.writer()).workers(3);
    Ok(Some(flow.into(export).run(&Runtime::default()).unwrap().output))
}

/// Every file below `dir` with its contents.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn a_file_of_tensors_holds_a_shard_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let schema = fixture::schema(&[MEAN, ("mean_flip", Semantics::PosteriorMean)], DType::F32);
    let dataset = fixture::dataset(&dir.path().join("data"), &schema, &[150, 64, 7]);
    let out = dir.path().join("out");
    let done = export(&dataset, Format::Safetensors, &out).unwrap().unwrap();
    assert_eq!((done.samples, done.files, done.complete), (221, 3, true));
    let mut position = 0;
    let mut bytes = 0;
    for (shard, samples) in [150, 64, 7].into_iter().enumerate() {
        let file = fs::read(out.join(tensors::file(shard))).unwrap();
        bytes += file.len() as u64;
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&file).unwrap();
        let metadata = header.metadata().as_ref().unwrap();
        assert_eq!(metadata["scaling_factor"], "0.18215");
        assert_eq!(metadata["semantics"], r#"{"mean":"posterior_mean","mean_flip":"posterior_mean"}"#);
        assert_eq!(metadata["classes"], r#"["cat","dog","fox"]"#);
        for (c, name) in ["mean", "mean_flip"].into_iter().enumerate() {
            let tensor = tensors.tensor(name).unwrap();
            assert_eq!((tensor.dtype(), tensor.shape()), (safetensors::Dtype::F32, &[samples, 2, 3, 3][..]));
            assert_eq!(tensor.data(), fixture::values(DType::F32, samples, (100 * shard + c) as u64));
        }
        let i64s = |name: &str| -> Vec<i64> {
            let tensor = tensors.tensor(name).unwrap();
            tensor.data().as_chunks().0.iter().map(|value| i64::from_le_bytes(*value)).collect()
        };
        let range = position..position + samples as i64;
        assert_eq!(i64s("labels"), range.clone().map(|i| i % 3).collect::<Vec<_>>());
        assert_eq!(i64s("source_index"), range.clone().map(|i| 7000 - i).collect::<Vec<_>>());
        position = range.end;
    }
    assert_eq!(done.bytes, bytes);
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(out.join(name)).unwrap()).unwrap() };
    assert_eq!(read("keys.json").as_array().unwrap().len(), 221);
    assert_eq!(read("keys.json")[220], "a/220.jpg");
    let info = read("dataset_info.json");
    assert_eq!((&info["samples"], &info["classes"][1], &info["shards"]), (&221.into(), &"dog".into(), &Value::Null));
    assert_eq!(info["samples_per_shard"], json!([150, 64, 7]));
    assert!(export(&dataset, Format::Safetensors, &out).unwrap().is_none());
}

#[test]
fn a_file_of_repa_holds_mean_and_deviation_of_one_sample() {
    let dir = tempfile::tempdir().unwrap();
    let dataset =
        fixture::dataset(&dir.path().join("data"), &fixture::schema(&[MEAN, LOGVAR], DType::F16), &[1005, 70]);
    let out = dir.path().join("out");
    let done = export(&dataset, Format::Repa, &out).unwrap().unwrap();
    assert_eq!((done.samples, done.files, done.complete), (1075, 1075, true));
    let f16s = |shard: u64, column: u64, samples| -> Vec<f64> {
        let bytes = fixture::values(DType::F16, samples, 100 * shard + column);
        bytes.as_chunks().0.iter().map(|pair| f16::from_le_bytes(*pair).to_f64()).collect()
    };
    let (means, logvars) = ([f16s(0, 0, 1005), f16s(1, 0, 70)].concat(), [f16s(0, 1, 1005), f16s(1, 1, 70)].concat());
    for sample in [0, 63, 64, 999, 1000, 1004, 1005, 1074] {
        let npy = Npy::read(&out.join(repa::FEATURES).join(repa::file(sample))).unwrap();
        assert_eq!(npy.shape, [4, 3, 3]);
        let row = 18 * sample..18 * (sample + 1);
        let deviations = logvars[row.clone()].iter().map(|logvar| (logvar / 2.0).exp() as f32);
        let expected: Vec<u8> =
            means[row].iter().map(|mean| *mean as f32).chain(deviations).flat_map(f32::to_le_bytes).collect();
        assert_eq!(npy.bytes, expected, "{sample}");
    }
    let labels: Value = serde_json::from_slice(&fs::read(out.join("vae-sd/dataset.json")).unwrap()).unwrap();
    let labels = labels["labels"].as_array().unwrap();
    assert_eq!(labels.len(), 1075);
    assert_eq!(labels[1004], json!(["00001/img-mean-std-00001004.npy", 2]));
}

#[test]
fn deviations_in_f32_keep_every_bit() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = fixture::dataset(&dir.path().join("data"), &fixture::schema(&[STD, MEAN], DType::F32), &[70]);
    let out = dir.path().join("out");
    export(&dataset, Format::Repa, &out).unwrap();
    let npy = Npy::read(&out.join("vae-sd").join(repa::file(69))).unwrap();
    let [deviations, means] = [0, 1].map(|seed| fixture::values(DType::F32, 70, seed));
    assert_eq!(npy.bytes, [&means[69 * 72..], &deviations[69 * 72..]].concat());
}

#[test]
fn an_interrupted_export_is_completed_to_the_same_bytes() {
    for (format, sizes) in [(Format::Safetensors, [70, 64, 3]), (Format::Repa, [1005, 900, 800])] {
        let dir = tempfile::tempdir().unwrap();
        let dataset = fixture::dataset(&dir.path().join("data"), &fixture::schema(&[MEAN, LOGVAR], DType::F16), &sizes);
        let (whole, stopped) = (dir.path().join("whole"), dir.path().join("stopped"));
        export(&dataset, format, &whole).unwrap();

        // Interrupted before the first part is made.
        let Opened::Unfinished(first) = Export::open(Arc::clone(&dataset), format, &stopped).unwrap() else { panic!() };
        let interrupt = Interrupt::default();
        interrupt.request();
        let flow = Flow::from(first.parts()).then(first.writer()).into(*first);
        let finished = flow.run(&Runtime::new(interrupt)).unwrap();
        assert!(finished.interrupted && !finished.output.complete);

        // Killed: one part is whole, another is under way, and something was cut short by a power cut.
        let Opened::Unfinished(second) = Export::open(Arc::clone(&dataset), format, &stopped).unwrap() else {
            panic!()
        };
        let mut stage = second.writer()(Worker { index: 0, workers: 1 }).unwrap();
        stage.process(1).unwrap();
        match format {
            Format::Safetensors => fs::write(stopped.join("shard-00002.safetensors.tmp"), "half").unwrap(),
            Format::Repa => {
                stage.process(2).unwrap();
                fs::write(stopped.join("vae-sd").join(repa::file(2003)), "").unwrap();
                fs::create_dir(stopped.join("vae-sd/00000.tmp")).unwrap();
                fs::write(stopped.join("vae-sd/00000.tmp/foreign"), "half").unwrap();
            }
        }
        assert!(matches!(Export::open(Arc::clone(&dataset), format, &stopped), Err(ExportError::Busy { .. })));
        drop(second);
        let Opened::Unfinished(third) = Export::open(Arc::clone(&dataset), format, &stopped).unwrap() else { panic!() };
        assert_eq!(third.missing, [0, 2]);
        drop(third);
        let done = export(&dataset, format, &stopped).unwrap().unwrap();
        assert_eq!((done.samples, done.complete), (dataset.len() as u64, true));
        let relative = |dir: &Path| -> Vec<_> {
            files(dir).into_iter().map(|(path, bytes)| (path.strip_prefix(dir).unwrap().to_owned(), bytes)).collect()
        };
        assert_eq!(relative(&whole), relative(&stopped));
    }
}

#[test]
fn what_cannot_be_exported_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let data = |name: &str, schema| fixture::dataset(&dir.path().join(name), &schema, &[3]);
    let out = dir.path().join("out");
    let refuse = |dataset: &Arc<Dataset>, format, part: &str| {
        let error = export(dataset, format, &out).unwrap_err().to_string();
        assert!(error.contains(part), "{error} lacks {part}");
    };
    let means = data("means", fixture::schema(&[MEAN], DType::F16));
    refuse(&means, Format::Repa, "means alone");
    refuse(&data("drawn", fixture::schema(&[("z", Semantics::Sample)], DType::F16)), Format::Repa, "drawn samples");
    let mut scaled = fixture::schema(&[MEAN, STD], DType::F16);
    scaled.scaling_applied = true;
    refuse(&data("scaled", scaled), Format::Repa, "scaled already");
    let mut flat = fixture::schema(&[MEAN, STD], DType::F16);
    flat.columns[0].shape = vec![18];
    refuse(&data("flat", flat.clone()), Format::Repa, "[channels, height, width]");
    flat.columns.swap(0, 1);
    flat.columns[1].shape = vec![3, 2, 3];
    refuse(&data("differ", flat), Format::Repa, "differ in shape");
    refuse(&data("taken", fixture::schema(&[("labels", MEAN.1)], DType::F16)), Format::Safetensors, "named labels");
    assert!(!out.exists(), "what is refused leaves nothing behind");

    fs::create_dir(&out).unwrap();
    fs::write(out.join("notes.txt"), "").unwrap();
    refuse(&means, Format::Safetensors, "holds no export (but notes.txt)");
    fs::remove_file(out.join("notes.txt")).unwrap();
    export(&means, Format::Safetensors, &out).unwrap();
    let both = data("both", fixture::schema(&[MEAN, STD], DType::F16));
    refuse(&both, Format::Safetensors, "this is an export of 3 samples");
    refuse(&both, Format::Repa, "as repa");
    fs::write(out.join("export.json"), "no JSON").unwrap();
    refuse(&means, Format::Safetensors, "export.json");
}

#[test]
fn damage_is_named_and_leaves_no_part() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fixture::dataset(&data, &fixture::schema(&[MEAN, LOGVAR], DType::F16), &[70]);
    let shard = data.join("shard-00000.lat");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[4096 + 40] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let dataset = Arc::new(Dataset::open(&data, shards::Io::Pread).unwrap());
    for format in [Format::Safetensors, Format::Repa] {
        let out = dir.path().join(format.name());
        let Opened::Unfinished(export) = Export::open(Arc::clone(&dataset), format, &out).unwrap() else { panic!() };
        let flow = Flow::from(export.parts()).then(export.writer()).into(*export);
        let error = flow.run(&Runtime::default()).unwrap_err().source.downcast::<ExportError>().unwrap();
        assert!(matches!(&*error, ExportError::Shard(shards::ShardError::Checksum { .. })), "{error}");
        assert!(files(&out).iter().all(|(path, _)| !path.ends_with("shard-00000.safetensors")));
        assert!(!out.join("vae-sd/00000").exists());
    }
}
