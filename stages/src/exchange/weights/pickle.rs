//! The subset of Python's pickle that a file of weights needs: a machine that finds tensors and executes nothing.
//!
//! It knows the opcodes that Python 3 writes in protocols 2 to 5. Dictionaries, tuples, integers and text are built;
//! `collections.OrderedDict`, `torch._utils._rebuild_tensor_v2`, `_rebuild_parameter` and the persistent ids of
//! storages are understood by name. Everything else, lists, floats and any object of any class included, becomes
//! [`Value::Opaque`]: it is carried along and never looked into, so that an `argparse.Namespace` beside the weights
//! does no harm and an `os.system` does not either.
//!
//! Bounds: values lie in one arena of at most [`MAX_VALUES`] and refer to each other by number. Nothing here recurses,
//! so nesting costs nothing and a dictionary may hold itself. No length that the pickle states is allocated.

mod machine;

use machine::Machine;

/// Most values of a pickle. The largest published checkpoint, with optimiser and average, has about 30,000.
pub(super) const MAX_VALUES: usize = 1 << 20;

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;

/// Where and why a pickle cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {at} of its pickle: {fault}")]
pub struct PickleError {
    /// Position of the opcode.
    pub at: usize,
    /// What is wrong there.
    pub fault: PickleFault,
}

/// What can be wrong with a pickle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickleFault {
    /// No STOP where the bytes end, or an argument that is cut off.
    #[error("it ends too early; copy or download the file again")]
    Truncated,
    /// A protocol that does not exist yet.
    #[error("protocol {0} is unknown; save the file again with pickle_protocol=2")]
    Protocol(u8),
    /// An opcode of protocol 0 or 1, or none at all.
    #[error("opcode {0:#04x} is none that PyTorch writes; save the file again with a current PyTorch")]
    Opcode(u8),
    /// An opcode takes more values than there are.
    #[error("an opcode takes a value that is not there")]
    EmptyStack,
    /// An opcode takes all values since a mark that is not there.
    #[error("an opcode looks for a mark that is not there")]
    NoMark,
    /// A value is asked for that was never stored.
    #[error("value {0} of the memo is used and was never stored")]
    Memo(u32),
    /// Text that is not UTF-8.
    #[error("text is not UTF-8")]
    Text,
    /// Another kind of value than the opcode works on.
    #[error("{0} is expected")]
    Expected(&'static str),
    /// More than this reader takes.
    #[error("it has more than {MAX_VALUES} values; this is no file of weights")]
    TooManyValues,
    /// A tensor of more than 8 dimensions.
    #[error("a tensor has {0} dimensions; weights have at most {MAX_DIMENSIONS}")]
    Dimensions(usize),
}

/// Number of a value in the arena.
pub(super) type Id = u32;

/// What the pickle builds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// Module and name of what Python would import.
    Global(&'a str, &'a str),
    Storage(Storage<'a>),
    Tensor(Tensor<'a>),
    /// Anything else.
    Opaque,
}

/// The memory of tensors: a member of the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    /// Class of the storage, such as `FloatStorage`.
    pub(super) class: &'a str,
    /// Name of the member below `data/`.
    pub(super) key: &'a str,
    /// Number of elements.
    pub(super) len: u64,
}

/// A view of a storage, counted in elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tensor<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    /// As many as `shape` has.
    pub(super) strides: Vec<u64>,
}

/// A pickle that was read to its end.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: Id,
}

impl<'a> Pickle<'a> {
    /// Runs the machine.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, PickleError> {
        let (values, root) = Machine::run(bytes)?;
        Ok(Self { values, root })
    }

    /// The value that was pickled.
    pub(super) fn root(&self) -> &Value<'a> {
        self.get(self.root)
    }

    /// A value by its number.
    pub(super) fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }
}

#[cfg(test)]
mod tests;
