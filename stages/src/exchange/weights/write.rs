//! Writing a network as a file that other programs read: safetensors, or what `torch.load(weights_only=True)` takes.
//!
//! Both hold every parameter as f32 under its name of [`crate::method::layout`], which are SiT's and REPA's, and for
//! other programs the fixed `pos_embed` `[1, T, D]` too. A file appears under its name when it is whole.
//!
//! The `.pt` is a state dict alone: a zip archive with a pickle of protocol 2, and each tensor's memory as a member
//! whose bytes begin at a multiple of 64, as PyTorch writes it. Up to 4 GiB, since its records are those of plain zip.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::archive::{END, ENTRY, LOCAL, LOCAL_LEN};
use super::{FORMAT, NetworkWeights, POSITION, WeightsFileError, sizes};
use crate::method::layout::layout;
use crate::method::network::position_embedding;

/// The form of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Ours, without what is fixed: what `pipeline sample --weights` takes.
    Own,
    /// safetensors for other programs, which ours read as well.
    Safetensors,
    /// A state dict of `torch.save`.
    Torch,
}

/// Writes a network. `source` says in the file where the weights come from.
///
/// # Errors
/// If the system refuses, or a `.pt` would be larger than 4 GiB, or be read as another network for want of a key.
pub fn write(weights: &NetworkWeights, form: Form, source: &str, path: &Path) -> Result<(), WeightsFileError> {
    let position = (form != Form::Own).then(|| {
        let grid = weights.latent.height / weights.model.patch;
        let table = position_embedding(weights.model.hidden, grid);
        let mut values = vec![0.0_f32; table.numel()];
        table.copy_data(&mut values, table.numel());
        (vec![1, grid * grid, weights.model.hidden], values)
    });
    let mut tensors: Vec<Named<'_>> = Vec::new();
    if let Some((shape, values)) = &position {
        tensors.push(Named { name: POSITION.to_owned(), shape: shape.clone(), values });
    }
    let mut rest = weights.flat.as_slice();
    for spec in layout(&weights.model, &weights.latent) {
        let (values, behind) = rest.split_at(spec.len() as usize);
        tensors.push(Named { name: spec.name, shape: spec.shape, values });
        rest = behind;
    }
    let too_large = || WeightsFileError::TooLarge { path: path.to_owned() };
    match form {
        Form::Own | Form::Safetensors => whole(path, |out| safetensors(out, weights, &tensors, source)),
        Form::Torch => {
            let strange = |reason: String| WeightsFileError::Network { path: path.to_owned(), reason };
            let untold = sizes::untold(&weights.model, &weights.latent).map_err(strange)?;
            if !untold.is_empty() {
                let keys = untold.join(", ");
                return Err(strange(format!(
                    "the network has {keys}, which no tensor of a .pt tells; name a .safetensors file, which says it"
                )));
            }
            // Pickle, padding and records of thousands of tensors stay far below what is left to them.
            let bytes: u64 = tensors.iter().map(Named::bytes).sum();
            if bytes > u64::from(u32::MAX) - (64 << 20) {
                return Err(too_large());
            }
            whole(path, |out| torch(out, &tensors))
        }
    }
}

/// A tensor to be written.
struct Named<'a> {
    name: String,
    shape: Vec<i64>,
    values: &'a [f32],
}

impl Named<'_> {
    fn bytes(&self) -> u64 {
        self.values.len() as u64 * 4
    }
}

/// Writes a file under a temporary name, syncs it and gives it its name.
fn whole(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), WeightsFileError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let write = || {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
        fill(&mut out)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| {
        // What is left of it would only take space.
        let _ = fs::remove_file(&temporary);
        WeightsFileError::Io { path: path.to_owned(), source }
    })
}

fn write_values(out: &mut impl Write, values: &[f32]) -> io::Result<()> {
    values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
}

fn safetensors(out: &mut impl Write, weights: &NetworkWeights, tensors: &[Named<'_>], source: &str) -> io::Result<()> {
    let metadata = json!({
        "format": FORMAT,
        "model": serde_json::to_string(&weights.model)?,
        "latent": serde_json::to_string(&weights.latent)?,
        "time": "t = 0 is data, t = 1 is noise; the network predicts noise - data",
        "source": source,
    });
    let mut header = Map::from_iter([("__metadata__".to_owned(), metadata)]);
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.bytes();
        let entry = json!({ "dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end] });
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    tensors.iter().try_for_each(|tensor| write_values(out, tensor.values))
}

/// A member of the archive that was written.
struct Record {
    name: String,
    crc32: u32,
    len: u32,
    header: u32,
}

/// The archive under way.
struct Archive<'a, W> {
    out: &'a mut W,
    /// Bytes written.
    at: u32,
    records: Vec<Record>,
}

fn torch(out: &mut impl Write, tensors: &[Named<'_>]) -> io::Result<()> {
    let mut archive = Archive { out, at: 0, records: Vec::new() };
    archive.add("data.pkl", &pickle(tensors))?;
    archive.add("byteorder", b"little")?;
    for (key, tensor) in tensors.iter().enumerate() {
        let mut bytes = Vec::with_capacity(tensor.values.len() * 4);
        write_values(&mut bytes, tensor.values)?;
        archive.add(&format!("data/{key}"), &bytes)?;
    }
    archive.add("version", b"3\n")?;
    archive.finish()
}

impl<W: Write> Archive<'_, W> {
    /// Adds a member below `archive/`, the folder that readers look for their members in.
    fn add(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let name = format!("archive/{name}");
        let (crc32, len, header) = (crc32fast::hash(bytes), bytes.len() as u32, self.at);
        // PyTorch pads with an extra field named FB, so that a file can be mapped into memory.
        let start = self.at as usize + LOCAL_LEN as usize + name.len() + 4;
        let padding = start.next_multiple_of(64) - start;
        let mut local = LOCAL.to_le_bytes().to_vec();
        local.extend(version_to_length(crc32, len, name.len()));
        local.extend((padding as u16 + 4).to_le_bytes());
        local.extend(name.as_bytes());
        local.extend(b"FB");
        local.extend((padding as u16).to_le_bytes());
        local.resize(local.len() + padding, b'Z');
        self.put(&local)?;
        self.put(bytes)?;
        self.records.push(Record { name, crc32, len, header });
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        let start = self.at;
        let records = std::mem::take(&mut self.records);
        for record in &records {
            let mut entry = ENTRY.to_le_bytes().to_vec();
            entry.extend([0, 0]); // made by
            entry.extend(version_to_length(record.crc32, record.len, record.name.len()));
            entry.extend([0; 2 + 2 + 2 + 2 + 4]); // extra, comment, part, attributes
            entry.extend(record.header.to_le_bytes());
            entry.extend(record.name.as_bytes());
            self.put(&entry)?;
        }
        let mut end = END.to_le_bytes().to_vec();
        end.extend([0; 4]); // parts
        end.extend([(records.len() as u16).to_le_bytes(); 2].concat());
        end.extend((self.at - start).to_le_bytes());
        end.extend(start.to_le_bytes());
        end.extend([0; 2]); // comment
        self.put(&end)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at = u32::try_from(bytes.len())
            .ok()
            .and_then(|len| self.at.checked_add(len))
            .ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(())
    }
}

/// What local headers and directory entries share: version needed, flags, method, time, checksum, lengths.
fn version_to_length(crc32: u32, len: u32, name_len: usize) -> Vec<u8> {
    let mut fields = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    fields.extend(crc32.to_le_bytes());
    fields.extend([len.to_le_bytes(); 2].concat());
    fields.extend((name_len as u16).to_le_bytes());
    fields
}

/// An `OrderedDict` of tensors, each a whole storage of its own.
fn pickle(tensors: &[Named<'_>]) -> Vec<u8> {
    const NEW_ORDERED_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";
    let mut out = vec![0x80, 2];
    out.extend(NEW_ORDERED_DICT);
    out.push(b'(');
    for (key, tensor) in tensors.iter().enumerate() {
        text(&mut out, &tensor.name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(b"ctorch\nFloatStorage\n");
        text(&mut out, &key.to_string());
        text(&mut out, "cpu");
        integer(&mut out, tensor.values.len() as i64);
        out.extend(b"tQ");
        integer(&mut out, 0);
        integers(&mut out, &tensor.shape);
        let strides: Vec<i64> = (1..=tensor.shape.len()).map(|i| tensor.shape[i..].iter().product()).collect();
        integers(&mut out, &strides);
        out.push(0x89); // requires no gradient
        out.extend(NEW_ORDERED_DICT); // no hooks
        out.extend(b"tR");
    }
    out.extend(b"u.");
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn integer(out: &mut Vec<u8>, value: i64) {
    match i32::try_from(value) {
        Ok(value) => {
            out.push(b'J');
            out.extend(value.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8a, 8]);
            out.extend(value.to_le_bytes());
        }
    }
}

fn integers(out: &mut Vec<u8>, values: &[i64]) {
    out.push(b'(');
    for &value in values {
        integer(out, value);
    }
    out.push(b't');
}
