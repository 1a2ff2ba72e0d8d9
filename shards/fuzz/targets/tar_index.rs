//! Any bytes as a WebDataset tar: its index.
//!
//! Asserted besides: ranges ascend, lie in the tar and consist of blocks; keys differ; and the bytes of a range are by
//! themselves a tar of that sample alone, which is what the samples are read by.

#![no_main]

use std::collections::HashSet;
use std::io::Cursor;
use std::path::Path;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use shards::tar::{self, TarIndex, TarSample};
use shards_fuzz::{archive, seeds};

fuzz_target!(init: seeds::plant(archive::tars), |data: &[u8]| {
    let index = match index_of(data) {
        Ok(index) => index,
        Err(error) => return assert!(!error.is_empty()),
    };
    let mut end = 0;
    for sample in &index.samples {
        assert!(sample.range.start >= end && sample.range.end > sample.range.start);
        assert!(sample.range.start.is_multiple_of(512) && sample.label >= 0);
        end = sample.range.end;
        let bytes = data.get(sample.range.start as usize..sample.range.end as usize).expect("it lies in the tar");
        let alone = index_of(bytes).expect("a sample is a tar");
        let expected = TarSample { range: 0..bytes.len() as u64, ..sample.clone() };
        assert_eq!(alone.samples, [expected]);
    }
    let keys: HashSet<_> = index.samples.iter().map(|sample| &sample.key).collect();
    assert_eq!(keys.len(), index.samples.len());
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    archive::change(data, size, max_size, seed, fuzzer_mutate)
});

/// The index, or the error as text.
fn index_of(bytes: &[u8]) -> Result<TarIndex, String> {
    tar::index_of(Cursor::new(bytes), bytes.len() as u64, Path::new("x.tar")).map_err(|error| error.to_string())
}
