//! Shapes as signed distances: negative inside, in units of the shape's radius. Formulas after Inigo Quilez,
//! "2D distance functions"; some are bounds and not exact far away, which antialiasing does not need.

/// Every shape lies within this distance of the origin.
pub(super) const REACH: f32 = 1.25;

/// An outline of about radius 1 around the origin, y pointing up.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Disc,
    Ring,
    Triangle,
    Star,
    Square,
    Hexagon,
    Cross,
    Heart,
}

impl Shape {
    /// Signed distance of (x, y) to the outline.
    pub(super) fn distance(self, x: f32, y: f32) -> f32 {
        match self {
            Self::Disc => length(x, y) - 0.95,
            Self::Ring => (length(x, y) - 0.72).abs() - 0.24,
            Self::Triangle => triangle(x, y + 0.15),
            Self::Star => star(x, y),
            Self::Square => square(x, y, 0.8, 0.8) - 0.05,
            Self::Hexagon => hexagon(x, y),
            Self::Cross => square(x, y, 0.95, 0.32).min(square(x, y, 0.32, 0.95)),
            Self::Heart => heart(x / 1.6, y / 1.6 + 0.55) * 1.6,
        }
    }
}

/// Not `hypot`, which is a slow call for the sake of numbers too large to square.
pub(super) fn length(x: f32, y: f32) -> f32 {
    (x * x + y * y).sqrt()
}

fn square(x: f32, y: f32, half_width: f32, half_height: f32) -> f32 {
    let (dx, dy) = (x.abs() - half_width, y.abs() - half_height);
    length(dx.max(0.0), dy.max(0.0)) + dx.max(dy).min(0.0)
}

/// Equilateral, corners at distance about 1.1.
fn triangle(x: f32, y: f32) -> f32 {
    let side = |nx: f32, ny: f32| x * nx + y * ny - 0.56;
    side(0.0, -1.0).max(side(0.866_025_4, 0.5)).max(side(-0.866_025_4, 0.5))
}

/// Corners at distance about 1.
fn hexagon(x: f32, y: f32) -> f32 {
    let (x, y) = (x.abs(), y.abs());
    y.max(x * 0.866_025_4 + y * 0.5) - 0.86
}

/// Five points: the plane is folded into one half point, which one line bounds.
fn star(x: f32, y: f32) -> f32 {
    const FOLDS: [(f32, f32); 2] = [(0.809_017, -0.587_785_24), (-0.809_017, -0.587_785_24)];
    let (mut x, mut y) = (x.abs(), y);
    for (nx, ny) in FOLDS {
        let beyond = 2.0 * (nx * x + ny * y).max(0.0);
        (x, y) = (x - beyond * nx, y - beyond * ny);
    }
    x = x.abs();
    // From the tip (0, 1) to the notch at 36 degrees and distance 0.45: unit normal of that line.
    let (notch_x, notch_y): (f32, f32) = (0.45 * 0.587_785_24, 0.45 * 0.809_017);
    let (ax, ay) = (notch_x, notch_y - 1.0);
    (-ay * x + ax * (y - 1.0)) / length(ax, ay)
}

/// The heart of height 1.1 that stands on the origin.
fn heart(x: f32, y: f32) -> f32 {
    let x = x.abs();
    if x + y > 1.0 {
        return length(x - 0.25, y - 0.75) - 0.353_553_4;
    }
    let diagonal = 0.5 * (x + y).max(0.0);
    let nearest = length(x, y - 1.0).min(length(x - diagonal, y - diagonal));
    nearest * (x - y).signum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Shape; 8] = [
        Shape::Disc,
        Shape::Ring,
        Shape::Triangle,
        Shape::Star,
        Shape::Square,
        Shape::Hexagon,
        Shape::Cross,
        Shape::Heart,
    ];

    #[test]
    fn every_shape_fills_a_fair_part_of_its_square_and_stays_near_it() {
        for shape in ALL {
            let mut inside = 0;
            for i in 0..200 {
                for j in 0..200 {
                    let (x, y) = (i as f32 / 50.0 - 2.0, j as f32 / 50.0 - 2.0);
                    if shape.distance(x, y) < 0.0 {
                        inside += 1;
                        assert!(x.hypot(y) < REACH, "{shape:?} at {x} {y}");
                    }
                }
            }
            // Of the 4 x 4 window a disc of radius 1 would fill 7,854 points.
            assert!((2000..8000).contains(&inside), "{shape:?} fills {inside}");
        }
    }

    #[test]
    fn the_distance_changes_no_faster_than_the_place() {
        for shape in ALL {
            for i in 0..80 {
                for j in 0..80 {
                    let (x, y) = (i as f32 / 20.0 - 2.0, j as f32 / 20.0 - 2.0);
                    let step = (shape.distance(x + 0.01, y) - shape.distance(x, y)).abs();
                    assert!(step <= 0.0101, "{shape:?} at {x} {y}: {step}");
                }
            }
        }
    }
}
