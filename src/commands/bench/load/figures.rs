//! What the consumers saw, as figures.

use std::fmt::Write;

use anyhow::{Context, Result};
use pipeline::Report;
use serde_json::{Value, json};
use stages::device::Device;
use stages::load::LoadMemory;

use super::super::peak_bytes;
use super::{BenchLoadArgs, Consumed, Counts};
use crate::report::FlowRecord;

/// As one JSON object.
pub(super) fn of(
    args: &BenchLoadArgs,
    devices: &[Device],
    consumers: &[Consumed],
    report: &Report,
    memory: Option<LoadMemory>,
    counts: Counts,
) -> Result<Value> {
    let first = consumers.first().context("there is a consumer")?;
    let wall = consumers.iter().map(|consumer| consumer.wall).max().unwrap_or_default().as_secs_f64();
    let samples: u64 = consumers.iter().map(|consumer| consumer.samples).sum();
    let of_device = |consumer: &Consumed| {
        let waits = consumer.waits.figures();
        json!({
            "p50": waits.p50_ms, "p99": waits.p99_ms, "p999": waits.p999_ms, "max": waits.max_ms,
            "total": waits.total_s * 1e3,
            "share": waits.total_s / consumer.wall.as_secs_f64(),
        })
    };
    let steps = counts.measured as f64 * devices.len() as f64;
    let intervals = first.intervals.figures();
    let flow = FlowRecord::of(report);
    let peak = peak_bytes()?;
    let mut found = json!({
        "data": args.data,
        "workers": args.reading.workers,
        "batch": args.batch,
        "consumer_ms": args.consumer_ms,
        "devices": devices.len(),
        "samples": samples,
        "first_batch_ms": consumers.iter().map(|c| c.first).max().unwrap_or_default().as_secs_f64() * 1e3,
        "wall_s": wall,
        "samples_per_s": samples as f64 / wall,
        "wait_ms": of_device(first),
        "interval_ms": { "p50": intervals.p50_ms, "p99": intervals.p99_ms, "max": intervals.max_ms },
        "epoch_turn_ms": first.turn.map(|turn| turn.as_secs_f64() * 1e3),
        "cpu_s": first.usage.cpu_s,
        "cpu_s_per_million": first.usage.cpu_s / samples as f64 * 1e6,
        "peak_rss_bytes": peak,
        "kernel_waits_per_1000": {
            "consumer": consumers.iter().map(|c| c.usage.thread_waits).sum::<i64>() as f64 / steps * 1e3,
            "process": first.usage.process_waits as f64 / steps * 1e3,
        },
        "filled_samples": consumers.iter().map(|consumer| consumer.filled).sum::<u64>(),
        "stages": flow.stages,
        "bottleneck": flow.bottleneck().map(|stage| stage.name.clone()),
        "memory_bytes": memory.map(LoadMemory::total),
    });
    let object = found.as_object_mut().context("the figures are an object")?;
    if devices.len() > 1 {
        object.insert("wait_ms_of_devices".to_owned(), consumers.iter().map(of_device).collect());
    }
    if args.check {
        let mut seen = Vec::new();
        for consumer in consumers {
            seen.resize(seen.len().max(consumer.check.seen.len()), 0);
            seen.iter_mut().zip(&consumer.check.seen).for_each(|(all, word): (&mut u64, _)| *all |= word);
        }
        let sum = consumers.iter().fold(0u64, |sum, consumer| sum.wrapping_add(consumer.check.sum));
        let check = json!({
            "ids": consumers.iter().map(|consumer| consumer.check.samples).sum::<u64>(),
            "distinct": seen.iter().map(|word| word.count_ones()).sum::<u32>(),
            "sum": format!("{sum:016x}"),
        });
        object.insert("check".to_owned(), check);
    }
    Ok(found)
}

/// For a person.
pub(super) fn table(found: &Value) -> String {
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    let mut text = format!(
        "{:.0} samples/s, batches of {} for {} consumer(s); first batch after {:.1} ms\n",
        number(&found["samples_per_s"]),
        found["batch"],
        found["devices"],
        number(&found["first_batch_ms"])
    );
    let waits = match found["wait_ms_of_devices"].as_array() {
        Some(all) => all.clone(),
        None => vec![found["wait_ms"].clone()],
    };
    for (device, wait) in waits.iter().enumerate() {
        let _ = writeln!(
            text,
            "consumer {device} waited {:.3} % of the time: p50 {:.4} ms, p99 {:.4} ms, p99.9 {:.4} ms, at most {:.4} ms",
            100.0 * number(&wait["share"]),
            number(&wait["p50"]),
            number(&wait["p99"]),
            number(&wait["p999"]),
            number(&wait["max"])
        );
    }
    if let Some(turn) = found["epoch_turn_ms"].as_f64() {
        let median = number(&found["interval_ms"]["p50"]);
        let _ = writeln!(text, "from batch to batch {median:.3} ms (p50), where an epoch begins at most {turn:.3} ms");
    }
    let waits = &found["kernel_waits_per_1000"];
    let _ = writeln!(
        text,
        "kernel waits in 1,000 batches: {:.1} of the consumers, {:.0} of all threads; {:.2} s of CPU for a million samples",
        number(&waits["consumer"]),
        number(&waits["process"]),
        number(&found["cpu_s_per_million"])
    );
    let megabytes = |value: &Value| number(value) / 1e6;
    let _ = write!(text, "memory: {:.0} MB at the peak", megabytes(&found["peak_rss_bytes"]));
    if !found["memory_bytes"].is_null() {
        let _ = write!(text, ", of which the loader may use {:.0} MB", megabytes(&found["memory_bytes"]));
    }
    let _ = writeln!(text);
    if let Some(filled) = found["filled_samples"].as_u64().filter(|&filled| filled > 0) {
        let _ = writeln!(text, "{filled} samples could not be read; others stood in their place");
    }
    if let Some(stages) = found["stages"].as_array() {
        for stage in stages {
            let per_item = 1e6 * number(&stage["busy_s"]) / number(&stage["items"]).max(1.0);
            let _ = writeln!(
                text,
                "  {:<18} {:>2} x  {:>9} items   {per_item:>8.1} us each",
                stage["name"].as_str().unwrap_or_default(),
                stage["workers"],
                stage["items"]
            );
        }
    }
    if let Some(stage) = found["bottleneck"].as_str() {
        let _ = writeln!(text, "  held up by: {stage}");
    }
    text
}
