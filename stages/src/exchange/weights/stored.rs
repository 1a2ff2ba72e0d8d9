//! A tensor that lies in a file: its dtype, shape, strides and position; and how its values come out as f32.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use half::{bf16, f16};

/// The floats that weights are stored in, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Float {
    F16,
    Bf16,
    F32,
    F64,
}

impl Float {
    /// Bytes of a value.
    pub(super) fn size(self) -> u64 {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// As reports call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }

    /// The largest distance of a value in [-1, 1] from what is stored of it: half a unit in the last place.
    pub(super) fn rounding(self) -> f64 {
        match self {
            Self::F16 => 2f64.powi(-12),
            Self::Bf16 => 2f64.powi(-9),
            Self::F32 | Self::F64 => 2f64.powi(-25),
        }
    }

    /// Values rounded to f32: exact but for f64.
    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F16 => bytes.as_chunks().0.iter().map(|&value| f16::from_le_bytes(value).to_f32()).collect(),
            Self::Bf16 => bytes.as_chunks().0.iter().map(|&value| bf16::from_le_bytes(value).to_f32()).collect(),
            Self::F32 => bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect(),
            Self::F64 => bytes.as_chunks().0.iter().map(|&value| f64::from_le_bytes(value) as f32).collect(),
        }
    }
}

/// Why a tensor's description cannot be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ViewFault {
    /// More values than 64 bits count.
    #[error("its shape has more values than any memory holds")]
    TooLarge,
    /// It reaches over the end of its memory.
    #[error("it reaches over the end of the memory that the file has for it")]
    OutOfRange,
    /// It shows some values several times.
    #[error(
        "it shows values of its memory several times (an expanded tensor); save a copy of it (tensor.contiguous())"
    )]
    Expanded,
}

/// A tensor in a file, which was checked to lie within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    /// `None`: integers or something else that is no weight.
    pub(super) float: Option<Float>,
    pub(super) shape: Vec<u64>,
    /// In values, one for each dimension.
    strides: Vec<u64>,
    /// Byte of the first value.
    start: u64,
    /// Number of values.
    len: u64,
    /// Values from the first to the last one, which lie together in the file.
    extent: u64,
    /// CRC-32 of the bytes, where the file states it of exactly these.
    crc32: Option<u32>,
}

impl Stored {
    /// A view of `memory` values that begin at byte `start`, from value `offset` on. `crc32` is that of all of them.
    pub(super) fn view(
        float: Option<Float>,
        (start, memory): (u64, u64),
        offset: u64,
        shape: Vec<u64>,
        strides: Vec<u64>,
        crc32: Option<u32>,
    ) -> Result<Self, ViewFault> {
        let len = shape.iter().try_fold(1_u64, |all, &side| all.checked_mul(side)).ok_or(ViewFault::TooLarge)?;
        let last = |all: u64, (&side, &stride): (&u64, &u64)| all.checked_add((side - 1).checked_mul(stride)?);
        let extent = match len {
            0 => 0,
            _ => shape.iter().zip(&strides).try_fold(0, last).ok_or(ViewFault::OutOfRange)?.saturating_add(1),
        };
        if offset.checked_add(extent).is_none_or(|end| end > memory) {
            return Err(ViewFault::OutOfRange);
        }
        if len > extent {
            return Err(ViewFault::Expanded);
        }
        let start = start + offset * float.map_or(0, Float::size);
        let crc32 = crc32.filter(|_| extent == memory);
        Ok(Self { float, shape, strides, start, len, extent, crc32 })
    }

    /// A tensor whose values lie in the order of its shape from byte `start` on, as many as `memory` at most.
    pub(super) fn contiguous(
        float: Option<Float>,
        start: u64,
        memory: u64,
        shape: Vec<u64>,
    ) -> Result<Self, ViewFault> {
        let strides = row_major(&shape).ok_or(ViewFault::TooLarge)?;
        Self::view(float, (start, memory), 0, shape, strides, None)
    }

    /// Bytes in the file.
    pub(super) fn bytes(&self) -> u64 {
        self.extent * self.float.map_or(0, Float::size)
    }

    /// All values in the order of the shape, and whether the file's checksum is theirs (true where it states none).
    /// Nothing comes of a tensor that is no weight.
    pub(super) fn read(&self, file: &File) -> io::Result<(Vec<f32>, bool)> {
        let Some(float) = self.float else { return Ok((Vec::new(), true)) };
        let mut bytes = vec![0; self.bytes() as usize];
        file.read_exact_at(&mut bytes, self.start)?;
        let whole = self.crc32.is_none_or(|stated| stated == crc32fast::hash(&bytes));
        let values = float.decode(&bytes);
        let in_order = self.len == 0 || row_major(&self.shape).is_some_and(|strides| self.walks_like(&strides));
        Ok((if in_order { values } else { self.gather(&values) }, whole))
    }

    /// Whether `strides` lead to the same places; that of a side of 1 leads nowhere.
    fn walks_like(&self, strides: &[u64]) -> bool {
        self.shape.iter().zip(&self.strides).zip(strides).all(|((&side, own), other)| side == 1 || own == other)
    }

    fn gather(&self, values: &[f32]) -> Vec<f32> {
        let mut index = vec![0; self.shape.len()];
        let mut at = 0;
        let mut gathered = Vec::with_capacity(self.len as usize);
        for _ in 0..self.len {
            gathered.push(values[at as usize]);
            // Counts up, the last dimension fastest.
            for ((place, &side), &stride) in index.iter_mut().zip(&self.shape).zip(&self.strides).rev() {
                *place += 1;
                at += stride;
                if *place < side {
                    break;
                }
                at -= *place * stride;
                *place = 0;
            }
        }
        gathered
    }
}

/// Strides of values that lie in the order of the shape; `None` where these are too many to count.
fn row_major(shape: &[u64]) -> Option<Vec<u64>> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = u64::checked_mul(strides[i], shape[i].max(1))?;
    }
    Some(strides)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn view(shape: &[u64], strides: &[u64], offset: u64, memory: u64) -> Result<Stored, ViewFault> {
        Stored::view(Some(Float::F32), (4, memory), offset, shape.to_vec(), strides.to_vec(), None)
    }

    #[test]
    fn every_float_comes_out_as_the_nearest_f32() {
        let values = [1.5, -0.25, 3e-5];
        let f16s: Vec<u8> = values.iter().flat_map(|&v| f16::from_f64(v).to_le_bytes()).collect();
        let bf16s: Vec<u8> = values.iter().flat_map(|&v| bf16::from_f64(v).to_le_bytes()).collect();
        let f64s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        for (float, bytes, expected) in [
            (Float::F16, f16s, values.map(|v| f16::from_f64(v).to_f32())),
            (Float::Bf16, bf16s, values.map(|v| bf16::from_f64(v).to_f32())),
            (Float::F64, f64s, values.map(|v| v as f32)),
        ] {
            let stored = Stored::contiguous(Some(float), 0, 3, vec![3]).unwrap();
            assert_eq!(stored.read(&file(&bytes)).unwrap(), (expected.to_vec(), true), "{}", float.name());
        }
    }

    #[test]
    fn strides_are_followed() {
        let bytes: Vec<u8> =
            [-1.0f32, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let read = |stored: Stored| stored.read(&file(&bytes)).unwrap().0;
        assert_eq!(read(view(&[2, 3], &[3, 1], 0, 7).unwrap()), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(read(view(&[3, 2], &[1, 3], 0, 7).unwrap()), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(read(view(&[2, 1, 2], &[4, 99, 2], 0, 7).unwrap()), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(read(view(&[2], &[1], 5, 7).unwrap()), [5.0, 6.0]);
        assert_eq!(read(view(&[], &[], 6, 7).unwrap()), [6.0]);
        assert!(read(view(&[0, 4], &[4, 1], 7, 7).unwrap()).is_empty());
    }

    #[test]
    fn a_view_that_cannot_be_is_refused() {
        for (shape, strides, offset, fault) in [
            (&[2, 4][..], &[4, 1][..], 0, ViewFault::OutOfRange),
            (&[2], &[u64::MAX], 0, ViewFault::OutOfRange),
            (&[3], &[u64::MAX / 2], 0, ViewFault::OutOfRange),
            (&[2], &[1], u64::MAX, ViewFault::OutOfRange),
            (&[8], &[0], 0, ViewFault::Expanded),
            (&[1 << 40, 2], &[0, 1], 0, ViewFault::Expanded),
            (&[1 << 40, 1 << 40], &[0, 0], 0, ViewFault::TooLarge),
        ] {
            assert_eq!(view(shape, strides, offset, 7), Err(fault), "{shape:?} {strides:?} {offset}");
        }
    }

    #[test]
    fn a_wrong_checksum_is_noticed() {
        let bytes = 2.5f32.to_le_bytes();
        let stored = |crc32| {
            Stored::view(Some(Float::F32), (0, 1), 0, vec![1], vec![1], Some(crc32))
                .unwrap()
                .read(&file(&bytes))
                .unwrap()
        };
        assert_eq!(stored(crc32fast::hash(&bytes)), (vec![2.5], true));
        assert_eq!(stored(7), (vec![2.5], false));
    }
}
