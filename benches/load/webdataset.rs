//! A peer: the crate `webdataset` over the tars of the Python one, with as many of its loader's threads as workers.
//!
//! Shuffle: the order of the tars, and a buffer of 1,000 samples. The loader buffers two batches a worker, as torch's
//! does (its default is 8 samples). With one worker it runs in the consumer's thread: that is how the crate is. It has
//! no state to resume from.

use std::fs;

use ::webdataset::{Sample, Value, WebDataset};

use crate::measure::{Batch, Options};
use crate::records::COLUMN_BYTES;

/// Begins an epoch.
pub fn open(options: &Options) -> impl Iterator<Item = Batch> + use<> {
    let folder = options.data.join("tar");
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut tars: Vec<String> =
        files.map(|file| file.expect("the folder can be listed").path().display().to_string()).collect();
    tars.sort();
    let dataset =
        WebDataset::builder_verbatim(tars).shard_shuffle(1000).build().expect("a list of files").shuffle(1000);
    let size = options.batch;
    let mut samples = dataset.loader().with_workers(options.workers).with_prefetch(2 * size).iter();
    std::iter::from_fn(move || {
        let mut batch = Batch {
            mean: Vec::with_capacity(size * COLUMN_BYTES),
            logvar: Vec::with_capacity(size * COLUMN_BYTES),
            labels: Vec::with_capacity(size),
            ids: Vec::with_capacity(size),
        };
        for sample in samples.by_ref().take(size) {
            append(&mut batch, &sample.unwrap_or_else(|error| panic!("webdataset: {error}")));
        }
        (!batch.labels.is_empty()).then_some(batch)
    })
}

fn append(batch: &mut Batch, sample: &Sample) {
    let bytes = |name: &str| match sample.get(name) {
        Some(Value::Bytes(bytes)) => &bytes[..],
        other => panic!("{name} of {:?} is {other:?}", sample.key()),
    };
    let (mean, logvar) = npy(bytes("npy")).split_at(COLUMN_BYTES);
    batch.mean.extend_from_slice(mean);
    batch.logvar.extend_from_slice(logvar);
    batch.labels.push(number(std::str::from_utf8(bytes("cls")).expect("digits")));
    batch.ids.push(number(sample.key().expect("every sample has a key")));
}

/// The values of a .npy file, version 1: f16 [8, 32, 32].
fn npy(file: &[u8]) -> &[u8] {
    let len = usize::from(u16::from_le_bytes([file[8], file[9]]));
    let (header, values) = file.split_at(10 + len);
    let header = String::from_utf8_lossy(&header[10..]);
    assert!(header.contains("'<f2'") && header.contains("(8, 32, 32)"), "{header}");
    values
}

/// The key, or what it ends in if the crate puts the tar's folder before it.
fn number(text: &str) -> i64 {
    let digits = text.trim().rsplit('/').next().unwrap_or_default();
    digits.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
}
