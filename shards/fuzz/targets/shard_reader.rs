//! Any bytes as a shard: opened, every key, every column of every block, verification.
//!
//! Asserted besides: keys are there for exactly the samples; a verification reports errors if and only if reading a
//! frame or the checksum of the body gives one; every way of reading says the same.

#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::PathBuf;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use shards::{Io, Scratch, ShardReader};
use shards_fuzz::{anatomy, seeds};

/// Larger blocks are legal and slow; their limit has a test of its own.
const MAX_BLOCK: usize = 1 << 20;

/// One file for all inputs, and its name; run.sh removes it.
struct Slot {
    file: File,
    path: PathBuf,
}

thread_local! {
    static SLOT: RefCell<Slot> = RefCell::new({
        let file = tempfile::NamedTempFile::new().expect("TMPDIR can be written to");
        let (file, path) = file.keep().expect("a file that was just made can be kept");
        Slot { file, path }
    });
}

fuzz_target!(init: seeds::plant(seeds::shards), |data: &[u8]| {
    SLOT.with_borrow_mut(|slot| {
        slot.file.set_len(0).and_then(|()| slot.file.rewind()).and_then(|()| slot.file.write_all(data)).expect("there is room");
        let outcomes = [Io::Ram, Io::Pread, Io::Mmap].map(|io| read(&slot.path, io));
        assert_eq!(outcomes[0], outcomes[1]);
        assert_eq!(outcomes[0], outcomes[2]);
    });
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    anatomy::change(data, size, max_size, seed, fuzzer_mutate)
});

/// Everything that can be read, and every error as text.
fn read(path: &PathBuf, io: Io) -> (Vec<Vec<u8>>, Vec<String>) {
    let (mut blocks, mut errors) = (Vec::new(), Vec::new());
    let reader = match ShardReader::open(path, io) {
        Ok(reader) => reader,
        Err(error) => return (blocks, vec![error.to_string()]),
    };
    for sample in 0..reader.len() {
        assert!(reader.key(sample).is_some());
    }
    assert!(reader.key(reader.len()).is_none());
    let largest = reader.columns().iter().map(|column| column.sample_bytes() * reader.block_len(0)).max();
    if largest.unwrap_or(0) > MAX_BLOCK {
        return (blocks, errors);
    }
    let mut scratch = Scratch::new();
    for block in 0..reader.blocks() {
        for (column, declared) in reader.columns().iter().enumerate() {
            let mut out = vec![0; reader.block_len(block) * declared.sample_bytes()];
            match reader.read_block(block, column, &mut out, &mut scratch) {
                Ok(()) => blocks.push(out),
                Err(error) => errors.push(error.to_string()),
            }
        }
    }
    let mut reports = Vec::new();
    let verified = reader.verify(&mut |error| reports.push(error.to_string()));
    assert_eq!((verified.bytes, verified.bad), (reader.file_len(), reports.len() as u64));
    // Behind the bad frames only the body can be reported.
    assert!(reports.starts_with(&errors) && reports.len() <= errors.len() + 1);
    (blocks, reports)
}
