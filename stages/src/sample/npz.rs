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

use crate::exchange::npy;
use crate::exchange::zip::{CRC_AT, Member, directory};

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
        let npy = npy::header("|u1", &[self.count(), self.height, self.width, 3]);
        let size = npy.len() as u64 + self.count() * self.row();
        (Member { name: "arr_0.npy".to_owned(), size, crc: 0, at: 0 }, npy)
    }

    /// Where the rows begin.
    fn rows_at(&self) -> u64 {
        let (member, npy) = self.images();
        member.local_header().len() as u64 + npy.len() as u64
    }
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
        let labels = [npy::header("<i8", &[self.images.count()]), values].concat();
        let at = self.images.rows_at() + self.images.count() * self.images.row();
        let second =
            Member { name: "arr_1.npy".to_owned(), size: labels.len() as u64, crc: crc32fast::hash(&labels), at };
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
