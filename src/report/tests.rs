use std::fs;

use image::Rgb;
use stages::load::waits::WaitFigures;
use stages::train::run_dir::{FeatureMetrics, SpreadMetrics};

use super::flow::StageRecord;
use super::*;

fn record(step: u64, velocity_loss: f64) -> Metrics {
    Metrics {
        step,
        images: 32 * step,
        velocity_loss,
        alignment_loss: -0.99,
        dispersive_loss: None,
        contrastive_distance: None,
        features: Some(FeatureMetrics {
            condition: SpreadMetrics { cosine: 0.5, other_cosine: 0.2, rank: 20.0, deviation: 0.9 },
            projected: SpreadMetrics { cosine: 0.99, other_cosine: 0.4, rank: 5.0, deviation: 0.5 },
            cosine_by_gap: vec![Some(0.9), None, None, None, Some(0.1)],
        }),
        gradient_norm: 1.0,
        skipped: 0,
        lr: 1e-3,
        images_per_s: 40.0,
        data_wait: 0.001,
        wait_ms: None,
        bad_samples: 0,
        first_batch_s: None,
        run_wait: None,
        stages: Vec::new(),
    }
}

fn picture(seed: u8) -> RgbImage {
    RgbImage::from_fn(16, 16, |x, y| Rgb([seed, (16 * x) as u8, (16 * y) as u8]))
}

fn png(seed: u8) -> Vec<u8> {
    let mut png = std::io::Cursor::new(Vec::new());
    picture(seed).write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

fn stage(name: &str, workers: usize, busy_s: f64) -> StageRecord {
    let rest = (workers as f64) * 10.0 - busy_s;
    StageRecord {
        name: name.to_owned(),
        workers,
        items: 1000,
        busy_s,
        starved_s: rest / 2.0,
        blocked_s: rest / 2.0,
        room: 3,
        queued_mean: 2.1,
        waits: 40,
    }
}

fn part(name: &str, seconds: f64, flow: Option<FlowRecord>) -> Part {
    let (name, what) = (name.to_owned(), "Makes what the next part needs.".to_owned());
    Part { command: format!("pipeline {name} --out demo"), name, what, seconds, flow }
}

/// A page in which every section has something to show.
fn full(metrics: &[Metrics]) -> Page<'_> {
    let flow = FlowRecord { wall_s: 10.0, stages: vec![stage("Decode", 2, 1.0), stage("VaeEncode", 1, 9.5)] };
    let headline = Headline { label: "class accuracy".into(), value: "90.6 %".into(), note: "58 of 64".into() };
    Page {
        title: "A demonstration".into(),
        lead: "From labelled images to samples.".into(),
        headline: vec![headline],
        parts: vec![part("draw", 8.0, None), part("encode", 12.0, Some(flow))],
        metrics,
        samples: vec![
            SampleRow { class: "disk".into(), images: vec![picture(1), picture(2)] },
            SampleRow { class: "star".into(), images: vec![picture(3)] },
        ],
        reconstructions: vec![Reconstruction { class: "disk".into(), original: picture(4), decoded: picture(5) }],
        grids: vec![StepGrid { step: 1200, png: png(6) }],
        judged_how: "By the nearest real image.".into(),
        judgement: vec![Verdict { what: "disk".into(), value: "8 of 8".into() }],
        own_data: vec![OwnCommand { comment: "encode".into(), command: "pipeline encode --images photos/".into() }],
    }
}

#[test]
fn a_full_page_has_every_section_in_order_and_can_be_written() {
    let metrics: Vec<_> = (1..=30).map(|n| record(20 * n, 2.0 / n as f64)).collect();
    let html = full(&metrics).render().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    fs::write(&path, &html).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), html);
    let sections = [
        "A demonstration</h1>",
        "class=\"headline\"",
        "<h2>Samples",
        "<h2>What the autoencoder keeps",
        "<h2>Training",
        "<h2>Samples on the way",
        "<h2>The pipeline",
        "<h2>Judgement",
        "<h2>Where the time went",
        "<h2>The same with your own images",
    ];
    let places: Vec<_> = sections.iter().map(|text| html.find(text).unwrap_or_else(|| panic!("{text}"))).collect();
    assert!(places.is_sorted(), "{places:?}");
    // Loss, cosines, rank, speed, waits.
    assert_eq!(html.matches("<svg").count(), 5);
    assert!(html.contains("40&#8239;%") && html.contains("60&#8239;%"), "shares of 8 and 12 seconds");
    assert!(html.contains("VaeEncode has the busiest threads"));
}

#[test]
fn the_page_refers_to_nothing_outside_itself_and_runs_nothing() {
    let html = full(&[record(1, 2.0), record(20, 1.0)]).render().unwrap();
    for reference in ["http", "<script", "<link", "url(", "@import", "href"] {
        assert!(!html.contains(reference), "{reference}");
    }
}

#[test]
fn every_image_is_embedded_as_it_is() {
    let html = full(&[]).render().unwrap();
    let uris: Vec<_> = html.split("src=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    let embedded = uris.iter().map(|uri| {
        let png = STANDARD.decode(uri.strip_prefix("data:image/png;base64,").unwrap()).unwrap();
        image::load_from_memory(&png).unwrap().into_rgb8()
    });
    assert_eq!(embedded.collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6].map(picture));
}

#[test]
fn text_is_escaped_wherever_it_stands() {
    let evil = "<i onclick=\"x\">&'";
    let metrics = [record(1, 2.0)];
    let mut page = full(&metrics);
    page.title = evil.into();
    page.lead = evil.into();
    page.headline = vec![Headline { label: evil.into(), value: evil.into(), note: evil.into() }];
    page.parts[1].name = evil.into();
    page.parts[1].what = evil.into();
    page.parts[1].command = evil.into();
    page.parts[1].flow.as_mut().unwrap().stages[1].name = evil.into();
    page.samples[0].class = evil.into();
    page.reconstructions[0].class = evil.into();
    page.judged_how = evil.into();
    page.judgement = vec![Verdict { what: evil.into(), value: evil.into() }];
    page.own_data = vec![OwnCommand { comment: evil.into(), command: evil.into() }];
    let html = page.render().unwrap();
    assert!(!html.contains("<i ") && !html.contains("onclick=\"") && !html.contains("&'"), "{html}");
    assert_eq!(html.matches("&#60;i onclick=&#34;x&#34;&#62;&#38;&#39;").count(), 23);
}

#[test]
fn what_is_not_there_leaves_no_empty_section() {
    let page = Page {
        headline: Vec::new(),
        parts: Vec::new(),
        samples: Vec::new(),
        grids: Vec::new(),
        reconstructions: Vec::new(),
        judgement: Vec::new(),
        own_data: Vec::new(),
        ..full(&[])
    };
    let html = page.render().unwrap();
    assert!(html.contains("A demonstration"));
    assert!(!html.contains("<section") && !html.contains("<h2"), "{html}");
}

#[test]
fn records_that_are_no_numbers_are_told_as_such() {
    let metrics = [record(1, f64::NAN), record(2, f64::NAN)];
    let html = full(&metrics).render().unwrap();
    assert!(!html.contains("NaN"));
    assert!(html.contains("nothing was recorded"));
}

#[test]
fn the_chart_of_waits_tells_how_long_single_ones_were() {
    let mut metrics = [record(1, 2.0), record(20, 1.0), record(40, 0.5), record(60, 0.5)];
    let html = full(&metrics).render().unwrap();
    assert!(html.contains("<h3>Wait for data</h3>") && !html.contains("Waits for one batch"), "{html}");

    // A run that was continued at step 20, and then killed before step 80.
    metrics[0].first_batch_s = Some(9.0);
    metrics[1].first_batch_s = Some(0.25);
    metrics[2].run_wait =
        Some(WaitFigures { count: 1234, total_s: 0.0521, p50_ms: 0.0121, p99_ms: 0.25, p999_ms: 2.5, max_ms: 1500.0 });
    metrics[3].first_batch_s = Some(8.0);
    let html = full(&metrics).render().unwrap();
    assert!(html.contains("<h3>Wait for data: p99 250 µs</h3>"), "{html}");
    let caption = "Waits for one batch: p50 12.1 µs, p99 250 µs, p99.9 2.50 ms, at most 1.50 s; all 1,234 together 52.1 ms. \
                   The first batch came after 250 ms.";
    assert!(html.contains(caption), "{html}");
}

#[test]
fn loss_terms_that_are_on_have_a_curve() {
    let mut metrics = [record(1, 2.0), record(20, 1.0)];
    let html = full(&metrics).render().unwrap();
    assert!(!html.contains("Dispersive") && !html.contains("Contrastive"));
    metrics.iter_mut().for_each(|record| record.dispersive_loss = Some(-1.5));
    let html = full(&metrics).render().unwrap();
    assert!(html.contains("<h3>Dispersive loss</h3>") && html.contains("from -1.500 to -1.500"), "{html}");
    metrics[1].contrastive_distance = Some(3.0);
    assert_eq!(full(&metrics).render().unwrap().matches("<svg").count(), 7);
}

#[test]
fn parts_that_took_no_time_have_no_share() {
    let metrics = [];
    let mut page = full(&metrics);
    page.parts = vec![part("draw", 0.0, None)];
    let html = page.render().unwrap();
    assert!(html.contains("0&#8239;%") && !html.contains("NaN"), "{html}");
}

#[test]
fn the_same_page_gives_the_same_bytes() {
    let metrics = [record(1, 2.0), record(20, 1.0), record(40, 0.5)];
    assert_eq!(full(&metrics).render().unwrap(), full(&metrics).render().unwrap());
}

#[test]
fn an_image_without_pixels_is_refused_by_name() {
    let mut page = full(&[]);
    page.samples[1].images[0] = RgbImage::new(0, 4);
    let message = format!("{:#}", page.render().unwrap_err());
    assert_eq!(message, "sample 1 of class star: an image of 0 x 4 pixels cannot be shown; leave it out");
}

#[test]
fn thousands_are_set_apart() {
    assert_eq!([0, 999, 1000, 12_345, 1_000_000].map(grouped), ["0", "999", "1,000", "12,345", "1,000,000"]);
}
