//! Textures: smooth noise, and the patterns that shapes and backgrounds wear.

use super::random::Random;
use super::shape::length;

/// Smooth noise in about [-1, 1]: random values on a coarse lattice that wraps around, blended between.
#[derive(Debug)]
pub(super) struct Noise {
    lattice: Vec<f32>,
}

const LATTICE: usize = 32;

impl Noise {
    pub(super) fn new(random: &mut Random) -> Self {
        Self { lattice: (0..LATTICE * LATTICE).map(|_| random.between(-1.0, 1.0)).collect() }
    }

    /// The noise at a place in units of the lattice.
    pub(super) fn at(&self, x: f32, y: f32) -> f32 {
        let (left, top) = (floor(x), floor(y));
        let (u, v) = (smooth(x - left as f32), smooth(y - top as f32));
        let wrap = |i: i32| (i & (LATTICE as i32 - 1)) as usize;
        let (i0, i1) = (wrap(left), wrap(left + 1));
        let (j0, j1) = (wrap(top) * LATTICE, wrap(top + 1) * LATTICE);
        let upper = mix(self.lattice[j0 + i0], self.lattice[j0 + i1], u);
        let lower = mix(self.lattice[j1 + i0], self.lattice[j1 + i1], u);
        mix(upper, lower, v)
    }

    /// Three octaves: clouds.
    pub(super) fn clouds(&self, x: f32, y: f32) -> f32 {
        0.6 * self.at(x, y) + 0.3 * self.at(2.1 * x + 5.3, 2.1 * y + 9.7) + 0.15 * self.at(4.3 * x, 4.3 * y + 3.1)
    }
}

/// Clouds over a whole image, sampled every few pixels and blended linearly between: they are smooth anyway.
#[derive(Debug)]
pub(super) struct Clouds {
    per_pixel: f32,
    stride: usize,
    values: Vec<f32>,
}

impl Clouds {
    /// For an image of `size` pixels; `scale` is lattice units for each pixel.
    pub(super) fn over(size: (usize, usize), noise: &Noise, scale: f32) -> Self {
        let step = (size.0.min(size.1) / 64).max(1);
        let (stride, rows) = (size.0 / step + 2, size.1 / step + 2);
        let place = |i: usize| (i * step) as f32 * scale;
        let values = (0..rows * stride).map(|i| noise.clouds(place(i % stride), place(i / stride))).collect();
        Self { per_pixel: 1.0 / step as f32, stride, values }
    }

    /// The clouds at a pixel of the image, 0 <= x <= width and 0 <= y <= height.
    pub(super) fn at(&self, x: f32, y: f32) -> f32 {
        let (x, y) = (x * self.per_pixel, y * self.per_pixel);
        // Not negative, so the cast rounds down.
        let (i, j) = (x as i32, y as i32);
        let (u, v) = (x - i as f32, y - j as f32);
        let corner = j as usize * self.stride + i as usize;
        let upper = mix(self.values[corner], self.values[corner + 1], u);
        let lower = mix(self.values[corner + self.stride], self.values[corner + self.stride + 1], u);
        mix(upper, lower, v)
    }
}

/// How a surface is patterned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    Marble,
    Stripes,
    Checker,
    Dots,
    Rings,
    Waves,
    Grain,
    Speckle,
}

impl Pattern {
    /// The pattern's value in [-1, 1] at (x, y), one period for each unit; `pixel` is the width of a pixel in the
    /// same units, over which edges are softened.
    pub(super) fn at(self, noise: &Noise, x: f32, y: f32, pixel: f32) -> f32 {
        match self {
            Self::Marble => edge(triangle_wave(0.5 * x + 0.9 * noise.clouds(0.6 * x, 0.6 * y)), pixel * 4.0),
            Self::Stripes => edge(triangle_wave(x), pixel * 4.0),
            Self::Checker => edge(triangle_wave(x), pixel * 4.0) * edge(triangle_wave(y), pixel * 4.0),
            Self::Dots => {
                let (dx, dy) = (fraction(x) - 0.5, fraction(y) - 0.5);
                edge(0.3 - length(dx, dy), pixel)
            }
            Self::Rings => edge(triangle_wave(length(x, y)), pixel * 4.0),
            Self::Waves => edge(triangle_wave(x + 0.22 * triangle_wave(0.6 * y)), pixel * 4.0),
            Self::Grain => {
                let bent = x + 0.5 * noise.at(0.8 * x, 0.4 * y);
                0.7 * edge(triangle_wave(bent) - 0.3, pixel * 4.0) + 0.3 * noise.at(6.0 * x, 0.5 * y)
            }
            Self::Speckle => edge(noise.at(2.2 * x, 2.2 * y) - 0.35, pixel * 3.0),
        }
    }
}

/// The integer below, by a cast: `f32::floor` is a call on processors without SSE 4.1, which is what Rust assumes.
fn floor(x: f32) -> i32 {
    let truncated = x as i32;
    truncated - i32::from(x < truncated as f32)
}

fn fraction(x: f32) -> f32 {
    x - floor(x) as f32
}

/// Period 1, from -1 at 0 to 1 at 0.5 and back.
fn triangle_wave(x: f32) -> f32 {
    1.0 - 4.0 * (fraction(x) - 0.5).abs()
}

/// -1 below 0 and 1 above it, softened over `width` to either side.
fn edge(x: f32, width: f32) -> f32 {
    (x / width.max(1e-6)).clamp(-1.0, 1.0)
}

/// From `a` at 0 to `b` at 1.
pub(super) fn mix(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

fn smooth(t: f32) -> f32 {
    t * t * (3.0 - 2.0 * t)
}
