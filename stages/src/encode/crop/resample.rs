//! Pillow 12's resampling of 8-bit RGB, bit for bit, on a window of the image.
//!
//! What makes the bytes what they are, besides the coefficients (`filter.rs`):
//! - the sums are those of integers;
//! - the horizontal pass comes first, and its result is rounded and clipped to u8 before the vertical pass.
//!
//! Pillow leaves out a pass that would not change the size; the filters would give the same bytes.
//! Pillow 13 changed the order of the passes for tall images; published latents were made before that.
//!
//! The loops here are what `avx2.rs` is compared with, and what runs where there is no AVX2.

use std::ops::Range;

use super::filter::{Coefficients, PRECISION};

/// A rectangle of a larger image: interleaved RGB of `columns` x `rows`.
#[derive(Debug)]
pub(super) struct Window {
    columns: Range<usize>,
    rows: Range<usize>,
    rgb: Vec<u8>,
}

impl Window {
    /// The rectangle `columns` x `rows` of an image; `rgb` holds its rows one after the other.
    pub(super) fn new(columns: Range<usize>, rows: Range<usize>, rgb: Vec<u8>) -> Self {
        Self { columns, rows, rgb }
    }

    /// The rectangle's pixels.
    pub(super) fn into_rgb(self) -> Vec<u8> {
        self.rgb
    }

    /// Bytes of the row `row`, restricted to `columns`; both are positions in the image.
    pub(super) fn row(&self, row: usize, columns: &Range<usize>) -> &[u8] {
        let start = (row - self.rows.start) * self.columns.len() + (columns.start - self.columns.start);
        &self.rgb[start * 3..(start + columns.len()) * 3]
    }

    /// A smaller rectangle.
    pub(super) fn cut(&self, columns: &Range<usize>, rows: &Range<usize>) -> Self {
        let mut rgb = Vec::with_capacity(columns.len() * rows.len() * 3);
        for row in rows.clone() {
            rgb.extend_from_slice(self.row(row, columns));
        }
        Self::new(columns.clone(), rows.clone(), rgb)
    }
}

/// The pixels that `columns` and `rows` make of the window, which must contain their sources; interleaved RGB.
pub(super) fn resample(window: &Window, columns: &Coefficients, rows: &Coefficients) -> Vec<u8> {
    vertical(&horizontal(window, columns, &rows.source()), columns.kernels().len() * 3, rows)
}

/// The rows `rows` of the window, each resampled to the pixels of `columns`.
fn horizontal(window: &Window, columns: &Coefficients, rows: &Range<usize>) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(rows.len() * columns.kernels().len() * 3);
    let source = columns.source();
    for row in rows.clone() {
        let (line, _) = window.row(row, &source).as_chunks::<3>();
        for (first, taps) in columns.kernels() {
            let mut sum = [1 << (PRECISION - 1); 3];
            for (pixel, k) in line[first - source.start..].iter().zip(taps) {
                for c in 0..3 {
                    sum[c] += i32::from(pixel[c]) * k;
                }
            }
            rgb.extend(sum.map(clip));
        }
    }
    rgb
}

/// Lines of `width` bytes, of which the first is the first of `rows.source()`, resampled to the lines of `rows`.
fn vertical(lines: &[u8], width: usize, rows: &Coefficients) -> Vec<u8> {
    let start = rows.source().start;
    let mut rgb = Vec::with_capacity(rows.kernels().len() * width);
    let mut sums = vec![0i32; width];
    for (first, taps) in rows.kernels() {
        sums.fill(1 << (PRECISION - 1));
        for (line, k) in lines.chunks_exact(width).skip(first - start).zip(taps) {
            for (sum, source) in sums.iter_mut().zip(line) {
                *sum += i32::from(*source) * k;
            }
        }
        rgb.extend(sums.iter().map(|sum| clip(*sum)));
    }
    rgb
}

/// Fixed point to u8. The half is added before the sum, and the shift floors.
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}
