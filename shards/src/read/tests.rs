use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{DType, SampleMeta, Schema, Semantics, ShardWriter, interleave};

#[test]
fn readers_are_shared_and_scratch_is_moved_between_threads() {
    fn shared<T: Send + Sync>() {}
    fn moved<T: Send>() {}
    shared::<ShardReader>();
    shared::<crate::Dataset>();
    moved::<Scratch>();
    moved::<ShardWriter>();
}

#[test]
fn scratch_does_not_grow_once_the_largest_block_has_been_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.lat");
    crate::fixture::write(&path, crate::fixture::header(64), 130).unwrap();
    let reader = ShardReader::open(&path, Io::Pread).unwrap();
    let mut scratch = Scratch::new();
    let mut out = vec![0; 64 * reader.columns()[0].sample_bytes()];
    let mut grown = Vec::new();
    for block in [0, 1, 0, 1, 0] {
        reader.read_block(block, 0, &mut out, &mut scratch).unwrap();
        reader.read_planes(block, 0, &mut out, &mut scratch).unwrap();
        grown.push(format!("{scratch:?}"));
    }
    assert!(grown[1..].iter().all(|after| *after == grown[1]), "{grown:?}");
}

#[test]
fn planes_are_the_bytes_of_the_values_by_their_place_and_need_no_scratch_for_planes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.lat");
    crate::fixture::write(&path, crate::fixture::header(64), 130).unwrap();
    let reader = ShardReader::open(&path, Io::Ram).unwrap();
    let (mut scratch, untouched) = (Scratch::new(), format!("{:?}", Scratch::new()));
    for (c, declared) in reader.columns().iter().enumerate() {
        let raw = crate::fixture::raw(c, declared, 64..128);
        let mut planes = vec![0; raw.len()];
        reader.read_planes(1, c, &mut planes, &mut scratch).unwrap();
        let count = declared.codec.planes(declared.dtype);
        let expected: Vec<u8> = (0..count).flat_map(|p| raw.iter().skip(p).step_by(count).copied()).collect();
        assert_eq!(planes, expected, "{}", declared.name);
    }
    assert_eq!(format!("{scratch:?}"), untouched);
}

#[test]
fn nothing_is_in_place_that_is_not_raw_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.lat");
    crate::fixture::write(&path, crate::fixture::header(64), 130).unwrap();
    let reader = ShardReader::open(&path, Io::Ram).unwrap();
    assert_eq!(reader.columns()[1].codec, Codec::None);
    let found = |block, column| reader.in_place(block, column).map(<[u8]>::len);
    assert_eq!([found(0, 1), found(2, 1)], [Some(64 * 32), Some(2 * 32)]);
    assert_eq!([found(0, 0), found(0, 2), found(0, 3), found(3, 1), found(usize::MAX, 1)], [None; 5]);
}

fn columns() -> impl Strategy<Value = Vec<Column>> {
    let codec = prop_oneof![
        Just(Codec::None),
        (1..=19).prop_map(|level| Codec::Zstd { level }),
        (1..=19).prop_map(|level| Codec::ShuffleZstd { level })
    ];
    let dtype = prop_oneof![Just(DType::F16), Just(DType::F32)];
    let shape = proptest::collection::vec(1_u32..6, 0..4);
    let semantics = prop_oneof![
        Just(Semantics::PosteriorMean),
        Just(Semantics::PosteriorLogvar),
        Just(Semantics::PosteriorStd),
        Just(Semantics::Sample)
    ];
    let column = (dtype, shape, codec, semantics).prop_map(|(dtype, shape, codec, semantics)| Column {
        name: String::new(),
        dtype,
        shape,
        codec,
        semantics,
    });
    proptest::collection::vec(column, 1..4).prop_map(|mut columns| {
        columns.iter_mut().enumerate().for_each(|(c, column)| column.name = format!("column_{c}"));
        columns
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_was_written_is_read_back_by_every_way_of_reading(
        columns in columns(),
        block_samples in 1_u32..9,
        samples in proptest::collection::vec((any::<i32>(), any::<u32>(), any::<u8>(), "\\PC{0,9}"), 0..30),
        scaling_factor in 1e-6..1e6_f64,
        noise in any::<u64>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lat");
        let schema = Schema {
            columns,
            block_samples,
            scaling_factor,
            shift_factor: -scaling_factor,
            scaling_applied: true,
            pixel_range: [0.0, scaling_factor],
        };
        let header = Header::new(schema.clone(), 1, 2, BTreeMap::from([("n".to_owned(), scaling_factor.into())]));
        // Compressible and incompressible columns, by turns.
        let raw: Vec<Vec<u8>> = schema.columns.iter().enumerate().map(|(c, column)| {
            (0..column.sample_bytes() * samples.len())
                .map(|i| if c % 2 == 0 { xxh3_64(&(noise ^ i as u64).to_le_bytes()) as u8 } else { 7 })
                .collect()
        }).collect();
        let metas: Vec<SampleMeta<'_>> = samples.iter()
            .map(|(label, source_index, flags, key)| SampleMeta {
                label: *label, source_index: *source_index, flags: *flags, key
            })
            .collect();
        let block_bytes = |c: usize, start: usize, len: usize| {
            let bytes = schema.columns[c].sample_bytes();
            &raw[c][start * bytes..(start + len) * bytes]
        };
        let mut writer = ShardWriter::create(&path, header.clone()).unwrap();
        for (b, metas) in metas.chunks(block_samples as usize).enumerate() {
            let start = b * block_samples as usize;
            let columns: Vec<_> = (0..raw.len()).map(|c| block_bytes(c, start, metas.len())).collect();
            writer.write_block(&columns, metas).unwrap();
        }
        let entry = writer.finish().unwrap();
        let mut scratch = Scratch::new();
        for io in IOS {
            let reader = ShardReader::open(&path, io).unwrap();
            prop_assert_eq!(reader.header(), &header);
            prop_assert_eq!(reader.len(), samples.len());
            prop_assert_eq!(entry.samples as usize, samples.len());
            prop_assert_eq!((entry.bytes, entry.xxh3), (fs::metadata(&path).unwrap().len(), reader.xxh3()));
            for (i, meta) in metas.iter().enumerate() {
                prop_assert_eq!(reader.labels()[i], meta.label);
                prop_assert_eq!(reader.source_indices()[i], meta.source_index);
                prop_assert_eq!(reader.flags()[i], meta.flags);
                prop_assert_eq!(reader.key(i), Some(meta.key));
            }
            prop_assert_eq!(reader.key(samples.len()), None);
            prop_assert_eq!(reader.blocks(), samples.len().div_ceil(block_samples as usize));
            prop_assert_eq!(reader.block_len(reader.blocks()), 0);
            // Backwards: frames do not depend on each other.
            for block in (0..reader.blocks()).rev() {
                for c in 0..raw.len() {
                    let expected = block_bytes(c, block * block_samples as usize, reader.block_len(block));
                    let mut out = vec![0xee; expected.len()];
                    reader.read_block(block, c, &mut out, &mut scratch).unwrap();
                    prop_assert_eq!(&out[..], expected);
                    reader.verify_block(block, c, &mut scratch).unwrap();
                    let Column { dtype, codec, .. } = schema.columns[c];
                    let mut planes = vec![0xee; expected.len()];
                    reader.read_planes(block, c, &mut planes, &mut scratch).unwrap();
                    if codec.planes(dtype) > 1 {
                        prop_assert_eq!(codec.planes(dtype), dtype.width());
                        out.fill(0xee);
                        interleave(&planes, dtype, 0..planes.len() / dtype.width(), &mut out).unwrap();
                        planes.copy_from_slice(&out);
                    }
                    prop_assert_eq!(&planes[..], expected);
                    let in_memory = codec == Codec::None && !matches!(reader.source, Source::Pread(_));
                    prop_assert_eq!(reader.in_place(block, c), in_memory.then_some(expected));
                    reader.intact(block, c).unwrap();
                }
            }
            let verified = reader.verify(&mut |error| panic!("{error}"));
            prop_assert_eq!((verified.bytes, verified.blocks), (entry.bytes, reader.blocks() as u64));
            prop_assert_eq!((verified.samples, verified.bad), (samples.len() as u64, 0));
        }
    }
}

const IOS: [Io; 4] = [Io::Auto, Io::Mmap, Io::Pread, Io::Ram];
