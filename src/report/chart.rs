//! Line charts, over training steps or another quantity, as SVG that takes its colours from the page around it.
//!
//! A line is drawn twice: faint as recorded, and strong as a moving mean. Values that are not finite leave gaps. Ranges
//! are those of the data, or begin at zero where a height is to be compared; there are no logarithmic axes.

use std::fmt::Write;

use askama::Template;

use super::grouped;

/// Size of the drawing and of its margins, in units of the view box; text is 12 units high.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 50.0;
const TOP: f64 = 32.0;
const BOTTOM: f64 = 36.0;
/// Intervals that an axis should have, about.
const INTERVALS: f64 = 5.0;
/// Labels of line ends are kept this far apart.
const LABEL_SPACE: f64 = 14.0;

/// One quantity along the axis.
#[derive(Debug)]
pub(crate) struct Series<'a> {
    /// In the legend.
    pub(crate) name: &'a str,
    /// One value for each place; what is not finite is not drawn.
    pub(crate) values: Vec<f64>,
}

/// Where an axis begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    Zero,
    Data,
}

/// A chart that is laid out: only coordinates and text.
#[derive(Debug, Template)]
#[template(path = "chart.svg", config = "src/report/askama.toml")]
pub(crate) struct Chart {
    title: String,
    width: f64,
    height: f64,
    plot_left: f64,
    plot_right: f64,
    plot_bottom: f64,
    x_name: String,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    curves: Vec<Curve>,
}

#[derive(Debug)]
struct Tick {
    at: f64,
    text: String,
}

#[derive(Debug)]
struct Curve {
    name: String,
    /// Where its entry in the legend begins.
    legend_x: f64,
    /// Data of SVG paths; the raw one is empty where the mean is the same.
    raw: String,
    mean: String,
    end: Option<End>,
}

#[derive(Debug)]
struct End {
    x: f64,
    y: f64,
    text_y: f64,
    text: String,
}

impl Chart {
    /// Lays out `series` over `steps`; values beyond the ends of `steps` are not drawn.
    pub(crate) fn new(title: &str, steps: &[u64], base: Base, series: &[Series<'_>]) -> Self {
        let places: Vec<_> = steps.iter().map(|step| *step as f64).collect();
        Self::over(title, "step", &places, window(steps.len()), base, series)
    }

    /// Lays out `series` over any `places` that are not negative, on an axis that begins at 0, or with the places where they are
    /// all beyond the half of it; a strong line is the mean of `window` values around each place, and there is no faint one if that
    /// is 1.
    pub(crate) fn over(
        title: &str,
        x_name: &str,
        places: &[f64],
        window: usize,
        base: Base,
        series: &[Series<'_>],
    ) -> Self {
        let farthest = places.iter().copied().fold(0.0, f64::max);
        let nearest = places.iter().copied().fold(farthest, f64::min);
        let from = if 2.0 * nearest > farthest && places.len() > 1 { nearest } else { 0.0 };
        let x_ticks = ticks(from, if farthest > 0.0 { farthest } else { 1.0 });
        let drawn = series.iter().flat_map(|line| &line.values[..places.len().min(line.values.len())]);
        let (low, high) = drawn
            .copied()
            .filter(drawable)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let low = if base == Base::Zero { low.min(0.0) } else { low };
        let y_ticks = if low <= high { ticks_of_values(low, high) } else { ticks(0.0, 1.0) };
        let x = Scale::new(&x_ticks, LEFT, WIDTH - RIGHT);
        let y = Scale::new(&y_ticks, HEIGHT - BOTTOM, TOP);

        let mut legend_x = LEFT;
        let mut curves: Vec<_> = series
            .iter()
            .map(|line| {
                let place = |values: &[f64]| -> Vec<Option<(f64, f64)>> {
                    let points = places.iter().zip(values);
                    points.map(|(place, v)| drawable(v).then(|| (x.at(*place), y.at(*v)))).collect()
                };
                let means = moving_mean(&line.values, window);
                let mean = place(&means);
                let last = mean.iter().zip(&means).rev().find_map(|(point, value)| Some(((*point)?, *value)));
                let end = last.map(|((x, y), value)| End { x, y, text_y: y, text: number(value) });
                let raw = if window > 1 { path(&place(&line.values)) } else { String::new() };
                let curve = Curve { name: line.name.to_owned(), legend_x: px(legend_x), raw, mean: path(&mean), end };
                legend_x += 40.0 + 6.2 * line.name.chars().count() as f64;
                curve
            })
            .collect();
        part_labels(&mut curves);
        Self {
            title: title.to_owned(),
            width: WIDTH,
            height: HEIGHT,
            plot_left: LEFT,
            plot_right: WIDTH - RIGHT,
            plot_bottom: HEIGHT - BOTTOM,
            x_name: x_name.to_owned(),
            x_ticks: x.labelled(&x_ticks),
            y_ticks: y.labelled(&y_ticks),
            curves,
        }
    }
}

/// How many neighbouring records one point of a strong line is the mean of, of `records`: odd, 1 for few records.
pub(crate) fn window(records: usize) -> usize {
    (records / 12) | 1
}

/// Where the strong line of `values` ends: the last finite moving mean.
pub(crate) fn end_of(values: &[f64]) -> Option<f64> {
    moving_mean(values, window(values.len())).into_iter().rev().find(drawable)
}

/// A measured value as text: three significant digits or so, never more than a caption needs.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1e5 => format!("{value:.2e}"),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 => format!("{value:.3}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.1e}"),
    }
}

/// Losses are computed in f32: what lies beyond it could only come from a broken file, and would overflow an axis.
fn drawable(value: &f64) -> bool {
    value.abs() <= f64::from(f32::MAX)
}

/// Mean of the drawable values among the `window` records around each; a value that is not drawable stays a gap.
fn moving_mean(values: &[f64], window: usize) -> Vec<f64> {
    let side = window / 2;
    let mean = |index: usize| {
        let around = &values[index.saturating_sub(side)..(index + side + 1).min(values.len())];
        let (sum, count) = around.iter().filter(|v| drawable(v)).fold((0.0, 0.0), |(s, n), v| (s + v, n + 1.0));
        sum / count
    };
    values.iter().enumerate().map(|(index, v)| if drawable(v) { mean(index) } else { f64::NAN }).collect()
}

/// Multiples of 1, 2 or 5 times a power of ten: evenly spaced, the first not above `low`, the last not below `high`.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let largest = low.abs().max(high.abs());
    // Where the range is nothing beside the values, rounding would not let a tick differ from the next.
    let flat = high - low <= (1e-9 * largest).max(1e-30);
    let room = match flat {
        false => 0.0,
        true if largest < 1e-30 => 1.0,
        true => 0.1 * largest,
    };
    let (low, high) = (low - room, high + room);
    let rough = (high - low) / INTERVALS;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough * 0.999).unwrap_or(10.0);
    let step = factor * power;
    // A hair of tolerance, else 0.3 / 0.1 would ask for one more tick.
    let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
    // Division by the inverse keeps 0.3 from becoming 0.30000000000000004.
    let value = |n: f64| if power < 1.0 { n * factor / (1.0 / power).round() } else { n * step };
    (0..=(last - first) as usize).map(|n| value(first + n as f64)).collect()
}

/// Ticks of an axis of values: one that hardly changes is drawn as a line that hardly changes.
fn ticks_of_values(low: f64, high: f64) -> Vec<f64> {
    let least = 1e-3 * low.abs().max(high.abs());
    let room = (least - (high - low)).max(0.0) / 2.0;
    ticks(low - room, high + room)
}

/// From values on an axis to the drawing.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn new(ticks: &[f64], from: f64, to: f64) -> Self {
        let ends = ticks.first().zip(ticks.last());
        let (low, high) = ends.map_or((0.0, 1.0), |(low, high)| (*low, *high));
        Self { low, high, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        px(self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from))
    }

    fn labelled(&self, ticks: &[f64]) -> Vec<Tick> {
        ticks.iter().map(|value| Tick { at: self.at(*value), text: tick_text(*value, ticks) }).collect()
    }
}

/// The decimals that tell the ticks of an axis apart.
fn tick_text(value: f64, ticks: &[f64]) -> String {
    let step = if let [a, b, ..] = ticks { b - a } else { 1.0 };
    let largest = ticks.iter().fold(0.0, |largest: f64, tick| largest.max(tick.abs()));
    if value == 0.0 {
        "0".to_owned()
    } else if largest >= 1e7 || step < 1e-4 {
        let digits = (largest / step).log10().ceil().clamp(1.0, 9.0) as usize;
        format!("{value:.digits$e}")
    } else if step >= 1.0 {
        let sign = if value < 0.0 { "-" } else { "" };
        format!("{sign}{}", grouped(value.abs().round() as u64))
    } else {
        format!("{value:.0$}", (-step.log10() - 1e-9).ceil() as usize)
    }
}

/// Tenths of a unit are finer than any screen; more digits only make the file larger.
fn px(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Lines between neighbours that are there; a point alone becomes a dot, by the round ends of a line of no length.
fn path(points: &[Option<(f64, f64)>]) -> String {
    let mut data = String::new();
    let mut pen_down = false;
    for (index, point) in points.iter().enumerate() {
        if let Some((x, y)) = point {
            let alone = !pen_down && points.get(index + 1).is_none_or(Option::is_none);
            let _ = write!(data, "{}{x} {y}{}", if pen_down { "L" } else { "M" }, if alone { "h0" } else { "" });
        }
        pen_down = point.is_some();
    }
    data
}

/// Moves the labels of two line ends apart where they would lie over each other.
fn part_labels(curves: &mut [Curve]) {
    let mut ends: Vec<_> = curves.iter_mut().filter_map(|curve| curve.end.as_mut()).collect();
    ends.sort_by(|a, b| a.y.total_cmp(&b.y));
    let mut free = f64::NEG_INFINITY;
    for end in ends {
        end.text_y = px(end.y.max(free));
        free = end.text_y + LABEL_SPACE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(values: &[f64]) -> String {
        let steps: Vec<u64> = (1..=values.len() as u64).map(|n| n * 20).collect();
        let series = [Series { name: "loss <&>", values: values.to_vec() }];
        Chart::new("Loss", &steps, Base::Data, &series).render().unwrap()
    }

    #[test]
    fn ticks_are_nice_numbers_and_cover_the_range() {
        let ranges =
            [(0.0, 1.0), (0.447, 2.005), (-0.9999, -0.7), (0.0, 31.0), (3e-7, 8e-7), (-5.0, 12_345.0), (2e9, 3e30)];
        for (low, high) in ranges {
            let ticks = ticks(low, high);
            assert!(ticks[0] <= low && ticks[ticks.len() - 1] >= high, "{low}..{high}: {ticks:?}");
            assert!((3..=9).contains(&ticks.len()), "{low}..{high}: {ticks:?}");
            let step = ticks[1] - ticks[0];
            let leading = step / 10f64.powf((step.log10() + 1e-9).floor());
            assert!([1.0, 2.0, 5.0].iter().any(|nice| (leading - nice).abs() < 1e-6), "{low}..{high}: {ticks:?}");
            for tick in &ticks {
                assert!((tick / step - (tick / step).round()).abs() < 1e-6, "{low}..{high}: {ticks:?}");
            }
        }
    }

    #[test]
    fn ticks_say_what_a_person_would_write() {
        let texts = |low, high| {
            let ticks = ticks(low, high);
            ticks.iter().map(|tick| tick_text(*tick, &ticks)).collect::<Vec<_>>()
        };
        assert_eq!(texts(0.0, 0.3), ["0", "0.1", "0.2", "0.3"]);
        assert_eq!(texts(0.0, 2000.0), ["0", "500", "1,000", "1,500", "2,000"]);
        assert_eq!(texts(-0.04, 0.04), ["-0.04", "-0.02", "0", "0.02", "0.04"]);
        assert_eq!(texts(5.0, 5.0), ["4.4", "4.6", "4.8", "5.0", "5.2", "5.4", "5.6"]);
        assert_eq!(texts(0.0, 0.0), ["-1.0", "-0.5", "0", "0.5", "1.0"]);
        assert_eq!(texts(0.01, 0.01002), ["1.0000e-2", "1.0005e-2", "1.0010e-2", "1.0015e-2", "1.0020e-2"]);
        let ticks = ticks_of_values(0.99999, 1.0);
        let said: Vec<_> = ticks.iter().map(|tick| tick_text(*tick, &ticks)).collect();
        assert_eq!((said[0].as_str(), said.last().unwrap().as_str()), ("0.9994", "1.0006"));
    }

    #[test]
    fn a_value_that_is_no_number_is_a_gap() {
        let svg = chart(&[1.0, 0.5, f64::NAN, 0.4, f64::INFINITY, 0.2, 0.1]);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let line = svg.lines().find(|line| line.contains("class=\"mean\"")).unwrap();
        assert_eq!(line.matches('M').count(), 3, "{line}");
        assert_eq!(line.matches("h0").count(), 1, "{line}");
    }

    #[test]
    fn few_points_or_none_still_make_a_chart() {
        for values in
            [&[][..], &[1.0], &[2.0, 1.0], &[f64::NAN, f64::NAN], &[1e30, 1e30], &[-1e308, 1e308], &[0.0, 1e-320]]
        {
            let svg = chart(values);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{values:?}: {svg}");
            assert!(svg.contains("</svg>"));
        }
    }

    #[test]
    fn the_moving_mean_leaves_out_what_is_no_number_and_keeps_its_place() {
        let mean = moving_mean(&[1.0, f64::NAN, 3.0, 5.0], 3);
        assert_eq!((mean[0], mean[2], mean[3]), (1.0, 4.0, 4.0));
        assert!(mean[1].is_nan());
    }

    #[test]
    fn a_window_is_odd_and_one_for_few_records() {
        assert_eq!([0, 2, 23, 24, 31, 1000].map(window), [1, 1, 1, 3, 3, 83]);
    }

    #[test]
    fn labels_of_line_ends_do_not_lie_over_each_other() {
        let series = [("a", 0.51), ("b", 0.5)].map(|(name, end)| Series { name, values: vec![0.0, end] });
        let chart = Chart::new("", &[1, 2], Base::Data, &series);
        let at: Vec<_> = chart.curves.iter().map(|curve| curve.end.as_ref().unwrap().text_y).collect();
        assert!((at[1] - at[0]).abs() >= LABEL_SPACE, "{at:?}");
    }

    #[test]
    fn an_axis_begins_at_zero_unless_that_would_leave_half_of_it_empty() {
        let first_tick = |places: &[f64]| {
            let series = [Series { name: "a", values: places.to_vec() }];
            Chart::over("", "x", places, 1, Base::Data, &series).x_ticks[0].text.clone()
        };
        assert_eq!([first_tick(&[1.0, 4.0]), first_tick(&[1.56, 1.6, 1.64]), first_tick(&[3.0])], ["0", "1.56", "0"]);
    }

    #[test]
    fn names_are_escaped() {
        assert!(chart(&[1.0, 2.0]).contains("loss &#60;&#38;&#62;"));
    }
}
