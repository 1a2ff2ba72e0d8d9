//! Byte planes back to values.
//!
//! Plane `p` holds byte `p` of every value of a block, one plane after the other; a value in memory has its bytes side by
//! side, the lowest first. Any range of values can be put together without touching the rest of the block. With AVX2
//! this is done 32 values at a time, elsewhere by a loop of the same result. Splitting into planes is in `codec.rs`.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vector loads and stores take pointers, and code for AVX2 must not run elsewhere")
)]

use std::ops::Range;

use crate::schema::DType;

/// Values were asked for that the planes do not have, or for a buffer of another length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "values {}..{} were asked for in {bytes} bytes where there are {len} values of {width} bytes; ask for values that \
     are there, with a buffer of their length", values.start, values.end
)]
pub struct NoSuchValues {
    /// Values asked for.
    pub values: Range<usize>,
    /// Length in bytes of the buffer for them.
    pub bytes: usize,
    /// Values that are there.
    pub len: usize,
    /// Bytes of a value.
    pub width: usize,
}

/// Writes the values `values` of a block to `out`, little-endian, one after the other. `planes` are the byte planes of
/// the whole block, as [`crate::ShardReader::read_planes`] gives them where [`crate::Codec::planes`] is more than 1;
/// `values` counts values of `dtype`: sample `i` of a column with `n` values in a sample is `i * n..(i + 1) * n`.
///
/// # Errors
/// [`NoSuchValues`] where `values` is not within the block, `out` is not `values.len() * dtype.width()` bytes long, or
/// the length of `planes` is no multiple of the width. Nothing is written then.
pub fn interleave(planes: &[u8], dtype: DType, values: Range<usize>, out: &mut [u8]) -> Result<(), NoSuchValues> {
    let done = match dtype {
        DType::F16 => select::<2>(planes, values.clone()).zip(whole::<2>(out, &values)).map(|(from, to)| two(from, to)),
        DType::F32 => {
            select::<4>(planes, values.clone()).zip(whole::<4>(out, &values)).map(|(from, to)| four(from, to))
        }
    };
    let width = dtype.width();
    done.ok_or(NoSuchValues { values, bytes: out.len(), len: planes.len() / width, width })
}

/// The bytes of `values` in each of `W` planes.
fn select<const W: usize>(planes: &[u8], values: Range<usize>) -> Option<[&[u8]; W]> {
    let len = planes.len() / W;
    if len * W != planes.len() || values.end > len {
        return None;
    }
    let mut selected = [&[][..]; W];
    for (p, selected) in selected.iter_mut().enumerate() {
        *selected = planes.get(p * len..(p + 1) * len)?.get(values.clone())?;
    }
    Some(selected)
}

/// `out` as values, where it has room for exactly `values`.
fn whole<'a, const W: usize>(out: &'a mut [u8], values: &Range<usize>) -> Option<&'a mut [[u8; W]]> {
    let (whole, rest) = out.as_chunks_mut();
    (rest.is_empty() && whole.len() == values.len()).then_some(whole)
}

/// Values of 2 bytes.
fn two(planes: [&[u8]; 2], out: &mut [[u8; 2]]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2.
        return unsafe { avx2::two(planes, out) };
    }
    plain(planes, out);
}

/// Values of 4 bytes.
fn four(planes: [&[u8]; 4], out: &mut [[u8; 4]]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2.
        return unsafe { avx2::four(planes, out) };
    }
    plain(planes, out);
}

/// The result by definition. All slices have the same length.
fn plain<const W: usize>(planes: [&[u8]; W], out: &mut [[u8; W]]) {
    for (p, plane) in planes.iter().enumerate() {
        for (value, &byte) in out.iter_mut().zip(*plane) {
            value[p] = byte;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! The same with AVX2. Its interleavings stay within halves of 16 bytes, so the halves change places at the end.

    use std::arch::x86_64::*;

    /// Values in a step: bytes of a vector.
    const LANES: usize = 32;

    /// As [`super::plain`].
    #[target_feature(enable = "avx2")]
    pub(super) fn two(planes: [&[u8]; 2], out: &mut [[u8; 2]]) {
        let ([low, high], [low_rest, high_rest]) = steps(planes);
        let (steps, rest) = out.as_chunks_mut::<LANES>();
        for ((out, low), high) in steps.iter_mut().zip(low).zip(high) {
            let (low, high) = (load(low), load(high));
            let (even, odd) = (_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high));
            let (first, second) = (lower(even, odd), upper(even, odd));
            let [out_first, out_second] = out.as_flattened_mut().as_chunks_mut().0 else { return };
            store(out_first, first);
            store(out_second, second);
        }
        super::plain([low_rest, high_rest], rest);
    }

    /// As [`super::plain`].
    #[target_feature(enable = "avx2")]
    pub(super) fn four(planes: [&[u8]; 4], out: &mut [[u8; 4]]) {
        let (whole, rests) = steps(planes);
        let (steps, rest) = out.as_chunks_mut::<LANES>();
        let [a, b, c, d] = whole;
        for ((((out, a), b), c), d) in steps.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            let (a, b, c, d) = (load(a), load(b), load(c), load(d));
            let (low_even, low_odd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
            let (high_even, high_odd) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
            // Values 0 to 3, 4 to 7, 8 to 11 and 12 to 15 in the lower halves, 16 later in the upper ones.
            let quarters = [
                _mm256_unpacklo_epi16(low_even, high_even),
                _mm256_unpackhi_epi16(low_even, high_even),
                _mm256_unpacklo_epi16(low_odd, high_odd),
                _mm256_unpackhi_epi16(low_odd, high_odd),
            ];
            let [q0, q1, q2, q3] = quarters;
            let values = [lower(q0, q1), lower(q2, q3), upper(q0, q1), upper(q2, q3)];
            for (out, values) in out.as_flattened_mut().as_chunks_mut().0.iter_mut().zip(values) {
                store(out, values);
            }
        }
        super::plain(rests, rest);
    }

    /// The planes in whole steps, and what is left of each.
    fn steps<const W: usize>(planes: [&[u8]; W]) -> ([&[[u8; LANES]]; W], [&[u8]; W]) {
        (planes.map(|plane| plane.as_chunks().0), planes.map(|plane| plane.as_chunks::<LANES>().1))
    }

    /// The lower halves of both.
    #[target_feature(enable = "avx2")]
    fn lower(a: __m256i, b: __m256i) -> __m256i {
        _mm256_permute2x128_si256::<0x20>(a, b)
    }

    /// The upper halves of both.
    #[target_feature(enable = "avx2")]
    fn upper(a: __m256i, b: __m256i) -> __m256i {
        _mm256_permute2x128_si256::<0x31>(a, b)
    }

    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8; LANES]) -> __m256i {
        // SAFETY: there are 32 bytes to read; any alignment will do.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn store(out: &mut [u8; LANES], vector: __m256i) {
        // SAFETY: there are 32 bytes to write; any alignment will do.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), vector) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_of_the_planes_become_neighbours() {
        let mut out = [0; 6];
        interleave(&[1, 3, 5, 2, 4, 6], DType::F16, 0..3, &mut out).unwrap();
        assert_eq!(out, [1, 2, 3, 4, 5, 6]);
        let mut out = [0; 4];
        interleave(&[1, 5, 2, 6, 3, 7, 4, 8], DType::F32, 1..2, &mut out).unwrap();
        assert_eq!(out, [5, 6, 7, 8]);
        interleave(&[], DType::F32, 0..0, &mut []).unwrap();
    }

    #[test]
    fn values_that_are_not_there_and_buffers_of_another_length_are_refused() {
        let planes = [7; 8];
        let mut out = [0; 8];
        #[expect(clippy::reversed_empty_ranges, reason = "such a range must be refused too")]
        let cases = [
            (&planes[..], DType::F16, 0..5, 8),
            (&planes, DType::F16, 3..2, 0),
            (&planes, DType::F16, 5..5, 0),
            (&planes, DType::F16, 0..usize::MAX, 8),
            (&planes, DType::F16, 0..2, 3),
            (&planes, DType::F16, 0..2, 5),
            (&planes, DType::F32, 0..2, 4),
            (&planes[..7], DType::F16, 0..1, 2),
            (&planes[..6], DType::F32, 0..1, 4),
        ];
        for (planes, dtype, values, bytes) in cases {
            let refused = interleave(planes, dtype, values.clone(), &mut out[..bytes]).unwrap_err();
            assert_eq!((&refused.values, refused.bytes, refused.width), (&values, bytes, dtype.width()));
        }
        assert_eq!(out, [0; 8]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn every_range_at_every_alignment_is_what_the_definition_gives(
            block in proptest::collection::vec(any::<u32>(), 1..700),
            ends in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
            misaligned in (0_usize..64, 0_usize..64),
        ) {
            let bytes: Vec<u8> = block.iter().flat_map(|word| word.to_le_bytes()).collect();
            for dtype in [DType::F16, DType::F32] {
                let (width, len) = (dtype.width(), bytes.len() / dtype.width());
                let (one, other) = (ends.0.index(len + 1), ends.1.index(len + 1));
                let values = one.min(other)..one.max(other);
                let mut planes = vec![0xee; misaligned.0];
                planes.extend_from_slice(&bytes);
                let planes = &planes[misaligned.0..];
                let written = misaligned.1..misaligned.1 + values.len() * width;
                let mut out = vec![0xee; written.end + 64];
                interleave(planes, dtype, values.clone(), &mut out[written.clone()]).unwrap();
                let expected: Vec<u8> =
                    values.flat_map(|value| (0..width).map(move |p| planes[p * len + value])).collect();
                prop_assert_eq!(&out[written.clone()], &expected[..]);
                prop_assert!(out[..written.start].iter().chain(&out[written.end..]).all(|&byte| byte == 0xee));
            }
        }
    }
}
