//! Labelled synthetic photographs: images without a download, for the demo, the tests and the embedded autoencoder.
//!
//! A class is a shape with a texture, and in the set of the demo with a hue, which a person can name; place, size,
//! rotation, light, shadow, background and camera noise vary.
//! Every image has edges and texture, and is a pure function of (class, seed, width, height) on every machine with the
//! same `sin` and `cos`. [`Portfolio`] makes a dataset of them, through the engine. No tensors here.

mod dataset;
mod random;
mod scene;
mod shape;
mod texture;

pub use self::dataset::{Commission, Commissions, Draw, Drawn, Portfolio, ProceduralError, WriteFiles};
use self::random::Random;
use self::scene::Scene;
use self::shape::Shape;
use self::texture::Pattern;

/// The names of the classes, usable as folder names: colour, texture, shape.
pub const CLASSES: &[&str] = &[
    "red-dotted-disc",
    "orange-checkered-square",
    "yellow-speckled-star",
    "green-striped-triangle",
    "cyan-wavy-cross",
    "blue-banded-ring",
    "violet-grained-hexagon",
    "pink-marbled-heart",
];

/// Sets of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Classes {
    /// [`CLASSES`]. A hue each, by which alone they can be told apart.
    Named,
    /// Every shape in every texture, in any hue: 64 classes that take more to tell apart, named `disc-dots` and so on.
    Crossed,
}

impl Classes {
    /// How many.
    pub fn count(self) -> usize {
        match self {
            Self::Named => LOOKS.len(),
            Self::Crossed => LOOKS.len() * LOOKS.len(),
        }
    }

    /// The name of a class below [`Self::count`], usable as a folder name.
    pub fn name(self, class: usize) -> String {
        match self {
            Self::Named => CLASSES[class].to_owned(),
            Self::Crossed => {
                let Class { shape, pattern, .. } = self.look(class);
                format!("{shape:?}-{pattern:?}").to_lowercase()
            }
        }
    }

    /// One photograph of class `class`, taken modulo their number: interleaved RGB, `width * height * 3` bytes, row by
    /// row from the top. A size of zero gives no bytes.
    pub fn image(self, class: usize, seed: u64, width: usize, height: usize) -> Vec<u8> {
        let class = class % self.count();
        Scene::draw(&self.look(class), &mut Random::new(seed, class as u64), width, height).render()
    }

    fn look(self, class: usize) -> Class {
        match self {
            Self::Named => LOOKS[class],
            Self::Crossed => {
                let (shape, pattern) = (&LOOKS[class / LOOKS.len()], &LOOKS[class % LOOKS.len()]);
                Class { shape: shape.shape, pattern: pattern.pattern, hue: None, saturation: 0.9 }
            }
        }
    }
}

/// What the images of one class share.
#[derive(Debug, Clone, Copy)]
struct Class {
    shape: Shape,
    pattern: Pattern,
    /// In turns: 0 red, 1/3 green, 2/3 blue; none for one of its own in every image.
    hue: Option<f32>,
    /// In [0, 1].
    saturation: f32,
}

/// In the order of [`CLASSES`].
const LOOKS: [Class; 8] = [
    Class { shape: Shape::Disc, pattern: Pattern::Dots, hue: Some(0.99), saturation: 0.95 },
    Class { shape: Shape::Square, pattern: Pattern::Checker, hue: Some(0.07), saturation: 0.95 },
    Class { shape: Shape::Star, pattern: Pattern::Speckle, hue: Some(0.15), saturation: 0.9 },
    Class { shape: Shape::Triangle, pattern: Pattern::Stripes, hue: Some(0.34), saturation: 0.9 },
    Class { shape: Shape::Cross, pattern: Pattern::Waves, hue: Some(0.49), saturation: 0.85 },
    Class { shape: Shape::Ring, pattern: Pattern::Rings, hue: Some(0.62), saturation: 0.9 },
    Class { shape: Shape::Hexagon, pattern: Pattern::Grain, hue: Some(0.76), saturation: 0.75 },
    Class { shape: Shape::Heart, pattern: Pattern::Marble, hue: Some(0.9), saturation: 0.6 },
];

/// [`Classes::image`] of the named ones.
pub fn image(class: usize, seed: u64, width: usize, height: usize) -> Vec<u8> {
    Classes::Named.image(class, seed, width, height)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_class_has_a_look_and_a_name_of_its_own() {
        assert_eq!(CLASSES.len(), LOOKS.len());
        let distinct: std::collections::BTreeSet<_> = CLASSES.iter().collect();
        assert_eq!(distinct.len(), CLASSES.len());
    }

    #[test]
    fn crossed_classes_have_names_and_images_of_their_own_in_any_hue() {
        let classes = Classes::Crossed;
        let names: std::collections::BTreeSet<_> = (0..classes.count()).map(|class| classes.name(class)).collect();
        assert_eq!((names.len(), classes.name(9).as_str()), (64, "square-checker"));
        let images: std::collections::BTreeSet<_> = (0..64).map(|class| classes.image(class, 3, 32, 32)).collect();
        assert_eq!(images.len(), 64);
        // Red leads in some images of a class and blue in others.
        let lead = |seed| {
            let rgb = classes.image(9, seed, 32, 32);
            rgb.chunks(3).fold(0i64, |sum, p| sum + i64::from(p[0]) - i64::from(p[2]))
        };
        let red = (0..20).filter(|seed| lead(*seed) > 0).count();
        assert!((4..=16).contains(&red), "{red} of 20");
    }

    #[test]
    fn the_same_seed_gives_the_same_image_and_another_seed_or_class_another() {
        let first = image(3, 9, 40, 30);
        assert_eq!(first, image(3, 9, 40, 30));
        assert_ne!(first, image(3, 10, 40, 30));
        assert_ne!(first, image(4, 9, 40, 30));
    }

    /// Mean absolute difference between horizontal neighbours, in u8 steps: 0 for a flat image.
    fn roughness(rgb: &[u8], width: usize) -> f64 {
        let pairs = rgb.chunks(width * 3).flat_map(|row| row.iter().zip(&row[3..]));
        let (sum, count) = pairs.fold((0u64, 0u64), |(sum, n), (a, b)| (sum + u64::from(a.abs_diff(*b)), n + 1));
        sum as f64 / count as f64
    }

    #[test]
    fn every_image_has_texture_and_an_edge() {
        for class in 0..CLASSES.len() {
            for seed in 0..8 {
                let rgb = image(class, seed, 96, 80);
                assert!(roughness(&rgb, 96) > 1.0, "{class} {seed} is flat");
                let steepest = rgb
                    .chunks(96 * 3)
                    .flat_map(|row| row.iter().zip(&row[6..]).map(|(a, b)| a.abs_diff(*b)).collect::<Vec<_>>())
                    .max();
                assert!(steepest > Some(40), "{class} {seed} has no edge: {steepest:?}");
            }
        }
    }

    #[test]
    fn the_mean_colour_of_the_shape_tells_red_from_blue() {
        // Hue is the class's own: over many images the red channel leads in one and the blue in the other.
        let lead = |class| {
            (0..20).fold(0i64, |sum, seed| {
                let rgb = image(class, seed, 64, 64);
                rgb.chunks(3).fold(sum, |sum, p| sum + i64::from(p[0]) - i64::from(p[2]))
            })
        };
        assert!(lead(0) > 0 && lead(5) < 0, "{} {}", lead(0), lead(5));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn any_size_gives_that_many_pixels(class: usize, seed: u64, width in 0usize..70, height in 0usize..70) {
            prop_assert_eq!(image(class, seed, width, height).len(), width * height * 3);
        }
    }
}
