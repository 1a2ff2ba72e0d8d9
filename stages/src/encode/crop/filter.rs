//! Pillow 12's filters and the fixed-point coefficients that it makes of them.
//!
//! Each output value is a weighted sum over the filter's support, stretched by the scale when shrinking (antialiasing).
//! The weights are f64, normalised to a sum of 1, then rounded to 22 fractional bits, halves away from zero.

use std::ops::Range;

/// Fractional bits of a coefficient: 32 less 8 for the pixel less 2 for negative lobes and their sum.
pub(super) const PRECISION: u32 = 22;

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
    pub(super) fn support(self) -> f64 {
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

    /// The coefficients that make the pixels `wanted` of a line of `to` pixels out of one of `from` pixels (both at
    /// least 1).
    pub(super) fn coefficients(self, from: usize, to: usize, wanted: Range<usize>) -> Coefficients {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = self.support() * stretch;
        // Pillow multiplies by the reciprocal; dividing would round differently.
        let shrink = 1.0 / stretch;

        let most = 2 * support.ceil() as usize + 1;
        let mut taps = Vec::with_capacity(wanted.len() * most);
        let mut kernels = Vec::with_capacity(wanted.len());
        let mut weights = Vec::with_capacity(most);
        for at in wanted {
            let centre = (at as f64 + 0.5) * scale;
            // Casts of floats to integers cut towards zero and saturate, which is also the clamp to 0.
            let first = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            weights.clear();
            weights.extend((0..end - first).map(|i| self.weight(((i + first) as f64 - centre + 0.5) * shrink)));
            let sum: f64 = weights.iter().sum();
            let begin = taps.len();
            taps.extend(weights.iter().map(|weight| {
                let normal = if sum == 0.0 { *weight } else { weight / sum };
                let scaled = normal * f64::from(1 << PRECISION);
                (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
            }));
            kernels.push((first, begin..taps.len()));
        }
        Coefficients { kernels, taps }
    }
}

/// How one line is resampled: for each wanted pixel a run of source pixels and their fixed-point weights.
///
/// The sums over a kernel fit in an i32: the weights sum to 1, and the negative ones of a bicubic kernel, cut by an
/// edge or not, to no less than -0.16, so that no sum leaves 255 * 1.32 * 2^22 < 2^31 (a test measures the factor).
#[derive(Debug)]
pub(super) struct Coefficients {
    /// Position of the first source pixel, and which of `taps` are the kernel's.
    kernels: Vec<(usize, Range<usize>)>,
    taps: Vec<i32>,
}

impl Coefficients {
    /// One kernel for each wanted pixel, in order: position of its first source pixel, and its weights.
    pub(super) fn kernels(&self) -> impl ExactSizeIterator<Item = (usize, &[i32])> {
        self.kernels.iter().map(|(first, taps)| (*first, &self.taps[taps.clone()]))
    }

    /// The part of the source line that the wanted pixels depend on.
    pub(super) fn source(&self) -> Range<usize> {
        let end = |(first, taps): &(usize, Range<usize>)| first + taps.len();
        self.kernels.first().map_or(0, |(first, _)| *first)..self.kernels.last().map_or(0, end)
    }
}
