//! Against `fixtures/expected.safetensors`: what Pillow 12 decodes from the files that `fixtures/make_fixtures.py` made.

use super::*;
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)).unwrap()
}

/// What is to become of a fixture.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// It decodes, with these flags. By `zune-jpeg`, no value differs from Pillow's by more than this; by libjpeg, none
    /// differs.
    Jpeg(u8, u8),
    /// It decodes, and `zune-jpeg` does not notice that what is below this many rows was never in the file.
    #[cfg(not(feature = "libjpeg"))]
    Spoiled(usize),
    /// It decodes with these flags besides [`flags::PNG`], to the very values of Pillow.
    Png(u8),
    /// It is refused with these words, or words that begin so.
    Refused(&'static str),
}

#[cfg(not(feature = "libjpeg"))]
use Outcome::Spoiled;
use Outcome::{Jpeg, Png, Refused};

const CUT_JPEG: Outcome = Refused("damaged or truncated JPEG: ");
const CUT_PNG: Outcome = Refused("damaged or truncated PNG: ");
const TOO_LARGE: Outcome = Refused("30000x30000 pixels; at most 16384 a side");

/// Every file of the folder. zune-jpeg's inverse DCT and chroma upsampling are not libjpeg-turbo's: its bounds are those
/// of the module's head.
const OUTCOMES: [(&str, Outcome); 52] = [
    ("rgb444.jpg", Jpeg(0, 3)),
    ("rgb420.jpg", Jpeg(0, 6)),
    ("rgb422.jpg", Jpeg(0, 6)),
    ("rgb440.jpg", Jpeg(0, 6)),
    ("rgb411.jpg", Jpeg(0, 6)),
    ("progressive.jpg", Jpeg(0, 3)),
    ("progressive420.jpg", Jpeg(0, 6)),
    ("restart.jpg", Jpeg(0, 6)),
    ("non_interleaved.jpg", Jpeg(0, 3)),
    ("gray.jpg", Jpeg(flags::GRAY, 1)),
    ("one_pixel.jpg", Jpeg(0, 3)),
    ("exif_rotated.jpg", Jpeg(0, 3)),
    ("exif_corrupt.jpg", Jpeg(0, 3)),
    ("cmyk_adobe.jpg", Jpeg(flags::CMYK, 2)),
    ("cmyk_plain.jpg", Jpeg(flags::CMYK, 2)),
    ("ycck.jpg", Jpeg(flags::CMYK, 3)),
    ("rgb_adobe.jpg", Jpeg(0, 1)),
    ("rgb_ids.jpg", Jpeg(0, 1)),
    ("trailing.jpg", Jpeg(0, 3)),
    ("extraneous.jpg", Jpeg(0, 3)),
    ("jpeg_named.png", Jpeg(0, 3)),
    #[cfg(feature = "libjpeg")]
    ("arithmetic.jpg", Jpeg(0, 0)),
    #[cfg(not(feature = "libjpeg"))]
    ("arithmetic.jpg", Refused("arithmetic-coded JPEG (without the cargo feature libjpeg) is not supported")),
    ("png_named.JPEG", Png(0)),
    ("rgba.png", Png(flags::ALPHA)),
    ("la.png", Png(flags::ALPHA | flags::GRAY)),
    ("palette.png", Png(flags::ALPHA)),
    ("bilevel.png", Png(flags::GRAY)),
    ("gray16.png", Png(flags::GRAY)),
    ("rgb16.png", Png(0)),
    ("interlaced.png", Png(0)),
    ("animated.png", Png(0)),
    ("one_pixel.png", Png(0)),
    ("trailing.png", Png(0)),
    ("empty.jpg", Refused("the file is empty")),
    ("text.jpg", Refused("not a JPEG or PNG image (plain text)")),
    ("error_page.jpg", Refused("not a JPEG or PNG image (plain text)")),
    ("gif.jpg", Refused("not a JPEG or PNG image (a GIF)")),
    ("bmp.jpg", Refused("not a JPEG or PNG image (a BMP)")),
    ("webp.jpg", Refused("not a JPEG or PNG image (a WebP)")),
    ("tiff.jpg", Refused("not a JPEG or PNG image (a TIFF)")),
    ("huge.jpg", TOO_LARGE),
    ("huge.png", TOO_LARGE),
    ("no_height.jpg", Refused("JPEG without a height in its frame header is not supported")),
    ("twelve_bit.jpg", Refused("JPEG with 12 bits a sample is not supported")),
    ("lossless.jpg", Refused("lossless JPEG is not supported")),
    ("cut_middle.jpg", CUT_JPEG),
    ("cut_last_row.jpg", CUT_JPEG),
    // 30 rows in 4 rows of blocks.
    #[cfg(not(feature = "libjpeg"))]
    ("cut_last_row_ended.jpg", Spoiled(24)),
    #[cfg(feature = "libjpeg")]
    ("cut_last_row_ended.jpg", Refused("damaged or truncated JPEG: Corrupt JPEG data: premature end of data segment")),
    ("cut_progressive.jpg", CUT_JPEG),
    ("cut_middle.png", CUT_PNG),
    ("cut_last_row.png", CUT_PNG),
    ("short_rows.png", CUT_PNG),
];

#[test]
fn every_fixture_has_the_outcome_of_the_table() {
    let file = fixture("expected.safetensors");
    let expected = safetensors::SafeTensors::deserialize(&file).unwrap();
    let mut wrong = Vec::new();
    for (name, outcome) in OUTCOMES {
        let got = decode(&fixture(name));
        let (wanted_flags, tolerance, rows) = match outcome {
            Jpeg(flags, _) if cfg!(feature = "libjpeg") => (flags, 0, usize::MAX),
            Jpeg(flags, tolerance) => (flags, tolerance, usize::MAX),
            #[cfg(not(feature = "libjpeg"))]
            Spoiled(rows) => (0, 3, rows),
            Png(flags) => (flags | flags::PNG, 0, usize::MAX),
            Refused(words) => {
                match got {
                    Err(fault) if fault.to_string().starts_with(words) => {}
                    Err(fault) => wrong.push(format!("{name}: refused with {fault:?}")),
                    Ok(_) => wrong.push(format!("{name}: decoded")),
                }
                continue;
            }
        };
        let pillow = expected.tensor(name).unwrap();
        match got {
            Err(fault) => wrong.push(format!("{name}: {fault}")),
            Ok(got) if [got.height, got.width, 3] != pillow.shape() || got.rgb.len() != pillow.data().len() => {
                wrong.push(format!("{name}: {} values, {}x{}", got.rgb.len(), got.width, got.height));
            }
            Ok(got) if got.flags != wanted_flags => wrong.push(format!("{name}: flags {:#b}", got.flags)),
            Ok(got) => {
                let sound = got.rgb.iter().zip(pillow.data()).take(got.width.saturating_mul(rows).saturating_mul(3));
                let worst = sound.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                if worst > tolerance {
                    wrong.push(format!("{name}: differs from Pillow by {worst}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_holds_every_fixture() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let listed = OUTCOMES.iter().any(|(listed, _)| *listed == name);
        assert!(
            listed || ["make_fixtures.py", "expected.safetensors"].contains(&name.as_str()),
            "{name} is not listed"
        );
    }
}

#[test]
fn exif_orientation_is_ignored() {
    assert_eq!(decode(&fixture("exif_rotated.jpg")).unwrap().rgb, decode(&fixture("rgb444.jpg")).unwrap().rgb);
}

#[test]
fn what_is_not_an_image_is_named() {
    let message = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
    assert_eq!(message(b""), "the file is empty");
    assert_eq!(message(b"<html>404 not found</html>\n"), "not a JPEG or PNG image (plain text)");
    assert_eq!(message(b"GIF89a\0\0"), "not a JPEG or PNG image (a GIF)");
    assert_eq!(message(&[0, 1, 2, 3]), "not a JPEG or PNG image (unknown content)");
    assert_eq!(message(&[0xff, 0xd8, 0xff]), "damaged or truncated JPEG: the file ends before the image begins");
}

#[test]
fn sizes_are_refused_before_the_pixels_are_allocated() {
    let mut png = fixture("png_named.JPEG");
    png[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]); // 65536 x 65536
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    assert_eq!(decode(&png).unwrap_err(), ImageFault::TooLarge { width: 65_536, height: 65_536 });

    let mut jpeg = fixture("rgb444.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x3f, 0xff, 0x3f, 0xff]); // 16383 x 16383
    assert_eq!(decode(&jpeg).unwrap_err(), ImageFault::TooLarge { width: 16_383, height: 16_383 });
}

/// CRC-32 of PNG chunks, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1))))
}

fn reference(path: PathBuf) -> ImageRef {
    ImageRef { position: 0, source_index: 0, key: "a/b.jpg".to_owned(), label: 0, place: Place::File(path) }
}

#[test]
fn skipping_passes_over_bad_content_but_never_over_io_errors() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.jpg");
    fs::write(&text, "not an image").unwrap();
    let absent = folder.path().join("absent.jpg");
    let stage = Decode::new;

    match stage(true).process(reference(text.clone())).unwrap() {
        // The reason goes into the dataset, so it must not depend on where the images lie.
        Decoded::Skipped { reason, .. } => assert_eq!(reason, "not a JPEG or PNG image (plain text)"),
        Decoded::Pixels(_) => panic!("text decoded"),
    }
    let error = stage(false).process(reference(text.clone())).unwrap_err().to_string();
    assert!(error.starts_with(&text.display().to_string()) && error.contains("--on-error skip"), "{error}");
    for skip in [true, false] {
        let error = stage(skip).process(reference(absent.clone())).unwrap_err().to_string();
        assert!(error.starts_with(&absent.display().to_string()) && error.contains("cannot be read"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_truncated_file_is_an_error_or_lost_nothing(which in 0..7usize, cut in 0.0..1.0f64) {
        let names = ["rgb444.jpg", "rgb420.jpg", "progressive.jpg", "gray.jpg", "cmyk_adobe.jpg", "restart.jpg", "rgba.png"];
        let whole = fixture(names[which]);
        let kept = (whole.len() as f64 * cut) as usize;
        if let Ok(got) = decode(&whole[..kept]) {
            prop_assert!(got.rgb == decode(&whole).unwrap().rgb, "{} cut to {} of {}", names[which], kept, whole.len());
        }
    }

    #[test]
    fn damaged_files_never_panic(which in 0..4usize, at in 2..400usize, value: u8) {
        let mut bytes = fixture(["rgb420.jpg", "progressive.jpg", "ycck.jpg", "palette.png"][which]);
        let at = at % bytes.len();
        bytes[at] = value;
        // A frame header may claim another size, which is then what comes out.
        if let Ok(got) = decode(&bytes) {
            prop_assert_eq!(got.rgb.len(), got.width * got.height * 3);
        }
    }
}
