//! Hostile input: at least one test for every variant of [`ShardError`], and random damage.
//!
//! The list of cases also makes the `match` over the variants, so a new variant without a case does not compile.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use crate::codec::{Deflater, Scratch};
use crate::fixture;
use crate::footer::Footer;
use crate::layout::{MAX_KEY_LEN, MAX_KEYS_LEN, PREFIX_LEN, Prefix, TAIL_LEN, Tail};
use crate::schema::Header;
use crate::{
    ChannelStats, Dataset, Histogram, Io, MANIFEST, MAX_MANIFEST_LEN, Manifest, SampleMeta, ShardError, ShardReader,
    ShardWriter,
};

/// Ten samples, four a block.
fn valid(dir: &Path) -> (PathBuf, Vec<u8>) {
    let path = dir.join("a.lat");
    if !path.exists() {
        fixture::write(&path, fixture::header(4), 10).unwrap();
    }
    let bytes = fs::read(&path).unwrap();
    (path, bytes)
}

fn read_all(reader: &ShardReader) -> Result<Vec<Vec<u8>>, ShardError> {
    let mut scratch = Scratch::new();
    let mut all = Vec::new();
    for block in 0..reader.blocks() {
        for (column, declared) in reader.columns().iter().enumerate() {
            let mut out = vec![0; reader.block_len(block) * declared.sample_bytes()];
            let read = reader.read_block(block, column, &mut out, &mut scratch);
            let mut planes = vec![0; out.len()];
            let as_planes = reader.read_planes(block, column, &mut planes, &mut scratch);
            assert_eq!(format!("{read:?}"), format!("{as_planes:?}"));
            match (&read, reader.verify_block(block, column, &mut scratch)) {
                (Ok(()) | Err(ShardError::Inflate { .. }), verified) => verified.unwrap(),
                (Err(_), verified) => assert_eq!(format!("{read:?}"), format!("{verified:?}")),
            }
            read?;
            all.push(out);
        }
    }
    Ok(all)
}

/// Opens the bytes as a shard, reads all of it, and verifies it.
fn check(dir: &Path, bytes: &[u8]) -> Result<(), ShardError> {
    let path = dir.join("hostile.lat");
    fs::write(&path, bytes).unwrap();
    let reader = ShardReader::open(&path, Io::Pread)?;
    read_all(&reader)?;
    verify(&reader)
}

/// The first thing that a verification reports.
fn verify(reader: &ShardReader) -> Result<(), ShardError> {
    let mut first = Ok(());
    reader.verify(&mut |error| {
        if first.is_ok() {
            first = Err(error);
        }
    });
    first
}

/// Changes bytes of a valid shard and leaves the checksums as they are.
fn damage(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Result<(), ShardError> {
    let (_, mut bytes) = valid(dir);
    change(&mut bytes);
    check(dir, &bytes)
}

/// Takes a valid shard apart, changes it, and puts it together with checksums that fit: what an attacker would send.
fn forge(dir: &Path, change: impl FnOnce(&mut Parts)) -> Result<(), ShardError> {
    let (path, bytes) = valid(dir);
    let prefix = Prefix::from_bytes(&path, bytes[..PREFIX_LEN].try_into().unwrap()).unwrap();
    let tail = Tail::from_bytes(&path, bytes[bytes.len() - TAIL_LEN..].try_into().unwrap()).unwrap();
    let payload_at = PREFIX_LEN + prefix.header_len as usize;
    let footer_at = tail.footer_off as usize;
    let header = Header::from_bytes(&path, &bytes[PREFIX_LEN..payload_at]).unwrap();
    let payload = payload_at as u64..tail.footer_off;
    let footer_bytes = &bytes[footer_at..bytes.len() - TAIL_LEN];
    let inflater = &mut Scratch::new().inflater;
    let mut parts = Parts {
        json: String::from_utf8(bytes[PREFIX_LEN..payload_at].to_vec()).unwrap(),
        payload: bytes[payload_at..footer_at].to_vec(),
        footer: Footer::from_bytes(&path, footer_bytes, &header.schema, 10, payload, inflater).unwrap(),
        edit_footer: |_| {},
        samples: 10,
    };
    change(&mut parts);
    let mut json = parts.json.trim_end().as_bytes().to_vec();
    json.resize((PREFIX_LEN + json.len()).next_multiple_of(4096) - PREFIX_LEN, b' ');
    let mut footer = parts.footer.to_bytes(3, &mut Deflater::new()).unwrap();
    (parts.edit_footer)(&mut footer);
    let body = [&json[..], &parts.payload, &footer].concat();
    let footer_off = (PREFIX_LEN + json.len() + parts.payload.len()) as u64;
    let prefix = Prefix { header_len: json.len() as u32, footer_off, header_xxh3: xxh3_64(&json) };
    let tail = Tail {
        footer_off,
        footer_len: footer.len() as u64,
        footer_xxh3: xxh3_64(&footer),
        body_xxh3: xxh3_64(&body),
        samples: parts.samples,
    };
    check(dir, &[&prefix.to_bytes()[..], &body, &tail.to_bytes()].concat())
}

/// A valid shard blown up to a terabyte without a byte on the disk, nearly all of it footer.
fn sparse(dir: &Path) -> Result<(), ShardError> {
    let (path, bytes) = valid(dir);
    let len = 1 << 40;
    let tail_at = bytes.len() - TAIL_LEN;
    let tail = Tail::from_bytes(&path, bytes[tail_at..].try_into().unwrap()).unwrap();
    let tail = Tail { footer_len: len - TAIL_LEN as u64 - tail.footer_off, ..tail };
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(len).unwrap();
    file.write_all_at(&tail.to_bytes(), len - TAIL_LEN as u64).unwrap();
    ShardReader::open(&path, Io::Pread).map(|_| ())
}

struct Parts {
    json: String,
    payload: Vec<u8>,
    footer: Footer,
    edit_footer: fn(&mut Vec<u8>),
    samples: u64,
}

fn replace(parts: &mut Parts, from: &str, to: &str) {
    assert!(parts.json.contains(from), "{from:?} is not in {:?}", parts.json);
    parts.json = parts.json.replace(from, to);
}

/// Opens a valid shard for calls with wrong arguments.
fn reader(dir: &Path) -> ShardReader {
    ShardReader::open(valid(dir).0, Io::Pread).unwrap()
}

fn writer(dir: &Path) -> ShardWriter {
    ShardWriter::create(dir.join("new.lat"), fixture::header(4)).unwrap()
}

/// Raw columns and metadata of a block of `samples` samples.
fn write_block(writer: &mut ShardWriter, samples: u32, key: &str) -> Result<(), ShardError> {
    let schema = fixture::schema(4);
    let columns: Vec<_> =
        schema.columns.iter().enumerate().map(|(c, column)| fixture::raw(c, column, 0..samples)).collect();
    let columns: Vec<_> = columns.iter().map(Vec::as_slice).collect();
    writer.write_block(&columns, &vec![SampleMeta { label: 0, source_index: 0, flags: 0, key }; samples as usize])
}

/// Writes a dataset of two shards, changes the text of its manifest, and opens it.
fn edit_manifest(dir: &Path, from: &str, to: &str) -> Result<(), ShardError> {
    fixture::write_dataset(dir, &[10, 3]).unwrap();
    let text = fs::read_to_string(dir.join(MANIFEST)).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    fs::write(dir.join(MANIFEST), text.replacen(from, to, 1)).unwrap();
    Dataset::open(dir, Io::Pread).map(|_| ())
}

/// A case builds hostile input in an empty folder and returns what the crate makes of it.
type Case = fn(&Path) -> Result<(), ShardError>;

macro_rules! hostile {
    ($($variant:ident => $case:expr,)+) => {
        /// Deliberately without a wildcard.
        fn variant(error: &ShardError) -> &'static str {
            match error {
                $(ShardError::$variant { .. } => stringify!($variant),)+
            }
        }

        const CASES: &[(&str, Case)] = &[$((stringify!($variant), $case),)+];
    };
}

hostile! {
    Io => |dir| ShardReader::open(dir.join("none.lat"), Io::Pread).map(|_| ()),
    NotAFile => |dir| ShardReader::open(dir, Io::Pread).map(|_| ()),
    TooShort => |dir| damage(dir, |bytes| bytes.truncate(100)),
    Magic => |dir| damage(dir, |bytes| bytes[0] = b'l'),
    Version => |dir| damage(dir, |bytes| bytes[7] = 2),
    Unfinished => |dir| damage(dir, |bytes| bytes[16..24].fill(0)),
    Reserved => |dir| damage(dir, |bytes| bytes[12] = 1),
    HeaderLength => |dir| damage(dir, |bytes| bytes[8] += 1),
    Checksum => |dir| damage(dir, |bytes| bytes[40] ^= 1),
    Json => |dir| forge(dir, |parts| replace(parts, "{", "[")),
    Field => |dir| forge(dir, |parts| replace(parts, r#""block_samples":4"#, r#""block_samples":0"#)),
    FooterPosition => |dir| damage(dir, |bytes| bytes[16] ^= 1),
    FooterLength => |dir| forge(dir, |parts| parts.edit_footer = |footer| footer.push(0)),
    Count => |dir| forge(dir, |parts| parts.edit_footer = |footer| footer[0] += 1),
    TooLarge => |dir| forge(dir, |parts| parts.samples = (1 << 20) + 1),
    FrameOffset => |dir| forge(dir, |parts| parts.footer.frames[4].off += 1),
    FrameLength => |dir| forge(dir, |parts| parts.footer.frames[0].len = u32::MAX),
    PayloadEnd => |dir| forge(dir, |parts| parts.payload.push(0)),
    Inflate => |dir| forge(dir, |parts| {
        let len = parts.footer.frames[0].len as usize;
        parts.payload[..len].fill(0xff);
        parts.footer.frames[0].xxh3 = xxh3_64(&parts.payload[..len]);
    }),
    Key => |dir| forge(dir, |parts| parts.footer.key_ends[3] = u32::MAX),
    Shrank => |dir| {
        let reader = reader(dir);
        OpenOptions::new().write(true).open(reader.path()).unwrap().set_len(4096).unwrap();
        read_all(&reader).map(|_| ())
    },
    NoSuchBlock => |dir| reader(dir).read_block(3, 0, &mut [], &mut Scratch::new()),
    NoSuchColumn => |dir| reader(dir).read_block(0, 3, &mut [], &mut Scratch::new()),
    BufferLength => |dir| reader(dir).read_block(0, 0, &mut [0; 5], &mut Scratch::new()),
    BlockColumns => |dir| writer(dir).write_block(&[], &[SampleMeta { label: 0, source_index: 0, flags: 0, key: "" }]),
    BlockSamples => |dir| write_block(&mut writer(dir), 5, ""),
    Exists => |dir| ShardWriter::create(valid(dir).0, fixture::header(4)).map(|_| ()),
    Busy => |dir| {
        let _first = writer(dir);
        ShardWriter::create(dir.join("new.lat"), fixture::header(4)).map(|_| ())
    },
    WriterFailed => |dir| {
        let mut writer = writer(dir);
        write_block(&mut writer, 5, "").unwrap_err();
        write_block(&mut writer, 4, "")
    },
    NoManifest => |dir| Dataset::open(dir, Io::Pread).map(|_| ()),
    ShardName => |dir| edit_manifest(dir, "shard-00001.lat", "../shard-00001.lat"),
    ManifestSum => |dir| edit_manifest(dir, r#""samples": 13"#, r#""samples": 14"#),
    ShardMissing => |dir| edit_manifest(dir, "shard-00001.lat", "shard-00002.lat"),
    ShardMismatch => |dir| {
        let manifest = fixture::write_dataset(dir, &[10, 3]).unwrap();
        let [first, second] = [0, 1].map(|number: usize| dir.join(&manifest.shards[number].file));
        fs::copy(first, second).unwrap();
        Dataset::open(dir, Io::Pread).map(|_| ())
    },
    Label => |dir| edit_manifest(dir, r#""class 0","#, ""),
}

#[test]
fn every_way_of_being_wrong_has_its_own_error_which_names_the_file_and_a_remedy() {
    for (name, case) in CASES {
        let dir = tempfile::tempdir().unwrap();
        let error = case(dir.path()).expect_err(name);
        assert_eq!(variant(&error), *name, "{error}");
        let text = error.to_string();
        assert!(text.starts_with(dir.path().to_str().unwrap()), "{text}");
        assert!(text.contains("; ") || text.contains(": copy"), "no remedy in {text}");
    }
}

#[test]
fn what_forge_puts_together_unchanged_is_a_valid_shard() {
    let dir = tempfile::tempdir().unwrap();
    forge(dir.path(), |_| {}).unwrap();
}

#[test]
fn a_forged_shard_is_refused_wherever_it_contradicts_itself() {
    let cases: &[(&str, Case)] = &[
        ("Json", |dir| forge(dir, |parts| replace(parts, r#""shard":0"#, r#""shard":-1"#))),
        ("Json", |dir| forge(dir, |parts| parts.json = "[".repeat(100_000))),
        ("Field", |dir| forge(dir, |parts| replace(parts, "latent-shard", "latent-sharp"))),
        ("Version", |dir| forge(dir, |parts| replace(parts, r#""version":1"#, r#""version":2"#))),
        ("Field", |dir| forge(dir, |parts| replace(parts, "[4,4,4]", "[4294967295,4294967295,4294967295]"))),
        ("Json", |dir| forge(dir, |parts| replace(parts, "0.18215", "1e999"))),
        ("Count", |dir| forge(dir, |parts| parts.edit_footer = |footer| footer[4] = 4)),
        ("Count", |dir| forge(dir, |parts| parts.footer.block_samples = vec![4, 2, 4])),
        ("Count", |dir| forge(dir, |parts| parts.samples = 1000)),
        ("FooterLength", |dir| forge(dir, |parts| parts.samples = 11)),
        ("FooterLength", |dir| forge(dir, |parts| parts.edit_footer = |footer| footer.truncate(7))),
        ("FooterLength", |dir| forge(dir, |parts| parts.edit_footer = |footer| footer[8..12].fill(0xff))),
        ("FrameOffset", |dir| forge(dir, |parts| parts.footer.frames[0].off = u64::MAX)),
        ("FrameLength", |dir| forge(dir, |parts| parts.footer.frames[1].len -= 1)),
        ("FrameLength", |dir| forge(dir, |parts| parts.footer.frames[2].len = 0)),
        ("Checksum", |dir| forge(dir, |parts| parts.footer.frames[5].xxh3 ^= 1)),
        ("TooLarge", |dir| {
            forge(dir, |parts| {
                parts.edit_footer = |footer| footer[12..16].copy_from_slice(&(MAX_KEYS_LEN as u32 + 1).to_le_bytes());
            })
        }),
        ("Inflate", |dir| forge(dir, |parts| parts.edit_footer = |footer| footer[12] += 1)),
        ("Inflate", |dir| {
            forge(dir, |parts| {
                parts.edit_footer = |footer| *footer.last_mut().unwrap() ^= 0xff;
                // A key table of one repeated byte compresses to a frame whose last byte matters.
                parts.footer.keys = "k".repeat(parts.footer.keys.len());
            })
        }),
        ("Key", |dir| forge(dir, |parts| parts.edit_footer = |footer| footer[12..16].fill(0))),
        ("Key", |dir| forge(dir, |parts| parts.footer.key_ends.swap(2, 7))),
        ("Key", |dir| forge(dir, |parts| parts.footer.key_ends[1] = 1)),
        ("Key", |dir| forge(dir, |parts| parts.footer.keys.push('x'))),
        ("Key", |dir| {
            forge(dir, |parts| {
                parts.footer.keys.push_str(&"x".repeat(MAX_KEY_LEN + 1));
                *parts.footer.key_ends.last_mut().unwrap() = parts.footer.keys.len() as u32;
            })
        }),
        ("Magic", |dir| damage(dir, |bytes| bytes.truncate(bytes.len() - 1))),
        ("Magic", |dir| damage(dir, |bytes| bytes.push(0))),
        ("TooShort", |dir| damage(dir, |bytes| bytes.truncate(4096 + 40))),
        ("Checksum", |dir| {
            damage(dir, |bytes| {
                let samples_at = bytes.len() - 32;
                bytes[samples_at] += 1;
            })
        }),
        ("Reserved", |dir| {
            damage(dir, |bytes| {
                let tail_at = bytes.len() - TAIL_LEN;
                bytes[tail_at + 40] = 1;
                let own = xxh3_64(&bytes[tail_at..tail_at + 48]);
                bytes[tail_at + 48..tail_at + 56].copy_from_slice(&own.to_le_bytes());
            })
        }),
        ("FooterPosition", |dir| {
            damage(dir, |bytes| {
                let (tail_at, path) = (bytes.len() - TAIL_LEN, Path::new("x"));
                let tail = Tail::from_bytes(path, bytes[tail_at..].try_into().unwrap()).unwrap();
                bytes[tail_at..].copy_from_slice(&Tail { footer_len: u64::MAX, ..tail }.to_bytes());
            })
        }),
        ("Json", |dir| edit_manifest(dir, "{", "[")),
        ("Json", |dir| edit_manifest(dir, r#""xxh3": ""#, r#""xxh3": "+"#)),
        ("Json", |dir| edit_manifest(dir, r#""file""#, r#""host": "x", "file""#)),
        ("Field", |dir| edit_manifest(dir, "latent-dataset", "latent-shard")),
        ("Version", |dir| edit_manifest(dir, r#""version": 1"#, r#""version": 2"#)),
        ("ShardName", |dir| edit_manifest(dir, "shard-00001.lat", "shard-00000.lat")),
        ("ShardName", |dir| edit_manifest(dir, "shard-00001.lat", "..")),
        ("ShardName", |dir| edit_manifest(dir, "shard-00001.lat", "shard\\u001b[2J.lat")),
        ("ShardMismatch", |dir| edit_manifest(dir, "0.18215", "0.18216")),
        ("NotAFile", |dir| {
            fs::create_dir(dir.join(MANIFEST)).unwrap();
            Dataset::open(dir, Io::Pread).map(|_| ())
        }),
        ("TooLarge", |dir| {
            File::create(dir.join(MANIFEST)).unwrap().set_len(MAX_MANIFEST_LEN + 1).unwrap();
            Dataset::open(dir, Io::Pread).map(|_| ())
        }),
        ("TooLarge", |dir| {
            forge(dir, |parts| {
                replace(parts, r#""block_samples":4"#, r#""block_samples":1"#);
                parts.samples = 1 << 20;
                parts.edit_footer = |footer| footer[..4].copy_from_slice(&(1_u32 << 20).to_le_bytes());
            })
        }),
        ("TooLarge", sparse),
    ];
    for (i, (name, case)) in cases.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let error = case(dir.path()).expect_err(name);
        assert_eq!(variant(&error), *name, "case {i}: {error}");
    }
}

#[test]
fn a_key_or_a_block_over_a_limit_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(MAX_KEY_LEN + 1);
    assert!(matches!(write_block(&mut writer(dir.path()), 1, &long), Err(ShardError::TooLarge { .. })));
    let mut writer = writer(dir.path());
    write_block(&mut writer, 4, &long[1..]).unwrap();
    write_block(&mut writer, 3, "").unwrap();
    assert!(matches!(write_block(&mut writer, 4, ""), Err(ShardError::BlockSamples { .. })), "after a short block");
    assert!(matches!(writer.finish(), Err(ShardError::WriterFailed { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "a failed writer leaves nothing behind");
}

#[test]
fn a_manifest_with_wrong_statistics_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = fixture::write_dataset(dir.path(), &[3]).unwrap();
    let stats = ChannelStats { mean: 0.1, std: 1.0, min: -1.0, max: 1e-7, non_finite: 48 };
    let histogram = Histogram { low: -30.0, width: 0.1, counts: vec![7, 0, 5], below: 1, above: u64::from(u32::MAX) };
    manifest.stats = BTreeMap::from([("mean".to_owned(), vec![stats; 4])]);
    manifest.histograms = BTreeMap::from([("sample".to_owned(), Histogram { above: 2, ..histogram.clone() })]);
    manifest.save(dir.path()).unwrap();
    assert_eq!(Manifest::load(dir.path()).unwrap(), manifest);
    for (from, to) in [
        (r#""non_finite": 48"#, r#""non_finite": 49"#),
        (r#""mean": ["#, r#""average": ["#),
        (r#""above": 2"#, r#""above": 18446744073709551615"#),
        (r#""width": 0.1"#, r#""width": 0"#),
        (r#""sample": {"#, r#""sampl\u001b": {"#),
    ] {
        let text = fs::read_to_string(dir.path().join(MANIFEST)).unwrap();
        assert!(text.contains(from), "{from:?} is not in {text}");
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join(MANIFEST), text.replacen(from, to, 1)).unwrap();
        let error = Manifest::load(other.path()).unwrap_err();
        assert!(matches!(error, ShardError::Field { .. }), "{to}: {error}");
        assert!(!error.to_string().contains('\u{1b}'), "{error:?}");
    }
    manifest.histograms = BTreeMap::from([("sample".to_owned(), histogram)]);
    assert!(matches!(manifest.save(dir.path()), Err(ShardError::Field { .. })), "nor written");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_damage_gives_an_error_or_the_same_data(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 1_u8..), 0..6),
        in_front in any::<bool>(),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        added in proptest::collection::vec(any::<u8>(), 0..3),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut bytes) = valid(dir.path());
        let before = bytes.clone();
        let data = read_all(&ShardReader::open(&path, Io::Ram).unwrap()).unwrap();
        for (at, change) in flips {
            // Half of the damage goes where it is not just JSON: behind the header.
            let from = if in_front { 0 } else { 4096 };
            let at = from + at.index(bytes.len() - from);
            bytes[at] ^= change;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(added);
        fs::write(&path, &bytes).unwrap();
        for io in [Io::Mmap, Io::Pread, Io::Ram] {
            let opened = ShardReader::open(&path, io);
            let read = opened.and_then(|reader| Ok((read_all(&reader)?, verify(&reader)?)));
            match read {
                Ok((read, ())) => prop_assert!(read == data && bytes == before),
                Err(error) => prop_assert!(bytes != before, "{}", error),
            }
        }
    }

    #[test]
    fn random_damage_under_checksums_that_fit_gives_an_error_or_data_and_no_panic(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
        in_footer in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut bytes) = valid(dir.path());
        let tail_at = bytes.len() - TAIL_LEN;
        let tail = Tail::from_bytes(&path, bytes[tail_at..].try_into().unwrap()).unwrap();
        let range = if in_footer { tail.footer_off as usize..tail_at } else { PREFIX_LEN..PREFIX_LEN + 900 };
        for (at, change) in flips {
            bytes[range.start + at.index(range.len())] ^= change;
        }
        let header_xxh3 = xxh3_64(&bytes[PREFIX_LEN..4096]);
        bytes[24..32].copy_from_slice(&header_xxh3.to_le_bytes());
        let footer_xxh3 = xxh3_64(&bytes[tail.footer_off as usize..tail_at]);
        let tail = Tail { footer_xxh3, body_xxh3: xxh3_64(&bytes[PREFIX_LEN..tail_at]), ..tail };
        bytes[tail_at..].copy_from_slice(&tail.to_bytes());
        // Whether it is refused depends on what was hit: a label may be any number.
        if check(dir.path(), &bytes).is_ok() {
            let reader = ShardReader::open(dir.path().join("hostile.lat"), Io::Ram).unwrap();
            prop_assert_eq!(reader.len(), 10);
            prop_assert!((0..10).all(|sample| reader.key(sample).is_some()));
        }
    }
}
