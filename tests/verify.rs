//! Whether a dataset on disk is whole, and what it holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use shards::{Codec, Column, DType, Header, Manifest, SampleMeta, Schema, Semantics, ShardWriter};

use crate::program::{images, refuse, run, succeed};

/// Shards of these many samples in blocks of 4, one column of `[2, 2, 2]` f32, stored raw: block b of a shard begins at
/// byte 4096 + 128 b.
fn dataset(dir: &Path, sizes: &[usize]) {
    fs::create_dir_all(dir).unwrap();
    let column = Column {
        name: "mean".to_owned(),
        dtype: DType::F32,
        shape: vec![2, 2, 2],
        codec: Codec::None,
        semantics: Semantics::PosteriorMean,
    };
    let schema = Schema {
        columns: vec![column],
        block_samples: 4,
        scaling_factor: 0.18215,
        shift_factor: 0.0,
        scaling_applied: false,
        pixel_range: [-1.0, 1.0],
    };
    let mut entries = Vec::new();
    for (shard, &samples) in sizes.iter().enumerate() {
        let header = Header::new(schema.clone(), shard as u32, sizes.len() as u32, BTreeMap::new());
        let mut writer = ShardWriter::create(dir.join(format!("shard-{shard:05}.lat")), header).unwrap();
        let values: Vec<u8> = (0..samples * 8).flat_map(|i| (i as f32).to_le_bytes()).collect();
        for block in values.chunks(4 * 32) {
            let meta = SampleMeta { label: (block.len() % 3) as i32, source_index: 0, flags: 0, key: "a.jpg" };
            writer.write_block(&[block], &vec![meta; block.len() / 32]).unwrap();
        }
        entries.push(writer.finish().unwrap());
    }
    let mut manifest = Manifest::new(schema, entries, BTreeMap::new());
    manifest.classes = (0..30).map(|class| format!("class-{class:02}")).collect();
    manifest.save(dir).unwrap();
}

fn flip(dir: &Path, shard: usize, at: usize) {
    let path = dir.join(format!("shard-{shard:05}.lat"));
    let mut bytes = fs::read(&path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Exit code, stdout, stderr.
fn verify(flags: &str, dir: &Path) -> (Option<i32>, String, String) {
    let output = run(&format!("verify {{}} {flags}"), &[dir]);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_whole_dataset_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path(), &[10, 8, 3]);
    let (code, stdout, _) = verify("", folder.path());
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains("3 shards, 6 blocks and 21 samples") && stdout.contains("every byte agrees"), "{stdout}");
    let (code, stdout, _) = verify("--fast --json", folder.path());
    let found: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (code, &found["shards"], &found["blocks"], &found["depth"]),
        (Some(0), &3.into(), &0.into(), &"fast".into())
    );
    assert_eq!((&found["bad"], &found["complete"]), (&serde_json::json!([]), &true.into()));
}

#[test]
fn three_damaged_blocks_in_two_shards_are_all_named() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path(), &[10, 8, 3]);
    flip(folder.path(), 0, 4096 + 5);
    flip(folder.path(), 0, 4096 + 2 * 128 + 5);
    flip(folder.path(), 1, 4096 + 128 + 5);
    let (code, stdout, stderr) = verify("", folder.path());
    assert_eq!(code, Some(3), "{stdout}{stderr}");
    for (shard, block) in [(0, 0), (0, 2), (1, 1)] {
        let file = format!("shard-{shard:05}.lat");
        let named =
            stdout.lines().filter(|line| line.contains(&file) && line.contains(&format!("block {block}"))).count();
        assert_eq!(named, 1, "{file}, block {block}\n{stdout}");
    }
    assert!(!stdout.contains("shard-00002.lat"), "{stdout}");
    let error = stderr.lines().find(|line| line.starts_with("error: "));
    assert!(error.is_some_and(|line| line.contains("found wrong")), "{stderr}");
    let (code, stdout, _) = verify("--fast", folder.path());
    assert_eq!(code, Some(0), "bits in frames are not seen from the ends\n{stdout}");
}

#[test]
fn cut_and_missing_shards_are_named_by_the_fast_look_too() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path(), &[10, 8, 3]);
    let cut = folder.path().join("shard-00001.lat");
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..bytes.len() - 70]).unwrap();
    fs::remove_file(folder.path().join("shard-00002.lat")).unwrap();
    for flags in ["", "--fast"] {
        let (code, stdout, stderr) = verify(flags, folder.path());
        assert_eq!(code, Some(3), "{stdout}{stderr}");
        assert!(stdout.contains("shard-00001.lat") && stdout.contains("shard-00002.lat: is listed"), "{stdout}");
        assert!(!stdout.contains("shard-00000.lat"), "{stdout}");
    }
    fs::write(folder.path().join("dataset.json"), "{").unwrap();
    assert_eq!(verify("", folder.path()).0, Some(3));
    fs::remove_file(folder.path().join("dataset.json")).unwrap();
    refuse("verify {}", &[folder.path()], "has no dataset.json");
}

#[test]
fn a_dataset_is_described_for_people_and_for_programs() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path(), &[10, 8, 3]);
    let text = succeed("inspect {} --sample 20", &[folder.path()]);
    for part in [
        "21 samples in 3 shards and 6 blocks",
        "672 bytes, 1.000 of 672",
        "30 classes",
        "class-19",
        "and 10 more",
        "sample 20 (shard-00002.lat)",
        "a.jpg, class 0 (class-00)",
    ] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
    assert!(!text.contains("class-20 "), "{text}");
    let found: serde_json::Value =
        serde_json::from_str(&succeed("inspect {} --json --sample 0", &[folder.path()])).unwrap();
    assert_eq!((&found["samples"], &found["columns"][0]["raw_bytes"]), (&21.into(), &672.into()));
    assert_eq!(found["sample"]["channel_means"]["mean"], serde_json::json!([1.5, 5.5]));
    refuse("inspect {} --sample 21", &[folder.path()], "samples 0 to 20");
    refuse("inspect {} --preview x.png", &[folder.path()], "do not say which autoencoder");
}

#[test]
fn a_preview_shows_pictures_with_their_classes() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 2, 4);
    let (data, preview) = (folder.path().join("data"), folder.path().join("preview.png"));
    succeed("encode --images {} --out {} --size 64", &[&images, &data]);
    succeed("inspect {} --preview {} --count 5", &[&data, &preview]);
    let picture = image::open(&preview).unwrap().to_rgb8();
    // Three in a row and two rows, each 64 x (64 + 11), two pixels apart.
    assert_eq!(picture.dimensions(), (3 * 64 + 8, 2 * 75 + 6));
    let black = |top: u32| {
        (2..66)
            .flat_map(|x| (top..top + 11).map(move |y| (x, y)))
            .filter(|(x, y)| picture.get_pixel(*x, *y).0 == [0; 3])
            .count()
    };
    assert!(black(2 + 64) > 50 && black(2 + 75 + 2 + 64) > 50);
    let first = fs::read(&preview).unwrap();
    succeed("inspect {} --preview {} --count 5", &[&data, &preview]);
    assert_eq!(fs::read(&preview).unwrap(), first);
    refuse("inspect {} --preview {} --count 0", &[&data, &preview], "from 1 to 400");
}
