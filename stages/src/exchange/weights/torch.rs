//! Files of `torch.save`: a zip archive with a pickle and the memory of its tensors.
//!
//! ```text
//! NAME/data.pkl     what was saved, its tensors as views of storages
//! NAME/data/0 ..    the storages, raw
//! NAME/byteorder    little or big (since PyTorch 2.1)
//! NAME/version ..   of no use here
//! ```
//!
//! What was saved is a state dict, or a dictionary with state dicts among its values, such as REPA's and SiT's
//! `{model, ema, opt, args}`. The older form of `torch.save`, a bare pickle (until PyTorch 1.5), is refused by
//! [`super::file`].

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::archive::{self, ArchiveError, Member};
use super::pickle::{Pickle, PickleError, Tensor, Value};
use super::stored::{Float, Stored, ViewFault};

/// The pickle of XL with its optimiser has 300 kB.
const MAX_PICKLE: u64 = 16 << 20;

/// Why a file of `torch.save` cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// The system refused to read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The archive around it.
    #[error("{0}")]
    Archive(#[from] ArchiveError),
    /// The pickle in it.
    #[error("{0}")]
    Pickle(#[from] PickleError),
    /// A zip archive of something else.
    #[error(
        "the zip archive holds {found} files named data.pkl where torch.save writes one; this is no file of PyTorch"
    )]
    Pickles {
        /// How many.
        found: usize,
    },
    /// Larger than a file of weights needs.
    #[error("its pickle has {len} bytes, more than the 16 MiB that are read; save the state dict alone")]
    PickleTooLarge {
        /// Length in bytes.
        len: u64,
    },
    /// Written on a machine whose byte order is the other one.
    #[error("its numbers are big-endian; load and save it on a little-endian machine")]
    BigEndian,
    /// Not a dictionary with text for keys.
    #[error("what was saved is no state dict and no dictionary of them; save model.state_dict()")]
    NoDictionary,
    /// The memory of a tensor is not there.
    #[error("tensor {name}: the archive has no member {member:?}; copy or download the file again")]
    NoStorage {
        /// Key of the tensor.
        name: String,
        /// Member that should hold it.
        member: String,
    },
    /// The memory of a tensor has another length than its storage says.
    #[error("tensor {name}: its member has {found} bytes where {expected} are stated; copy or download the file again")]
    StorageLength {
        /// Key of the tensor.
        name: String,
        /// Bytes of the member.
        found: u64,
        /// Bytes stated.
        expected: u128,
    },
    /// A tensor's view of its memory.
    #[error("tensor {name}: {fault}")]
    View {
        /// Key of the tensor.
        name: String,
        /// What is wrong.
        fault: ViewFault,
    },
}

/// Tensors by their keys.
pub(super) type Tensors = BTreeMap<String, Stored>;

/// The state dicts of a file.
pub(super) struct StateDicts {
    /// Their keys in what was saved, sorted; "" is what was saved itself.
    pub(super) keys: Vec<String>,
    /// The tensors of the one that was asked for.
    pub(super) chosen: Option<(String, Tensors)>,
}

/// Lists the state dicts of a file and describes the tensors of the one that `choose` takes from their keys.
pub(super) fn state_dicts(
    file: &File,
    choose: impl FnOnce(&[&str]) -> Option<String>,
) -> Result<StateDicts, TorchError> {
    let members = archive::members(file)?;
    let roots: Vec<&str> = members.keys().filter_map(|name| name.strip_suffix("data.pkl")).collect();
    let &[root] = &roots[..] else { return Err(TorchError::Pickles { found: roots.len() }) };
    if let Some(order) = members.get(&format!("{root}byteorder"))
        && read(file, order, 16)? != b"little"
    {
        return Err(TorchError::BigEndian);
    }
    let pickle = &members[&format!("{root}data.pkl")];
    if pickle.len > MAX_PICKLE {
        return Err(TorchError::PickleTooLarge { len: pickle.len });
    }
    let bytes = read(file, pickle, MAX_PICKLE)?;
    let pickle = Pickle::read(&bytes)?;
    let Value::Dict(saved) = pickle.root() else { return Err(TorchError::NoDictionary) };

    let mut dicts: BTreeMap<&str, BTreeMap<&str, &Tensor<'_>>> = BTreeMap::from([("", tensors(&pickle, saved))]);
    for &(key, value) in saved {
        if let (&Value::Text(key), Value::Dict(entries)) = (pickle.get(key), pickle.get(value)) {
            dicts.insert(key, tensors(&pickle, entries));
        }
    }
    dicts.retain(|_, tensors| !tensors.is_empty());
    let keys: Vec<&str> = dicts.keys().copied().collect();
    let chosen = match choose(&keys).and_then(|key| dicts.get_key_value(key.as_str())) {
        None => None,
        Some((key, tensors)) => {
            let stored =
                tensors.iter().map(|(&name, tensor)| Ok((name.to_owned(), stored(name, tensor, &members, root)?)));
            Some(((*key).to_owned(), stored.collect::<Result<Tensors, TorchError>>()?))
        }
    };
    Ok(StateDicts { keys: keys.into_iter().map(str::to_owned).collect(), chosen })
}

/// The tensors among the values of a dictionary. Of two values under one key the last counts, as in Python.
fn tensors<'p, 'a>(pickle: &'p Pickle<'a>, entries: &[(u32, u32)]) -> BTreeMap<&'a str, &'p Tensor<'a>> {
    let tensor = |&(key, value): &(u32, u32)| match (pickle.get(key), pickle.get(value)) {
        (&Value::Text(key), Value::Tensor(tensor)) => Some((key, tensor)),
        _ => None,
    };
    entries.iter().filter_map(tensor).collect()
}

fn stored(
    name: &str,
    tensor: &Tensor<'_>,
    members: &BTreeMap<String, Member>,
    root: &str,
) -> Result<Stored, TorchError> {
    let name = || name.to_owned();
    let float = match tensor.storage.class {
        "HalfStorage" => Some(Float::F16),
        "BFloat16Storage" => Some(Float::Bf16),
        "FloatStorage" => Some(Float::F32),
        "DoubleStorage" => Some(Float::F64),
        _ => None,
    };
    let member = format!("{root}data/{}", tensor.storage.key);
    let Some(found) = members.get(&member) else { return Err(TorchError::NoStorage { name: name(), member }) };
    if let Some(float) = float {
        let expected = u128::from(tensor.storage.len) * u128::from(float.size());
        if u128::from(found.len) != expected {
            return Err(TorchError::StorageLength { name: name(), found: found.len, expected });
        }
    }
    let memory = (found.start, tensor.storage.len);
    Stored::view(float, memory, tensor.offset, tensor.shape.clone(), tensor.strides.clone(), Some(found.crc32))
        .map_err(|fault| TorchError::View { name: name(), fault })
}

/// The bytes of a member, `most` at most.
fn read(file: &File, member: &Member, most: u64) -> Result<Vec<u8>, TorchError> {
    let mut bytes = vec![0; member.len.min(most) as usize];
    file.read_exact_at(&mut bytes, member.start)?;
    Ok(bytes)
}
