//! Writing: a copy of the state is taken on the thread that trains, and written by whoever has the time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tch::{Device, Tensor};
use xxhash_rust::xxh3::xxh3_64;

use super::read::is_newer;
use super::{BUFFERS, CheckpointError, FORMAT_PREFIX, Marks, VERSION, io_error, list};
use crate::method::layout::ParameterSpec;
use crate::train::step::Trainer;

/// The state of a trainer after some step, on the host: 16 bytes a parameter.
#[derive(Debug)]
pub struct Snapshot {
    step: u64,
    /// Little-endian f32 of the flat buffers, in the order of [`BUFFERS`].
    buffers: [Vec<u8>; 4],
    count: Vec<u8>,
}

impl Snapshot {
    /// Copies the state; on a GPU this waits for the steps that are under way.
    pub fn of(trainer: &Trainer) -> Self {
        let adamw = &trainer.optimiser;
        let flats = [&trainer.parameters.master, &trainer.average, &adamw.exp_avg, &adamw.exp_avg_sq];
        Self { step: trainer.step, buffers: flats.map(bytes_of), count: bytes_of(&adamw.count) }
    }
}

/// Little-endian bytes of an f32 tensor.
fn bytes_of(values: &Tensor) -> Vec<u8> {
    let count = values.numel();
    let mut bytes = vec![0; count * 4];
    values.to_device(Device::Cpu).contiguous().copy_data_u8(&mut bytes, count);
    bytes
}

/// Which checkpoints stay when a new one is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// The newest so many, the new one among them.
    pub last: u64,
    /// And those whose step is a multiple; 0 for none of them.
    pub every: u64,
}

impl Keep {
    /// Which of `all`, oldest first, have had their time. What is not `ours` neither counts nor goes.
    fn surplus<'a>(&self, all: &'a [(u64, PathBuf)], ours: impl Fn(&Path) -> bool) -> impl Iterator<Item = &'a Path> {
        let Self { last, every } = *self;
        let mut kept = 0;
        let has_had_its_time = move |(step, path): &&(u64, PathBuf)| {
            let newest = kept < last;
            // To look into a file costs more than to look at its name.
            if !newest && every > 0 && step.is_multiple_of(every) || !ours(path) {
                return false;
            }
            kept += u64::from(newest);
            !newest
        };
        all.iter().rev().filter(has_had_its_time).map(|(_, path)| path.as_path())
    }
}

/// Writes the checkpoints of one run.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    specs: Vec<ParameterSpec>,
    marks: Marks,
    keep: Keep,
}

impl Writer {
    /// Of runs with parameters `specs`, into `folder`, which is made with the first checkpoint.
    pub fn new(folder: PathBuf, specs: Vec<ParameterSpec>, marks: Marks, keep: Keep) -> Self {
        Self { folder, specs, marks, keep }
    }

    /// Writes `<folder>/step-<step>.safetensors`, straight from the snapshot; then removes what need not be kept, and what
    /// a process left behind that was killed while it wrote. A checkpoint of that step which a newer program wrote is
    /// renamed before.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]: the folder cannot be written, the disk is full. Older checkpoints are all still there.
    pub fn write(&self, snapshot: &Snapshot) -> Result<PathBuf, CheckpointError> {
        let folder = &self.folder;
        fs::create_dir_all(folder).map_err(io_error(folder))?;
        let path = folder.join(format!("step-{:08}.safetensors", snapshot.step));
        let temporary = path.with_extension("tmp");
        let header = self.header(snapshot).map_err(|e| io_error(&path)(e.into()))?;
        if let Err(error) = write_synced(&temporary, &header, snapshot) {
            // The disk may be full; that it stays so is no second error.
            let _ = fs::remove_file(&temporary);
            return Err(io_error(&path)(error));
        }
        if is_newer(&path) {
            let aside = (1_u32..).map(|n| path.with_extension(format!("safetensors.newer-{n}")));
            for free in aside.filter(|name| !name.exists()).take(1) {
                fs::rename(&path, free).map_err(io_error(&path))?;
            }
        }
        fs::rename(&temporary, &path).map_err(io_error(&path))?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error(folder))?;

        remove_unfinished(folder)?;
        for old in self.keep.surplus(&list(folder)?, |path| !is_newer(path)) {
            fs::remove_file(old).map_err(io_error(old))?;
        }
        Ok(path)
    }

    /// The length and the JSON that a safetensors file begins with. Keys are sorted, so that equal states have equal bytes.
    fn header(&self, snapshot: &Snapshot) -> Result<Vec<u8>, serde_json::Error> {
        let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut marks = BTreeMap::from([
            text("format", &format!("{FORMAT_PREFIX}{VERSION}")),
            text("step", &snapshot.step.to_string()),
            text("data", &self.marks.data),
            text("arithmetic", &self.marks.arithmetic),
            text("config", &self.marks.config),
        ]);
        let groups = ["count"].iter().chain(&BUFFERS).zip([&snapshot.count].into_iter().chain(&snapshot.buffers));
        marks.extend(groups.map(|(group, bytes)| (format!("xxh3.{group}"), format!("{:016x}", xxh3_64(bytes)))));

        let mut tensors = BTreeMap::new();
        let mut end = 0;
        let mut add = |name: String, shape: &[i64]| {
            let start = end;
            end += 4 * shape.iter().product::<i64>() as u64;
            tensors.insert(name, TensorEntry { dtype: "F32", shape: shape.to_vec(), data_offsets: [start, end] });
        };
        add("count".to_owned(), &[]);
        for group in BUFFERS {
            self.specs.iter().for_each(|spec| add(format!("{group}.{}", spec.name), &spec.shape));
        }
        let mut json = serde_json::to_vec(&Header { marks, tensors })?;
        // The tensors begin at a multiple of 8.
        json.resize(json.len().next_multiple_of(8), b' ');
        Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
    }
}

#[derive(Serialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    marks: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, TensorEntry>,
}

#[derive(Serialize)]
struct TensorEntry {
    dtype: &'static str,
    shape: Vec<i64>,
    /// In bytes, from where the tensors begin.
    data_offsets: [u64; 2],
}

fn write_synced(path: &Path, header: &[u8], snapshot: &Snapshot) -> io::Result<()> {
    let mut file = File::create(path)?;
    for bytes in [header, &snapshot.count].into_iter().chain(snapshot.buffers.iter().map(Vec::as_slice)) {
        file.write_all(bytes)?;
    }
    file.sync_all()
}

/// Parts of checkpoints, under their temporary names.
fn remove_unfinished(folder: &Path) -> Result<(), CheckpointError> {
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let path = entry.map_err(io_error(folder))?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(&path).map_err(io_error(&path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay_and_every_multiple() {
        let surplus = |last, every, foreign: Option<&str>| -> Vec<String> {
            let all: Vec<_> = (1..=6).map(|n| (10 * n, PathBuf::from((10 * n).to_string()))).collect();
            let keep = Keep { last, every };
            // That of a newer program.
            let ours = |path: &Path| foreign.is_none_or(|foreign| path != Path::new(foreign));
            keep.surplus(&all, ours).map(|path| path.display().to_string()).collect()
        };
        assert_eq!(surplus(2, 0, None), ["40", "30", "20", "10"]);
        assert_eq!(surplus(2, 20, None), ["30", "10"]);
        assert_eq!(surplus(1, 30, None), ["50", "40", "20", "10"]);
        assert!(surplus(9, 0, None).is_empty() && surplus(1, 1, None).is_empty());
        assert_eq!(surplus(2, 0, Some("60")), ["30", "20", "10"]);
        assert_eq!(surplus(2, 0, Some("20")), ["40", "30", "10"]);
    }
}
