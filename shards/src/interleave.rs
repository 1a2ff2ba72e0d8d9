//! Values out of a block: byte planes put together, or plain values copied.
//!
//! Plane `p` holds byte `p` of every value of a block, one plane after the other; in memory a value has its bytes side by
//! side, the lowest first. Any range of values can be put together without touching the rest of the block. Splitting
//! into planes is in `codec.rs`.
//!
//! A loader takes samples at random out of many megabytes and puts them where no CPU looks for a while, so memory decides
//! how fast this is. Three things help, on a CPU with AVX2 (GB/s of output for samples of 4,096 f16 values out of 1 GiB of
//! planes into a ring of five batches of 4 MiB, on one core of a busy AMD EPYC; memcpy of as many bytes: 5.0, a plain
//! loop: 5.9, 32 values at a time: 6.6): to write past the caches, which saves reading what is overwritten (7.2); to ask
//! for the beginning of the next sample before this one is written (8.1 with both); and to copy plain values in two places
//! at a time, since the CPU reads ahead only within a page and in each place by itself (samples of 8 KiB out of a mapped
//! file, with a consumer that reads the batch: memcpy 4.9, so 6.3). Elsewhere plain loops give the same bytes.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vector loads and stores take pointers, and code for AVX2 must not run elsewhere")
)]

use std::ops::Range;

use crate::schema::{Column, DType};

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

impl Column {
    /// Writes sample `sample` of a block to `out`: `sample_bytes` bytes, little-endian values. `block` is the whole block
    /// as [`crate::ShardReader::read_planes`] or [`crate::ShardReader::in_place`] gave it. `out` is written past the
    /// caches where that is faster.
    ///
    /// # Errors
    /// [`NoSuchValues`] where the block has no such sample or `out` has another length. Nothing is written then.
    pub fn copy_sample(&self, block: &[u8], sample: usize, out: &mut [u8]) -> Result<(), NoSuchValues> {
        let width = self.dtype.width();
        let values = self.values(sample);
        if self.codec.planes(self.dtype) > 1 {
            return interleave(block, self.dtype, values, out);
        }
        match block.get(values.start.saturating_mul(width)..values.end.saturating_mul(width)) {
            Some(from) if from.len() == out.len() => {
                copy(from, out);
                Ok(())
            }
            _ => Err(NoSuchValues { values, bytes: out.len(), len: block.len() / width, width }),
        }
    }

    /// Asks the CPU for the beginning of what [`Column::copy_sample`] will read, without waiting for it. Call it for the
    /// next sample before this one is copied; a sample that is not there is ignored.
    pub fn prefetch_sample(&self, block: &[u8], sample: usize) {
        let start = self.values(sample).start;
        let planes = self.codec.planes(self.dtype);
        let (starts, from) = match planes {
            // As `copy` reads: in both halves of the sample.
            1 => (2, start.saturating_mul(self.dtype.width())),
            _ => (planes, start),
        };
        let apart = if planes == 1 { self.sample_bytes() / 2 } else { block.len() / planes };
        for place in 0..starts {
            if let Some(bytes) = block.get(place.saturating_mul(apart).saturating_add(from)..) {
                prefetch(bytes);
            }
        }
    }

    /// Numbers of a sample's values in its block.
    fn values(&self, sample: usize) -> Range<usize> {
        let len = self.sample_bytes() / self.dtype.width();
        let start = sample.saturating_mul(len);
        start..start.saturating_add(len)
    }
}

/// Writes the values `values` of a block to `out`, little-endian, one after the other, past the caches where that is
/// faster. `planes` are the byte planes of the whole block, as [`crate::ShardReader::read_planes`] gives them where
/// [`crate::Codec::planes`] is more than 1; `values` counts values of `dtype`: sample `i` of a column with `n` values in a
/// sample is `i * n..(i + 1) * n`.
///
/// # Errors
/// [`NoSuchValues`] where `values` is not within the block, `out` is not `values.len() * dtype.width()` bytes long, or
/// the length of `planes` is no multiple of the width. Nothing is written then.
pub fn interleave(planes: &[u8], dtype: DType, values: Range<usize>, out: &mut [u8]) -> Result<(), NoSuchValues> {
    put::<true>(planes, dtype, values, out)
}

/// As [`interleave`] for all values of a block, for somebody who reads them soon: through the caches.
pub(crate) fn interleave_all(planes: &[u8], dtype: DType, out: &mut [u8]) -> Result<(), NoSuchValues> {
    put::<false>(planes, dtype, 0..planes.len() / dtype.width(), out)
}

fn put<const STREAM: bool>(
    planes: &[u8],
    dtype: DType,
    values: Range<usize>,
    out: &mut [u8],
) -> Result<(), NoSuchValues> {
    let done = match dtype {
        DType::F16 => select(planes, &values).zip(whole(out, &values)).map(|(from, to)| two::<STREAM>(from, to)),
        DType::F32 => select(planes, &values).zip(whole(out, &values)).map(|(from, to)| four::<STREAM>(from, to)),
    };
    let width = dtype.width();
    done.ok_or(NoSuchValues { values, bytes: out.len(), len: planes.len() / width, width })
}

/// The bytes of `values` in each of `W` planes.
fn select<'a, const W: usize>(planes: &'a [u8], values: &Range<usize>) -> Option<[&'a [u8]; W]> {
    let len = planes.len() / W;
    let mut selected = [&[][..]; W];
    for (p, selected) in selected.iter_mut().enumerate() {
        *selected = planes.get(p * len..(p + 1) * len)?.get(values.clone())?;
    }
    (len * W == planes.len()).then_some(selected)
}

/// `out` as values, where it has room for exactly `values`.
fn whole<'a, const W: usize>(out: &'a mut [u8], values: &Range<usize>) -> Option<&'a mut [[u8; W]]> {
    let (whole, rest) = out.as_chunks_mut();
    (rest.is_empty() && whole.len() == values.len()).then_some(whole)
}

/// Values of 2 bytes. All slices have the same length.
fn two<const STREAM: bool>(planes: [&[u8]; 2], out: &mut [[u8; 2]]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2.
        return unsafe { avx2::two::<STREAM>(planes, out) };
    }
    plain_two(planes, out);
}

/// Values of 4 bytes. All slices have the same length.
fn four<const STREAM: bool>(planes: [&[u8]; 4], out: &mut [[u8; 4]]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2.
        return unsafe { avx2::four::<STREAM>(planes, out) };
    }
    plain_four(planes, out);
}

/// Plain values, past the caches. Both have the same length.
fn copy(from: &[u8], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2.
        return unsafe { avx2::copy(from, out) };
    }
    out.copy_from_slice(from);
}

/// Asks for the first two cache lines: more of them made copying slower. The CPU finds the rest by itself.
fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64).take(2) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 CPU has SSE, and a hint reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

// One loop over whole values, not one for each plane: the compiler makes good vector code of it, for AVX2 where it is
// inlined there, and `out` is passed once.

#[inline]
fn plain_two([low, high]: [&[u8]; 2], out: &mut [[u8; 2]]) {
    for ((value, &low), &high) in out.iter_mut().zip(low).zip(high) {
        *value = [low, high];
    }
}

#[inline]
fn plain_four([a, b, c, d]: [&[u8]; 4], out: &mut [[u8; 4]]) {
    for ((((value, &a), &b), &c), &d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *value = [a, b, c, d];
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! The same with AVX2, 32 bytes of a plane at a time, and past the caches in whole lines. Its interleavings stay
    //! within halves of 16 bytes, so the halves change places at the end.

    use std::arch::x86_64::*;

    /// Bytes of a vector.
    const LANES: usize = 32;

    /// Bytes of a line.
    const LINE: usize = 64;

    /// One line of the caches.
    #[repr(C, align(64))]
    struct Line([u8; LINE]);

    /// As [`super::two`].
    #[target_feature(enable = "avx2")]
    pub(super) fn two<const STREAM: bool>(planes: [&[u8]; 2], out: &mut [[u8; 2]]) {
        let Some((head, lines, rest)) = whole_lines::<STREAM, 2>(out) else { return super::plain_two(planes, out) };
        let (heads, planes) = split(planes, head.len());
        super::plain_two(heads, head);
        let (planes, rests) = split(planes, lines.len() * LANES);
        let [low, high] = planes.map(|plane| plane.as_chunks().0);
        for ((line, low), high) in lines.iter_mut().zip(low).zip(high) {
            let (low, high) = (load(low), load(high));
            let (even, odd) = (_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high));
            stream(line, lower(even, odd), upper(even, odd));
        }
        super::plain_two(rests, rest);
        _mm_sfence();
    }

    /// As [`super::four`].
    #[target_feature(enable = "avx2")]
    pub(super) fn four<const STREAM: bool>(planes: [&[u8]; 4], out: &mut [[u8; 4]]) {
        let Some((head, lines, rest)) = whole_lines::<STREAM, 4>(out) else { return super::plain_four(planes, out) };
        let (heads, planes) = split(planes, head.len());
        super::plain_four(heads, head);
        let (pairs, last) = lines.as_chunks_mut::<2>();
        let (planes, rests) = split(planes, pairs.len() * LANES);
        let [a, b, c, d] = planes.map(|plane| plane.as_chunks().0);
        for (((([first, second], a), b), c), d) in pairs.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            let (a, b, c, d) = (load(a), load(b), load(c), load(d));
            let (low_even, low_odd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
            let (high_even, high_odd) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
            // Values 0 to 3, 4 to 7, 8 to 11 and 12 to 15 in the lower halves, those 16 later in the upper ones.
            let q0 = _mm256_unpacklo_epi16(low_even, high_even);
            let q1 = _mm256_unpackhi_epi16(low_even, high_even);
            let q2 = _mm256_unpacklo_epi16(low_odd, high_odd);
            let q3 = _mm256_unpackhi_epi16(low_odd, high_odd);
            stream(first, lower(q0, q1), lower(q2, q3));
            stream(second, upper(q0, q1), upper(q2, q3));
        }
        let (lasts, rests) = split(rests, last.len() * LINE / 4);
        for line in last {
            super::plain_four(lasts, line.0.as_chunks_mut().0);
        }
        super::plain_four(rests, rest);
        _mm_sfence();
    }

    /// As [`super::copy`], in both halves at a time.
    #[target_feature(enable = "avx2")]
    pub(super) fn copy(from: &[u8], out: &mut [u8]) {
        let out = out.as_chunks_mut::<1>().0;
        let Some((head, lines, rest)) = whole_lines::<true, 1>(out) else {
            return out.as_flattened_mut().copy_from_slice(from);
        };
        let (first, from) = from.split_at(head.len());
        head.as_flattened_mut().copy_from_slice(first);
        let (whole, last) = from.split_at(lines.len() * LINE);
        let (ones, others) = whole.as_chunks().0.split_at(lines.len() / 2);
        let (one_lines, other_lines) = lines.split_at_mut(lines.len() / 2);
        for ((to, from), (other_to, other)) in one_lines.iter_mut().zip(ones).zip(other_lines.iter_mut().zip(others)) {
            stream_copy(to, from);
            stream_copy(other_to, other);
        }
        // The second half has one line more where their number is odd.
        if let (Some(line), Some(last)) = (other_lines.last_mut(), others.last()) {
            stream_copy(line, last);
        }
        rest.as_flattened_mut().copy_from_slice(last);
        _mm_sfence();
    }

    /// The first `at` bytes of every plane, and the others.
    fn split<const W: usize>(planes: [&[u8]; W], at: usize) -> ([&[u8]; W], [&[u8]; W]) {
        (planes.map(|plane| plane.split_at(at).0), planes.map(|plane| plane.split_at(at).1))
    }

    /// `out` as whole lines between values before and after them; `None` where they are not wanted or no value begins a
    /// line.
    #[expect(clippy::type_complexity, reason = "three slices")]
    fn whole_lines<const STREAM: bool, const W: usize>(
        out: &mut [[u8; W]],
    ) -> Option<(&mut [[u8; W]], &mut [Line], &mut [[u8; W]])> {
        let head = out.as_ptr().align_offset(LINE);
        if !STREAM || head >= out.len() {
            return None;
        }
        let (head, aligned) = out.split_at_mut(head);
        // SAFETY: a line is 64 bytes without padding, and any bytes are one.
        let (before, lines, rest) = unsafe { aligned.as_flattened_mut().align_to_mut() };
        // W divides the 64 bytes of a line, so whole values are left.
        before.is_empty().then_some((head, lines, rest.as_chunks_mut().0))
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
    fn stream_copy(line: &mut Line, from: &[u8; LINE]) {
        if let [first, second] = from.as_chunks().0 {
            stream(line, load(first), load(second));
        }
    }

    /// Writes a line past the caches. Other threads may see such a write later than those that follow, which an sfence
    /// prevents: every function that calls this ends with one.
    #[target_feature(enable = "avx2")]
    fn stream(line: &mut Line, first: __m256i, second: __m256i) {
        let to = line.0.as_mut_ptr().cast::<__m256i>();
        // SAFETY: a line has room for two vectors and is aligned for them; an sfence follows before the caller's `&mut` ends.
        unsafe {
            _mm256_stream_si256(to, first);
            _mm256_stream_si256(to.add(1), second);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Codec, Semantics};

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

    fn column(dtype: DType, codec: Codec, values: u32) -> Column {
        Column { name: "a".into(), dtype, shape: vec![values], codec, semantics: Semantics::Sample }
    }

    #[test]
    fn samples_that_are_not_there_and_buffers_of_another_length_are_refused() {
        for codec in [Codec::None, Codec::Zstd { level: 1 }, Codec::ShuffleZstd { level: 1 }] {
            let (column, block) = (column(DType::F16, codec, 3), [7; 12]);
            let mut out = [0; 8];
            for (sample, bytes) in [(2, 6), (0, 5), (0, 7), (0, 8), (usize::MAX, 6), (usize::MAX, 0)] {
                let refused = column.copy_sample(&block, sample, &mut out[..bytes]).unwrap_err();
                assert_eq!((refused.bytes, refused.len, refused.width), (bytes, 6, 2), "{codec:?} {sample}");
                column.prefetch_sample(&block, sample);
            }
            assert_eq!(out, [0; 8]);
            column.prefetch_sample(&[], 0);
            column.copy_sample(&block, 1, &mut out[..6]).unwrap();
            assert_eq!(out, [7, 7, 7, 7, 7, 7, 0, 0]);
        }
    }

    #[test]
    fn a_message_says_what_was_asked_for_and_what_is_there() {
        let text = interleave(&[0; 8], DType::F16, 3..7, &mut [0; 8]).unwrap_err().to_string();
        for part in ["values 3..7", "8 bytes", "4 values of 2 bytes", "; ask"] {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
    }

    /// The result by definition.
    fn expected(planes: &[u8], width: usize, values: Range<usize>) -> Vec<u8> {
        let len = planes.len() / width;
        values.flat_map(|value| (0..width).map(move |p| planes[p * len + value])).collect()
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
            let mut planes = vec![0xee; misaligned.0];
            planes.extend_from_slice(&bytes);
            let planes = &planes[misaligned.0..];
            for dtype in [DType::F16, DType::F32] {
                let (width, len) = (dtype.width(), bytes.len() / dtype.width());
                let (one, other) = (ends.0.index(len + 1), ends.1.index(len + 1));
                let values = one.min(other)..one.max(other);
                let expected = expected(planes, width, values.clone());
                let written = misaligned.1..misaligned.1 + expected.len();
                let mut out = vec![0xee; written.end + 64];
                for way in 0..3 {
                    out.fill(0xee);
                    let target = &mut out[written.clone()];
                    match (way, dtype) {
                        (0, _) => put::<true>(planes, dtype, values.clone(), target).unwrap(),
                        (1, _) => put::<false>(planes, dtype, values.clone(), target).unwrap(),
                        (_, DType::F16) => plain_two(select(planes, &values).unwrap(), whole(target, &values).unwrap()),
                        (_, DType::F32) => plain_four(select(planes, &values).unwrap(), whole(target, &values).unwrap()),
                    }
                    prop_assert_eq!(&out[written.clone()], &expected[..]);
                    prop_assert!(out[..written.start].iter().chain(&out[written.end..]).all(|&byte| byte == 0xee));
                }
            }
        }

        #[test]
        fn a_sample_is_the_same_out_of_planes_and_out_of_values(
            samples in 1_usize..5,
            values in 1_u32..400,
            f32s in any::<bool>(),
            noise in any::<u8>(),
            misaligned in (0_usize..64, 0_usize..64),
        ) {
            let dtype = if f32s { DType::F32 } else { DType::F16 };
            let (plain, shuffled) = (column(dtype, Codec::None, values), column(dtype, Codec::ShuffleZstd { level: 1 }, values));
            let (bytes, width) = (plain.sample_bytes(), dtype.width());
            let raw: Vec<u8> = (0..samples * bytes).map(|i| (i * 31 + i / 251) as u8 ^ noise).collect();
            let mut moved = vec![0; misaligned.0];
            moved.extend_from_slice(&raw);
            let planes: Vec<u8> = (0..width).flat_map(|p| raw.iter().skip(p).step_by(width).copied()).collect();
            for sample in 0..samples {
                for (column, block) in [(&plain, &moved[misaligned.0..]), (&shuffled, &planes[..])] {
                    let written = misaligned.1..misaligned.1 + bytes;
                    let mut out = vec![0xee; written.end + 64];
                    column.prefetch_sample(block, sample);
                    column.copy_sample(block, sample, &mut out[written.clone()]).unwrap();
                    prop_assert_eq!(&out[written.clone()], &raw[sample * bytes..(sample + 1) * bytes]);
                    prop_assert!(out[..written.start].iter().chain(&out[written.end..]).all(|&byte| byte == 0xee));
                }
            }
        }
    }
}
