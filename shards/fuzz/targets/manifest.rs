//! Any bytes as `dataset.json` beside two valid shards: loaded, written and loaded again, and its shards verified.
//!
//! Asserted besides: what was loaded is written as a manifest that loads as the same.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use shards::{Depth, Io, MANIFEST, Manifest};
use shards_fuzz::seeds;

/// The dataset, and an empty folder for the copy; run.sh removes them.
static DIRS: LazyLock<[PathBuf; 2]> = LazyLock::new(|| {
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("TMPDIR can be written to").keep());
    seeds::dataset(&dirs[0]).expect("a dataset can be written");
    dirs
});

fuzz_target!(init: seeds::plant(seeds::manifests), |data: &[u8]| {
    let [dir, copy] = &*DIRS;
    fs::write(dir.join(MANIFEST), data).expect("there is room");
    let manifest = match Manifest::load(dir) {
        Ok(manifest) => manifest,
        Err(error) => return drop(error.to_string()),
    };
    manifest.save(copy).expect("what could be loaded can be written");
    assert_eq!(Manifest::load(copy).expect("what was written can be loaded"), manifest);
    let mut bad = 0;
    let verified = shards::verify(dir, Io::Pread, Depth::Fast, &mut |error| bad += u64::from(!error.to_string().is_empty()));
    let verified = verified.expect("it could be loaded before");
    assert_eq!((verified.shards, verified.bad), (manifest.shards.len() as u64, bad));
});
