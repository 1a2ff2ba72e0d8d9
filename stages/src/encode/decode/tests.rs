//! Against `fixtures/expected.safetensors`: what Pillow 12 decodes from the files that `fixtures/make_fixtures.py` made.

use super::*;
use proptest::prelude::*;
use std::fs;

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)).unwrap()
}

/// Asserts size and flags, and that no value differs from Pillow's by more than `tolerance`.
fn assert_matches_pillow(name: &str, expected_flags: u8, tolerance: u8) {
    let file = fixture("expected.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let expected = tensors.tensor(name).unwrap();
    let got = decode(&fixture(name)).unwrap_or_else(|fault| panic!("{name}: {fault}"));
    assert_eq!([got.height, got.width, 3], expected.shape(), "{name}");
    assert_eq!(got.flags, expected_flags, "{name}");
    let worst = got.rgb.iter().zip(expected.data()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(worst <= tolerance, "{name}: differs from Pillow by {worst}");
}

#[test]
fn every_odd_png_decodes_to_the_bytes_of_pillow() {
    assert_matches_pillow("png_named.JPEG", flags::PNG, 0);
    assert_matches_pillow("rgba.png", flags::PNG | flags::ALPHA, 0);
    assert_matches_pillow("la.png", flags::PNG | flags::ALPHA | flags::GRAY, 0);
    assert_matches_pillow("palette.png", flags::PNG | flags::ALPHA, 0);
    assert_matches_pillow("bilevel.png", flags::PNG | flags::GRAY, 0);
    assert_matches_pillow("gray16.png", flags::PNG | flags::GRAY, 0);
    assert_matches_pillow("rgb16.png", flags::PNG, 0);
}

// zune-jpeg's inverse DCT and chroma upsampling are not libjpeg-turbo's; the bounds are those of the module's head.
#[test]
fn every_odd_jpeg_decodes_to_pillow_within_the_decoders_known_difference() {
    assert_matches_pillow("rgb444.jpg", 0, 3);
    assert_matches_pillow("progressive.jpg", 0, 3);
    assert_matches_pillow("trailing.jpg", 0, 3);
    assert_matches_pillow("rgb420.jpg", 0, 6);
    assert_matches_pillow("rgb422.jpg", 0, 6);
    assert_matches_pillow("restart.jpg", 0, 6);
    assert_matches_pillow("gray.jpg", flags::GRAY, 1);
}

#[test]
fn colour_rules_of_libjpeg_and_pillow_hold_for_unusual_markers() {
    assert_matches_pillow("cmyk_adobe.jpg", flags::CMYK, 2);
    assert_matches_pillow("cmyk_plain.jpg", flags::CMYK, 2);
    assert_matches_pillow("ycck.jpg", flags::CMYK, 3);
    assert_matches_pillow("rgb_adobe.jpg", 0, 1);
    assert_matches_pillow("rgb_ids.jpg", 0, 1);
}

#[test]
fn exif_orientation_is_ignored() {
    assert_matches_pillow("exif_rotated.jpg", 0, 3);
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
    ImageRef { position: 0, source_index: 0, key: "a/b.jpg".to_owned(), label: 0, path }
}

#[test]
fn skipping_passes_over_bad_content_but_never_over_io_errors() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.jpg");
    fs::write(&text, "not an image").unwrap();
    let absent = folder.path().join("absent.jpg");
    let stage = |skip| Decode { skip, bytes: Vec::new() };

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
