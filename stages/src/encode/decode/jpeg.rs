//! JPEG by `zune-jpeg` in strict mode, with the colour rules of libjpeg and Pillow.
//!
//! What the components of a JPEG mean is not written in the frame. libjpeg infers it from the JFIF and Adobe markers and
//! the component numbers, and everybody who trained on decoded files relied on that; [`Colour::of`] is the rule.
//! `zune-jpeg` converts the plain cases itself. For the others its raw components are taken and converted here:
//! - CMYK as Pillow does it, which takes every file to hold inverted values as Adobe's programs write them, with or
//!   without an Adobe marker: of the stored values, `R = K - round((255 - C) * K / 255)`;
//! - YCCK: YCbCr to RGB, of which CMY is the complement, by libjpeg's 16-bit fixed point.

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use super::{ImageFault, MAX_SIDE, Rgb, check_size};
use crate::data::flags;

/// Decodes a file that begins with the JPEG magic.
pub(super) fn decode(bytes: &[u8]) -> Result<Rgb, ImageFault> {
    let header = Header::parse(bytes)?;
    let (width, height) = (header.width, header.height);
    check_size(width, height)?;
    let colour = Colour::of(&header)?;

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
    let channels = if raw { header.components.len() } else { 3 };
    if samples.len() != width * height * channels {
        let reason = format!("{} values where {width}x{height}x{channels} were expected", samples.len());
        return Err(ImageFault::Damaged { format: "JPEG", reason });
    }

    let rgb = match colour {
        _ if !raw => samples,
        Colour::Gray => samples.into_iter().flat_map(|v| [v; 3]).collect(),
        Colour::Rgb => samples,
        Colour::YCbCr => samples.as_chunks::<3>().0.iter().flat_map(|[y, cb, cr]| ycc_to_rgb(*y, *cb, *cr)).collect(),
        Colour::Cmyk => samples.as_chunks::<4>().0.iter().flat_map(|cmyk| cmyk_to_rgb(*cmyk)).collect(),
        Colour::Ycck => {
            let to_rgb = |[y, cb, cr, k]: &[u8; 4]| {
                let [r, g, b] = ycc_to_rgb(*y, *cb, *cr);
                cmyk_to_rgb([255 - r, 255 - g, 255 - b, *k])
            };
            samples.as_chunks::<4>().0.iter().flat_map(to_rgb).collect()
        }
    };
    let flags = match colour {
        Colour::Gray => flags::GRAY,
        Colour::Cmyk | Colour::Ycck => flags::CMYK,
        Colour::Rgb | Colour::YCbCr => 0,
    };
    Ok(Rgb { width, height, rgb, flags })
}

fn fault(error: &DecodeErrors) -> ImageFault {
    match error {
        DecodeErrors::Unsupported(scheme) => ImageFault::Unsupported(format!("this kind of JPEG ({scheme:?})")),
        other => ImageFault::Damaged { format: "JPEG", reason: other.to_string() },
    }
}

/// What the components mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colour {
    Gray,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

impl Colour {
    /// libjpeg's rule (`default_decompress_parms`).
    fn of(header: &Header) -> Result<Self, ImageFault> {
        match header.components.as_slice() {
            [_] => Ok(Self::Gray),
            ids @ [_, _, _] => Ok(match header.adobe {
                _ if header.jfif => Self::YCbCr,
                Some(0) => Self::Rgb,
                Some(_) => Self::YCbCr,
                None if ids == b"RGB" => Self::Rgb,
                None => Self::YCbCr,
            }),
            [_, _, _, _] => Ok(match header.adobe {
                None | Some(0) => Self::Cmyk,
                Some(_) => Self::Ycck,
            }),
            other => Err(ImageFault::Unsupported(format!("JPEG with {} components", other.len()))),
        }
    }
}

/// What the markers in front of the first scan say.
#[derive(Debug)]
struct Header {
    width: usize,
    height: usize,
    /// Component numbers of the frame.
    components: Vec<u8>,
    jfif: bool,
    /// Colour transform of the Adobe marker.
    adobe: Option<u8>,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self, ImageFault> {
        let damaged = |reason: &str| ImageFault::Damaged { format: "JPEG", reason: reason.to_owned() };
        let ended = || damaged("the file ends before the image begins");
        let (mut jfif, mut adobe, mut frame) = (false, None, None);
        let mut rest = bytes.get(2..).ok_or_else(ended)?;
        loop {
            // To the next marker: 0xff, then a code that is neither a stuffed zero nor a fill byte.
            let at = rest.iter().position(|byte| *byte == 0xff).ok_or_else(ended)?;
            rest = &rest[at + 1..];
            let code = *rest.first().ok_or_else(ended)?;
            if matches!(code, 0x00 | 0xff) {
                continue;
            }
            rest = &rest[1..];
            // Markers that stand alone.
            if matches!(code, 0x01 | 0xd0..=0xd8) {
                continue;
            }
            if matches!(code, 0xd9 | 0xda) {
                // Strict mode does not notice that the last row of blocks is cut short. In coded data 0xff is followed
                // by a stuffed zero, so what looks like an end marker is one.
                if code == 0xda && rest.windows(2).rev().all(|pair| pair != [0xff, 0xd9]) {
                    return Err(damaged("the file ends before the image does"));
                }
                break;
            }
            let length = match rest {
                [high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
                _ => return Err(ended()),
            };
            let segment = rest.get(2..length).ok_or_else(ended)?;
            rest = &rest[length..];
            match (code, segment) {
                (0xe0, [b'J', b'F', b'I', b'F', 0, ..]) => jfif = true,
                (0xee, [b'A', b'd', b'o', b'b', b'e', _, _, _, _, _, _, transform, ..]) => adobe = Some(*transform),
                // Start of frame, of any coding process.
                (
                    0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf,
                    [precision, h1, h0, w1, w0, count, ids @ ..],
                ) => {
                    if *precision != 8 {
                        return Err(ImageFault::Unsupported(format!("JPEG with {precision} bits a sample")));
                    }
                    let ids: Vec<u8> = ids.chunks_exact(3).take(usize::from(*count)).map(|id| id[0]).collect();
                    if ids.len() != usize::from(*count) {
                        return Err(damaged("the frame header lacks components"));
                    }
                    frame = Some((u16::from_be_bytes([*w1, *w0]), u16::from_be_bytes([*h1, *h0]), ids));
                }
                _ => {}
            }
        }
        let (width, height, components) = frame.ok_or_else(|| damaged("there is no frame header"))?;
        if width == 0 || height == 0 {
            return Err(damaged("a side has 0 pixels"));
        }
        Ok(Self { width: width.into(), height: height.into(), components, jfif, adobe })
    }
}

/// JFIF's YCbCr to RGB in 16-bit fixed point, rounded as libjpeg rounds.
fn ycc_to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
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

/// Pillow's CMYK to RGB, of values as they are stored: 255 is no ink.
fn cmyk_to_rgb([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let white = i32::from(k);
    [c, m, y].map(|stored| {
        // round(ink * white / 255) without a division
        let product = (255 - i32::from(stored)) * white + 128;
        (white - (((product >> 8) + product) >> 8)).clamp(0, 255) as u8
    })
}
