//! One 512-byte header of a tar, and the records of a PAX extended header: bytes in, fields out.
//!
//! POSIX.1-2017 `pax` describes both; the base-256 numbers and the types `L`, `K` and `S` are GNU's. Fields that do not
//! help to find a member (owner, mode, time, link target) are not read.

use std::ops::Range;

/// Bytes of a header, and what the data of a member are padded to a multiple of.
pub(super) const BLOCK: usize = 512;

const NAME: Range<usize> = 0..100;
const SIZE: Range<usize> = 124..136;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const MAGIC: Range<usize> = 257..263;
const PREFIX: Range<usize> = 345..500;

/// A header as it lies in the file.
#[derive(Debug, Clone)]
pub(super) struct Header(pub(super) [u8; BLOCK]);

/// What a header announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file.
    Regular,
    /// GNU `L`: the data are the name of the next member.
    LongName,
    /// PAX `x` (and `X`, an older spelling): the data are records about the next member.
    Extended,
    /// GNU `K` or PAX `g`: the data say nothing of names or sizes of one member.
    Skipped,
    /// GNU `S`.
    Sparse,
    /// A link, device, folder or pipe: there are no data, whatever the size field says.
    Empty,
    /// Anything else: there are data, as POSIX wants it for unknown types.
    Other,
}

/// A checksum that does not match, or that is no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadChecksum {
    /// The field is not an octal number.
    NotANumber,
    /// It is another number.
    Differs {
        /// Unsigned sum of the header.
        got: u64,
        /// The field.
        stored: u64,
    },
}

impl Header {
    /// Whether all bytes are 0: the end of the archive.
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Compares the checksum: the sum of the bytes with the field itself as spaces. Some old writers summed signed
    /// bytes.
    pub(super) fn verify(&self) -> Result<(), BadChecksum> {
        let stored = octal(&self.0[CHECKSUM]).ok_or(BadChecksum::NotANumber)?;
        let (mut unsigned, mut signed) = (0_u64, 0_i64);
        for (i, byte) in self.0.iter().enumerate() {
            let byte = if CHECKSUM.contains(&i) { b' ' } else { *byte };
            unsigned += u64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stored == unsigned || i64::try_from(stored) == Ok(signed) {
            return Ok(());
        }
        Err(BadChecksum::Differs { got: unsigned, stored })
    }

    /// What the type flag says.
    pub(super) fn kind(&self) -> Kind {
        match self.0[TYPE] {
            b'0' | 0 | b'7' => Kind::Regular,
            b'L' => Kind::LongName,
            b'x' | b'X' => Kind::Extended,
            b'K' | b'g' => Kind::Skipped,
            b'S' => Kind::Sparse,
            b'1'..=b'6' => Kind::Empty,
            _ => Kind::Other,
        }
    }

    /// Bytes of data, octal or base-256; `None` if the field is neither or does not fit.
    pub(super) fn size(&self) -> Option<u64> {
        let field = &self.0[SIZE];
        match field[0] {
            // The first bit marks base-256, the second is the sign.
            first @ 0x80..0xc0 => {
                let head = field[1..4].iter().fold(u64::from(first & 0x3f), |sum, byte| sum | u64::from(*byte));
                let tail = field[4..].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                (head == 0).then_some(tail)
            }
            0xc0.. => None,
            _ => octal(field),
        }
    }

    /// The name in the header, with the prefix of POSIX's ustar before it.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.0[NAME]);
        // GNU's magic, "ustar  ", has other fields where the prefix would be, and v7 has nothing.
        let prefix = if self.0[MAGIC] == *b"ustar\0" { until_nul(&self.0[PREFIX]) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
    }
}

/// What a PAX extended header says of the next member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pax {
    /// `path`.
    pub(super) path: Option<Vec<u8>>,
    /// `size`, in bytes.
    pub(super) size: Option<u64>,
    /// Any `GNU.sparse.` record.
    pub(super) sparse: bool,
}

impl Pax {
    /// Reads records of the form `length key=value\n`, the length in decimal and of the whole record; `None` if there is
    /// anything else. Of records with one key the last counts, and an empty value means none, as POSIX says.
    pub(super) fn parse(mut records: &[u8]) -> Option<Self> {
        let mut pax = Self::default();
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ')?;
            let len = usize::try_from(decimal(&records[..space])?).ok()?;
            let record = records.get(space + 1..len)?.strip_suffix(b"\n")?;
            records = &records[len..];
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => pax.path = (!value.is_empty()).then(|| value.to_vec()),
                b"size" if value.is_empty() => pax.size = None,
                b"size" => pax.size = Some(decimal(value)?),
                _ => pax.sparse |= key.starts_with(b"GNU.sparse."),
            }
        }
        Some(pax)
    }
}

/// The bytes before the first NUL.
pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number of at least one digit, with spaces around it, up to the first NUL.
fn octal(field: &[u8]) -> Option<u64> {
    digits(until_nul(field).trim_ascii(), 8)
}

fn decimal(field: &[u8]) -> Option<u64> {
    digits(field, 10)
}

fn digits(field: &[u8], radix: u32) -> Option<u64> {
    // `from_str_radix` would take a sign.
    let unsigned = field.first().is_some_and(|first| first.is_ascii_digit());
    u64::from_str_radix(str::from_utf8(field).ok()?, radix).ok().filter(|_| unsigned)
}
