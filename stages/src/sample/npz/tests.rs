//! Against NumPy and Python's zipfile, which the ADM evaluator reads with.

use std::fs::File;
use std::io::Cursor;

use super::*;
use crate::exchange::numpy::python;

fn images(count: u64, side: u64) -> NpzImages {
    NpzImages { height: side, width: side + 1, labels: (0..count as i64).map(|i| i * i % 7).collect() }
}

fn pixels(images: &NpzImages, index: u64) -> Vec<u8> {
    (0..images.row()).map(|i| ((i * 31 + index * 97) % 251) as u8).collect()
}

/// From `file`, however much of the archive it holds, to the end.
fn write(file: Vec<u8>, images: &NpzImages) -> Vec<u8> {
    let mut writer = NpzWriter::open(Cursor::new(file), images.clone()).unwrap();
    for index in writer.rows()..images.count() {
        writer.append(&pixels(images, index)).unwrap();
    }
    let cursor = writer.finish().unwrap();
    let end = cursor.position() as usize;
    let mut bytes = cursor.into_inner();
    bytes.truncate(end);
    bytes
}

#[test]
fn numpy_reads_what_is_written_and_every_checksum_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("samples.npz");
    let images = images(5, 6);
    std::fs::write(&path, write(Vec::new(), &images)).unwrap();
    let script = r#"
import hashlib, zipfile
import numpy as np
assert zipfile.ZipFile(path).testzip() is None
loaded = np.load(path)
a, labels = loaded["arr_0"], loaded["arr_1"]
print(sorted(loaded.files), a.dtype, a.shape, labels.dtype, labels.tolist(), hashlib.sha256(a.tobytes()).hexdigest())
"#;
    let shown = python(script, &path);
    let (head, hash) = shown.trim_end().rsplit_once(' ').unwrap();
    assert_eq!(head, "['arr_0', 'arr_1'] uint8 (5, 6, 7, 3) int64 [0, 1, 4, 2, 2]");
    let raw = folder.path().join("raw");
    std::fs::write(&raw, (0..5).flat_map(|index| pixels(&images, index)).collect::<Vec<_>>()).unwrap();
    let expected = python("import hashlib; print(hashlib.sha256(open(path, 'rb').read()).hexdigest())", &raw);
    assert_eq!(hash, expected.trim_end());
}

#[test]
fn cut_short_at_any_byte_it_is_written_to_the_same_bytes() {
    let images = images(3, 4);
    let whole = write(Vec::new(), &images);
    for len in 0..=whole.len() {
        assert!(write(whole[..len].to_vec(), &images) == whole, "cut to {len} of {} bytes", whole.len());
    }
    // Stopped before the checksum was put into the header, and with something behind the end.
    let mut unfinished = whole.clone();
    unfinished[CRC_AT..CRC_AT + 4].fill(0);
    unfinished.extend([9; 50]);
    assert!(write(unfinished, &images) == whole);
}

#[test]
fn other_images_and_rows_of_another_size_are_refused() {
    let whole = write(Vec::new(), &images(3, 4));
    let refused = |wanted: NpzImages| NpzWriter::open(Cursor::new(whole.clone()), wanted).unwrap_err();
    assert_eq!(refused(images(3, 5)).kind(), io::ErrorKind::InvalidData);
    assert_eq!(refused(images(4, 4)).kind(), io::ErrorKind::InvalidData);

    let mut writer = NpzWriter::open(Cursor::new(Vec::new()), images(1, 4)).unwrap();
    assert!(writer.append(&[0; 59]).unwrap_err().to_string().contains("image 0 of 59 bytes, into 1 of 4 x 5 x 3"));
    writer.append(&[0; 60]).unwrap();
    assert!(writer.append(&[0; 60]).is_err());
    let none = NpzWriter::open(Cursor::new(Vec::new()), images(1, 4)).unwrap();
    assert!(none.finish().unwrap_err().to_string().contains("0 of 1 images"));
}

/// A file in which zeros are holes, so that gigabytes take no disk.
#[derive(Debug)]
struct Holes(File);

impl Read for Holes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Seek for Holes {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl Write for Holes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.iter().all(|byte| *byte == 0) {
            self.0.seek_relative(bytes.len() as i64)?;
            return Ok(bytes.len());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// More than 4 GiB: sizes, and the place of the second array, do not fit into 32 bits.
#[test]
fn an_archive_beyond_four_gigabytes_has_its_sizes_and_places_in_zip64_fields() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.npz");
    let images = NpzImages { height: 4096, width: 4096, labels: (0..90).collect() };
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let mut writer = NpzWriter::open(Holes(file), images.clone()).unwrap();
    let mut image = vec![0; images.row() as usize];
    for index in 0..90 {
        image[0] = if index == 89 { 77 } else { 0 };
        writer.append(&image).unwrap();
    }
    writer.finish().unwrap();
    let script = r#"
import io, zipfile
import numpy as np
archive = zipfile.ZipFile(path)
for member in archive.infolist():
    print(member.filename, member.file_size, member.compress_size, member.header_offset, member.compress_type)
print(np.load(path)["arr_1"][-1])
member = archive.open("arr_0.npy")
assert np.lib.format.read_magic(member) == (1, 0)
print(np.lib.format.read_array_header_1_0(member)[0])
file = open(path, "rb")
file.seek(archive.infolist()[1].header_offset - 4096 * 4096 * 3)
print(file.read(1)[0])
"#;
    let rows = 90 * 4096 * 4096 * 3u64;
    let second = images.rows_at() + rows;
    assert!(second > 1 << 32);
    let expected = format!(
        "arr_0.npy {0} {0} 0 0\narr_1.npy {1} {1} {second} 0\n89\n(90, 4096, 4096, 3)\n77\n",
        rows + 128,
        128 + 90 * 8
    );
    assert_eq!(python(script, &path), expected);
}
