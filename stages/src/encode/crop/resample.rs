//! Pillow 12's resampling of 8-bit RGB, bit for bit, on a window of the image.
//!
//! What makes the bytes what they are:
//! - each output value is a weighted sum over the filter's support, stretched by the scale when shrinking (antialiasing),
//!   with f64 weights normalised to a sum of 1 and then rounded to fixed point with 22 fractional bits, halves away from zero;
//! - the horizontal pass comes first, and its result is rounded and clipped to u8 before the vertical pass;
//! - a pass that would not change the size is left out.
//!
//! Pillow 13 changed the order of the passes for tall images; published latents were made before that.

use std::ops::Range;

/// Fractional bits of a coefficient: 32 less 8 for the pixel less 2 for negative lobes and their sum.
const PRECISION: u32 = 22;

/// A separable filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// Mean over half a pixel to each side.
    Box,
    /// Keys' cubic with a = -0.5.
    Bicubic,
}

impl Filter {
    /// Half the width of the filter at scale 1, in pixels.
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Box if x > -0.5 && x <= 0.5 => 1.0,
            Self::Box => 0.0,
            Self::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
        }
    }

    /// The coefficients that make the pixels `wanted` of a line of `to` pixels out of one of `from` pixels (both at least 1).
    pub(super) fn coefficients(self, from: usize, to: usize, wanted: Range<usize>) -> Coefficients {
        if from == to {
            return Coefficients { kernels: None, source: wanted.clone(), wanted };
        }
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = self.support() * stretch;
        // Pillow multiplies by the reciprocal; dividing would round differently.
        let shrink = 1.0 / stretch;

        let mut kernels = Vec::with_capacity(wanted.len());
        let mut weights = Vec::new();
        for at in wanted.clone() {
            let centre = (at as f64 + 0.5) * scale;
            // Casts of floats to integers cut towards zero and saturate, which is also the clamp to 0.
            let first = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            weights.clear();
            weights.extend((0..end - first).map(|i| self.weight(((i + first) as f64 - centre + 0.5) * shrink)));
            let sum: f64 = weights.iter().sum();
            let fixed = weights.iter().map(|weight| {
                let normal = if sum == 0.0 { *weight } else { weight / sum };
                let scaled = normal * f64::from(1 << PRECISION);
                (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
            });
            kernels.push(Kernel { first, taps: fixed.collect() });
        }
        let source = kernels.first().map_or(0, |kernel| kernel.first)
            ..kernels.last().map_or(0, |kernel| kernel.first + kernel.taps.len());
        Coefficients { kernels: Some(kernels), source, wanted }
    }
}

/// How one line is resampled.
#[derive(Debug)]
pub(super) struct Coefficients {
    /// One for each wanted pixel; `None` if the size does not change and the pass is left out.
    kernels: Option<Vec<Kernel>>,
    source: Range<usize>,
    wanted: Range<usize>,
}

#[derive(Debug)]
struct Kernel {
    /// Position of the first tap in the source line.
    first: usize,
    /// Fixed-point weights.
    taps: Vec<i32>,
}

impl Coefficients {
    /// The part of the source line that the wanted pixels depend on.
    pub(super) fn source(&self) -> Range<usize> {
        self.source.clone()
    }
}

/// A rectangle of a larger image: interleaved RGB of `columns` x `rows`.
#[derive(Debug)]
pub(super) struct Window {
    columns: Range<usize>,
    rows: Range<usize>,
    rgb: Vec<u8>,
}

impl Window {
    /// The whole of an image.
    pub(super) fn whole(rgb: Vec<u8>, width: usize, height: usize) -> Self {
        Self { columns: 0..width, rows: 0..height, rgb }
    }

    /// The rectangle's pixels.
    pub(super) fn into_rgb(self) -> Vec<u8> {
        self.rgb
    }

    /// Bytes of the row `row`, restricted to `columns`; both are positions in the image.
    fn row(&self, row: usize, columns: &Range<usize>) -> &[u8] {
        let start = (row - self.rows.start) * self.columns.len() + (columns.start - self.columns.start);
        &self.rgb[start * 3..(start + columns.len()) * 3]
    }

    /// A smaller rectangle.
    pub(super) fn cut(&self, columns: &Range<usize>, rows: &Range<usize>) -> Self {
        let rgb = rows.clone().flat_map(|row| self.row(row, columns)).copied().collect();
        Self { columns: columns.clone(), rows: rows.clone(), rgb }
    }

    /// The wanted pixels of the resized image. The window must contain the sources of `columns` and `rows`.
    pub(super) fn resample(self, columns: &Coefficients, rows: &Coefficients) -> Self {
        let rows_needed = rows.source();
        let mid = match &columns.kernels {
            Some(kernels) => self.horizontal(kernels, &columns.wanted, &rows_needed),
            None => self.cut(&columns.wanted, &rows_needed),
        };
        match &rows.kernels {
            Some(kernels) => mid.vertical(kernels, &rows.wanted),
            None => mid,
        }
    }

    fn horizontal(&self, kernels: &[Kernel], columns: &Range<usize>, rows: &Range<usize>) -> Self {
        let mut rgb = vec![0; rows.len() * kernels.len() * 3];
        for (row, out) in rows.clone().zip(rgb.chunks_exact_mut(kernels.len() * 3)) {
            for (kernel, pixel) in kernels.iter().zip(out.as_chunks_mut::<3>().0) {
                let taps = self.row(row, &(kernel.first..kernel.first + kernel.taps.len()));
                let mut sum = [1 << (PRECISION - 1); 3];
                for (source, k) in taps.as_chunks::<3>().0.iter().zip(&kernel.taps) {
                    for c in 0..3 {
                        sum[c] += i32::from(source[c]) * k;
                    }
                }
                *pixel = sum.map(clip);
            }
        }
        Self { columns: columns.clone(), rows: rows.clone(), rgb }
    }

    fn vertical(&self, kernels: &[Kernel], rows: &Range<usize>) -> Self {
        let width = self.columns.len();
        let mut rgb = Vec::with_capacity(kernels.len() * width * 3);
        let mut sums = vec![0i32; width * 3];
        for kernel in kernels {
            sums.fill(1 << (PRECISION - 1));
            for (row, k) in (kernel.first..).zip(&kernel.taps) {
                for (sum, source) in sums.iter_mut().zip(self.row(row, &self.columns)) {
                    *sum += i32::from(*source) * k;
                }
            }
            rgb.extend(sums.iter().map(|sum| clip(*sum)));
        }
        Self { columns: self.columns.clone(), rows: rows.clone(), rgb }
    }
}

/// Fixed point to u8. The half is added before the sum, and the shift floors.
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}
