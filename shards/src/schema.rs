//! What a shard declares about its contents: columns, their dtype, shape, codec and meaning, and the JSON form of all
//! that.
//!
//! Values are checked by [`Schema::check`] and [`Header::check`]; writer and reader both call them, so that nothing can
//! be written that cannot be read. No bytes of samples are touched here.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Place, ShardError};
use crate::layout::{
    self, MAX_BLOCK_BYTES, MAX_BLOCK_SAMPLES, MAX_COLUMNS, MAX_HEADER_LEN, MAX_NAME, MAX_RANK, PREFIX_LEN,
};
use crate::quote;

/// Element type of a column, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 binary16, 2 bytes.
    F16,
    /// IEEE 754 binary32, 4 bytes.
    F32,
}

impl DType {
    /// Bytes per value.
    pub const fn width(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// Name in the JSON header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

/// How the bytes of one column of one block are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Raw bytes: `none` in the header.
    None,
    /// One zstd frame of the raw bytes: `zstd` in the header.
    Zstd {
        /// zstd level, 1..=19.
        level: i32,
    },
    /// Byte planes (all first bytes of the values, then all second bytes, ..), then one zstd frame. In the header
    /// `shuffle2+zstd` for 2-byte values and `shuffle4+zstd` for 4-byte values.
    ShuffleZstd {
        /// zstd level, 1..=19. On f16 latents levels above 1 store nothing less and take longer.
        level: i32,
    },
}

impl Codec {
    /// Name in the JSON header for values of `dtype`.
    pub const fn name(self, dtype: DType) -> &'static str {
        match (self, dtype) {
            (Self::None, _) => "none",
            (Self::Zstd { .. }, _) => "zstd",
            (Self::ShuffleZstd { .. }, DType::F16) => "shuffle2+zstd",
            (Self::ShuffleZstd { .. }, DType::F32) => "shuffle4+zstd",
        }
    }

    /// Byte planes in which [`crate::ShardReader::read_planes`] gives values of `dtype`: as many as a value has bytes with
    /// [`Codec::ShuffleZstd`]; 1, the values as they are, with the others.
    pub const fn planes(self, dtype: DType) -> usize {
        match self {
            Self::None | Self::Zstd { .. } => 1,
            Self::ShuffleZstd { .. } => dtype.width(),
        }
    }

    /// The zstd level; `None` for [`Codec::None`].
    pub const fn level(self) -> Option<i32> {
        match self {
            Self::None => None,
            Self::Zstd { level } | Self::ShuffleZstd { level } => Some(level),
        }
    }
}

/// What the values of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Semantics {
    /// Mean of the autoencoder's posterior.
    PosteriorMean,
    /// Natural logarithm of the posterior's variance.
    PosteriorLogvar,
    /// Standard deviation of the posterior.
    PosteriorStd,
    /// One value drawn from the posterior.
    Sample,
}

/// One column: an array of `[samples, shape..]` over the dataset. By convention a name that ends in `_flip` holds
/// the latents of the horizontally mirrored image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ColumnRecord", into = "ColumnRecord")]
pub struct Column {
    /// 1 to 64 of `a-z`, `0-9`, `_`; unique in the schema.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape of one sample, outermost dimension first (`[channels, height, width]` for latents); up to 8 dimensions,
    /// each >= 1.
    pub shape: Vec<u32>,
    /// How a block of it is stored.
    pub codec: Codec,
    /// What its values are.
    pub semantics: Semantics,
}

impl Column {
    /// Bytes of one sample, uncompressed. Saturates where [`Schema::check`] would refuse the shape anyway.
    pub fn sample_bytes(&self) -> usize {
        self.shape.iter().fold(self.dtype.width(), |bytes, &dim| bytes.saturating_mul(dim as usize))
    }
}

/// [`Column`] as the JSON header holds it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ColumnRecord {
    name: String,
    dtype: DType,
    shape: Vec<u32>,
    codec: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    level: Option<i32>,
    semantics: Semantics,
}

impl From<Column> for ColumnRecord {
    fn from(column: Column) -> Self {
        let Column { name, dtype, shape, codec, semantics } = column;
        Self { name, dtype, shape, codec: codec.name(dtype).to_owned(), level: codec.level(), semantics }
    }
}

impl TryFrom<ColumnRecord> for Column {
    type Error = String;

    fn try_from(record: ColumnRecord) -> Result<Self, String> {
        let ColumnRecord { name, dtype, shape, codec, level, semantics } = record;
        let parsed = match level {
            None => Codec::None,
            Some(level) if codec == "zstd" => Codec::Zstd { level },
            Some(level) => Codec::ShuffleZstd { level },
        };
        if codec != parsed.name(dtype) {
            return Err(format!(
                "column {name:?}: codec {codec:?} with level {level:?} and dtype {:?} is unknown",
                dtype.name()
            ));
        }
        Ok(Self { name, dtype, shape, codec: parsed, semantics })
    }
}

/// The columns and what is needed to use them. Equal for all shards of a dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// At least one, at most 64.
    pub columns: Vec<Column>,
    /// Samples in every block but the last of a shard, 1..=65,536; 64 makes a byte plane of `[4, 32, 32]` two zstd
    /// blocks of 128 KiB.
    pub block_samples: u32,
    /// Latents for the network are `(z - shift_factor) * scaling_factor`. Finite, not 0; 0.18215 for the Stable
    /// Diffusion autoencoder.
    pub scaling_factor: f64,
    /// See `scaling_factor`. Finite.
    pub shift_factor: f64,
    /// True where the stored values are already shifted and scaled.
    pub scaling_applied: bool,
    /// Range of the pixels that the autoencoder was given, low then high.
    pub pixel_range: [f64; 2],
}

impl Schema {
    /// Checks every field against the limits of the format; `path` is the file that the error names.
    ///
    /// # Errors
    /// [`ShardError::Field`] with the field, the allowed values and the value found.
    pub fn check(&self, path: &Path) -> Result<(), ShardError> {
        let wrong = |field: String, expected: String, got: String| {
            let (field, got) = (format!("schema.{field}"), quote::excerpt(&got));
            Err(ShardError::Field { path: path.to_owned(), field, expected, got })
        };
        if self.columns.is_empty() || self.columns.len() > MAX_COLUMNS {
            return wrong("columns".into(), format!("1 to {MAX_COLUMNS} columns"), self.columns.len().to_string());
        }
        if self.block_samples == 0 || self.block_samples > MAX_BLOCK_SAMPLES {
            return wrong("block_samples".into(), format!("1 to {MAX_BLOCK_SAMPLES}"), self.block_samples.to_string());
        }
        for (c, column) in self.columns.iter().enumerate() {
            let field = |name: &str| format!("columns[{c}].{name}");
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            if column.name.is_empty() || column.name.len() > MAX_NAME || !column.name.bytes().all(plain) {
                return wrong(field("name"), format!("1 to {MAX_NAME} of a-z, 0-9, _"), format!("{:?}", column.name));
            }
            if self.columns.iter().take(c).any(|earlier| earlier.name == column.name) {
                return wrong(field("name"), "a name used once".into(), format!("{:?}", column.name));
            }
            if column.shape.len() > MAX_RANK || column.shape.contains(&0) {
                return wrong(
                    field("shape"),
                    format!("up to {MAX_RANK} dimensions of 1 or more"),
                    format!("{:?}", column.shape),
                );
            }
            let block_bytes = column.sample_bytes().saturating_mul(self.block_samples as usize);
            if block_bytes > MAX_BLOCK_BYTES {
                return wrong(
                    field("shape"),
                    format!("at most {MAX_BLOCK_BYTES} bytes a block"),
                    format!("{:?}", column.shape),
                );
            }
            if let Some(level) = column.codec.level()
                && !(1..=19).contains(&level)
            {
                return wrong(field("level"), "1 to 19".into(), level.to_string());
            }
        }
        if !self.scaling_factor.is_finite() || self.scaling_factor == 0.0 {
            return wrong("scaling_factor".into(), "a finite number, not 0".into(), self.scaling_factor.to_string());
        }
        if !self.shift_factor.is_finite() {
            return wrong("shift_factor".into(), "a finite number".into(), self.shift_factor.to_string());
        }
        let [low, high] = self.pixel_range;
        if !(low.is_finite() && high.is_finite() && low < high) {
            return wrong(
                "pixel_range".into(),
                "two finite numbers, low then high".into(),
                format!("{:?}", self.pixel_range),
            );
        }
        Ok(())
    }
}

/// The JSON header of one shard. It holds no clock, host, process or device count: the same input gives the same bytes.
/// The number of samples is not in it, since it is not known when the header is written; it is in the tail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Always `"latent-shard"`; [`Header::new`] sets it.
    pub format: String,
    /// Always [`crate::VERSION`]; [`Header::new`] sets it.
    pub version: u32,
    /// Number of this shard, from 0.
    pub shard: u32,
    /// Number of shards in the dataset, more than `shard`.
    pub shards: u32,
    /// What is stored.
    pub schema: Schema,
    /// Where the samples come from: autoencoder, preprocessing, source, program. Free form; the keys are kept sorted.
    pub provenance: BTreeMap<String, serde_json::Value>,
}

impl Header {
    /// A header of this version.
    pub fn new(schema: Schema, shard: u32, shards: u32, provenance: BTreeMap<String, serde_json::Value>) -> Self {
        Self { format: layout::SHARD_FORMAT.to_owned(), version: layout::VERSION, shard, shards, schema, provenance }
    }

    /// Checks every field; `path` is the file that the error names.
    ///
    /// # Errors
    /// [`ShardError::Field`] or [`ShardError::Version`].
    pub fn check(&self, path: &Path) -> Result<(), ShardError> {
        check_format(path, &self.format, layout::SHARD_FORMAT, self.version)?;
        if self.shard >= self.shards {
            let (expected, got) = (format!("less than `shards` = {}", self.shards), self.shard.to_string());
            return Err(ShardError::Field { path: path.to_owned(), field: "shard".into(), expected, got });
        }
        self.schema.check(path)
    }

    /// The header's JSON, padded with spaces to `32 + len` = a multiple of 4096.
    pub(crate) fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, ShardError> {
        self.check(path)?;
        let mut sorted = self.clone();
        // Without effect unless some crate of the build turns on serde_json's `preserve_order`: then the order in
        // which a caller filled nested objects would otherwise reach the bytes.
        sorted.provenance.values_mut().for_each(serde_json::Value::sort_all_objects);
        let mut bytes = serde_json::to_vec(&sorted).map_err(|reason| quote::json(path, &reason))?;
        let end = (PREFIX_LEN + bytes.len()).next_multiple_of(layout::ALIGNMENT);
        bytes.resize(end - PREFIX_LEN, b' ');
        if bytes.len() > MAX_HEADER_LEN {
            return Err(ShardError::TooLarge {
                path: path.to_owned(),
                what: Place::Header.to_string(),
                max: MAX_HEADER_LEN as u64,
                got: bytes.len() as u64,
            });
        }
        Ok(bytes)
    }

    /// Parses and checks a header.
    pub(crate) fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, ShardError> {
        let header: Self = serde_json::from_slice(bytes).map_err(|reason| quote::json(path, &reason))?;
        header.check(path)?;
        Ok(header)
    }
}

/// Checks the two fields with which a header and a manifest begin.
pub(crate) fn check_format(path: &Path, format: &str, expected: &str, version: u32) -> Result<(), ShardError> {
    if format != expected {
        return Err(ShardError::Field {
            path: path.to_owned(),
            field: "format".into(),
            expected: format!("{expected:?}"),
            got: quote::excerpt(&format!("{format:?}")),
        });
    }
    if version != layout::VERSION {
        return Err(ShardError::Version { path: path.to_owned(), expected: layout::VERSION, got: version });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column() -> Column {
        Column {
            name: "mean".into(),
            dtype: DType::F16,
            shape: vec![4, 32, 32],
            codec: Codec::ShuffleZstd { level: 1 },
            semantics: Semantics::PosteriorMean,
        }
    }

    fn schema() -> Schema {
        Schema {
            columns: vec![column()],
            block_samples: 64,
            scaling_factor: 0.18215,
            shift_factor: 0.0,
            scaling_applied: false,
            pixel_range: [-1.0, 1.0],
        }
    }

    fn header() -> Header {
        let provenance = BTreeMap::from([("vae".to_owned(), serde_json::json!({"id": "tiny", "dtype": "f32"}))]);
        Header::new(schema(), 3, 157, provenance)
    }

    #[test]
    fn the_json_of_a_header_is_fixed() {
        let bytes = header().to_bytes(Path::new("x")).unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        let expected = concat!(
            r#"{"format":"latent-shard","version":1,"shard":3,"shards":157,"schema":{"columns":[{"name":"mean","dtype":"f16","#,
            r#""shape":[4,32,32],"codec":"shuffle2+zstd","level":1,"semantics":"posterior_mean"}],"block_samples":64,"#,
            r#""scaling_factor":0.18215,"shift_factor":0.0,"scaling_applied":false,"pixel_range":[-1.0,1.0]},"#,
            r#""provenance":{"vae":{"dtype":"f32","id":"tiny"}}}"#
        );
        assert_eq!(text.trim_end(), expected);
        assert_eq!(bytes.len() + PREFIX_LEN, 4096);
        assert_eq!(Header::from_bytes(Path::new("x"), &bytes).unwrap(), header());
    }

    #[test]
    fn a_header_of_exactly_one_page_is_not_padded_by_another() {
        let mut header = header();
        let len = serde_json::to_vec(&header).unwrap().len();
        header.provenance.insert("fill".into(), "x".repeat(4096 - PREFIX_LEN - len - r#","fill":"""#.len()).into());
        assert_eq!(header.to_bytes(Path::new("x")).unwrap().len(), 4096 - PREFIX_LEN);
    }

    #[test]
    fn a_header_over_the_limit_is_refused() {
        let mut header = header();
        header.provenance.insert("fill".into(), "x".repeat(MAX_HEADER_LEN).into());
        assert!(matches!(header.to_bytes(Path::new("x")), Err(ShardError::TooLarge { .. })));
    }

    #[test]
    fn a_codec_that_does_not_fit_the_dtype_is_refused() {
        const WITH_LEVEL: &str = r#","level":1"#;
        for (codec, level) in
            [("shuffle4+zstd", WITH_LEVEL), ("shuffle2+zstd", ""), ("zstd", ""), ("none", WITH_LEVEL), ("lz4", "")]
        {
            let json =
                format!(r#"{{"name":"a","dtype":"f16","shape":[],"codec":"{codec}"{level},"semantics":"sample"}}"#);
            assert!(serde_json::from_str::<Column>(&json).is_err(), "{json}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let json = serde_json::to_string(&schema()).unwrap().replacen('{', r#"{"endian":"big","#, 1);
        assert!(serde_json::from_str::<Schema>(&json).unwrap_err().to_string().contains("endian"));
    }

    /// A change that makes a schema wrong.
    type Spoil = fn(&mut Schema);

    #[test]
    fn every_field_of_a_schema_is_checked_and_named() {
        let cases: [(&str, Spoil); 15] = [
            ("schema.columns", |s| s.columns.clear()),
            ("schema.columns", |s| s.columns = vec![column(); 65]),
            ("schema.block_samples", |s| s.block_samples = 0),
            ("schema.block_samples", |s| s.block_samples = 65_537),
            ("schema.columns[0].name", |s| s.columns[0].name = String::new()),
            ("schema.columns[0].name", |s| s.columns[0].name = "Mean".into()),
            ("schema.columns[1].name", |s| s.columns.push(column())),
            ("schema.columns[0].shape", |s| s.columns[0].shape = vec![4, 0, 32]),
            ("schema.columns[0].shape", |s| s.columns[0].shape = vec![u32::MAX; 8]),
            ("schema.columns[0].level", |s| s.columns[0].codec = Codec::ShuffleZstd { level: 0 }),
            ("schema.columns[0].level", |s| s.columns[0].codec = Codec::Zstd { level: 20 }),
            ("schema.scaling_factor", |s| s.scaling_factor = 0.0),
            ("schema.scaling_factor", |s| s.scaling_factor = f64::NAN),
            ("schema.shift_factor", |s| s.shift_factor = f64::INFINITY),
            ("schema.pixel_range", |s| s.pixel_range = [1.0, -1.0]),
        ];
        schema().check(Path::new("x")).unwrap();
        for (expected, spoil) in cases {
            let mut schema = schema();
            spoil(&mut schema);
            match schema.check(Path::new("x")) {
                Err(ShardError::Field { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
}
