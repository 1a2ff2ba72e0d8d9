//! The metrics once more, as event files that TensorBoard reads: `RUN/tensorboard/events.out.tfevents.*.dualpath`.
//!
//! A file is a row of records: u64 length, masked CRC-32C of its 8 bytes, the bytes of an `Event`, their masked CRC-32C,
//! all little-endian. Of the protobuf messages (`event.proto`, `summary.proto` of TensorBoard) only what a scalar and an
//! image need is written, and nothing is read; that is less code than the dependencies of any crate for it.
//!
//! Every process of a run writes a file of its own, whose name holds the step that it continues from: readers take the
//! files in the order of their names. It begins with a `SessionLog` of status `START` at the first step that will be
//! done, at which TensorBoard forgets what the file before it holds from that step on, as `metrics.jsonl` is rewound.
//!
//! Not here: histograms and texts.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::run_dir::{Metrics, RunDirError, SpreadMetrics, StageFigures, at};

/// TensorBoard takes every file whose name has `tfevents` in it.
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".dualpath";

/// The second version of the format is that in which restarts are told by `SessionLog`.
const FILE_VERSION: &[u8] = b"brain.Event:2";

/// Fields of `Event`, `SessionLog`, `Summary`, `Summary.Value` and `Summary.Image`, as the protobuf definitions number them.
mod field {
    pub(super) const WALL_TIME: u64 = 1;
    pub(super) const STEP: u64 = 2;
    pub(super) const FILE_VERSION: u64 = 3;
    pub(super) const SUMMARY: u64 = 5;
    pub(super) const SESSION_LOG: u64 = 7;
    pub(super) const STATUS: u64 = 1;
    pub(super) const VALUE: u64 = 1;
    pub(super) const TAG: u64 = 1;
    pub(super) const SIMPLE_VALUE: u64 = 2;
    pub(super) const IMAGE: u64 = 4;
    pub(super) const HEIGHT: u64 = 1;
    pub(super) const WIDTH: u64 = 2;
    pub(super) const COLORSPACE: u64 = 3;
    pub(super) const ENCODED_IMAGE: u64 = 4;
}

/// Protobuf: how a field is stored, the low three bits of its key.
mod wire {
    pub(super) const VARINT: u64 = 0;
    pub(super) const FIXED_64: u64 = 1;
    pub(super) const LENGTH: u64 = 2;
    pub(super) const FIXED_32: u64 = 5;
}

/// `SessionLog.SessionStatus.START`.
const START: u64 = 1;

/// `Summary.Image.colorspace`.
const RGB: u64 = 3;

/// The event file of one process.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: File,
}

impl EventLog {
    /// Begins the file of a process that continues after `step`, 0 for a new run, in `folder`, which is made if it is
    /// not there. Files of processes that continued from `step` or later are removed: what they did is done again.
    /// `now` is the wall time of the first events.
    ///
    /// # Errors
    ///
    /// The folder or a file cannot be written.
    pub fn begin(folder: &Path, step: u64, now: SystemTime) -> Result<Self, RunDirError> {
        fs::create_dir_all(folder).map_err(at(folder))?;
        for entry in fs::read_dir(folder).map_err(at(folder))? {
            let path = entry.map_err(at(folder))?.path();
            if continued_from(&path).is_some_and(|from| from >= step) {
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        let path = folder.join(format!("{PREFIX}{step:010}{SUFFIX}"));
        let mut bytes = record(&event(now, 0, field::FILE_VERSION, FILE_VERSION));
        if step > 0 {
            let mut status = Vec::new();
            number(&mut status, field::STATUS, START);
            bytes.extend(record(&event(now, step + 1, field::SESSION_LOG, &status)));
        }
        let file = File::create(&path).map_err(at(&path))?;
        let mut log = Self { path, file };
        log.write(&bytes)?;
        Ok(log)
    }

    /// Appends one event with a value for each tag; the bytes are with the operating system when it returns. Values are
    /// stored as f32, which is all that the format has; one that is not a number is marked as such in the chart.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn append(
        &mut self,
        step: u64,
        now: SystemTime,
        scalars: &[(impl AsRef<str>, f64)],
    ) -> Result<(), RunDirError> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut message = Vec::new();
            bytes(&mut message, field::TAG, tag.as_ref().as_bytes());
            key(&mut message, field::SIMPLE_VALUE, wire::FIXED_32);
            message.extend((*value as f32).to_le_bytes());
            bytes(&mut summary, field::VALUE, &message);
        }
        self.write(&record(&event(now, step, field::SUMMARY, &summary)))
    }

    /// Appends one event with an RGB image of (width, height) pixels, encoded as PNG.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn append_image(
        &mut self,
        step: u64,
        now: SystemTime,
        tag: &str,
        (width, height): (u32, u32),
        png: &[u8],
    ) -> Result<(), RunDirError> {
        let mut image = Vec::new();
        number(&mut image, field::HEIGHT, height.into());
        number(&mut image, field::WIDTH, width.into());
        number(&mut image, field::COLORSPACE, RGB);
        bytes(&mut image, field::ENCODED_IMAGE, png);
        let mut value = Vec::new();
        bytes(&mut value, field::TAG, tag.as_bytes());
        bytes(&mut value, field::IMAGE, &image);
        let mut summary = Vec::new();
        bytes(&mut summary, field::VALUE, &value);
        self.write(&record(&event(now, step, field::SUMMARY, &summary)))
    }

    /// In one piece, so that a reader meets half a record only where the disk is full.
    fn write(&mut self, records: &[u8]) -> Result<(), RunDirError> {
        self.file.write_all(records).map_err(at(&self.path))
    }
}

/// The scalars of a line of metrics. A scalar is f32: of many images seen the first seven digits.
pub fn scalars(metrics: &Metrics) -> Vec<(Cow<'static, str>, f64)> {
    let mut scalars = vec![
        ("loss/velocity", metrics.velocity_loss),
        ("loss/alignment", metrics.alignment_loss),
        ("train/images", metrics.images as f64),
        ("train/grad_norm", metrics.gradient_norm),
        ("train/skipped_steps", metrics.skipped as f64),
        ("train/lr", metrics.lr),
        ("train/images_per_s", metrics.images_per_s),
        ("data/wait_share", metrics.data_wait),
        ("data/bad_samples", metrics.bad_samples as f64),
    ];
    if let Some(wait) = metrics.wait_ms {
        scalars.extend([
            ("data/wait_p50_ms", wait.p50),
            ("data/wait_p99_ms", wait.p99),
            ("data/wait_p999_ms", wait.p999),
            ("data/wait_max_ms", wait.max),
        ]);
    }
    scalars.extend(metrics.dispersive_loss.map(|loss| ("loss/dispersive", loss)));
    scalars.extend(metrics.contrastive_distance.map(|distance| ("loss/contrastive_distance", distance)));
    scalars.extend(metrics.first_batch_s.map(|seconds| ("data/first_batch_s", seconds)));
    let mut scalars: Vec<_> = scalars.into_iter().map(|(tag, value)| (Cow::Borrowed(tag), value)).collect();
    if let Some(features) = &metrics.features {
        for (place, spread) in [("condition", features.condition), ("projected", features.projected)] {
            let SpreadMetrics { cosine, other_cosine, rank, deviation } = spread;
            let values = [("cosine", cosine), ("other_cosine", other_cosine), ("rank", rank), ("deviation", deviation)];
            scalars.extend(values.map(|(what, value)| (Cow::Owned(format!("features/{place}_{what}")), value)));
        }
        let gaps = features.cosine_by_gap.iter().enumerate();
        let by_gap =
            gaps.filter_map(|(gap, cosine)| Some((Cow::Owned(format!("features/cosine_by_gap_{gap}")), (*cosine)?)));
        scalars.extend(by_gap);
    }
    for StageFigures { name, busy, starved, blocked, queued, .. } in &metrics.stages {
        let of_stage = [("busy", busy), ("starved", starved), ("blocked", blocked), ("queued", queued)];
        scalars.extend(of_stage.map(|(what, value)| (Cow::Owned(format!("stages/{name}/{what}")), *value)));
    }
    scalars
}

/// The step in the name of a file of ours; `None` for any other file, which is none of our business.
fn continued_from(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}

/// An `Event` with one thing in it; a step of 0 is the default of its field and not written.
fn event(now: SystemTime, step: u64, what: u64, content: &[u8]) -> Vec<u8> {
    // A clock before 1970 is wrong, and no reason to stop a run.
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let mut out = Vec::new();
    key(&mut out, field::WALL_TIME, wire::FIXED_64);
    out.extend(seconds.to_le_bytes());
    if step > 0 {
        number(&mut out, field::STEP, step);
    }
    bytes(&mut out, what, content);
    out
}

fn key(out: &mut Vec<u8>, field: u64, wire: u64) {
    varint(out, field << 3 | wire);
}

fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    key(out, field, wire::VARINT);
    varint(out, value);
}

fn bytes(out: &mut Vec<u8>, field: u64, content: &[u8]) {
    key(out, field, wire::LENGTH);
    varint(out, content.len() as u64);
    out.extend(content);
}

/// Seven bits a byte, the low ones first; all but the last have the high bit set.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked(crc32c(&length)).to_le_bytes(), event, &masked(crc32c(event)).to_le_bytes()].concat()
}

/// TFRecord rotates and shifts its checksums, so that one of data that hold checksums is still a good one.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a line of metrics has a few hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    });
    !crc
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// `stages/golden/tensorboard_events.py` wrote the same events with TensorBoard's own classes.
    const GOLDEN: &[u8] = include_bytes!("../../golden/events.tfevents");

    fn at_second(second: f64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs_f64(second)
    }

    /// The payloads of a file of records.
    fn events(mut file: &[u8]) -> Vec<&[u8]> {
        let mut events = Vec::new();
        while let Some((length, rest)) = file.split_first_chunk::<8>() {
            let (crc, rest) = rest.split_first_chunk::<4>().unwrap();
            assert_eq!(u32::from_le_bytes(*crc), masked(crc32c(length)));
            let (event, rest) = rest.split_at(u64::from_le_bytes(*length) as usize);
            let (crc, rest) = rest.split_first_chunk::<4>().unwrap();
            assert_eq!(u32::from_le_bytes(*crc), masked(crc32c(event)));
            events.push(event);
            file = rest;
        }
        assert!(file.is_empty());
        events
    }

    /// The fields of a message: number, and the bits of a number or the bytes of anything else.
    fn fields(mut message: &[u8]) -> Vec<(u64, u64, &[u8])> {
        fn varint(message: &mut &[u8]) -> u64 {
            let length = message.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
            let (bytes, rest) = message.split_at(length);
            *message = rest;
            bytes.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
        }
        let mut fields = Vec::new();
        while !message.is_empty() {
            let key = varint(&mut message);
            let number = if key & 7 == wire::VARINT { varint(&mut message) } else { 0 };
            let length = match key & 7 {
                wire::FIXED_64 => 8,
                wire::FIXED_32 => 4,
                wire::LENGTH => varint(&mut message) as usize,
                _ => 0,
            };
            let (content, rest) = message.split_at(length);
            fields.push((key >> 3, number, content));
            message = rest;
        }
        fields
    }

    /// Step, tag and value of every scalar in a file.
    fn read(path: &Path) -> Vec<(u64, String, f32)> {
        let file = fs::read(path).unwrap();
        let mut scalars = Vec::new();
        for event in events(&file) {
            let event = fields(event);
            let step = event.iter().find(|(number, ..)| *number == field::STEP).map_or(0, |(_, step, _)| *step);
            for (_, _, summary) in event.iter().filter(|(number, ..)| *number == field::SUMMARY) {
                for (_, _, value) in fields(summary) {
                    let [(field::TAG, _, tag), (field::SIMPLE_VALUE, _, value)] = fields(value)[..] else {
                        panic!("{value:?}");
                    };
                    let tag = String::from_utf8(tag.to_vec()).unwrap();
                    scalars.push((step, tag, f32::from_le_bytes(value.try_into().unwrap())));
                }
            }
        }
        scalars
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_checksum_is_the_one_of_the_catalogue() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_continued_run_is_written_as_tensorboard_itself_would() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = EventLog::begin(folder.path(), 400, at_second(1_700_000_000.25)).unwrap();
        log.append(420, at_second(1_700_000_001.5), &[("loss/velocity", 0.625), ("train/lr", 1e-4)]).unwrap();
        log.append(70_000, at_second(1_700_000_002.0), &[("loss/velocity", f64::NAN), ("train/lr", 0.0)]).unwrap();
        log.append_image(70_000, at_second(1_700_000_003.0), "samples", (300, 2), b"no PNG").unwrap();
        assert_eq!(fs::read(folder.path().join("events.out.tfevents.0000000400.dualpath")).unwrap(), GOLDEN);
    }

    #[test]
    fn scalars_are_there_as_soon_as_they_are_appended() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = EventLog::begin(folder.path(), 0, at_second(1.0)).unwrap();
        for step in [1, 300] {
            log.append(step, at_second(2.0), &[("a", step as f64), ("b", -0.5)]).unwrap();
            assert_eq!(read(&log.path).last(), Some(&(step, "b".to_owned(), -0.5)));
        }
        let tags: Vec<_> =
            read(&log.path).into_iter().map(|(step, tag, value)| format!("{step} {tag} {value}")).collect();
        assert_eq!(tags, ["1 a 1", "1 b -0.5", "300 a 300", "300 b -0.5"]);
    }

    #[test]
    fn a_run_that_goes_back_removes_the_files_of_what_it_does_again_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        for step in [0, 200, 400] {
            EventLog::begin(folder.path(), step, at_second(1.0)).unwrap();
        }
        fs::write(folder.path().join("events.out.tfevents.1700000000.host.1.0"), "of another program").unwrap();
        EventLog::begin(folder.path(), 200, at_second(2.0)).unwrap();
        let ours = [0, 200].map(|step| format!("events.out.tfevents.{step:010}.dualpath"));
        assert_eq!(names(folder.path()), [&ours[..], &["events.out.tfevents.1700000000.host.1.0".to_owned()]].concat());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = EventLog::begin(&file, 0, at_second(1.0)).unwrap_err().to_string();
        assert!(error.starts_with(&file.display().to_string()), "{error}");
    }
}
