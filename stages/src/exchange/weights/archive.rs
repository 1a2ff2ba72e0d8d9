//! The directory of a zip archive as `torch.save` and `numpy.savez` write it: where each member's bytes lie in the file.
//!
//! Read from the central directory, zip64 included. PyTorch stores its members as they are, so [`members`] refuses what is
//! compressed or encrypted; [`all_members`] takes compressed ones too, for arrays. Only positions are read here; inflating,
//! and whether bytes have their checksum, is for whoever reads them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Signatures of the records.
pub(super) const LOCAL: u32 = 0x0403_4b50;
pub(super) const ENTRY: u32 = 0x0201_4b50;
pub(super) const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const END64_LOCATOR: u32 = 0x0706_4b50;

/// Lengths of the fixed parts of the records.
pub(super) const LOCAL_LEN: u64 = 30;
const ENTRY_LEN: usize = 46;
const END_LEN: usize = 22;
const END64_LEN: u64 = 56;
const END64_LOCATOR_LEN: u64 = 20;

/// Method of a deflated member; 0 is one stored as it is.
const DEFLATED: u16 = 8;

/// A directory of 300 tensors and their optimiser has 100 kB.
const MAX_DIRECTORY: u64 = 64 << 20;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The system refused to read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// No end record: what is there is the beginning of an archive at best.
    #[error("the zip archive has no end record, so the file was cut short; copy or download it again")]
    NoEnd,
    /// A record that is named does not lie where it should.
    #[error("the zip archive's {record} is not where the archive says; copy or download the file again")]
    Misplaced {
        /// Which record.
        record: &'static str,
    },
    /// The directory is larger than any that PyTorch writes.
    #[error(
        "the zip archive's directory has {len} bytes, more than the 64 MiB that are read; this is no file of weights"
    )]
    TooLarge {
        /// Length stated.
        len: u64,
    },
    /// Spread over several files.
    #[error("the zip archive has several parts; join them")]
    SeveralParts,
    /// A member's name is not text.
    #[error("the name of member {number} of the zip archive is not UTF-8; this is no file of PyTorch")]
    Name {
        /// Counted from 0.
        number: usize,
    },
    /// A member's record lies outside of the file or is of another kind.
    #[error("member {name:?} of the zip archive is not where the archive says; copy or download the file again")]
    Member {
        /// Its name.
        name: String,
    },
    /// Two members of one name.
    #[error("the zip archive has two members named {name:?}; this is no file of PyTorch")]
    Twice {
        /// Their name.
        name: String,
    },
    /// Not stored as it is.
    #[error(
        "member {name:?} of the zip archive is {how}, which PyTorch never does; pack it again without that (zip -0)"
    )]
    NotStored {
        /// Its name.
        name: String,
        /// `compressed` or `encrypted`.
        how: &'static str,
    },
}

/// Bytes of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::exchange) struct Member {
    /// Position in the file.
    pub(in crate::exchange) start: u64,
    /// Length in bytes, inflated.
    pub(in crate::exchange) len: u64,
    /// Length in the file.
    pub(in crate::exchange) stored_len: u64,
    /// Whether the bytes in the file are to be inflated.
    pub(in crate::exchange) deflated: bool,
    /// CRC-32 that the archive states.
    pub(in crate::exchange) crc32: u32,
}

/// All members by name, stored as they are.
pub(super) fn members(file: &File) -> Result<BTreeMap<String, Member>, ArchiveError> {
    let members = all_members(file)?;
    match members.iter().find(|(_, member)| member.deflated) {
        Some((name, _)) => Err(ArchiveError::NotStored { name: name.clone(), how: "compressed" }),
        None => Ok(members),
    }
}

/// All members by name, stored as they are or deflated.
pub(in crate::exchange) fn all_members(file: &File) -> Result<BTreeMap<String, Member>, ArchiveError> {
    let file_len = file.metadata()?.len();
    let (start, len, count) = directory(file, file_len)?;
    let bytes = read(file, start, len)?;
    let misplaced = ArchiveError::Misplaced { record: "directory" };
    let mut fields = Fields(&bytes);
    let mut members = BTreeMap::new();
    for number in 0..count {
        let Some(entry) = Entry::read(&mut fields) else { return Err(misplaced) };
        let name = str::from_utf8(entry.name).map_err(|_| ArchiveError::Name { number: number as usize })?.to_owned();
        match (entry.encrypted, entry.method) {
            (true, _) => return Err(ArchiveError::NotStored { name, how: "encrypted" }),
            (false, 0 | DEFLATED) => {}
            (false, _) => return Err(ArchiveError::NotStored { name, how: "compressed" }),
        }
        let Some(member) = locate(file, file_len, &entry)? else { return Err(ArchiveError::Member { name }) };
        if members.insert(name.clone(), member).is_some() {
            return Err(ArchiveError::Twice { name });
        }
    }
    Ok(members)
}

/// Position, length and number of entries of the central directory.
fn directory(file: &File, file_len: u64) -> Result<(u64, u64, u64), ArchiveError> {
    let tail_len = file_len.min(END_LEN as u64 + u64::from(u16::MAX));
    let tail = read(file, file_len - tail_len, tail_len)?;
    // The last record that a comment of the stated length follows, up to the end of the file.
    let ends_here = |at: &usize| {
        let record = &tail[*at..];
        record.starts_with(&END.to_le_bytes())
            && usize::from(u16::from_le_bytes([record[20], record[21]])) == record.len() - END_LEN
    };
    let last = tail.len().checked_sub(END_LEN).ok_or(ArchiveError::NoEnd)?;
    let at = (0..=last).rev().find(ends_here).ok_or(ArchiveError::NoEnd)?;
    let end = file_len - tail_len + at as u64;

    let mut fields = Fields(&tail[at + 4..]);
    let mut short = || fields.u16().ok_or(ArchiveError::NoEnd);
    let (disk, directory_disk, here, count) = (short()?, short()?, short()?, short()?);
    let (len, start) = (fields.u32().ok_or(ArchiveError::NoEnd)?, fields.u32().ok_or(ArchiveError::NoEnd)?);
    let full = [here, count].contains(&u16::MAX) || [len, start].contains(&u32::MAX);
    let (start, len, count, end) = if full {
        directory64(file, end)?
    } else {
        if disk != 0 || directory_disk != 0 || here != count {
            return Err(ArchiveError::SeveralParts);
        }
        (u64::from(start), u64::from(len), u64::from(count), end)
    };
    if len > MAX_DIRECTORY {
        return Err(ArchiveError::TooLarge { len });
    }
    if start.checked_add(len).is_none_or(|stop| stop > end) {
        return Err(ArchiveError::Misplaced { record: "directory" });
    }
    Ok((start, len, count))
}

/// The same from the zip64 records, and where these begin; `end` is where the plain end record begins.
fn directory64(file: &File, end: u64) -> Result<(u64, u64, u64, u64), ArchiveError> {
    let locator = || ArchiveError::Misplaced { record: "zip64 locator" };
    let record = || ArchiveError::Misplaced { record: "zip64 end record" };
    let at = end.checked_sub(END64_LOCATOR_LEN).ok_or_else(locator)?;
    let bytes = read(file, at, END64_LOCATOR_LEN)?;
    let mut fields = Fields(&bytes);
    let (Some(END64_LOCATOR), Some(0), Some(start)) = (fields.u32(), fields.u32(), fields.u64()) else {
        return Err(locator());
    };
    if start.checked_add(END64_LEN).is_none_or(|stop| stop > at) {
        return Err(record());
    }
    let bytes = read(file, start, END64_LEN)?;
    let mut fields = Fields(&bytes);
    // Behind the signature: length of the record (8), versions (2, 2), numbers of two parts (4, 4).
    let (Some(END64), Some(_)) = (fields.u32(), fields.take(20)) else { return Err(record()) };
    let (Some(here), Some(count), Some(len), Some(at)) = (fields.u64(), fields.u64(), fields.u64(), fields.u64())
    else {
        return Err(record());
    };
    if here != count {
        return Err(ArchiveError::SeveralParts);
    }
    Ok((at, len, count, start))
}

/// One entry of the central directory.
struct Entry<'a> {
    name: &'a [u8],
    encrypted: bool,
    method: u16,
    crc32: u32,
    stored_len: u64,
    len: u64,
    header: u64,
}

impl<'a> Entry<'a> {
    /// `None` where the bytes do not hold one.
    fn read(fields: &mut Fields<'a>) -> Option<Self> {
        let mut fixed = Fields(fields.take(ENTRY_LEN)?);
        if fixed.u32()? != ENTRY {
            return None;
        }
        fixed.take(4)?; // versions
        let (flags, method) = (fixed.u16()?, fixed.u16()?);
        fixed.take(4)?; // time
        let (crc32, stored_len, len) = (fixed.u32()?, fixed.u32()?, fixed.u32()?);
        let (name_len, extra_len, comment_len) = (fixed.u16()?, fixed.u16()?, fixed.u16()?);
        fixed.take(8)?; // part, attributes
        let header = fixed.u32()?;
        let name = fields.take(name_len.into())?;
        let extra = fields.take(extra_len.into())?;
        fields.take(comment_len.into())?;

        // What does not fit into 32 bits stands in the extra field 1, in this order.
        let mut wide = Fields(zip64_field(extra).unwrap_or_default());
        let mut widen = |value: u32| if value == u32::MAX { wide.u64() } else { Some(u64::from(value)) };
        let (len, stored_len, header) = (widen(len)?, widen(stored_len)?, widen(header)?);
        Some(Self { name, encrypted: flags & 1 != 0, method, crc32, stored_len, len, header })
    }
}

fn zip64_field(extra: &[u8]) -> Option<&[u8]> {
    let mut fields = Fields(extra);
    loop {
        let (id, len) = (fields.u16()?, fields.u16()?);
        let field = fields.take(len.into())?;
        if id == 1 {
            return Some(field);
        }
    }
}

/// Where the bytes of a member lie: behind its local header, whose name and padding have lengths of their own. `None`
/// where that is outside of the file.
fn locate(file: &File, file_len: u64, entry: &Entry<'_>) -> Result<Option<Member>, ArchiveError> {
    let deflated = entry.method == DEFLATED;
    if (!deflated && entry.stored_len != entry.len)
        || entry.header.checked_add(LOCAL_LEN).is_none_or(|end| end > file_len)
    {
        return Ok(None);
    }
    let bytes = read(file, entry.header, LOCAL_LEN)?;
    let mut fields = Fields(&bytes);
    let (Some(LOCAL), Some(_), Some(name), Some(extra)) = (fields.u32(), fields.take(22), fields.u16(), fields.u16())
    else {
        return Ok(None);
    };
    let start = entry.header + LOCAL_LEN + u64::from(name) + u64::from(extra);
    let inside = start.checked_add(entry.stored_len).is_some_and(|end| end <= file_len);
    let Entry { len, stored_len, crc32, .. } = *entry;
    Ok(inside.then_some(Member { start, len, stored_len, deflated, crc32 }))
}

/// `len` bytes from `start`, which were checked to lie in the file.
fn read(file: &File, start: u64, len: u64) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

/// Little-endian fields, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
