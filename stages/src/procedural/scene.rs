//! One photograph: a background, a shape that lies on it in some light, its shadow, and the camera's noise.

use super::Class;
use super::random::Random;
use super::shape::REACH;
use super::texture::{Clouds, Noise, Pattern, mix};

type Rgb = [f32; 3];

/// How much a shape's pattern shows, in [0, 1].
const INK_CONTRAST: f32 = 0.9;

/// Everything about a photograph but its pixels. Lengths are in pixels, colours linear in [0, 1].
pub(super) struct Scene<'a> {
    class: &'a Class,
    noise: Noise,
    size: (usize, usize),
    // The shape: where it lies, how large and how turned.
    centre: (f32, f32),
    radius: f32,
    turn: (f32, f32),
    ink: [Rgb; 2],
    pattern_scale: f32,
    shadow: (f32, f32, f32),
    // The background: two colours, a pattern of its own, and clouds.
    ground: [Rgb; 2],
    ground_pattern: Pattern,
    ground_turn: (f32, f32),
    ground_scale: f32,
    ground_contrast: f32,
    clouds: Clouds,
    // Light falls off along one direction.
    light: (f32, f32, f32),
    grain: f32,
    grain_seed: u32,
}

impl<'a> Scene<'a> {
    pub(super) fn draw(class: &'a Class, random: &mut Random, width: usize, height: usize) -> Self {
        let (w, h) = (width as f32, height as f32);
        let short = w.min(h);
        let radius = short * random.between(0.34, 0.44);
        let around = |random: &mut Random, side: f32| side * 0.5 + (side * 0.5 - radius) * random.between(-0.7, 0.7);
        let centre = (around(random, w), around(random, h));
        let hue = class.hue.unwrap_or_else(|| random.unit()) + random.between(-0.015, 0.015);
        let value = random.between(0.85, 1.0);
        let ink = [
            colour(hue, class.saturation * random.between(0.85, 1.0), value),
            colour(
                hue + random.between(-0.02, 0.02),
                class.saturation * random.between(0.8, 1.0),
                value * random.between(0.5, 0.65),
            ),
        ];
        let ground_hue = random.unit();
        let ground_value = random.between(0.45, 0.75);
        let ground = [
            colour(ground_hue, random.between(0.0, 0.15), ground_value),
            colour(
                ground_hue + random.between(-0.15, 0.15),
                random.between(0.0, 0.2),
                ground_value * random.between(0.5, 0.75),
            ),
        ];
        let patterns =
            [Pattern::Marble, Pattern::Dots, Pattern::Stripes, Pattern::Waves, Pattern::Checker, Pattern::Speckle];
        let light_turn = turn(random.unit());
        let noise = Noise::new(random);
        let clouds = Clouds::over((width, height), &noise, random.between(3.0, 7.0) / short.max(1.0));
        Self {
            class,
            noise,
            size: (width, height),
            centre,
            radius,
            turn: turn(random.between(-0.04, 0.04)),
            ink,
            pattern_scale: random.between(1.1, 1.5) / radius,
            shadow: (light_turn.0 * radius * 0.14, light_turn.1 * radius * 0.14, random.between(0.25, 0.6)),
            ground,
            ground_pattern: patterns[random.below(patterns.len() as u64) as usize],
            ground_turn: turn(random.unit()),
            ground_scale: random.between(2.2, 3.6) / short,
            ground_contrast: random.between(0.3, 0.6),
            clouds,
            light: (light_turn.0 / w, light_turn.1 / h, random.between(0.1, 0.35)),
            grain: random.between(0.004, 0.022),
            // xorshift would stay at zero.
            grain_seed: (random.bits() as u32).max(1),
        }
    }

    /// Interleaved RGB, row by row.
    pub(super) fn render(&self) -> Vec<u8> {
        let (width, height) = self.size;
        let mut rgb = Vec::with_capacity(width * height * 3);
        let mut grain = self.grain_seed;
        for row in 0..height {
            for column in 0..width {
                let colour = self.colour_at(column as f32 + 0.5, row as f32 + 0.5);
                // xorshift32: three independent bytes serve the three channels.
                grain ^= grain << 13;
                grain ^= grain >> 17;
                grain ^= grain << 5;
                let byte = |shift: u32| (grain >> shift & 0xff) as i32 as f32 - 127.5;
                let luma = 1.4 * byte(24);
                // The cast of a float to u8 clamps.
                let level = |i: usize| colour[i] * 255.0 + self.grain * (luma + 0.8 * byte(8 * i as u32)) + 0.5;
                rgb.extend_from_slice(&[level(0) as u8, level(1) as u8, level(2) as u8]);
            }
        }
        rgb
    }

    fn colour_at(&self, x: f32, y: f32) -> Rgb {
        let (dx, dy) = ((x - self.centre.0) / self.radius, (self.centre.1 - y) / self.radius);
        let (u, v) = rotate(dx, dy, self.turn);
        let distance = self.distance(u, v);
        let cover = (0.5 - distance * self.radius).clamp(0.0, 1.0);
        let towards = (x - self.size.0 as f32 * 0.5) * self.light.0 + (y - self.size.1 as f32 * 0.5) * self.light.1;
        let light = 1.0 - self.light.2 * towards;
        let ground = if cover < 1.0 { self.ground_at(x, y) } else { [0.0; 3] };
        let shape = if cover > 0.0 { self.ink_at(u, v, distance) } else { [0.0; 3] };
        std::array::from_fn(|i| light * mix(ground[i], shape[i], cover))
    }

    /// Signed distance to the shape in its own units; a lower bound of it far outside, where nobody looks closely.
    fn distance(&self, u: f32, v: f32) -> f32 {
        let far = u * u + v * v;
        if far > (REACH + 0.25).powi(2) { 0.2 } else { self.class.shape.distance(u, v) }
    }

    fn ground_at(&self, x: f32, y: f32) -> Rgb {
        let (u, v) = rotate(x * self.ground_scale, y * self.ground_scale, self.ground_turn);
        let pattern = self.ground_pattern.at(&self.noise, u, v, self.ground_scale);
        let clouds = self.clouds.at(x, y);
        let t = 0.5 + 0.5 * self.ground_contrast * pattern + 0.15 * clouds;
        // The shadow is the shape again, moved away from the light, with a soft rim.
        let (dx, dy) = (x - self.shadow.0 - self.centre.0, self.centre.1 - y + self.shadow.1);
        let (su, sv) = rotate(dx / self.radius, dy / self.radius, self.turn);
        let depth = (0.5 - self.distance(su, sv) * 5.0).clamp(0.0, 1.0);
        let shade = 1.0 - self.shadow.2 * depth;
        std::array::from_fn(|i| shade * mix(self.ground[1][i], self.ground[0][i], t.clamp(0.0, 1.0)))
    }

    fn ink_at(&self, u: f32, v: f32, distance: f32) -> Rgb {
        let scale = self.pattern_scale * self.radius;
        let pattern = self.class.pattern.at(&self.noise, u * scale, v * scale, self.pattern_scale);
        let t = 0.5 + INK_CONTRAST * 0.5 * pattern;
        // Rounded: the rim turns away from the light.
        let rim = 1.0 - 0.35 * (1.0 + distance * 4.0).clamp(0.0, 1.0).powi(2);
        let clouds = 1.0 + 0.12 * self.noise.at(3.0 * u + 7.0, 3.0 * v);
        std::array::from_fn(|i| rim * clouds * mix(self.ink[1][i], self.ink[0][i], t))
    }
}

/// Cosine and sine of an angle given in turns.
fn turn(turns: f32) -> (f32, f32) {
    let (sin, cos) = (turns * std::f32::consts::TAU).sin_cos();
    (cos, sin)
}

fn rotate(x: f32, y: f32, (cos, sin): (f32, f32)) -> (f32, f32) {
    (cos * x + sin * y, cos * y - sin * x)
}

/// Hue in turns (0 red, 1/3 green, 2/3 blue; any real), saturation and value in [0, 1].
fn colour(hue: f32, saturation: f32, value: f32) -> Rgb {
    [0.0, 2.0 / 3.0, 1.0 / 3.0].map(|offset| {
        let h = hue + offset;
        let ramp = ((h - h.floor()) * 6.0 - 3.0).abs() - 1.0;
        value * mix(1.0, ramp.clamp(0.0, 1.0), saturation)
    })
}
