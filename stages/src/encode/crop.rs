//! Crops every image to the centre square that published latents were made from.
//!
//! The rule is that of ADM (guided-diffusion's `center_crop_arr`), which DiT, SiT and REPA share: halve the image with
//! a box filter while its shorter side is at least twice the target, bring the shorter side to the target with an
//! antialiased bicubic filter (images smaller than the target grow), and cut the centre. [`Resize::Exact`] gives the
//! very bytes that Pillow 12 gives, with AVX2 where the CPU has it (`crop/resample.rs`, `crop/avx2.rs`).
//! [`Resize::Fast`] follows the same plan through `fast_image_resize`, whose bytes differ (`crop/fast.rs`).
//!
//! Only the rows and columns that the final square needs are ever computed.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod fast;
mod filter;
mod resample;
#[cfg(test)]
mod tests;

use std::ops::Range;

use fast_image_resize::Resizer;
use pipeline::{BoxError, Stage, Worker};

use self::filter::{Coefficients, Filter};
use self::resample::Window;
use crate::data::{Decoded, Pixels};

/// Which resampler makes the pixels; recorded with the dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// Bit-exact with Pillow 12.
    Exact,
    /// `fast_image_resize`: several times faster, not the same bytes.
    Fast,
}

impl Resize {
    /// The name under which the dataset records it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "pillow-12",
            Self::Fast => "fast_image_resize-6",
        }
    }
}

/// Why `fast_image_resize` could not make a crop.
#[derive(Debug, thiserror::Error)]
#[error("fast_image_resize could not resize {width}x{height}: {reason}; use the exact resize")]
pub struct ResizeError {
    /// Columns of the decoded image.
    width: usize,
    /// Rows of the decoded image.
    height: usize,
    /// The library's reason.
    reason: String,
}

/// Why a crop was refused.
#[derive(Debug, thiserror::Error)]
pub enum CropError {
    /// `fast_image_resize` refused the buffers.
    #[error("{key}: {reason}")]
    Fast {
        /// Which image.
        key: String,
        /// The sentence.
        reason: ResizeError,
    },
}

/// Crops images one after the other, and keeps the buffers that this takes.
#[derive(Debug)]
pub struct Cropper {
    size: usize,
    resampler: Resampler,
}

#[derive(Debug)]
enum Resampler {
    Exact(Exact),
    Fast(Box<Resizer>),
}

impl Cropper {
    /// For squares of `size` pixels a side (at least 1).
    pub fn new(size: usize, resize: Resize) -> Self {
        let resampler = match resize {
            Resize::Exact => Resampler::Exact(Exact::new()),
            Resize::Fast => Resampler::Fast(Box::default()),
        };
        Self { size, resampler }
    }

    /// The centre square, u8 `[size, size, 3]`, of interleaved RGB, `height * width * 3` bytes with sides of at least 1.
    ///
    /// There is no error with [`Resize::Exact`].
    pub fn crop(&mut self, rgb: Vec<u8>, width: usize, height: usize) -> Result<Vec<u8>, ResizeError> {
        match &mut self.resampler {
            Resampler::Exact(exact) => {
                let resample = |window: &_, columns: &_, rows: &_| exact.resample(window, columns, rows);
                Ok(centre_crop_by(resample, rgb, width, height, self.size))
            }
            Resampler::Fast(resizer) => fast::centre_crop(resizer, rgb, width, height, self.size)
                .map_err(|reason| ResizeError { width, height, reason }),
        }
    }
}

/// Stage: any decoded image to u8 `[size, size, 3]`; a skipped one passes through.
#[derive(Debug)]
pub struct AdmCrop {
    cropper: Cropper,
}

impl AdmCrop {
    /// Factory of the stage for squares of `size` pixels a side (at least 1).
    pub fn to(size: usize, resize: Resize) -> impl Fn(Worker) -> Result<Self, BoxError> + Send + Sync + 'static {
        move |_worker| Ok(Self { cropper: Cropper::new(size, resize) })
    }
}

impl Stage for AdmCrop {
    type In = Decoded;
    type Out = Decoded;

    fn process(&mut self, item: Decoded) -> Result<Decoded, BoxError> {
        let pixels = match item {
            Decoded::Pixels(pixels) => pixels,
            skipped @ Decoded::Skipped { .. } => return Ok(skipped),
        };
        let Pixels { image, height, width, rgb, flags } = pixels;
        let cropped = self.cropper.crop(rgb, width, height);
        let rgb = cropped.map_err(|reason| CropError::Fast { key: image.key.clone(), reason })?;
        let size = self.cropper.size;
        Ok(Decoded::Pixels(Pixels { image, height: size, width: size, rgb, flags }))
    }
}

/// One resize: to which size, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    filter: Filter,
    width: usize,
    height: usize,
}

/// The resizes that bring the shorter side of `width` x `height` (at least 1 each) to `size`.
fn plan(mut width: usize, mut height: usize, size: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    while width.min(height) >= 2 * size {
        (width, height) = (width / 2, height / 2);
        steps.push(Step { filter: Filter::Box, width, height });
    }
    // Python: round(x * (size / min)), where round() takes halves to the even neighbour.
    let scale = size as f64 / width.min(height) as f64;
    let scaled = |side: usize| (side as f64 * scale).round_ties_even() as usize;
    let step = Step { filter: Filter::Bicubic, width: scaled(width), height: scaled(height) };
    // Pillow returns a copy when the size stays; the filter would give the same bytes.
    if (step.width, step.height) != (width, height) {
        steps.push(step);
    }
    steps
}

/// Columns and rows of the centre square.
fn centre(width: usize, height: usize, size: usize) -> (Range<usize>, Range<usize>) {
    let (left, top) = ((width - size) / 2, (height - size) / 2);
    (left..left + size, top..top + size)
}

/// ADM's centre crop of interleaved RGB, `height * width * 3` bytes with sides of at least 1, to `size * size * 3`; the
/// bytes of Pillow 12. For many images a [`Cropper`] is faster.
pub fn centre_crop(rgb: Vec<u8>, width: usize, height: usize, size: usize) -> Vec<u8> {
    let mut exact = Exact::new();
    centre_crop_by(|window, columns, rows| exact.resample(window, columns, rows), rgb, width, height, size)
}

/// The bytes of [`resample::resample`], as fast as this CPU can make them.
#[derive(Debug)]
struct Exact {
    #[cfg(target_arch = "x86_64")]
    avx2: Option<avx2::Avx2>,
}

impl Exact {
    fn new() -> Self {
        Self {
            #[cfg(target_arch = "x86_64")]
            avx2: avx2::Avx2::detect(),
        }
    }

    fn resample(&mut self, window: &Window, columns: &Coefficients, rows: &Coefficients) -> Vec<u8> {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = &mut self.avx2 {
            return avx2.resample(window, columns, rows);
        }
        resample::resample(window, columns, rows)
    }
}

/// [`centre_crop`] by one of the implementations of a resize.
fn centre_crop_by(
    mut resample: impl FnMut(&Window, &Coefficients, &Coefficients) -> Vec<u8>,
    rgb: Vec<u8>,
    width: usize,
    height: usize,
    size: usize,
) -> Vec<u8> {
    let steps = plan(width, height, size);

    // Backwards: which part of each intermediate image the final square depends on.
    let (last_width, last_height) = steps.last().map_or((width, height), |step| (step.width, step.height));
    let mut wanted = centre(last_width, last_height, size);
    let mut passes = Vec::with_capacity(steps.len());
    for (i, step) in steps.iter().enumerate().rev() {
        let (from_width, from_height) =
            if i == 0 { (width, height) } else { (steps[i - 1].width, steps[i - 1].height) };
        let columns = step.filter.coefficients(from_width, step.width, wanted.0.clone());
        let rows = step.filter.coefficients(from_height, step.height, wanted.1.clone());
        let source = (columns.source(), rows.source());
        passes.push((columns, rows, std::mem::replace(&mut wanted, source)));
    }

    // Forwards: the resizes themselves, each on what is needed alone.
    let mut window = Window::new(0..width, 0..height, rgb);
    if passes.is_empty() {
        window = window.cut(&wanted.0, &wanted.1);
    }
    for (columns, rows, made) in passes.into_iter().rev() {
        let rgb = resample(&window, &columns, &rows);
        window = Window::new(made.0, made.1, rgb);
    }
    window.into_rgb()
}
