use proptest::prelude::*;

use super::*;
use crate::splitmix::SplitMix64;

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
    assert!(tensors.len() >= 36);
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
    assert!(at_256.len() >= 16);
    for (size, hashes) in at_256 {
        let (width, height) = size_of(size);
        let crop = centre_crop(picture(width, height), width, height, 256);
        assert_eq!(hashes["xxh3_64"].as_str().unwrap(), hex(&crop), "crop of {size} to 256");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Without AVX2 both sides are the same code, and there is nothing to compare.
    #[test]
    fn every_implementation_gives_the_same_bytes(
        width in 1usize..700, height in 1usize..700, size in 8usize..300, seed: u64, kind in 0..3,
    ) {
        let mut draws = SplitMix64::new(seed);
        let rgb: Vec<u8> = match kind {
            0 => (0..width * height * 3).map(|_| draws.bits() as u8).collect(),
            // The largest overshoots: both clips are hit everywhere.
            1 => (0..width * height * 3).map(|_| if draws.bits() & 1 == 0 { 0 } else { 255 }).collect(),
            _ => picture(width, height),
        };
        let mut cropper = Cropper::new(size, Resize::Exact);
        let plain = centre_crop_by(resample::resample, rgb.clone(), width, height, size);
        prop_assert!(cropper.crop(rgb, width, height).unwrap() == plain);
        // And with buffers that hold another image's pixels.
        let again = picture(height, width);
        let plain = centre_crop_by(resample::resample, again.clone(), height, width, size);
        prop_assert!(cropper.crop(again, height, width).unwrap() == plain);
    }
}

#[test]
fn sums_of_kernels_fit_in_32_bits() {
    let largest = |from: usize, to: usize, filter: Filter| {
        let coefficients = filter.coefficients(from, to, 0..to);
        let sum = |(_, taps): (usize, &[i32])| taps.iter().map(|k| i64::from(k.abs())).sum::<i64>();
        coefficients.kernels().map(sum).max().unwrap()
    };
    let sizes = || (1usize..70).chain([100, 255, 256, 257, 333, 500, 1023]);
    let mut most = 0;
    for from in sizes() {
        for to in sizes() {
            most = most.max(largest(from, to, Filter::Bicubic));
            most = most.max(largest(from, to, Filter::Box));
        }
    }
    // The factor of `Coefficients`: the sum of the sizes of the weights, against their sum of 1.
    assert!((most as f64 / f64::from(1 << 22)) < 1.32, "{most}");
    assert!(most * 255 + (1 << 21) < i64::from(i32::MAX));
}

/// What [`Resize::Fast`] does to an image: PSNR in dB against [`Resize::Exact`] and the largest difference.
fn fast_against_exact(rgb: Vec<u8>, width: usize, height: usize, size: usize) -> (f64, u8) {
    let exact = centre_crop(rgb.clone(), width, height, size);
    let fast = Cropper::new(size, Resize::Fast).crop(rgb, width, height).unwrap();
    assert_eq!(exact.len(), fast.len());
    let differences = exact.iter().zip(&fast).map(|(a, b)| a.abs_diff(*b));
    let squares: f64 = differences.clone().map(|d| f64::from(d) * f64::from(d)).sum();
    (10.0 * (255.0 * 255.0 * exact.len() as f64 / squares).log10(), differences.max().unwrap())
}

#[test]
fn the_fast_path_shows_the_same_picture() {
    for (width, height) in [(500, 375), (257, 64), (31, 47), (64, 64), (33, 500), (500, 33), (1100, 640), (511, 513)] {
        for size in [32, 256] {
            // Smooth, so that the different rounding between the passes stays small.
            let smooth = |i: usize| ((i % (width * 3)) / 3 * 200 / width + i / (width * 3) * 50 / height) as u8;
            let rgb: Vec<u8> = (0..width * height * 3).map(smooth).collect();
            let (_, worst) = fast_against_exact(rgb, width, height, size);
            assert!(worst <= 2, "{width}x{height} to {size}: differs by {worst}");
            // Hard edges, where the clip between the passes counts.
            let (psnr, worst) = fast_against_exact(picture(width, height), width, height, size);
            assert!(psnr > 38.0 && worst <= 30, "{width}x{height} to {size}: PSNR {psnr:.1} dB, largest {worst}");
        }
    }
}

#[test]
fn long_images_are_enlarged_in_little_memory() {
    // Enlarged as a whole this would be 256 x 7,680,000 pixels, 6 GB.
    let (width, height) = (1, 30_000);
    let rgb = picture(width, height);
    let exact = Cropper::new(256, Resize::Exact).crop(rgb.clone(), width, height).unwrap();
    let fast = Cropper::new(256, Resize::Fast).crop(rgb, width, height).unwrap();
    assert_eq!((exact.len(), fast.len()), (256 * 256 * 3, 256 * 256 * 3));
    assert!(exact.iter().zip(&fast).all(|(a, b)| a.abs_diff(*b) <= 30));
}

#[test]
fn skipped_images_pass_through() {
    let image = crate::data::ImageRef {
        position: 3,
        source_index: 4,
        key: "a/b.jpg".to_owned(),
        label: 0,
        place: crate::data::Place::File("b.jpg".into()),
    };
    let mut stage = AdmCrop { cropper: Cropper::new(8, Resize::Exact) };
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
