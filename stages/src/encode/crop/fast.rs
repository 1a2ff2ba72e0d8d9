//! The same plan of resizes through `fast_image_resize`.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::{Filter, corner, plan};

/// As [`super::centre_crop`], with other rounding; the error is the library's own sentence.
pub(super) fn centre_crop(rgb: Vec<u8>, mut width: usize, mut height: usize, size: usize) -> Result<Vec<u8>, String> {
    let mut resizer = Resizer::new();
    let mut rgb = rgb;
    for step in plan(width, height, size) {
        let filter = match step.filter {
            Filter::Box => FilterType::Box,
            // Pillow's bicubic has a = -0.5, which this library calls Catmull-Rom.
            Filter::Bicubic => FilterType::CatmullRom,
        };
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
        let from = ImageRef::new(side(width)?, side(height)?, &rgb, PixelType::U8x3).map_err(|e| e.to_string())?;
        let mut to = Image::new(side(step.width)?, side(step.height)?, PixelType::U8x3);
        resizer.resize(&from, &mut to, Some(&options)).map_err(|e| e.to_string())?;
        (rgb, width, height) = (to.into_vec(), step.width, step.height);
    }
    let (left, top) = corner(width, height, size);
    let row = |row: usize| &rgb[(row * width + left) * 3..][..size * 3];
    Ok((top..top + size).flat_map(row).copied().collect())
}

fn side(pixels: usize) -> Result<u32, String> {
    u32::try_from(pixels).map_err(|_| format!("a side of {pixels} pixels does not fit in 32 bits"))
}
