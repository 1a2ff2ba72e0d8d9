//! JPEG by `zune-jpeg` in strict mode: pure Rust, as fast as libjpeg-turbo, its arithmetic a little different.
//!
//! Strict mode makes an error of a file that ends early instead of filling up with grey. It does not notice this in the
//! last row of blocks; there [`Header::parse`] has looked for the end marker, and a file that was cut in its last row
//! and then given an end marker passes.

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use super::colour::{Colour, cmyk_pixel, cmyk_to_rgb};
use super::jpeg::Header;
use super::{ImageFault, MAX_SIDE};

/// The pixels as RGB, row after row, of a file whose header has been checked.
pub(super) fn decode(bytes: &[u8], header: &Header, colour: Colour) -> Result<Vec<u8>, ImageFault> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| fault(&e))?;
    let believed = decoder.input_colorspace().unwrap_or(ColorSpace::Unknown);
    // Asking for the colour space that the decoder believes to read gives the raw components.
    let raw = !matches!(
        (colour, believed),
        (Colour::Gray, ColorSpace::Luma) | (Colour::YCbCr, ColorSpace::YCbCr) | (Colour::Rgb, ColorSpace::RGB)
    );
    if raw {
        decoder.set_options(options.jpeg_set_out_colorspace(believed));
    }
    let samples = decoder.decode().map_err(|e| fault(&e))?;
    let (width, height) = (header.width, header.height);
    let channels = if raw { header.components.len() } else { 3 };
    if samples.len() != width * height * channels {
        let reason = format!("{} values where {width}x{height}x{channels} were expected", samples.len());
        return Err(ImageFault::Damaged { format: "JPEG", reason });
    }
    Ok(match colour {
        _ if !raw => samples,
        Colour::Gray => gray_to_rgb(&samples),
        Colour::Rgb => samples,
        Colour::YCbCr => ycc_to_rgb(&samples),
        Colour::Cmyk => cmyk_to_rgb(&samples),
        Colour::Ycck => ycck_to_rgb(&samples),
    })
}

fn fault(error: &DecodeErrors) -> ImageFault {
    match error {
        DecodeErrors::Unsupported(scheme) => ImageFault::Unsupported(format!("this kind of JPEG ({scheme:?})")),
        other => ImageFault::Damaged { format: "JPEG", reason: other.to_string() },
    }
}

/// Every value three times.
fn gray_to_rgb(gray: &[u8]) -> Vec<u8> {
    gray.iter().flat_map(|v| [*v; 3]).collect()
}

/// YCbCr to RGB for a whole image, three values a pixel.
fn ycc_to_rgb(ycc: &[u8]) -> Vec<u8> {
    ycc.as_chunks::<3>().0.iter().flat_map(|pixel| ycc_pixel(*pixel)).collect()
}

/// YCCK to RGB for a whole image, four values a pixel.
fn ycck_to_rgb(ycck: &[u8]) -> Vec<u8> {
    let pixel = |[y, cb, cr, k]: &[u8; 4]| {
        let [r, g, b] = ycc_pixel([*y, *cb, *cr]);
        cmyk_pixel([255 - r, 255 - g, 255 - b, *k])
    };
    ycck.as_chunks::<4>().0.iter().flat_map(pixel).collect()
}

/// JFIF's YCbCr to RGB in 16-bit fixed point, rounded as libjpeg rounds.
fn ycc_pixel([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    // 65536 * 1.402, 0.71414, 0.34414 and 1.772
    const CR_R: i32 = 91_881;
    const CR_G: i32 = 46_802;
    const CB_G: i32 = 22_554;
    const CB_B: i32 = 116_130;
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let clip = |v: i32| v.clamp(0, 255) as u8;
    [
        clip(y + ((CR_R * cr + HALF) >> 16)),
        clip(y + ((-CB_G * cb - CR_G * cr + HALF) >> 16)),
        clip(y + ((CB_B * cb + HALF) >> 16)),
    ]
}
