//! One array of f32 in NumPy's `.npy` format, versions 1 to 3: what `numpy.save` writes and `numpy.load` reads.
//!
//! Written here and not taken from a crate, because such files come from anywhere: the header is parsed without
//! recursion and nothing is allocated that the file's length does not allow. C order and `<f4` or `>f4` only; pickled
//! objects, structures and other dtypes are refused by name. Values keep every bit, NaN payloads and the sign of zero
//! included.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub(super) const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Longest header that is read: `numpy.load` refuses longer ones too.
pub(super) const MAX_HEADER: usize = 10_000;
/// Largest file that is read, in bytes; one REPA latent has 32,896.
const MAX_FILE: u64 = 1 << 28;

/// Why a `.npy` file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    /// The system refused.
    #[error("{path}: cannot be read: {source}; check the path and its permissions", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is not what is expected.
    #[error("{path}: {reason}; expected a C-ordered float32 array as numpy.save writes it", path = .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// An array as read.
#[derive(Debug, Clone, PartialEq)]
pub struct Npy {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// The values as little-endian f32, in C order: 4 bytes for each.
    pub bytes: Vec<u8>,
}

impl Npy {
    /// Reads one array.
    ///
    /// # Errors
    /// [`NpyError`]: also where the file is longer or shorter than its shape says.
    pub fn read(path: &Path) -> Result<Self, NpyError> {
        let failed = |source| NpyError::Io { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let wrong = |reason: String| NpyError::Format { path: path.to_owned(), reason };
        if !metadata.is_file() {
            return Err(wrong("this is not a regular file".to_owned()));
        }
        if metadata.len() > MAX_FILE {
            return Err(wrong(format!("it has {} bytes, more than the {MAX_FILE} that are read", metadata.len())));
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        Read::take(&mut file, MAX_FILE).read_to_end(&mut bytes).map_err(failed)?;
        Self::parse(bytes).map_err(wrong)
    }

    /// Takes the bytes of a file apart; the error is what is wrong with them.
    fn parse(mut file: Vec<u8>) -> Result<Self, String> {
        let (header, data) = header_of(&file)?;
        let Header { descr, fortran_order, shape } = parse_header(header)?;
        let big_endian = match descr.as_str() {
            "<f4" => false,
            ">f4" => true,
            "|O" => return Err("it holds pickled Python objects".to_owned()),
            other => return Err(format!("its dtype is {other:?}")),
        };
        if fortran_order && shape.len() > 1 {
            return Err("it is in Fortran order".to_owned());
        }
        let declared = shape.iter().try_fold(4_usize, |bytes, &dim| bytes.checked_mul(dim));
        let held = file.len() - data;
        if declared != Some(held) {
            let declared = declared.map_or("more bytes than can be counted".to_owned(), |n| format!("{n} bytes"));
            return Err(format!("its shape {shape:?} makes {declared}, and it holds {held}"));
        }
        let mut bytes = file.split_off(data);
        if big_endian {
            bytes.as_chunks_mut::<4>().0.iter_mut().for_each(|value| value.reverse());
        }
        Ok(Self { shape, bytes })
    }
}

/// The bytes that come before the values of an array of this dtype (`<f4`) and shape, just as `numpy.save` writes them.
pub fn header(descr: &str, shape: &[u64]) -> Vec<u8> {
    let dims: String = shape.iter().map(|dim| format!("{dim}, ")).collect();
    // A tuple of one keeps its comma.
    let dims = if shape.len() == 1 { dims.trim_end() } else { dims.trim_end_matches(", ") };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}").into_bytes();
    // Room for the longest first dimension, as NumPy leaves it, and values that begin at a multiple of 64.
    if let Some(first) = shape.first() {
        text.resize(text.len() + 21 - first.to_string().len(), b' ');
    }
    let end = (10 + text.len() + 1).next_multiple_of(64);
    text.resize(end - 11, b' ');
    text.push(b'\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text);
    bytes
}

/// The header's text, and where the values begin.
fn header_of(file: &[u8]) -> Result<(&str, usize), String> {
    let rest = file.strip_prefix(MAGIC).ok_or("this is not an .npy file")?;
    let short = "it is cut short inside of its header";
    let (version, rest) = rest.split_at_checked(2).ok_or(short)?;
    let width = match version[0] {
        1 => 2,
        2 | 3 => 4,
        other => return Err(format!("version {other} of the format is unknown")),
    };
    let (len, rest) = rest.split_at_checked(width).ok_or(short)?;
    let len = len.iter().rev().fold(0_usize, |len, byte| len << 8 | usize::from(*byte));
    if len > MAX_HEADER {
        return Err(format!("its header says that it has {len} bytes, more than {MAX_HEADER}"));
    }
    let header = rest.get(..len).ok_or(short)?;
    let text = std::str::from_utf8(header).map_err(|_| "its header is not text")?;
    Ok((text, MAGIC.len() + 2 + width + len))
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// NumPy's name of the dtype: `<f4`, `|u1`.
    pub(super) descr: String,
    /// Whether the first dimension is the one whose values lie side by side.
    pub(super) fortran_order: bool,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (8, 32, 32), }`, with the keys in any order.
pub(super) fn parse_header(text: &str) -> Result<Header, String> {
    let strange = || format!("its header {:?} is not understood", text.trim_end());
    let (mut descr, mut fortran_order, mut shape) = (None, None, None);
    let mut rest = text.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or_else(strange)?.trim();
    while !rest.is_empty() {
        let (key, after) = quoted(rest).ok_or_else(strange)?;
        let value = after.trim_start().strip_prefix(':').ok_or_else(strange)?.trim_start();
        let after = match key {
            "descr" if value.starts_with('[') => return Err("it is an array of structures".to_owned()),
            "descr" => {
                let (name, after) = quoted(value).ok_or_else(strange)?;
                descr = Some(name);
                after
            }
            "fortran_order" => {
                let known = [("True", true), ("False", false)];
                let found = known.iter().find_map(|(name, is)| Some((*is, value.strip_prefix(name)?)));
                let (is, after) = found.ok_or_else(strange)?;
                fortran_order = Some(is);
                after
            }
            "shape" => {
                let (inside, after) = value.strip_prefix('(').and_then(|v| v.split_once(')')).ok_or_else(strange)?;
                let dims = inside.split(',').map(str::trim).filter(|dim| !dim.is_empty());
                shape = Some(dims.map(|dim| dim.parse().map_err(|_| strange())).collect::<Result<Vec<usize>, _>>()?);
                after
            }
            _ => return Err(strange()),
        };
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(after) => after.trim_start(),
            None if after.is_empty() => after,
            None => return Err(strange()),
        };
    }
    let (Some(descr), Some(fortran_order), Some(shape)) = (descr, fortran_order, shape) else { return Err(strange()) };
    Ok(Header { descr: descr.to_owned(), fortran_order, shape })
}

/// A Python string without escapes at the beginning of `text`, and what comes after it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|quote| ['\'', '"'].contains(quote))?;
    text[1..].split_once(quote)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, values: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(values);
        bytes
    }

    #[test]
    fn the_header_is_that_of_numpy_byte_for_byte() {
        // NumPy 2.4.6: np.save(f, np.zeros(shape, np.float32)), all but the values.
        let golden = [
            (&[8, 32, 32][..], "{'descr': '<f4', 'fortran_order': False, 'shape': (8, 32, 32), }", 128),
            (&[3][..], "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", 128),
            (&[][..], "{'descr': '<f4', 'fortran_order': False, 'shape': (), }", 128),
        ];
        for (shape, text, len) in golden {
            let bytes = header("<f4", shape);
            assert_eq!((bytes.len(), &bytes[..8]), (len, &b"\x93NUMPY\x01\x00"[..]));
            assert_eq!(u16::from_le_bytes([bytes[8], bytes[9]]) as usize, len - 10);
            assert_eq!(std::str::from_utf8(&bytes[10..]).unwrap(), format!("{text:<0$}\n", len - 11));
        }
    }

    #[test]
    fn both_byte_orders_and_keys_in_any_order_are_read() {
        let little = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }\n";
        let big = "{\"shape\":(1,2),\"fortran_order\":False,\"descr\":\">f4\"}";
        // A quiet NaN with a payload and minus zero.
        let values = [0xff, 0x00, 0xc1, 0x7f, 0, 0, 0, 0x80];
        let mut swapped = values;
        swapped[..4].reverse();
        swapped[4..].reverse();
        let expected = Npy { shape: vec![1, 2], bytes: values.to_vec() };
        assert_eq!(Npy::parse(file(little, &values)).unwrap(), expected);
        assert_eq!(Npy::parse(file(big, &swapped)).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let plain = |descr: &str, order: &str, shape: &str| {
            file(&format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"), &[0; 8])
        };
        let nested = format!("{}{}", "(".repeat(4000), ")".repeat(4000));
        let cases = [
            (b"PK\x03\x04".to_vec(), "not an .npy file"),
            (b"\x93NUMPY\x01".to_vec(), "cut short"),
            (b"\x93NUMPY\x09\x00\x00\x00".to_vec(), "version 9"),
            (b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(), "4294967295 bytes"),
            (b"\x93NUMPY\x01\x00\x40\x00{".to_vec(), "cut short"),
            (file("\u{fc}", &[])[..11].to_vec(), "cut short"),
            (plain("'|O'", "False", "(2,)"), "pickled"),
            (plain("'<f8'", "False", "(1,)"), "dtype is \"<f8\""),
            (plain("[('a', '<f4')]", "False", "(2,)"), "structures"),
            (plain("'<f4'", "True", "(1, 2)"), "Fortran"),
            (plain("'<f4'", "Maybe", "(2,)"), "not understood"),
            (plain("'<f4'", "False", "(2, -1)"), "not understood"),
            (plain("'<f4'", "False", "(1, 3)"), "makes 12 bytes, and it holds 8"),
            (plain("'<f4'", "False", "(4294967296, 4294967296)"), "more bytes than can be counted"),
            (plain("'<f4'", "False", &nested), "not understood"),
            (file("{'descr': '<f4'}", &[]), "not understood"),
        ];
        for (bytes, part) in cases {
            let error = Npy::parse(bytes).unwrap_err();
            assert!(error.contains(part), "{error} lacks {part}");
        }
        let dir = tempfile::tempdir().unwrap();
        let missing = Npy::read(&dir.path().join("a.npy")).unwrap_err().to_string();
        assert!(missing.contains("a.npy: cannot be read"), "{missing}");
        let folder = Npy::read(dir.path()).unwrap_err().to_string();
        assert!(folder.contains("not a regular file"), "{folder}");
        let large = dir.path().join("large.npy");
        File::create(&large).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert!(Npy::read(&large).unwrap_err().to_string().contains("more than"));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_array_or_a_sentence(header in "\\PC{0,60}", values in prop::collection::vec(any::<u8>(), 0..20)) {
            let _ = Npy::parse(file(&header, &values));
            let _ = Npy::parse(values);
        }

        #[test]
        fn what_is_written_is_read(shape in prop::collection::vec(0_usize..5, 0..4), seed in any::<u8>()) {
            let len = 4 * shape.iter().product::<usize>();
            let values: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(seed)).collect();
            let mut bytes = header("<f4", &shape.iter().map(|&dim| dim as u64).collect::<Vec<_>>());
            bytes.extend(&values);
            prop_assert_eq!(Npy::parse(bytes).unwrap(), Npy { shape, bytes: values });
        }
    }
}
