//! The committed shard `golden/v1.lat`: a reader of this version must read it for ever, and the writer must go on
//! writing it.

use std::fs;
use std::path::Path;

use crate::codec::Scratch;
use crate::{DType, Io, ShardReader, fixture};

/// Written by [`fixture::write`] with block size 64 and 130 samples.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/v1.lat");
/// Writes `golden/v1.lat` anew when it is set: only for a deliberate new version of the format.
const REGENERATE: &str = "SHARDS_REGENERATE_GOLDEN";

#[test]
fn the_writer_still_writes_the_golden_file_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v1.lat");
    fixture::write(&path, fixture::header(64), fixture::SAMPLES).unwrap();
    if std::env::var_os(REGENERATE).is_some() {
        fs::copy(&path, GOLDEN).unwrap();
    }
    let (written, golden) = (fs::read(&path).unwrap(), fs::read(GOLDEN).unwrap());
    let differs = written.iter().zip(&golden).position(|(a, b)| a != b);
    assert!(
        written == golden,
        "the first of {} and {} bytes to differ is {differs:?}: a new zstd may do that, and is then to be named in the \
         changelog; anything else needs a new version of the format",
        written.len(),
        golden.len()
    );
}

#[test]
fn the_golden_file_is_read_exactly() {
    for io in [Io::Auto, Io::Mmap, Io::Pread, Io::Ram] {
        let reader = ShardReader::open(GOLDEN, io).unwrap();
        assert_eq!(reader.header(), &fixture::header(64));
        let blocks: Vec<_> = (0..reader.blocks()).map(|block| reader.block_len(block)).collect();
        assert_eq!(blocks, [64, 64, 2]);
        for sample in 0..fixture::SAMPLES {
            let i = sample as usize;
            assert_eq!(reader.labels()[i], fixture::label(sample));
            assert_eq!(reader.source_indices()[i], fixture::source_index(sample));
            assert_eq!(reader.flags()[i], fixture::flag(sample));
            assert_eq!(reader.key(i).unwrap(), fixture::key(sample));
        }
        let mut scratch = Scratch::new();
        for (c, column) in reader.columns().iter().enumerate() {
            let mut sample = 0;
            for block in 0..reader.blocks() {
                let mut out = vec![0; reader.block_len(block) * column.sample_bytes()];
                reader.read_block(block, c, &mut out, &mut scratch).unwrap();
                for bytes in out.chunks(column.sample_bytes()) {
                    for (index, value) in bytes.chunks(column.dtype.width()).enumerate() {
                        assert_eq!(decode(column.dtype, value), fixture::value(c, sample, index));
                    }
                    sample += 1;
                }
            }
            assert_eq!(sample, fixture::SAMPLES);
        }
        reader.verify(&mut |error| panic!("{error}"));
    }
}

/// A normal number from its bytes: the values of the golden file are between 1 and 2 in magnitude.
fn decode(dtype: DType, bytes: &[u8]) -> f32 {
    match dtype {
        DType::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
        DType::F16 => {
            let bits = u16::from_le_bytes(bytes.try_into().unwrap());
            let magnitude = (1.0 + f32::from(bits & 0x3ff) / 1024.0) * 2_f32.powi(i32::from(bits >> 10 & 0x1f) - 15);
            if bits >> 15 == 1 { -magnitude } else { magnitude }
        }
    }
}

#[test]
fn the_documentation_holds_the_python_reader_word_for_word() {
    let python = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/read_shard.py")).unwrap();
    let documentation: String = include_str!("lib.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
        .collect();
    assert!(python.lines().count() <= 30 && documentation.contains(&python));
}
