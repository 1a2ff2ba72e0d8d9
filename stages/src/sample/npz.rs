//! Images as one NumPy archive, the form that the ADM evaluator reads: `arr_0`, u8 `[N, H, W, 3]`, and `arr_1`, i64 `[N]`,
//! the class of each image.
//!
//! An npz is a ZIP of npy files. This one is stored (not compressed) and has ZIP64 records, so 50,000 images of 9.8 GB
//! fit. N is known, hence every size and place but a checksum is known before the first image:
//!
//! ```text
//! local header of arr_0.npy    CRC-32 zero until the end
//! npy header, rows             appended in the order of the images
//! arr_1.npy                    with its header; written at the end
//! central directory            last; then the CRC-32 in the first header
//! ```
//!
//! A file that was cut short at any byte goes on from its whole rows: the length says how many there are, and the CRC is
//! computed again from the bytes that are kept. ZIP libraries cannot reopen a member that is half written, hence a writer
//! of our own.

use std::io::{self, Read, Seek, SeekFrom, Write};

use crc32fast::Hasher;

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
const CRC_AT: usize = 14;

/// What is in an archive, apart from the pixels.
#[derive(Debug, Clone)]
pub struct NpzImages {
    /// Rows of an image.
    pub height: u64,
    /// Columns of an image.
    pub width: u64,
    /// The class of each image; their number is N.
    pub labels: Vec<i64>,
}

impl NpzImages {
    /// Bytes of an image.
    fn row(&self) -> u64 {
        self.height * self.width * 3
    }

    fn count(&self) -> u64 {
        self.labels.len() as u64
    }

    /// `arr_0.npy` without its checksum, and its npy header.
    fn images(&self) -> (Member, Vec<u8>) {
        let npy = npy_header("|u1", &[self.count(), self.height, self.width, 3]);
        let size = npy.len() as u64 + self.count() * self.row();
        (Member { name: "arr_0.npy", size, crc: 0, at: 0 }, npy)
    }

    /// Where the rows begin.
    fn rows_at(&self) -> u64 {
        let (member, npy) = self.images();
        member.local_header().len() as u64 + npy.len() as u64
    }
}

/// A file of the archive.
#[derive(Debug)]
struct Member {
    name: &'static str,
    size: u64,
    crc: u32,
    /// Where its local header begins.
    at: u64,
}

impl Member {
    fn local_header(&self) -> Vec<u8> {
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
fn directory(members: &[Member], at: u64) -> Vec<u8> {
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

/// Version 1.0 of the npy format; the array begins at a multiple of 64 bytes of the npy file.
fn npy_header(descr: &str, shape: &[u64]) -> Vec<u8> {
    let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
    // One side keeps its comma, as Python's tuples do.
    let sides = if shape.len() == 1 { sides.trim_end() } else { sides.trim_end_matches(", ") };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sides}), }}");
    while !(10 + text.len() + 1).is_multiple_of(64) {
        text.push(' ');
    }
    text.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    put16(&mut out, &[text.len() as u16]);
    out.extend_from_slice(text.as_bytes());
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

/// An archive that is being written. `F` is a file, opened to be read and written.
#[derive(Debug)]
pub struct NpzWriter<F> {
    file: F,
    images: NpzImages,
    /// Rows that are there.
    rows: u64,
    crc: Hasher,
}

impl<F: Read + Write + Seek> NpzWriter<F> {
    /// Begins at byte 0 of `file`, or goes on with what it holds: its whole rows are kept, and what is behind them will be
    /// written over. A file that ends before the first row is begun anew.
    ///
    /// # Errors
    /// The file system's, and `InvalidData` if the file begins otherwise than an archive of these images.
    pub fn open(mut file: F, images: NpzImages) -> io::Result<Self> {
        let (member, npy) = images.images();
        let header = [member.local_header(), npy.clone()].concat();
        let (len, begin) = (file.seek(SeekFrom::End(0))?, header.len() as u64);
        file.seek(SeekFrom::Start(0))?;
        let mut crc = Hasher::new();
        crc.update(&npy);
        if len < begin {
            file.write_all(&header)?;
            return Ok(Self { file, images, rows: 0, crc });
        }
        let mut found = vec![0; header.len()];
        file.read_exact(&mut found)?;
        // It may have been stopped behind the checksum.
        found[CRC_AT..CRC_AT + 4].fill(0);
        if found != header {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no archive of these images; remove it"));
        }
        let rows = ((len - begin) / images.row()).min(images.count());
        let mut left = rows * images.row();
        let mut buffer = vec![0; 1 << 20];
        while left > 0 {
            let part = left.min(buffer.len() as u64) as usize;
            file.read_exact(&mut buffer[..part])?;
            crc.update(&buffer[..part]);
            left -= part as u64;
        }
        Ok(Self { file, images, rows, crc })
    }

    /// Rows that are there.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Whether all rows are there.
    pub fn is_full(&self) -> bool {
        self.rows == self.images.count()
    }

    /// Appends the next image, `H W 3` bytes.
    ///
    /// # Errors
    /// The file system's, and `InvalidInput` for an image of another size, or one too many.
    pub fn append(&mut self, image: &[u8]) -> io::Result<()> {
        if image.len() as u64 != self.images.row() || self.is_full() {
            let NpzImages { height, width, .. } = self.images;
            let reason = format!(
                "image {} of {} bytes, into {} of {height} x {width} x 3",
                self.rows,
                image.len(),
                self.images.count()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        self.file.write_all(image)?;
        self.crc.update(image);
        self.rows += 1;
        Ok(())
    }

    /// Writes what follows the rows, all of which are there, and then the checksum. The file as it is given back may be
    /// longer than the archive if it was longer before; its length is to be set to its position.
    ///
    /// # Errors
    /// The file system's, and `InvalidInput` if rows are missing.
    pub fn finish(mut self) -> io::Result<F> {
        if !self.is_full() {
            let reason = format!("{} of {} images are there", self.rows, self.images.count());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let (mut first, _) = self.images.images();
        first.crc = self.crc.finalize();
        let values: Vec<u8> = self.images.labels.iter().flat_map(|label| label.to_le_bytes()).collect();
        let labels = [npy_header("<i8", &[self.images.count()]), values].concat();
        let at = self.images.rows_at() + self.images.count() * self.images.row();
        let second = Member { name: "arr_1.npy", size: labels.len() as u64, crc: crc32fast::hash(&labels), at };
        let mut tail = [second.local_header(), labels].concat();
        let directory_at = at + tail.len() as u64;
        let crc = first.crc;
        tail.extend(directory(&[first, second], directory_at));
        self.file.write_all(&tail)?;
        self.file.seek(SeekFrom::Start(CRC_AT as u64))?;
        self.file.write_all(&crc.to_le_bytes())?;
        self.file.seek(SeekFrom::Start(at + tail.len() as u64))?;
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests;
