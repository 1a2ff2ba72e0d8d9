//! Several things of one kind side by side, runs or evaluations: a table of what they came to and of the settings in which they
//! differ, and curves. As a page of HTML that loads nothing, on which each run follows by itself, and its tables as Markdown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Context, Result};
use askama::Template;
use serde_json::Value;

use super::chart::{Base, Chart, Series, number};
use super::training::Training;

/// Lines that a chart can tell apart.
const MOST_LINES: usize = 8;

/// One of the things that are compared.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Where it lies.
    pub(crate) name: String,
    /// What it came to; all entries of a part have the same names in the same order. What was not measured is not a number.
    pub(crate) figures: Vec<(&'static str, f64)>,
    /// Everything that may explain the figures, by its dotted key.
    pub(crate) settings: BTreeMap<String, Value>,
}

/// A line of a chart: its points in the order of x.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Entries of one kind.
#[derive(Debug)]
pub(crate) struct Part {
    title: &'static str,
    notes: Vec<String>,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    charts: Vec<(String, Chart)>,
}

#[derive(Debug, Template)]
#[template(path = "comparison.html", config = "src/report/askama.toml")]
struct Page<'a> {
    title: &'a str,
    lead: &'a str,
    parts: &'a [Part],
    runs: &'a [Training],
}

/// A letter, or two behind Z: short names of entries, for the legends of charts.
pub(crate) fn letter(index: usize) -> String {
    let one = |i: usize| char::from(b'A' + (i % 26) as u8);
    if index < 26 { one(index).to_string() } else { format!("{}{}", one(index / 26 - 1), one(index)) }
}

/// Keys whose values are not the same in all entries; a key that some do not have is one.
pub(crate) fn differing(entries: &[Entry]) -> Vec<String> {
    let keys: BTreeSet<&String> = entries.iter().flat_map(|entry| entry.settings.keys()).collect();
    let differs = |key: &&String| entries.iter().any(|entry| entry.settings.get(*key) != entries[0].settings.get(*key));
    keys.into_iter().filter(differs).cloned().collect()
}

impl Part {
    /// The table of `entries`: their figures, where any has one, and the settings in which they differ.
    pub(crate) fn new(title: &'static str, entries: &[Entry], notes: Vec<String>) -> Self {
        let differing = differing(entries);
        let names = entries.first().map(|entry| &entry.figures[..]).unwrap_or_default();
        let is_known = |column: &usize| entries.iter().any(|entry| entry.figures[*column].1.is_finite());
        let known: Vec<usize> = (0..names.len()).filter(is_known).collect();
        let mut columns = vec![String::new(), "where".to_owned()];
        columns.extend(known.iter().map(|&column| names[column].0.to_owned()));
        columns.extend(differing.iter().cloned());
        let row = |(index, entry): (usize, &Entry)| {
            let mut cells = vec![letter(index), entry.name.clone()];
            cells.extend(known.iter().map(|&column| match entry.figures[column].1 {
                value if value.is_finite() => figure(value),
                _ => "-".to_owned(),
            }));
            cells.extend(differing.iter().map(|key| entry.settings.get(key).map_or("-".to_owned(), text)));
            cells
        };
        Self { title, notes, columns, rows: entries.iter().enumerate().map(row).collect(), charts: Vec::new() }
    }

    /// Adds a chart of `lines`, of which the first eight are drawn; `window` records make a point of a line.
    pub(crate) fn chart(&mut self, title: &str, x_name: &str, window: usize, lines: &[Line]) {
        let title = &match lines.len() {
            ..=MOST_LINES => title.to_owned(),
            all => format!("{title} (the first {MOST_LINES} of {all} lines)"),
        };
        let lines = &lines[..lines.len().min(MOST_LINES)];
        let mut places: Vec<f64> = lines.iter().flat_map(|line| line.points.iter().map(|point| point.0)).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let series: Vec<_> = lines
            .iter()
            .map(|line| Series { name: &line.name, values: places.iter().map(|x| between(&line.points, *x)).collect() })
            .collect();
        let chart = Chart::over(title, x_name, &places, window, Base::Data, &series);
        self.charts.push((title.to_owned(), chart));
    }

    /// The table, and the notes above it.
    pub(crate) fn markdown(&self) -> String {
        let mut shown = format!("{}\n\n", self.title);
        for note in &self.notes {
            let _ = writeln!(shown, "{note}\n");
        }
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        shown += &line(&self.columns);
        shown += &format!("|{}\n", "---|".repeat(self.columns.len()));
        shown.extend(self.rows.iter().map(|row| line(row)));
        shown
    }
}

/// The page.
pub(crate) fn page(title: &str, lead: &str, parts: &[Part], runs: &[Training]) -> Result<String> {
    Page { title, lead, parts, runs }.render().context("the page of the comparison cannot be filled in")
}

/// The value at `x` on the straight line between its neighbours, so that lines whose records lie elsewhere have no gaps; not a
/// number beyond the ends.
fn between(points: &[(f64, f64)], x: f64) -> f64 {
    let at = points.partition_point(|point| point.0 < x);
    match (at.checked_sub(1).map(|before| points[before]), points.get(at)) {
        (_, Some(&(place, value))) if place == x => value,
        (Some((x0, y0)), Some(&(x1, y1))) => y0 + (y1 - y0) * (x - x0) / (x1 - x0),
        _ => f64::NAN,
    }
}

/// Whole numbers whole: counts and steps.
fn figure(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 { format!("{value}") } else { number(value) }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("a list of {}", items.len()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(name: &str, fid: f64, settings: Value) -> Entry {
        let settings = settings.as_object().unwrap().clone().into_iter().collect();
        Entry { name: name.to_owned(), figures: vec![("FID", fid), ("sFID", f64::NAN), ("count", 50.0)], settings }
    }

    #[test]
    fn a_table_shows_what_was_measured_and_what_differs() {
        let entries = [
            entry("one", 12.345678, json!({ "cfg": 1.5, "steps": 250, "noise": null })),
            entry("two", f64::NAN, json!({ "cfg": 1.6, "steps": 250 })),
        ];
        let part = Part::new("Evaluations", &entries, vec!["A note.".to_owned()]);
        let expected = "Evaluations\n\nA note.\n\n|  | where | FID | count | cfg | noise |\n|---|---|---|---|---|---|\n\
                        | A | one | 12.3 | 50 | 1.5 | null |\n| B | two | - | 50 | 1.6 | - |\n";
        assert_eq!(part.markdown(), expected);
    }

    #[test]
    fn a_line_has_a_value_wherever_another_has_a_record() {
        let points = [(0.0, 1.0), (10.0, 3.0)];
        assert_eq!([0.0, 5.0, 10.0].map(|x| between(&points, x)), [1.0, 2.0, 3.0]);
        assert!(between(&points, 11.0).is_nan() && between(&[], 1.0).is_nan());
    }

    #[test]
    fn letters_do_not_end_with_the_alphabet() {
        assert_eq!([0, 25, 26, 27, 52].map(letter), ["A", "Z", "AA", "AB", "BA"]);
    }

    #[test]
    fn a_page_holds_tables_and_charts_and_escapes_names() {
        let entries = [entry("<one>", 1.0, json!({}))];
        let mut part = Part::new("Evaluations", &entries, Vec::new());
        part.chart("FID", "cfg", 1, &[Line { name: "A".to_owned(), points: vec![(1.5, 3.0), (1.6, 2.0)] }]);
        let page = page("Title", "Lead.", &[part], &[]).unwrap();
        assert!(page.contains("&#60;one&#62;") && page.contains("<svg class=\"chart\""), "{page}");
        assert!(!page.contains("<script") && !page.contains("http"));
    }
}
