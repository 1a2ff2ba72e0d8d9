//! Reads an image file and decodes it to 8-bit RGB, as Pillow's `Image.open(..).convert("RGB")` does.
//!
//! The content decides what a file is, never its name: ImageNet holds a PNG that is named JPEG.
//!
//! | file | outcome |
//! |---|---|
//! | JPEG: baseline in one scan or several, progressive, with restart markers, any subsampling | decoded |
//! | JPEG, arithmetic-coded | refused by `zune-jpeg`, decoded by libjpeg |
//! | JPEG: lossless, hierarchical, 12-bit, without a height in its frame header (DNL) | refused |
//! | JPEG or PNG, grey | the value three times; flagged |
//! | JPEG of CMYK or YCCK | by Pillow's formula (`decode/colour.rs`); flagged |
//! | PNG: palette, bits below 8, interlaced | expanded |
//! | PNG with alpha or a transparent colour | the alpha is dropped, without compositing; flagged |
//! | PNG, animated | its default image |
//! | PNG with 16 bits a sample | the upper 8 bits (see below) |
//! | EXIF, whole or corrupt; colour profiles | ignored, the orientation too, as the published preprocessing does |
//! | bytes behind the end of the image | ignored |
//! | JPEG or PNG that is cut short or damaged | refused |
//! | JPEG cut short in its last row of blocks, with an end marker | refused by libjpeg, unnoticed by `zune-jpeg` |
//! | more than [`MAX_SIDE`] a side or [`MAX_AREA`] in all | refused before anything of that size is allocated |
//! | empty file, text, web page, GIF, BMP, WebP, TIFF, anything else | refused and named |
//!
//! Each line has a file in `fixtures/`, and `decode/tests.rs` says what is to become of it.
//!
//! Of 16-bit samples the upper 8 bits are kept, in grey as in RGB. For RGB this is Pillow's rule too; grey it clips at
//! 255, which leaves an almost white picture that nobody would train on by intent.
//!
//! JPEG decoding is `zune-jpeg` in strict mode: a truncated file is an error, not a grey area. Its arithmetic differs
//! from libjpeg-turbo's by at most 3 of 255 for 4:4:4 files and 6 for 4:2:0. With the cargo feature `libjpeg` it is
//! libjpeg-turbo, bit-equal to Pillow 12 and as strict. [`DECODERS`] says which, and is recorded in the dataset.

mod colour;
mod jpeg;
#[cfg(feature = "libjpeg")]
mod libjpeg;
#[cfg(not(feature = "libjpeg"))]
mod zune;

use std::io::{self, Cursor};

use image::codecs::png::PngDecoder;
use image::{ColorType, ImageDecoder, Limits};
use pipeline::{BoxError, Stage, Worker};

use super::fetch::{Anywhere, Fetch, MAX_FILE};
use crate::data::{Decoded, ImageRef, Pixels, Place, flags};

/// The name under which a dataset records the decoders.
#[cfg(not(feature = "libjpeg"))]
pub const DECODERS: &str = "zune-jpeg-0.5 strict, image-0.25 png";
/// The name under which a dataset records the decoders.
#[cfg(feature = "libjpeg")]
pub const DECODERS: &str = "libjpeg-turbo (mozjpeg-sys 2.2) strict, image-0.25 png";

/// Longest side that is decoded, in pixels. The largest of ImageNet is 9,331.
pub const MAX_SIDE: usize = 16_384;
/// Largest area that is decoded, in pixels: 300 MB as RGB.
pub const MAX_AREA: usize = 100_000_000;
/// What a PNG may need beside its pixels, in bytes: rows, texts, colour profiles.
const MAX_PNG_EXTRAS: u64 = 64 << 20;

/// Why there are no pixels.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The file could not be read. Never skipped: this says something about the disk or the list, not about the image.
    #[error(transparent)]
    Read(io::Error),
    /// The file was read, and its content is at fault.
    #[error("{place}: {fault}; replace or remove the file, or go on without it by --on-error skip")]
    Content {
        /// The file.
        place: Place,
        /// What is wrong.
        fault: ImageFault,
    },
}

/// What is wrong with the content of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageFault {
    /// Zero bytes.
    #[error("the file is empty")]
    Empty,
    /// The first bytes belong to something else.
    #[error("not a JPEG or PNG image ({0})")]
    NotAnImage(&'static str),
    /// Bigger than is decoded.
    #[error("{width}x{height} pixels; at most {MAX_SIDE} a side and {MAX_AREA} in all are decoded")]
    TooLarge {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// More bytes than an image may have.
    #[error("the file has {0} bytes; at most {MAX_FILE} are read")]
    FileTooLarge(u64),
    /// A valid file of a kind that is not decoded.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// The decoder gave up: truncated or damaged.
    #[error("damaged or truncated {format}: {reason}")]
    Damaged {
        /// `JPEG` or `PNG`.
        format: &'static str,
        /// The decoder's own words.
        reason: String,
    },
}

/// Decoded pixels, before it is known which image they belong to.
#[derive(Debug)]
struct Rgb {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
    flags: u8,
}

/// Stage: reads and decodes.
#[derive(Debug)]
pub struct Decode {
    skip: bool,
    fetcher: Anywhere,
    bytes: Vec<u8>,
}

impl Decode {
    /// Factory: a file that cannot be decoded is an error.
    pub fn strict(_worker: Worker) -> Result<Self, BoxError> {
        Ok(Self::new(false))
    }

    /// Factory: a file that cannot be decoded becomes [`Decoded::Skipped`]; one that cannot be read is still an error.
    pub fn skipping(_worker: Worker) -> Result<Self, BoxError> {
        Ok(Self::new(true))
    }
}

impl Decode {
    fn new(skip: bool) -> Self {
        Self { skip, fetcher: Anywhere::default(), bytes: Vec::new() }
    }
}

impl Stage for Decode {
    type In = ImageRef;
    type Out = Decoded;

    fn process(&mut self, image: ImageRef) -> Result<Decoded, BoxError> {
        match fetch_and_decode(&image, &mut self.fetcher, &mut self.bytes) {
            Ok(Rgb { width, height, rgb, flags }) => Ok(Decoded::Pixels(Pixels { image, height, width, rgb, flags })),
            Err(DecodeError::Content { fault, .. }) if self.skip => {
                Ok(Decoded::Skipped { image, reason: fault.to_string() })
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn fetch_and_decode(image: &ImageRef, fetcher: &mut Anywhere, bytes: &mut Vec<u8>) -> Result<Rgb, DecodeError> {
    fetcher.fetch(image, bytes).map_err(DecodeError::Read)?;
    decode(bytes).map_err(|fault| DecodeError::Content { place: image.place.clone(), fault })
}

/// What is wrong with the content of a file; `None` if it can be decoded.
pub(super) fn fault_of(image: &ImageRef) -> Result<Option<ImageFault>, DecodeError> {
    match fetch_and_decode(image, &mut Anywhere::default(), &mut Vec::new()) {
        Ok(_) => Ok(None),
        Err(DecodeError::Content { fault, .. }) => Ok(Some(fault)),
        Err(error) => Err(error),
    }
}

fn decode(bytes: &[u8]) -> Result<Rgb, ImageFault> {
    if bytes.len() as u64 > MAX_FILE {
        return Err(ImageFault::FileTooLarge(bytes.len() as u64));
    }
    match bytes {
        [] => Err(ImageFault::Empty),
        [0xff, 0xd8, 0xff, ..] => jpeg::decode(bytes),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => decode_png(bytes),
        [b'G', b'I', b'F', b'8', ..] => Err(ImageFault::NotAnImage("a GIF")),
        [b'B', b'M', ..] => Err(ImageFault::NotAnImage("a BMP")),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Err(ImageFault::NotAnImage("a WebP")),
        [b'I', b'I', 0x2a, 0, ..] | [b'M', b'M', 0, 0x2a, ..] => Err(ImageFault::NotAnImage("a TIFF")),
        _ if bytes.iter().take(512).all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) => {
            Err(ImageFault::NotAnImage("plain text"))
        }
        _ => Err(ImageFault::NotAnImage("unknown content")),
    }
}

/// Refuses sizes before anything of that size is allocated.
fn check_size(width: usize, height: usize) -> Result<(), ImageFault> {
    if width > MAX_SIDE || height > MAX_SIDE || width * height > MAX_AREA {
        return Err(ImageFault::TooLarge { width, height });
    }
    Ok(())
}

fn decode_png(bytes: &[u8]) -> Result<Rgb, ImageFault> {
    let damaged = |error: image::ImageError| ImageFault::Damaged { format: "PNG", reason: error.to_string() };
    // The decoder expands palettes, bit depths below 8 and colour keys (to an alpha channel).
    // A colour profile is inflated before the size is known. One that needs more than this is passed over, as all are.
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_PNG_EXTRAS);
    let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    check_size(width, height)?;
    let color = decoder.color_type();
    // At most 8 bytes for each of 100 million pixels.
    let mut raw = vec![0; width * height * usize::from(color.bytes_per_pixel())];
    decoder.read_image(&mut raw).map_err(damaged)?;

    let channels = usize::from(color.channel_count());
    let samples = match color {
        ColorType::L8 | ColorType::La8 | ColorType::Rgb8 | ColorType::Rgba8 => raw,
        // The image crate hands out 16-bit samples in the machine's order.
        ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16 => {
            raw.as_chunks::<2>().0.iter().map(|pair| (u16::from_ne_bytes(*pair) >> 8) as u8).collect()
        }
        other => return Err(ImageFault::Unsupported(format!("PNG with {other:?} samples"))),
    };
    let (rgb, flags) = match channels {
        1 => (samples.iter().flat_map(|v| [*v; 3]).collect(), flags::GRAY),
        2 => (samples.as_chunks::<2>().0.iter().flat_map(|[v, _]| [*v; 3]).collect(), flags::GRAY | flags::ALPHA),
        3 => (samples, 0),
        _ => (samples.as_chunks::<4>().0.iter().flat_map(|[r, g, b, _]| [*r, *g, *b]).collect(), flags::ALPHA),
    };
    Ok(Rgb { width, height, rgb, flags: flags | flags::PNG })
}

#[cfg(test)]
mod tests;
