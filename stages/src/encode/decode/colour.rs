//! What the components of a JPEG mean, and how they become RGB.
//!
//! The meaning is not written in the frame. libjpeg infers it from the JFIF and Adobe markers and the component
//! numbers, and everybody who trained on decoded files relied on that; [`Colour::of`] is the rule, for either decoder.
//!
//! The decoders convert the plain cases themselves. Neither converts CMYK; here it is done as by Pillow, which takes
//! every file to hold inverted values as Adobe's programs write them, with or without an Adobe marker: of the stored
//! values, `R = K - round((255 - C) * K / 255)`.

use super::ImageFault;
use super::jpeg::Header;
use crate::data::flags;

/// What the components mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    Gray,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

impl Colour {
    /// libjpeg's rule (`default_decompress_parms`).
    pub(super) fn of(header: &Header) -> Result<Self, ImageFault> {
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

    /// What a sample decoded from such a file is marked with.
    pub(super) fn flags(self) -> u8 {
        match self {
            Self::Gray => flags::GRAY,
            Self::Cmyk | Self::Ycck => flags::CMYK,
            Self::Rgb | Self::YCbCr => 0,
        }
    }
}

/// Pillow's CMYK to RGB for a whole image, four values a pixel, of values as they are stored: 255 is no ink.
pub(super) fn cmyk_to_rgb(cmyk: &[u8]) -> Vec<u8> {
    cmyk.as_chunks::<4>().0.iter().flat_map(|pixel| cmyk_pixel(*pixel)).collect()
}

/// The same for one pixel.
pub(super) fn cmyk_pixel([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let white = i32::from(k);
    [c, m, y].map(|stored| {
        // round(ink * white / 255) without a division
        let product = (255 - i32::from(stored)) * white + 128;
        (white - (((product >> 8) + product) >> 8)).clamp(0, 255) as u8
    })
}
