//! Crops every image to the centre square that published latents were made from.
//!
//! The rule is that of ADM (guided-diffusion's `center_crop_arr`), which DiT, SiT and REPA share: halve the image with a
//! box filter while its shorter side is at least twice the target, bring the shorter side to the target with an
//! antialiased bicubic filter (images smaller than the target grow), and cut the centre.
//! [`Resize::Exact`] gives the very bytes that Pillow 12 gives; `crop/resample.rs` says how. [`Resize::Fast`] follows the same
//! plan with the SIMD filters of `fast_image_resize`, whose bytes differ (median PSNR 56 dB on photographs).
//!
//! Only the rows and columns that the final square needs are ever computed.

mod fast;
mod resample;

use pipeline::{BoxError, Stage, Worker};

use self::resample::{Filter, Window};
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

/// Why a crop was refused.
#[derive(Debug, thiserror::Error)]
pub enum CropError {
    /// `fast_image_resize` refused the buffers.
    #[error("{key}: fast_image_resize could not resize {width}x{height}: {reason}; use the exact resize")]
    Fast {
        /// Which image.
        key: String,
        /// Columns of the decoded image.
        width: usize,
        /// Rows of the decoded image.
        height: usize,
        /// The library's reason.
        reason: String,
    },
}

/// Stage: any decoded image to u8 `[size, size, 3]`; a skipped one passes through.
#[derive(Debug)]
pub struct AdmCrop {
    size: usize,
    resize: Resize,
}

impl AdmCrop {
    /// Factory of the stage for squares of `size` pixels a side (at least 1).
    pub fn to(size: usize, resize: Resize) -> impl Fn(Worker) -> Result<Self, BoxError> + Send + Sync + 'static {
        move |_worker| Ok(Self { size, resize })
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
        let rgb = match self.resize {
            Resize::Exact => centre_crop(rgb, width, height, self.size),
            Resize::Fast => fast::centre_crop(rgb, width, height, self.size).map_err(|reason| CropError::Fast {
                key: image.key.clone(),
                width,
                height,
                reason,
            })?,
        };
        Ok(Decoded::Pixels(Pixels { image, height: self.size, width: self.size, rgb, flags }))
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

/// Left and top of the centre square.
fn corner(width: usize, height: usize, size: usize) -> (usize, usize) {
    ((width - size) / 2, (height - size) / 2)
}

/// ADM's centre crop of interleaved RGB, `height * width * 3` bytes with sides of at least 1, to `size * size * 3`.
pub fn centre_crop(rgb: Vec<u8>, width: usize, height: usize, size: usize) -> Vec<u8> {
    let steps = plan(width, height, size);

    // Backwards: which part of each intermediate image the final square depends on.
    let (last_width, last_height) = steps.last().map_or((width, height), |step| (step.width, step.height));
    let (left, top) = corner(last_width, last_height, size);
    let mut wanted = (left..left + size, top..top + size);
    let mut passes = Vec::with_capacity(steps.len());
    for (i, step) in steps.iter().enumerate().rev() {
        let (from_width, from_height) =
            if i == 0 { (width, height) } else { (steps[i - 1].width, steps[i - 1].height) };
        let columns = step.filter.coefficients(from_width, step.width, wanted.0);
        let rows = step.filter.coefficients(from_height, step.height, wanted.1);
        wanted = (columns.source(), rows.source());
        passes.push((columns, rows));
    }

    // Forwards: the resizes themselves, each on what is needed alone.
    let mut window = Window::whole(rgb, width, height);
    for (columns, rows) in passes.iter().rev() {
        window = window.resample(columns, rows);
    }
    if passes.is_empty() {
        window = window.cut(&wanted.0, &wanted.1);
    }
    window.into_rgb()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The input of `golden/README.md`.
    fn picture(width: usize, height: usize) -> Vec<u8> {
        let value = |x: usize, y: usize, c: usize| {
            let texture = ((x * 37 + y * 91 + c * 53) ^ ((x * y) >> 3)) & 255;
            let ramp = ((x * 255 / width + y * 255 / height + c * 40) >> 1) & 255;
            let stripes = if (x + 2 * y + 5 * c) % 13 < 6 { 255 } else { 0 };
            [texture, ramp, stripes][(x / 23 + y / 17 + c) % 3] as u8
        };
        let pixel = |y: usize, x: usize| [0, 1, 2].map(|c| value(x, y, c));
        (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(y, x))).collect()
    }

    fn size_of(name: &str) -> (usize, usize) {
        let (width, height) = name.trim_start_matches("crop_").split_once('x').unwrap();
        (width.parse().unwrap(), height.parse().unwrap())
    }

    #[test]
    fn crops_are_the_bytes_of_pillow() {
        let file = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/golden/crop.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert!(tensors.len() >= 24);
        for (name, golden) in tensors.tensors() {
            let (width, height) = size_of(&name);
            assert_eq!(golden.shape(), [32, 32, 3]);
            assert!(centre_crop(picture(width, height), width, height, 32) == golden.data(), "{name}");
        }

        let (_, metadata) = safetensors::SafeTensors::read_metadata(&file).unwrap();
        let config: serde_json::Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["config"]).unwrap();
        let hex = |bytes: &[u8]| format!("{:016x}", xxhash_rust::xxh3::xxh3_64(bytes));
        for (size, hash) in config["input_xxh3_64"].as_object().unwrap() {
            let (width, height) = size_of(size);
            assert_eq!(hash.as_str().unwrap(), hex(&picture(width, height)), "input {size}");
        }
        let at_256 = config["crop_256"].as_object().unwrap();
        assert!(!at_256.is_empty());
        for (size, hashes) in at_256 {
            let (width, height) = size_of(size);
            let crop = centre_crop(picture(width, height), width, height, 256);
            assert_eq!(hashes["xxh3_64"].as_str().unwrap(), hex(&crop), "crop of {size} to 256");
        }
    }

    #[test]
    fn the_fast_path_shows_the_same_picture() {
        for (width, height) in [(500, 375), (257, 64), (31, 47), (64, 64)] {
            // Smooth, so that the different rounding between the passes stays small.
            let smooth = |i: usize| ((i % (width * 3)) / 3 * 200 / width + i / (width * 3) * 50 / height) as u8;
            let rgb: Vec<u8> = (0..width * height * 3).map(smooth).collect();
            let exact = centre_crop(rgb.clone(), width, height, 32);
            let fast = fast::centre_crop(rgb, width, height, 32).unwrap();
            assert_eq!(exact.len(), fast.len());
            let worst = exact.iter().zip(&fast).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= 2, "{width}x{height}: differs by {worst}");
        }
    }

    #[test]
    fn skipped_images_pass_through() {
        let image = crate::data::ImageRef {
            position: 3,
            source_index: 4,
            key: "a/b.jpg".to_owned(),
            label: 0,
            path: "b.jpg".into(),
        };
        let mut stage = AdmCrop { size: 8, resize: Resize::Exact };
        let skipped = Decoded::Skipped { image: image.clone(), reason: "damaged".to_owned() };
        let Decoded::Skipped { image: through, reason } = stage.process(skipped).unwrap() else {
            panic!("a skipped image became pixels");
        };
        assert_eq!((through, reason.as_str()), (image, "damaged"));
    }

    #[test]
    fn sizes_round_half_to_even_as_in_python() {
        let last = |w, h, size| plan(w, h, size).last().map(|step| (step.width, step.height));
        assert_eq!(last(256, 333, 256), None);
        assert_eq!(last(500, 375, 256), Some((341, 256)));
        // 48 x 33 at 32: 48 * (32 / 33) = 46.55 -> 47.
        assert_eq!(last(48, 33, 32), Some((47, 32)));
        // 13.5 -> 14 and 10.5 -> 10: to the even neighbour.
        assert_eq!(last(10, 15, 9), Some((9, 14)));
        assert_eq!(last(4, 7, 6), Some((6, 10)));
    }

    #[test]
    fn halving_floors_and_stops_below_twice_the_size() {
        let steps = plan(257, 129, 32);
        assert_eq!(steps[0], Step { filter: Filter::Box, width: 128, height: 64 });
        assert_eq!(steps[1], Step { filter: Filter::Box, width: 64, height: 32 });
        assert_eq!(steps.len(), 2);
    }
}
