//! Zip archives of stored (not compressed) files, as they are written: every record is ZIP64, so that sizes need not be known
//! to fit. Reading is `weights::archive`'s.
//!
//! ```text
//! local header, bytes      for each file; the CRC-32 may be filled in behind
//! central directory        last, with what ends the archive
//! ```

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
const END: u32 = 0x0605_4b50;
/// What a field of 32 bits holds whose value is in the ZIP64 record.
const IN_ZIP64: u32 = u32::MAX;
/// ZIP 4.5, the first with ZIP64.
const VERSION: u16 = 45;
/// 1 January 1980, the first day that a ZIP knows: equal contents have equal bytes.
const DATE: u16 = 0x21;
/// Where the CRC-32 stands in a local header.
pub(crate) const CRC_AT: usize = 14;

/// A file of the archive.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) crc: u32,
    /// Where its local header begins.
    pub(crate) at: u64,
}

impl Member {
    pub(crate) fn local_header(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put32(&mut out, LOCAL);
        put16(&mut out, &[VERSION, 0, 0, 0, DATE]); // version, flags, stored, time, date
        put32(&mut out, self.crc);
        put32(&mut out, IN_ZIP64);
        put32(&mut out, IN_ZIP64);
        put16(&mut out, &[self.name.len() as u16, 20]);
        out.extend_from_slice(self.name.as_bytes());
        put16(&mut out, &[1, 16]);
        put64(&mut out, &[self.size, self.size]);
        out
    }

    fn central_header(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put32(&mut out, CENTRAL);
        put16(&mut out, &[VERSION, VERSION, 0, 0, 0, DATE]); // made by, needed, flags, stored, time, date
        put32(&mut out, self.crc);
        put32(&mut out, IN_ZIP64);
        put32(&mut out, IN_ZIP64);
        put16(&mut out, &[self.name.len() as u16, 28, 0, 0, 0]); // name, extra, comment, disk, internal attributes
        put32(&mut out, 0);
        put32(&mut out, IN_ZIP64);
        out.extend_from_slice(self.name.as_bytes());
        put16(&mut out, &[1, 24]);
        put64(&mut out, &[self.size, self.size, self.at]);
        out
    }
}

/// The central directory of `members` and what ends the archive, to be written at byte `at`.
pub(crate) fn directory(members: &[Member], at: u64) -> Vec<u8> {
    let mut out: Vec<u8> = members.iter().flat_map(Member::central_header).collect();
    let (size, count) = (out.len() as u64, members.len() as u64);
    put32(&mut out, END64);
    put64(&mut out, &[44]);
    put16(&mut out, &[VERSION, VERSION]);
    put32(&mut out, 0);
    put32(&mut out, 0);
    put64(&mut out, &[count, count, size, at]);
    put32(&mut out, LOCATOR64);
    put32(&mut out, 0);
    put64(&mut out, &[at + size]);
    put32(&mut out, 1);
    put32(&mut out, END);
    put16(&mut out, &[0, 0, count as u16, count as u16]);
    put32(&mut out, size as u32);
    put32(&mut out, IN_ZIP64);
    put16(&mut out, &[0]);
    out
}

fn put16(out: &mut Vec<u8>, values: &[u16]) {
    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_le_bytes());
}

fn put64(out: &mut Vec<u8>, values: &[u64]) {
    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}
