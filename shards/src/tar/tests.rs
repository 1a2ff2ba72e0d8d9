//! Tars made byte by byte: what comes back, and at least one hostile test for every [`TarFault`].

use std::fs;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use proptest::prelude::*;

use super::{MAX_LABEL_LEN, MAX_RECORD_LEN, TarError, TarFault, TarIndex, TarSample, index, index_of};
use crate::layout::MAX_KEY_LEN;

/// A sample without the place of its image, which only a parser of members can check (`stages`' fetch does).
#[derive(Debug, Clone, PartialEq)]
struct Whole {
    key: String,
    range: Range<u64>,
    image: String,
    label: i32,
}

fn whole(samples: &[TarSample]) -> Vec<Whole> {
    let of = |sample: &TarSample| {
        let TarSample { key, range, image, image_range, label } = sample.clone();
        assert!(
            range.start <= image_range.start && image_range.start < image_range.end && image_range.end <= range.end
        );
        Whole { key, range, image, label }
    };
    samples.iter().map(of).collect()
}

/// How a name is written.
#[derive(Debug, Clone, Copy)]
enum Style {
    /// Before POSIX: no magic, at most 100 bytes.
    V7,
    /// POSIX: a prefix before the name; PAX where that does not do.
    Ustar,
    /// GNU: an `L` record always, and sizes in base-256.
    Gnu,
    /// An `x` record always, with path and size, and nonsense in the header.
    Pax,
}

/// A tar that grows.
#[derive(Debug, Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn header(&mut self, name: &[u8], kind: u8, size: &[u8], change: impl FnOnce(&mut [u8; 512])) -> &mut Self {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name);
        header[100..107].copy_from_slice(b"0000644");
        header[124..124 + size.len()].copy_from_slice(size);
        header[156] = kind;
        change(&mut header);
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
        self
    }

    fn data(&mut self, data: &[u8]) -> &mut Self {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A header of type `kind` with an octal size, and its data.
    fn entry(&mut self, name: &str, kind: u8, data: &[u8]) -> &mut Self {
        let ustar = |header: &mut [u8; 512]| header[257..265].copy_from_slice(b"ustar\x0000");
        self.header(name.as_bytes(), kind, format!("{:011o}", data.len()).as_bytes(), ustar).data(data)
    }

    fn file(&mut self, name: &str, data: impl AsRef<[u8]>) -> &mut Self {
        self.entry(name, b'0', data.as_ref())
    }

    fn styled(&mut self, style: Style, name: &str, data: &[u8]) -> &mut Self {
        match style {
            Style::V7 if name.len() <= 100 => {
                let size = format!("{:>11o} ", data.len());
                self.header(name.as_bytes(), 0, size.as_bytes(), |_| {}).data(data)
            }
            Style::Ustar if name.len() <= 100 => self.file(name, data),
            Style::Ustar if name.rfind('/').is_some_and(|at| at <= 155 && name.len() - at <= 101) => {
                let (prefix, base) = name.rsplit_once('/').unwrap();
                let size = format!("{:011o}", data.len());
                let ustar = |header: &mut [u8; 512]| {
                    header[257..265].copy_from_slice(b"ustar\x0000");
                    header[345..345 + prefix.len()].copy_from_slice(prefix.as_bytes());
                };
                self.header(base.as_bytes(), b'0', size.as_bytes(), ustar).data(data)
            }
            Style::Gnu => {
                let mut size = (data.len() as u128).to_be_bytes()[4..].to_vec();
                size[0] = 0x80;
                let gnu = |header: &mut [u8; 512]| {
                    header[257..265].copy_from_slice(b"ustar  \0");
                    // Times of GNU's own, where POSIX has the prefix.
                    header[345..356].copy_from_slice(b"14000000000");
                };
                self.entry("././@LongLink", b'L', format!("{name}\0").as_bytes());
                self.header(&name.as_bytes()[..name.len().min(100)], b'0', &size, gnu).data(data)
            }
            Style::V7 | Style::Ustar | Style::Pax => {
                let records = [record("mtime", "1.5"), record("path", name), record("size", &data.len().to_string())];
                self.entry("PaxHeaders/x", b'x', records.concat().as_bytes());
                self.header(b"nonsense", b'0', b"00000000000", |_| {}).data(data)
            }
        }
    }

    fn sample(&mut self, key: &str) -> &mut Self {
        self.file(&format!("{key}.jpg"), "pixels").file(&format!("{key}.cls"), "7")
    }

    fn end(&mut self) -> &mut Self {
        self.0.extend([0; 1024]);
        self
    }

    fn index(&self) -> Result<TarIndex, TarError> {
        of(&self.0)
    }
}

/// A PAX record: its length counts itself.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let len = (1..).map(|digits| digits + rest.len()).find(|len| len.to_string().len() + rest.len() == *len).unwrap();
    format!("{len}{rest}")
}

fn of(bytes: &[u8]) -> Result<TarIndex, TarError> {
    index_of(Cursor::new(bytes), bytes.len() as u64, Path::new("x.tar"))
}

/// A valid tar of two samples, changed.
fn damage(change: impl FnOnce(&mut Vec<u8>)) -> Result<TarIndex, TarError> {
    let mut tar = Tar::default();
    tar.sample("a").sample("b").end();
    change(&mut tar.0);
    tar.index()
}

#[test]
fn a_sample_is_found_with_its_members_in_any_order() {
    let mut tar = Tar::default();
    tar.entry("train/", b'5', b"")
        .file("train/0.CLS", " 12\n")
        .file("train/0.seg.png", "no image")
        .file("train/0.JPEG", "x");
    tar.sample("train/v1.0/b").end();
    let found = tar.index().unwrap();
    let first = Whole { key: "train/0".into(), range: 512..3584, image: "train/0.JPEG".into(), label: 12 };
    let second = Whole { key: "train/v1.0/b".into(), range: 3584..5632, image: "train/v1.0/b.jpg".into(), label: 7 };
    assert_eq!((whole(&found.samples), found.ignored), (vec![first, second], 1));
}

#[test]
fn what_belongs_to_no_sample_is_counted_and_separates_nothing() {
    let mut tar = Tar::default();
    tar.entry("pax", b'g', record("path", "global").as_bytes());
    tar.file("./a.jpg", "x").file("./._a.cls", "macOS").entry("./a.cls", b'2', b"").file("./a.cls", "3");
    tar.file("__MACOSX/a.cls", "4")
        .file(".hidden/a.png", "x")
        .file("README", "no extension")
        .file("__meta__.json", "{}");
    // The size of a link to a file is that of the file, and there are no data.
    tar.header(b"a.png", b'1', b"00000070000", |_| {}).entry("vendor.jpg", b'Q', b"something");
    let found = tar.end().index().unwrap();
    assert_eq!(found.ignored, 8);
    assert_eq!(
        whole(&found.samples),
        [Whole { key: "./a".into(), range: 1024..4608, image: "./a.jpg".into(), label: 3 }]
    );
}

#[test]
fn a_tar_may_end_without_the_end_mark_where_a_member_ends() {
    let whole = damage(|_| {}).unwrap();
    assert_eq!(damage(|bytes| bytes.truncate(4096)).unwrap(), whole);
    assert_eq!(damage(|bytes| bytes.truncate(4096 + 512)).unwrap(), whole);
    assert_eq!(damage(|bytes| bytes.resize(20_480, 0)).unwrap(), whole, "padded to a record of 10 KiB");
}

#[test]
fn a_checksum_over_signed_bytes_is_accepted() {
    let mut tar = Tar::default();
    tar.file("ä.jpg", "x").file("ä.cls", "1");
    let sum: i32 = tar.0[..512]
        .iter()
        .enumerate()
        .map(|(i, v)| if (148..156).contains(&i) { 32 } else { i32::from(v.cast_signed()) })
        .sum();
    tar.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(tar.index().unwrap().samples[0].key, "ä");
}

#[test]
fn keys_of_the_longest_length_and_all_labels_are_taken() {
    let key = "k".repeat(MAX_KEY_LEN);
    let mut tar = Tar::default();
    for (style, label) in [(Style::Gnu, "0"), (Style::Pax, "2147483647")] {
        let key = &key[usize::from(label != "0")..];
        tar.styled(style, &format!("{key}.png"), b"x").styled(style, &format!("{key}.cls"), label.as_bytes());
    }
    let found = tar.index().unwrap().samples;
    assert_eq!(
        found.iter().map(|sample| (sample.key.len(), sample.label)).collect::<Vec<_>>(),
        [(4096, 0), (4095, i32::MAX)]
    );
}

/// Counts the bytes that are read.
#[derive(Debug)]
struct Counted<R>(R, u64);

impl<R: Read> Read for &mut Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(out)?;
        self.1 += read as u64;
        Ok(read)
    }
}

impl<R: Seek> Seek for &mut Counted<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

#[test]
fn images_are_not_read() {
    let mut tar = Tar::default();
    for i in 0..100 {
        tar.file(&format!("{i:03}.jpg"), vec![1; 50_000]).file(&format!("{i:03}.cls"), "5");
    }
    let mut counted = Counted(Cursor::new(&tar.0), 0);
    let found = index_of(&mut counted, tar.0.len() as u64, Path::new("x.tar")).unwrap();
    assert_eq!(found.samples.len(), 100);
    assert!(counted.1 <= 100 * 2 * 4096, "{} bytes read of {}", counted.1, tar.0.len());
}

/// Writes a name that needs `len` bytes of a record.
fn long_record(kind: u8, len: u64) -> Result<TarIndex, TarError> {
    Tar::default().entry("long", kind, &vec![b'a'; len as usize]).sample("a").end().index()
}

fn pax(records: &str) -> Result<TarIndex, TarError> {
    Tar::default().entry("PaxHeaders/a", b'x', records.as_bytes()).sample("a").end().index()
}

fn label(text: &str) -> Result<TarIndex, TarError> {
    Tar::default().file("a.jpg", "x").file("a.cls", text).end().index()
}

/// A case builds hostile input and returns what is made of it.
type Case = fn() -> Result<TarIndex, TarError>;

macro_rules! hostile {
    ($($variant:ident => $case:expr,)+) => {
        /// Deliberately without a wildcard.
        fn variant(fault: &TarFault) -> &'static str {
            match fault {
                $(TarFault::$variant { .. } => stringify!($variant),)+
            }
        }

        const CASES: &[(&str, Case)] = &[$((stringify!($variant), || $case),)+];
    };
}

hostile! {
    Io => index(Path::new("x.tar")),
    NotAFile => index(tempfile::tempdir().unwrap().path()).map_err(|error| TarError { path: "x.tar".into(), ..error }),
    Compressed => of(&[0x1f, 0x8b, 8, 0]),
    NotATar => of(&[b'a'; 2048]),
    Checksum => damage(|bytes| bytes[1024] = b'c'),
    Number => damage(|bytes| bytes[1024 + 148..1024 + 156].fill(b'x')),
    Truncated => damage(|bytes| bytes.truncate(4095)),
    AfterEnd => damage(|bytes| bytes.extend(bytes.clone())),
    RecordTooLong => long_record(b'L', MAX_RECORD_LEN + 1),
    Pax => pax("10 path=a"),
    Sparse => Tar::default().entry("a.jpg", b'S', b"x").end().index(),
    NotUtf8 => Tar::default().header(b"\xff.jpg", b'0', b"0", |_| {}).end().index(),
    KeyTooLong => pax(&record("path", &format!("{}.jpg", "k".repeat(MAX_KEY_LEN + 1)))),
    NoImage => Tar::default().sample("a").file("b.cls", "1").end().index(),
    TwoImages => Tar::default().sample("a").file("a.png", "x").end().index(),
    NoLabel => Tar::default().file("a.jpg", "x").sample("b").end().index(),
    TwoLabels => Tar::default().sample("a").file("a.CLS", "1").end().index(),
    NotANumber => label("n01440764"),
    LabelRange => label("-1"),
    DuplicateKey => Tar::default().sample("a").sample("b").sample("a").end().index(),
    NoSamples => Tar::default().entry("train/", b'5', b"").end().index(),
}

#[test]
fn every_way_of_being_wrong_has_its_own_error_which_names_the_file_the_place_and_a_remedy() {
    for (name, case) in CASES {
        let error = case().expect_err(name);
        assert_eq!(variant(&error.fault), *name, "{error}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("x.tar: at byte {}: ", error.offset)), "{text}");
        assert!(text.contains("; ") || text.contains(": give") || text.contains("must hold"), "no remedy in {text}");
    }
}

#[test]
fn what_is_wrong_is_found_wherever_it_is() {
    let cases: &[(&str, u64, Case)] = &[
        ("NotATar", 0, || of(b"")),
        ("NotATar", 0, || of(&[b' '; 100])),
        ("NoSamples", 0, || of(&[0; 1024])),
        ("Compressed", 0, || of(&[&[0x28, 0xb5, 0x2f, 0xfd], &[9; 2000][..]].concat())),
        ("Compressed", 0, || of(b"BZh91AY&SY")),
        ("Compressed", 0, || of(b"\xfd7zXZ\0")),
        ("Checksum", 1024, || damage(|bytes| bytes[1024 + 149] ^= 1)),
        ("Checksum", 1024, || damage(|bytes| bytes[1024 + 300] = 1)),
        ("Truncated", 4096, || damage(|bytes| bytes.truncate(4097))),
        ("Truncated", 3072, || damage(|bytes| bytes.truncate(3072 + 512))),
        ("Truncated", 1024, || damage(|bytes| bytes.truncate(1536))),
        // Sizes around the end of the number range, and one that wraps around to the beginning of the tar.
        ("Truncated", 0, || Tar::default().header(b"a.jpg", b'0', b"77777777777", |_| {}).end().index()),
        ("Truncated", 0, || {
            Tar::default().header(b"a.jpg", b'0', b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", |_| {}).index()
        }),
        ("Truncated", 0, || {
            Tar::default().header(b"a.jpg", b'0', b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xfe\0", |_| {}).index()
        }),
        ("Number", 0, || Tar::default().header(b"a.jpg", b'0', b"\x80\0\0\x01\0\0\0\0\0\0\0\0", |_| {}).end().index()),
        ("Number", 0, || Tar::default().header(b"a.jpg", b'0', &[0xff; 12], |_| {}).end().index()),
        ("Number", 0, || Tar::default().header(b"a.jpg", b'0', b"", |_| {}).end().index()),
        ("Number", 0, || Tar::default().header(b"a.jpg", b'0', b"+12", |_| {}).end().index()),
        ("Truncated", 0, || pax(&record("size", "18446744073709551615"))),
        ("Pax", 0, || pax(&record("size", "18446744073709551616"))),
        ("Pax", 0, || pax(&record("size", "-1"))),
        ("Pax", 0, || pax("0 path=a\n")),
        ("Pax", 0, || pax("3 path=a\n")),
        ("Pax", 0, || pax("18446744073709551615 path=a\n")),
        ("Pax", 0, || pax("8 patha\n")),
        ("Sparse", 0, || pax(&record("GNU.sparse.major", "1"))),
        ("RecordTooLong", 0, || long_record(b'x', MAX_RECORD_LEN + 1)),
        ("KeyTooLong", 0, || {
            let name = format!("{}.jpg", "k".repeat(MAX_RECORD_LEN as usize - 4));
            Tar::default().entry("long", b'L', name.as_bytes()).file("k.jpg", "x").index()
        }),
        ("NotUtf8", 0, || Tar::default().entry("L", b'L', b"\xff.jpg\0").file("a.jpg", "x").index()),
        // A record at the end, without the member that it is about.
        ("Truncated", 2048, || Tar::default().sample("a").entry("L", b'L', b"b.jpg\0").end().index()),
        ("Truncated", 2048, || Tar::default().sample("a").entry("L", b'L', b"b.jpg\0").index()),
        ("AfterEnd", 4608, || damage(|bytes| bytes[4608 + 511] = 1)),
        // Members of one sample that are not next to each other.
        ("NoLabel", 0, || Tar::default().file("a.jpg", "x").sample("b").file("a.cls", "1").index()),
        ("DuplicateKey", 4096, || Tar::default().sample("a").sample("b").sample("a").sample("b").index()),
        ("NoImage", 0, || Tar::default().file("README.md", "words").sample("a").index()),
        ("NotANumber", 1024, || label("")),
        ("NotANumber", 1024, || label("1.0")),
        ("NotANumber", 1024, || label(&"1".repeat(MAX_LABEL_LEN as usize + 1))),
        ("LabelRange", 1024, || label("2147483648")),
        ("LabelRange", 1024, || label(&"9".repeat(MAX_LABEL_LEN as usize))),
    ];
    for (i, (name, offset, case)) in cases.iter().enumerate() {
        let error = case().expect_err(name);
        assert_eq!((variant(&error.fault), error.offset), (*name, *offset), "case {i}: {error}");
    }
}

#[test]
fn a_file_that_shrinks_meanwhile_is_an_error() {
    let mut tar = Tar::default();
    tar.sample("a").end();
    let error = index_of(Cursor::new(&tar.0[..1024]), tar.0.len() as u64, Path::new("x.tar")).unwrap_err();
    assert_eq!(variant(&error.fault), "Truncated");
}

#[test]
fn a_file_on_disk_is_indexed_as_its_bytes_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    let mut tar = Tar::default();
    fs::write(&path, &tar.sample("a").sample("b").end().0).unwrap();
    assert_eq!(index(&path).unwrap(), tar.index().unwrap());
}

prop_compose! {
    /// Extension and data of the members of one sample in any order, the style of each, and the label.
    fn members()(
        image in prop_oneof![Just("jpg"), Just("JPEG"), Just("png")],
        label in 0..=i32::MAX,
        others in prop::sample::subsequence(vec!["json", "txt", "cls.bak"], 0..=3),
        size in 0..1500_usize,
    )(
        order in Just([vec![(image, vec![7; size]), ("cls", label.to_string().into_bytes())],
                       others.into_iter().map(|name| (name, vec![b'o'; size / 2])).collect()].concat()).prop_shuffle(),
        styles in prop::collection::vec(prop_oneof![Just(Style::V7), Just(Style::Ustar), Just(Style::Gnu), Just(Style::Pax)], 5),
        label in Just(label),
    ) -> (Vec<(&'static str, Vec<u8>, Style)>, i32) {
        (order.into_iter().zip(styles).map(|((name, data), style)| (name, data, style)).collect(), label)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_sample_comes_back_and_each_range_is_a_tar_of_it(
        samples in prop::collection::vec(("([a-zß_]{1,90}/){0,3}[a-z0-9]{1,120}", members()), 1..8),
        marked in any::<bool>(),
    ) {
        let mut tar = Tar::default();
        let mut expected = Vec::new();
        for (i, (name, (members, label))) in samples.iter().enumerate() {
            let key = format!("d/{}{i}", name.replace("__", "_ß"));
            let start = tar.0.len() as u64;
            let mut image = String::new();
            for (extension, data, style) in members {
                let name = format!("{key}.{extension}");
                tar.styled(*style, &name, data);
                if !["cls", "json", "txt", "cls.bak"].contains(extension) {
                    image = name;
                }
            }
            expected.push(Whole { key, range: start..tar.0.len() as u64, image, label: *label });
        }
        if marked {
            tar.end();
        }
        let found = tar.index().unwrap();
        prop_assert_eq!(&whole(&found.samples), &expected);
        prop_assert_eq!(found.ignored, 0);
        for sample in expected {
            let part = &tar.0[sample.range.start as usize..sample.range.end as usize];
            let range = 0..part.len() as u64;
            prop_assert_eq!(whole(&of(part).unwrap().samples), [Whole { range, ..sample }]);
        }
    }

    #[test]
    fn damaged_tars_give_an_error_or_ranges_inside_the_file_and_no_panic(
        style in prop_oneof![Just(Style::V7), Just(Style::Ustar), Just(Style::Gnu), Just(Style::Pax)],
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        mended in any::<bool>(),
    ) {
        let mut tar = Tar::default();
        for key in ["dir/a", "dir/b"] {
            tar.styled(style, &format!("{key}.png"), &[1; 600]).styled(style, &format!("{key}.cls"), b"3");
        }
        let mut bytes = tar.end().0.clone();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
            let header = &mut bytes[at / 512 * 512..][..512];
            if mended && header[148..156].ends_with(b"\0 ") {
                // What was hit is a header: with a checksum that fits, the damage goes further.
                header[148..156].fill(b' ');
                let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(found) = of(&bytes) {
            let mut end = 0;
            for sample in found.samples {
                prop_assert!(end <= sample.range.start && sample.range.start < sample.range.end);
                prop_assert!(sample.label >= 0 && sample.image.starts_with(&sample.key));
                end = sample.range.end;
            }
            prop_assert!(end <= bytes.len() as u64);
        }
    }

    #[test]
    fn bytes_that_are_no_tar_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        prop_assert!(of(&bytes).is_err());
    }
}
