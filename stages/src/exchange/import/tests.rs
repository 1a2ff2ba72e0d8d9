//! Imports of what REPA writes, and of what it does not.

use pipeline::{Flow, Runtime};
use shards::{Dataset, Io, Scratch};

use super::super::npy;
use super::*;
use crate::encode::list::ListImages;
use crate::encode::write::{Opened, Recipe};
use crate::world::share::Share;

/// Arrays of `[4, 1, 2]`: file `i` holds `bits(i, k)` at place k.
fn folder(dir: &Path, files: &[(&str, i64)], bits: impl Fn(usize, usize) -> u32) -> PathBuf {
    let root = dir.join(FEATURES);
    for (i, (name, _)) in files.iter().enumerate() {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let values = (0..8).flat_map(|k| bits(i, k).to_le_bytes());
        fs::write(path, npy::header("<f4", &[4, 1, 2]).into_iter().chain(values).collect::<Vec<u8>>()).unwrap();
    }
    fs::write(root.join(LABELS), serde_json::json!({ "labels": files }).to_string()).unwrap();
    dir.to_owned()
}

fn import(from: &Path, dtype: DType, to: &Path) -> Result<Imported, BoxError> {
    let folder = RepaFolder::open(from)?;
    let provenance = BTreeMap::from([("order".to_owned(), "source".into())]);
    let recipe = Recipe { schema: folder.schema(dtype, 0.18215), layout: Layout::default(), provenance };
    let Opened::Unfinished(writer) = WriteShards::open(to, recipe, folder.list(), Share::ALL)? else {
        panic!("complete already")
    };
    let positions = writer.positions();
    let flow = Flow::from(ListImages::at(folder.list().clone(), positions)).then(folder.reader(dtype)).workers(2);
    Ok(flow.into(ImportShards::new(*writer)).run(&Runtime::default()).map_err(|error| error.source)?.output)
}

fn column(dataset: &Dataset, column: usize) -> Vec<u8> {
    let shard = &dataset.shards[0];
    let mut bytes = vec![0; shard.len() * shard.columns()[column].sample_bytes()];
    shard.read_block(0, column, &mut bytes, &mut Scratch::new()).unwrap();
    bytes
}

#[test]
fn every_bit_arrives_in_the_order_of_the_names() {
    let dir = tempfile::tempdir().unwrap();
    // NaN payloads, minus zero, infinities, subnormals; and names that are listed out of order.
    let special = [0x7fc0_0001, 0xff80_1234, 0x8000_0000, 0x7f80_0000, 1, 0xffff_ffff, 0x3f80_0000, 0x0080_0000];
    let files = [("00001/b.npy", 4), ("00000/c.npy", 0), ("00000/a.NPY", 2)];
    let bits = |i: usize, k: usize| special[(k + i) % 8];
    let from = folder(dir.path(), &files, bits);
    let imported = import(&from, DType::F32, &dir.path().join("data")).unwrap();
    assert!(imported.written.complete && imported.written.samples == 3);
    let dataset = Dataset::open(dir.path().join("data"), Io::Pread).unwrap();
    let shard = &dataset.shards[0];
    assert_eq!((shard.labels(), shard.source_indices()), (&[2, 0, 4][..], &[0, 1, 2][..]));
    assert_eq!((shard.key(0), shard.key(2)), (Some("00000/a.NPY"), Some("00001/b.npy")));
    assert_eq!(dataset.manifest.classes, ["0", "1", "2", "3", "4"]);
    for (c, half) in [0..4, 4..8].into_iter().enumerate() {
        let expected: Vec<u8> =
            [2, 1, 0].into_iter().flat_map(|i| half.clone().flat_map(move |k| bits(i, k).to_le_bytes())).collect();
        assert_eq!(column(&dataset, c), expected);
    }
    let semantics: Vec<_> = shard.columns().iter().map(|column| (column.name.as_str(), column.semantics)).collect();
    assert_eq!(semantics, [("mean", Semantics::PosteriorMean), ("std", Semantics::PosteriorStd)]);
    // The folder itself may be given too.
    assert_eq!(
        RepaFolder::open(&from.join(FEATURES)).unwrap().list().hash(),
        RepaFolder::open(&from).unwrap().list().hash()
    );
}

#[test]
fn f16_is_rounded_to_nearest_and_its_largest_errors_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let values = [1.0 + 1.0 / 2048.0, -3.0, 0.0, f32::NAN, 1e-9, 0.5, 65504.0, 2049.0];
    let from = folder(dir.path(), &[("a.npy", 0)], |_, k| values[k].to_bits());
    let imported = import(&from, DType::F16, &dir.path().join("data")).unwrap();
    let half = 1.0 / 2048.0;
    assert_eq!(imported.rounding["mean"], Rounding { absolute: half, relative: half / (1.0 + half) });
    assert_eq!(imported.rounding["std"], Rounding { absolute: 1.0, relative: 1.0 });
    let dataset = Dataset::open(dir.path().join("data"), Io::Pread).unwrap();
    let stored: Vec<f32> = column(&dataset, 1).as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect();
    assert_eq!(stored, [0.0, 0.5, 65504.0, 2048.0]);

    let from = folder(&dir.path().join("large"), &[("a.npy", 0)], |_, k| [0.0_f32, 65520.0][k / 7].to_bits());
    let error = import(&from, DType::F16, &dir.path().join("refused")).unwrap_err().to_string();
    assert!(error.contains("the std holds 65520, which f16"), "{error}");
    import(&from, DType::F32, &dir.path().join("f32")).unwrap();
}

#[test]
fn an_import_that_was_killed_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..8200).map(|i| format!("{:05}/{i:08}.npy", i / 1000)).collect();
    let files: Vec<(&str, i64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let from = folder(dir.path(), &files, |i, k| (i * 8 + k) as u32);
    let (whole, stopped) = (dir.path().join("whole"), dir.path().join("stopped"));
    import(&from, DType::F32, &whole).unwrap();
    fs::create_dir(&stopped).unwrap();
    fs::copy(whole.join("shard-00000.lat"), stopped.join("shard-00000.lat")).unwrap();
    fs::write(stopped.join("shard-00001.lat.tmp"), "half").unwrap();
    let imported = import(&from, DType::F32, &stopped).unwrap();
    assert_eq!((imported.written.samples, imported.written.shards), (8200, 2));
    for file in ["shard-00000.lat", "shard-00001.lat", "dataset.json"] {
        assert!(fs::read(whole.join(file)).unwrap() == fs::read(stopped.join(file)).unwrap(), "{file}");
    }
    fs::remove_file(stopped.join("dataset.json")).unwrap();
    let other = import(&from, DType::F16, &stopped).unwrap_err().to_string();
    assert!(other.contains("dtype") && other.contains("shard-00000.lat"), "{other}");
}

#[test]
fn what_is_not_repas_form_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let refuse = |from: &Path, part: &str| {
        let error = import(from, DType::F32, &data).unwrap_err().to_string();
        assert!(error.contains(part), "{error} lacks {part}");
    };
    refuse(dir.path(), "holds neither vae-sd/dataset.json nor dataset.json");
    let from = folder(&dir.path().join("a"), &[("a.npy", 0), ("b.npy", 1)], |_, _| 0);
    let labels = from.join(FEATURES).join(LABELS);
    for (text, part) in [
        ("{", "EOF"),
        (r#"{"labels": null}"#, "is null"),
        (r#"{"labels": []}"#, "lists no arrays"),
        (r#"{"labels": [["a.npy", 0.5]]}"#, "invalid type"),
        (r#"{"labels": [["a.npy", -1], ["b.npy", 0]]}"#, "the label of a.npy is -1"),
        (r#"{"labels": [["a.npy", 2000000000], ["b.npy", 0]]}"#, "not a class from 0 to 999999"),
        (r#"{"labels": [["a.npy", 0], ["a.npy", 1]]}"#, "lists a.npy twice"),
        (r#"{"labels": [["../a.npy", 0]]}"#, "below the folder"),
        (r#"{"labels": [["/etc/a.npy", 0]]}"#, "below the folder"),
        (r#"{"labels": [["a.txt", 0]]}"#, "not the name of an .npy file"),
        (r#"{"labels": [["a.npy", 0]]}"#, "b.npy: this array is not in dataset.json"),
        (r#"{"labels": [["a.npy", 0], ["b.npy", 0], ["c.npy", 0]]}"#, "c.npy: cannot be read"),
    ] {
        fs::write(&labels, text).unwrap();
        refuse(&from, part);
    }
    fs::File::create(&labels).unwrap().set_len(MAX_LABELS_LEN + 1).unwrap();
    refuse(&from, "more than 1073741824");
    assert!(!data.join("dataset.json").exists());

    let array = |shape: &[u64]| {
        let len = 4 * shape.iter().product::<u64>() as usize;
        npy::header("<f4", shape).into_iter().chain(vec![0; len]).collect::<Vec<u8>>()
    };
    fs::write(&labels, r#"{"labels": [["a.npy", 0], ["b.npy", 0]]}"#).unwrap();
    for (shape, part) in [
        (&[3, 1, 2][..], "has shape [3, 1, 2] where [2 * channels"),
        (&[4, 2][..], "has shape [4, 2]"),
        (&[0, 1, 2][..], "has shape [0, 1, 2]"),
        (&[4, 2, 1][..], "where that of the first, [4, 1, 2], is expected"),
    ] {
        fs::write(from.join(FEATURES).join("b.npy"), array(shape)).unwrap();
        refuse(&from, part);
    }
    fs::write(from.join(FEATURES).join("b.npy"), "pickle").unwrap();
    refuse(&from, "b.npy: this is not an .npy file");
    fs::write(from.join(FEATURES).join("a.npy"), &array(&[4, 1, 2])[..100]).unwrap();
    refuse(&from, "a.npy: it is cut short");
}
