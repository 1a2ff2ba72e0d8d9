//! Strict loading of network weights from safetensors.
//!
//! A network takes its tensors by name and shape, and then asks [`Weights::finish`] whether all went well. What is
//! missing, unexpected, misshapen or of a wrong kind is collected and reported in one message, so a wrong file is
//! understood at the first try. `tch`'s own `VarStore` is not used: it takes over the file's dtype, ignores names that
//! it does not know, and broadcasts shapes that do not fit.
//!
//! Tensors arrive as f32 on the device asked for, whatever float the file holds, or as [`Weights::for_inference`] says.
//! The file is read into memory, not mapped: weights are copied once anyway. Writing weights is not here.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How many tensors of each sort one message names before it only counts.
const NAMED: usize = 20;

/// Why weights cannot be used. Each message names the place that the weights came from.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be read.
    #[error("{place}: the weights cannot be read: {source}")]
    Read {
        /// The file.
        place: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are not safetensors.
    #[error("{place}: not a safetensors file ({reason}); pass weights in the safetensors format")]
    Malformed {
        /// The file.
        place: String,
        /// What the parser said.
        reason: String,
    },
    /// The tensors are not those that the network has.
    #[error("{place}: the weights do not fit the network: {mismatch}")]
    Mismatch {
        /// The file.
        place: String,
        /// All differences.
        mismatch: Mismatch,
    },
}

/// All differences between the tensors of a file and those of a network. Shown with at most 20 names of each sort.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Names that the network has and the file has not.
    pub missing: Vec<String>,
    /// Names that the file has and the network has not.
    pub unexpected: Vec<String>,
    /// Names that both have with different shapes, or whose values are not floats: "name: expected .., got ..".
    pub misshapen: Vec<String>,
}

impl Mismatch {
    fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (sort, names) in
            [("missing", &self.missing), ("unexpected", &self.unexpected), ("misshapen", &self.misshapen)]
        {
            if names.is_empty() {
                continue;
            }
            write!(f, "{separator}{} {sort}: {}", names.len(), names[..names.len().min(NAMED)].join(", "))?;
            if names.len() > NAMED {
                write!(f, " and {} more", names.len() - NAMED)?;
            }
            separator = "; ";
        }
        Ok(())
    }
}

/// A tensor that nobody took yet.
#[derive(Debug)]
enum Held {
    /// Lies in `Weights::bytes`.
    Stored { dtype: Dtype, shape: Vec<i64>, range: Range<usize> },
    /// Is in use elsewhere already, for example by an optimiser.
    Live(Tensor),
}

/// Named tensors that wait to be taken by a network.
#[derive(Debug)]
pub struct Weights {
    place: String,
    device: Device,
    /// Dtype of the tensors that are made from `bytes`.
    kind: Kind,
    channels_last: bool,
    bytes: Vec<u8>,
    held: BTreeMap<String, Held>,
    expected: Vec<(String, Vec<i64>)>,
    mismatch: Mismatch,
    /// xxh3 of what was taken so far: each part is hashed with the hash before it as the seed.
    hash: u64,
}

impl Weights {
    /// Reads a safetensors file into memory. The tensors will be made on `device`.
    ///
    /// # Errors
    /// [`WeightsError::Read`] or [`WeightsError::Malformed`].
    pub fn open(path: &Path, device: Device) -> Result<Self, WeightsError> {
        let place = path.display().to_string();
        match std::fs::read(path) {
            Ok(bytes) => Self::from_bytes(bytes, &place, device),
            Err(source) => Err(WeightsError::Read { place, source }),
        }
    }

    /// Takes the bytes of a safetensors file. `place` names them in messages.
    ///
    /// # Errors
    /// [`WeightsError::Malformed`].
    pub fn from_bytes(bytes: impl Into<Vec<u8>>, place: &str, device: Device) -> Result<Self, WeightsError> {
        let bytes = bytes.into();
        let malformed =
            |reason: &dyn fmt::Display| WeightsError::Malformed { place: place.to_owned(), reason: reason.to_string() };
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| malformed(&e))?;
        // The tensors begin behind the length of the header (8 bytes) and the header; `read_metadata` has checked
        // that every range lies within the bytes.
        let start = header + 8;
        let mut held = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let shape = info.shape.iter().map(|&n| i64::try_from(n)).collect::<Result<_, _>>();
            let shape = shape.map_err(|_| malformed(&format_args!("the shape of {name} is too large")))?;
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            held.insert(name, Held::Stored { dtype: info.dtype, shape, range });
        }
        Ok(Self { bytes, ..Self::holding(held, place, device) })
    }

    /// Takes tensors that live already: a network made of them shares their memory, so training the network trains
    /// them. They must be f32 on `device`.
    pub fn from_tensors(tensors: impl IntoIterator<Item = (String, Tensor)>, place: &str, device: Device) -> Self {
        let held = tensors.into_iter().map(|(name, tensor)| (name, Held::Live(tensor))).collect();
        Self::holding(held, place, device)
    }

    fn holding(held: BTreeMap<String, Held>, place: &str, device: Device) -> Self {
        Self {
            place: place.to_owned(),
            device,
            kind: Kind::Float,
            channels_last: false,
            bytes: Vec::new(),
            held,
            expected: Vec::new(),
            mismatch: Mismatch::default(),
            hash: 0,
        }
    }

    /// The tensors of a file will be made as `kind`, and the kernels of convolutions in memory as libtorch's fastest
    /// kernels want them (channels last). Tensors that live already stay as they are.
    #[must_use]
    pub fn for_inference(mut self, kind: Kind) -> Self {
        (self.kind, self.channels_last) = (kind, true);
        self
    }

    /// Dtype of the tensors that are made from a file.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where the tensors are made.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The names that nobody took yet, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.held.keys().map(String::as_str)
    }

    /// Gives every tensor a new name; `None` leaves it out. Two tensors that meet under one name are reported by
    /// [`Weights::finish`].
    #[must_use]
    pub fn rename(mut self, mut new_name: impl FnMut(&str) -> Option<String>) -> Self {
        for (name, tensor) in std::mem::take(&mut self.held) {
            let Some(new) = new_name(&name) else { continue };
            match self.held.entry(new) {
                Entry::Vacant(vacant) => {
                    vacant.insert(tensor);
                }
                Entry::Occupied(taken) => {
                    self.mismatch.unexpected.push(format!("{name} (a second {})", taken.key()));
                }
            }
        }
        self
    }

    /// The tensor `name`, which must be of exactly `shape`: f32 on the device.
    ///
    /// If it is missing or does not fit, that is noted for [`Weights::finish`] and an empty tensor stands in, so that
    /// construction goes on and finds the other problems; do nothing with a tensor before `finish` has agreed.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Tensor {
        self.take_either(name, shape, shape)
    }

    /// Like [`Weights::take`] for the `[outputs, inputs]` matrix of a linear layer, which may be stored as the
    /// `[outputs, inputs, 1, 1]` kernel of a convolution, as older files do.
    pub fn take_matrix(&mut self, name: &str, outputs: i64, inputs: i64) -> Tensor {
        self.take_either(name, &[outputs, inputs], &[outputs, inputs, 1, 1])
    }

    fn take_either(&mut self, name: &str, shape: &[i64], alternative: &[i64]) -> Tensor {
        self.expected.push((name.to_owned(), shape.to_vec()));
        let Some(held) = self.held.remove(name) else {
            self.mismatch.missing.push(name.to_owned());
            return self.stand_in();
        };
        let got = match &held {
            Held::Stored { shape, .. } => shape.clone(),
            Held::Live(tensor) => tensor.size(),
        };
        if got != shape && got != alternative {
            self.mismatch.misshapen.push(format!("{name}: expected {shape:?}, got {got:?}"));
            return self.stand_in();
        }
        match self.tensor(name, held, shape) {
            Ok(tensor) => tensor,
            Err(problem) => {
                self.mismatch.misshapen.push(format!("{name}: {problem}"));
                self.stand_in()
            }
        }
    }

    fn tensor(&mut self, name: &str, held: Held, shape: &[i64]) -> Result<Tensor, String> {
        let (dtype, range) = match held {
            Held::Live(tensor) if tensor.kind() == Kind::Float && tensor.device() == self.device => {
                return tensor.f_view(shape).map_err(|e| first_line(&e));
            }
            Held::Live(tensor) => {
                return Err(format!(
                    "expected f32 on {:?}, got {:?} on {:?}",
                    self.device,
                    tensor.kind(),
                    tensor.device()
                ));
            }
            Held::Stored { dtype, range, .. } => (dtype, range),
        };
        let kind = match dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => return Err(format!("expected F32, F16 or BF16, got {other:?}")),
        };
        let bytes = &self.bytes[range];
        for part in [name.as_bytes(), format!("{dtype:?}{shape:?}").as_bytes(), bytes] {
            self.hash = xxh3_64_with_seed(part, self.hash);
        }
        let kernel = self.channels_last && shape.len() == 4;
        Tensor::f_from_data_size(bytes, shape, kind)
            .and_then(|t| t.f_to_kind(self.kind))
            .and_then(|t| t.f_to_device(self.device))
            .and_then(|t| if kernel { channels_last(&t) } else { Ok(t) })
            .map_err(|e| first_line(&e))
    }

    fn stand_in(&self) -> Tensor {
        Tensor::zeros([0], (Kind::Float, self.device))
    }

    /// Ends the loading: agrees if exactly the tensors that the file held were taken, and all fitted. Returns the
    /// xxh3 of what was taken from a file (names, dtypes, shapes and bytes in the order of taking): the identity of the
    /// weights, the same for every naming that was renamed to these names.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`], which names every difference.
    pub fn finish(mut self) -> Result<u64, WeightsError> {
        self.mismatch.unexpected.extend(std::mem::take(&mut self.held).into_keys());
        if self.mismatch.is_empty() {
            Ok(self.hash)
        } else {
            Err(WeightsError::Mismatch { place: self.place, mismatch: self.mismatch })
        }
    }

    /// Every name that was asked for so far with the shape that it must have, in the order of taking. A network that
    /// is built from no weights at all tells its parameters this way.
    pub fn expected(&self) -> &[(String, Vec<i64>)] {
        &self.expected
    }
}

/// The same values `[A, B, C, D]`, in memory in the order A, C, D, B: libtorch then takes its kernels for that layout.
pub(crate) fn channels_last(tensor: &Tensor) -> Result<Tensor, tch::TchError> {
    tensor.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])
}

/// What a C++ exception says, without the backtrace that follows.
pub(crate) fn first_line(error: &tch::TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};
    use safetensors::tensor::TensorView;

    fn file(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Vec<u8> {
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            ((*name).to_owned(), TensorView::new(*dtype, shape.to_vec(), bytes).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn open(bytes: Vec<u8>) -> Weights {
        Weights::from_bytes(bytes, "some.safetensors", Device::Cpu).unwrap()
    }

    #[test]
    fn every_float_arrives_as_f32_with_its_value() {
        let values = [1.5f32, -0.25];
        let mut weights = open(file(&[
            ("a", Dtype::F32, &[2], f32s(&values)),
            ("b", Dtype::F16, &[2], values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
            ("c", Dtype::BF16, &[2], values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()),
        ]));
        for name in ["a", "b", "c"] {
            let tensor = weights.take(name, &[2]);
            assert_eq!(tensor.kind(), Kind::Float);
            assert_eq!(Vec::<f32>::try_from(&tensor).unwrap(), values);
        }
        weights.finish().unwrap();
    }

    #[test]
    fn one_message_names_all_that_is_missing_unexpected_misshapen_or_of_a_wrong_kind() {
        let mut weights = open(file(&[
            ("extra", Dtype::F32, &[1], f32s(&[0.0])),
            ("long", Dtype::F32, &[1, 2], f32s(&[0.0, 0.0])),
            ("whole", Dtype::I64, &[1], vec![0; 8]),
        ]));
        let _ = weights.take("absent", &[3]);
        let _ = weights.take("long", &[2]);
        let _ = weights.take("whole", &[1]);
        assert_eq!(
            weights.finish().unwrap_err().to_string(),
            "some.safetensors: the weights do not fit the network: 1 missing: absent; 1 unexpected: extra; \
             2 misshapen: long: expected [2], got [1, 2], whole: expected F32, F16 or BF16, got I64"
        );
    }

    #[test]
    fn a_broadcastable_shape_is_refused() {
        let mut weights = open(file(&[("bias", Dtype::F32, &[1], f32s(&[7.0]))]));
        let _ = weights.take("bias", &[4]);
        assert!(weights.finish().unwrap_err().to_string().contains("bias: expected [4], got [1]"));
    }

    #[test]
    fn a_long_list_is_cut_at_twenty_names_and_counted() {
        let mut weights = open(file(&[]));
        for i in 0..31 {
            let _ = weights.take(&format!("t{i:02}"), &[1]);
        }
        let message = weights.finish().unwrap_err().to_string();
        assert!(message.contains("31 missing: t00, "), "{message}");
        assert!(message.ends_with("t19 and 11 more"), "{message}");
    }

    #[test]
    fn a_kernel_of_one_pixel_serves_as_a_matrix_and_nothing_else_does() {
        let matrix = f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut weights = open(file(&[("q", Dtype::F32, &[3, 2, 1, 1], matrix.clone())]));
        assert_eq!(weights.take_matrix("q", 3, 2).size(), [3, 2]);
        weights.finish().unwrap();
        let mut weights = open(file(&[("q", Dtype::F32, &[3, 2, 1], matrix)]));
        let _ = weights.take_matrix("q", 3, 2);
        assert!(weights.finish().unwrap_err().to_string().contains("q: expected [3, 2], got [3, 2, 1]"));
    }

    #[test]
    fn two_tensors_under_one_new_name_are_reported() {
        let one = || f32s(&[1.0]);
        let mut weights = open(file(&[("a", Dtype::F32, &[1], one()), ("b", Dtype::F32, &[1], one())]))
            .rename(|_| Some("c".to_owned()));
        let _ = weights.take("c", &[1]);
        assert!(weights.finish().unwrap_err().to_string().contains("1 unexpected: b (a second c)"));
    }

    #[test]
    fn the_hash_follows_values_and_ignores_the_names_in_the_file() {
        let hash = |name: &str, value: f32| {
            let mut weights = open(file(&[(name, Dtype::F32, &[1], f32s(&[value]))])).rename(|_| Some("w".to_owned()));
            let _ = weights.take("w", &[1]);
            weights.finish().unwrap()
        };
        assert_eq!(hash("old", 1.0), hash("new", 1.0));
        assert_ne!(hash("old", 1.0), hash("old", 2.0));
    }

    #[test]
    fn what_is_not_safetensors_says_so_with_the_place() {
        for bytes in [vec![], vec![0xff; 40], b"not weights at all, just some text".to_vec()] {
            let error = Weights::from_bytes(bytes, "there", Device::Cpu).unwrap_err();
            assert!(error.to_string().starts_with("there: not a safetensors file ("), "{error}");
        }
        let mut cut = file(&[("a", Dtype::F32, &[2], f32s(&[1.0, 2.0]))]);
        cut.pop();
        assert!(matches!(Weights::from_bytes(cut, "there", Device::Cpu), Err(WeightsError::Malformed { .. })));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Weights::open(Path::new("/nowhere/w.safetensors"), Device::Cpu).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/w.safetensors: the weights cannot be read: "), "{error}");
    }
}
