//! A file of weights, opened, of any form that is understood: which state dict is meant, and its tensors by name.
//!
//! | file | its state dicts |
//! |---|---|
//! | `torch.save`, see [`super::torch`] | what was saved, or its values `model`, `ema`, `state_dict` |
//! | safetensors | all tensors, or those below `model.` and `ema.`, as in our checkpoints |

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use shards::excerpt;

use super::names;
use super::stored::{Float, Stored};
use super::torch::{self, Tensors};
use super::{WeightsFileError, Which};
use crate::train::checkpoint;

/// The limit of the safetensors crate, 100 MB, is more than any network needs.
const MAX_HEADER: u64 = 16 << 20;

/// A tensor that every network of this family has: its names tell state dicts apart.
const WITNESS: &str = "x_embedder.proj.weight";

/// An open file.
pub(super) struct WeightsFile {
    pub(super) file: File,
    /// Length in bytes.
    pub(super) len: u64,
    /// Key of the state dict that was taken; "" if the file holds one alone.
    pub(super) key: String,
    /// Its tensors, by names without wrappers.
    pub(super) tensors: Tensors,
    /// Metadata of a safetensors file.
    pub(super) metadata: HashMap<String, String>,
}

impl WeightsFile {
    /// Opens a file and reads all but the values.
    pub(super) fn open(path: &Path, which: Which) -> Result<Self, WeightsFileError> {
        let io = |source| WeightsFileError::Io { path: path.to_owned(), source };
        let twice = |mismatch| WeightsFileError::Tensors { path: path.to_owned(), mismatch };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let mut head = [0; 9];
        let known = len.min(9) as usize;
        file.read_exact_at(&mut head[..known], 0).map_err(io)?;
        let (keys, chosen, metadata) = match head {
            [b'P', b'K', 3, 4, ..] => {
                let found = torch::state_dicts(&file, |keys| which.choose(keys))
                    .map_err(|source| WeightsFileError::Torch { path: path.to_owned(), source })?;
                (found.keys, found.chosen, HashMap::new())
            }
            // The pickle of the magic number that older files begin with: PROTO 2, LONG1 of 10 bytes.
            [0x80, 2, 0x8a, 10, ..] => return Err(WeightsFileError::Legacy { path: path.to_owned() }),
            [.., b'{'] => {
                let (tensors, metadata) = safetensors(&file, len).map_err(|fault| fault.at(path))?;
                let format = metadata.get("format").map(String::as_str);
                if format.is_some_and(|format| format.starts_with(checkpoint::FORMAT_PREFIX)) {
                    checkpoint::check_format(path, format)?;
                }
                let tensors = names::unwrap_all(tensors).map_err(twice)?;
                let mut sets = state_dicts(tensors);
                let keys: Vec<String> = sets.keys().cloned().collect();
                let chosen = which.choose(&keys.iter().map(String::as_str).collect::<Vec<_>>());
                (keys, chosen.and_then(|key| sets.remove_entry(&key)), metadata)
            }
            _ => return Err(WeightsFileError::Unknown { path: path.to_owned() }),
        };
        let Some((key, tensors)) = chosen else {
            let found = match keys[..] {
                [] => "none".to_owned(),
                _ => excerpt(&keys.join(", ")),
            };
            return Err(WeightsFileError::Which { path: path.to_owned(), which, found });
        };
        let tensors = names::unwrap_all(tensors).map_err(twice)?;
        Ok(Self { file, len, key, tensors, metadata })
    }
}

/// Why the header of a safetensors file cannot be read.
enum HeaderFault {
    Io(std::io::Error),
    Malformed(String),
}

impl HeaderFault {
    fn at(self, path: &Path) -> WeightsFileError {
        let path = path.to_owned();
        match self {
            Self::Io(source) => WeightsFileError::Io { path, source },
            Self::Malformed(reason) => WeightsFileError::Safetensors { path, reason: excerpt(&reason) },
        }
    }
}

fn safetensors(file: &File, file_len: u64) -> Result<(Tensors, HashMap<String, String>), HeaderFault> {
    let mut len = [0; 8];
    file.read_exact_at(&mut len, 0).map_err(HeaderFault::Io)?;
    let len = u64::from_le_bytes(len);
    if len > MAX_HEADER || len > file_len - 8 {
        return Err(HeaderFault::Malformed(format!("a header of {len} bytes in a file of {file_len}")));
    }
    let mut header = vec![0; len as usize];
    file.read_exact_at(&mut header, 8).map_err(HeaderFault::Io)?;
    // The crate checks that ranges follow each other without gaps and have the lengths of their shapes.
    let header: Metadata = serde_json::from_slice(&header).map_err(|e| HeaderFault::Malformed(e.to_string()))?;
    let start = 8 + len;
    if start + header.data_len() as u64 != file_len {
        let stated = header.data_len();
        let found = file_len - start;
        return Err(HeaderFault::Malformed(format!("{found} bytes of tensors where {stated} are stated")));
    }
    let mut tensors = Tensors::new();
    for (name, info) in header.tensors() {
        let float = match info.dtype {
            Dtype::F16 => Some(Float::F16),
            Dtype::BF16 => Some(Float::Bf16),
            Dtype::F32 => Some(Float::F32),
            Dtype::F64 => Some(Float::F64),
            _ => None,
        };
        let shape = info.shape.iter().map(|&side| side as u64).collect();
        let (from, to) = info.data_offsets;
        let values = (to - from) as u64 / float.map_or(1, Float::size);
        // Values that are no floats may have fewer than 8 bits; they are not read.
        let stored = match float {
            Some(_) => Stored::contiguous(float, start + from as u64, values, shape),
            None => Stored::contiguous(None, start, u64::MAX, shape),
        };
        tensors
            .insert(name.clone(), stored.map_err(|fault| HeaderFault::Malformed(format!("tensor {name}: {fault}")))?);
    }
    Ok((tensors, header.metadata().clone().unwrap_or_default()))
}

/// Tells the state dicts of a flat file apart by what stands before [`WITNESS`].
fn state_dicts(tensors: Tensors) -> BTreeMap<String, Tensors> {
    let prefixes: Vec<String> =
        tensors.keys().filter_map(|name| name.strip_suffix(WITNESS)).map(str::to_owned).collect();
    if prefixes.iter().all(String::is_empty) {
        return BTreeMap::from([(String::new(), tensors)]);
    }
    let mut sets: BTreeMap<String, Tensors> = BTreeMap::new();
    for (name, tensor) in tensors {
        if let Some((prefix, own)) = prefixes.iter().find_map(|prefix| Some((prefix, name.strip_prefix(prefix)?))) {
            let key = prefix.trim_end_matches('.').to_owned();
            sets.entry(key).or_default().insert(own.to_owned(), tensor);
        }
    }
    sets
}
