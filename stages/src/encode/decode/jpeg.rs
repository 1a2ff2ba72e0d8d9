//! What both JPEG decoders share: the header is read and judged here, before either of them allocates anything.

use super::colour::Colour;
#[cfg(feature = "libjpeg")]
use super::libjpeg as decoder;
#[cfg(not(feature = "libjpeg"))]
use super::zune as decoder;
use super::{ImageFault, Rgb, check_size};

/// Decodes a file that begins with the JPEG magic.
pub(super) fn decode(bytes: &[u8]) -> Result<Rgb, ImageFault> {
    let header = Header::parse(bytes)?;
    check_size(header.width, header.height)?;
    let colour = Colour::of(&header)?;
    let rgb = decoder::decode(bytes, &header, colour)?;
    Ok(Rgb { width: header.width, height: header.height, rgb, flags: colour.flags() })
}

/// What the markers in front of the first scan say.
#[derive(Debug)]
pub(super) struct Header {
    /// Columns.
    pub(super) width: usize,
    /// Rows.
    pub(super) height: usize,
    /// Component numbers of the frame.
    pub(super) components: Vec<u8>,
    /// There is a JFIF marker.
    pub(super) jfif: bool,
    /// Colour transform of the Adobe marker.
    pub(super) adobe: Option<u8>,
}

impl Header {
    /// Reads the segments up to the first scan, and looks for the end marker behind it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ImageFault> {
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
                // No decoder tells a file without an end from a whole one in every case. In coded data 0xff is followed
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
                (0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf, segment) => frame = Some((code, segment)),
                _ => {}
            }
        }
        let (process, segment) = frame.ok_or_else(|| damaged("there is no frame header"))?;
        let [precision, h1, h0, w1, w0, count, ids @ ..] = segment else {
            return Err(damaged("the frame header is cut short"));
        };
        let unsupported = |what: &str| Err(ImageFault::Unsupported(what.to_owned()));
        match process {
            0xc3 | 0xc7 | 0xcb | 0xcf => return unsupported("lossless JPEG"),
            0xc5 | 0xc6 | 0xcd | 0xce => return unsupported("hierarchical JPEG"),
            #[cfg(not(feature = "libjpeg"))]
            0xc9 | 0xca => return unsupported("arithmetic-coded JPEG (without the cargo feature libjpeg)"),
            _ => {}
        }
        if *precision != 8 {
            return Err(ImageFault::Unsupported(format!("JPEG with {precision} bits a sample")));
        }
        let components: Vec<u8> = ids.chunks_exact(3).take(usize::from(*count)).map(|id| id[0]).collect();
        if components.len() != usize::from(*count) {
            return Err(damaged("the frame header lacks components"));
        }
        let [width, height] = [[*w1, *w0], [*h1, *h0]].map(|pair| usize::from(u16::from_be_bytes(pair)));
        match (width, height) {
            (0, _) => Err(damaged("a side has 0 pixels")),
            // The standard lets a DNL marker behind the first scan say it; libjpeg does not read such files either.
            (_, 0) => unsupported("JPEG without a height in its frame header"),
            _ => Ok(Self { width, height, components, jfif, adobe }),
        }
    }
}
