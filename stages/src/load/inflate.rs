//! Reads, checks and inflates one block: the stage that has workers.

use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use pipeline::{BoxError, Stage};
use shards::{Column, DType, Dataset, Schema, Scratch, Semantics, ShardReader};

use super::LoadError;
use crate::data::{BlockBuffer, BlockTicket, MomentsBlock};

/// Log-variances are kept within these bounds, as the autoencoder keeps them: a deviation of 0 has none.
const LOGVAR_RANGE: [f32; 2] = [-30.0, 20.0];

/// Which columns of a dataset are loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatentColumns {
    /// `[C, h, w]` of every column loaded.
    pub shape: [usize; 3],
    /// The column of posterior means, or of drawn samples.
    pub mean: usize,
    /// The column of its log-variances or deviations, if the dataset has one. Drawn samples have none.
    pub spread: Option<usize>,
}

impl LatentColumns {
    /// The first column of means (else of samples), and with means the first of log-variances (else of deviations).
    /// Columns of mirrored images (`.._flip`) are left alone.
    pub fn of(schema: &Schema) -> Result<Self, LoadError> {
        let columns = &schema.columns;
        let first = |semantics| {
            columns.iter().position(|column| column.semantics == semantics && !column.name.ends_with("_flip"))
        };
        let mean = first(Semantics::PosteriorMean);
        let spread = first(Semantics::PosteriorLogvar).or_else(|| first(Semantics::PosteriorStd));
        let (mean, spread) = match (mean, first(Semantics::Sample)) {
            (Some(mean), _) => (mean, spread),
            (None, Some(sample)) => (sample, None),
            (None, None) => {
                let found: Vec<_> = columns.iter().map(|c| format!("{} ({:?})", c.name, c.semantics)).collect();
                return Err(LoadError::NoLatents { found: found.join(", ") });
            }
        };
        let wrong = |column: &Column, expected: String| LoadError::ColumnShape {
            column: column.name.clone(),
            expected,
            got: column.shape.clone(),
        };
        let &[channels, height, width] = columns[mean].shape.as_slice() else {
            return Err(wrong(&columns[mean], "[channels, height, width]".to_owned()));
        };
        if let Some(spread) = spread
            && columns[spread].shape != columns[mean].shape
        {
            let expected = format!("that of {}, {:?}", columns[mean].name, columns[mean].shape);
            return Err(wrong(&columns[spread], expected));
        }
        Ok(Self { shape: [channels, height, width].map(|n| n as usize), mean, spread })
    }

    /// Bytes of the inflated f16 values of one sample.
    pub fn bytes_per_sample(&self) -> usize {
        let values: usize = self.shape.iter().product();
        values * size_of::<f16>() * if self.spread.is_some() { 2 } else { 1 }
    }
}

/// Where the blocks of a dataset are: they are numbered over all shards.
#[derive(Debug)]
pub struct BlockTable {
    places: Vec<Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    shard: usize,
    /// Within the shard.
    block: usize,
    samples: u32,
    /// Of its first sample, in the dataset.
    position: u64,
    /// Of its first sample, in the shard.
    row: usize,
}

impl BlockTable {
    /// The blocks of all shards in order.
    pub fn of(dataset: &Dataset) -> Self {
        let mut places = Vec::new();
        let mut position = 0;
        for (shard, reader) in dataset.shards.iter().enumerate() {
            let mut row = 0;
            for block in 0..reader.blocks() {
                let samples = reader.block_len(block);
                places.push(Place { shard, block, samples: samples as u32, position, row });
                position += samples as u64;
                row += samples;
            }
        }
        Self { places }
    }

    /// Samples in each block.
    pub fn sizes(&self) -> Vec<u32> {
        self.places.iter().map(|place| place.samples).collect()
    }
}

/// Fills the buffer of a ticket from its shard. Every value comes out as f16: f32 columns are rounded to nearest
/// (relative error at most 2^-11), and deviations s become log-variances 2 ln s, kept within [-30, 20], at the cost
/// of a logarithm a value.
#[derive(Debug)]
pub struct Inflate {
    dataset: Arc<Dataset>,
    table: Arc<BlockTable>,
    columns: LatentColumns,
    scratch: Scratch,
    /// One column of one block as stored, little-endian.
    bytes: Vec<u8>,
    /// The same as f32, where it is converted on the way.
    wide: Vec<f32>,
}

impl Inflate {
    /// One worker's own.
    pub fn new(dataset: Arc<Dataset>, table: Arc<BlockTable>, columns: LatentColumns) -> Self {
        Self { dataset, table, columns, scratch: Scratch::default(), bytes: Vec::new(), wide: Vec::new() }
    }

    /// Reads `column` of the block at `place` into `out`.
    fn read(&mut self, place: Place, column: usize, out: &mut Vec<f16>) -> Result<(), LoadError> {
        let reader: &ShardReader = &self.dataset.shards[place.shard];
        let declared = &self.dataset.manifest.schema.columns[column];
        let values = place.samples as usize * self.columns.shape.iter().product::<usize>();
        self.bytes.resize(values * declared.dtype.width(), 0);
        reader
            .read_block(place.block, column, &mut self.bytes, &mut self.scratch)
            .map_err(|cause| LoadError::Block { shard: place.shard, block: place.block, cause })?;
        // Exact, since a vector that grows by doubling would hold up to twice the stated memory.
        out.clear();
        out.reserve_exact(values);
        let is_deviation = declared.semantics == Semantics::PosteriorStd;
        if declared.dtype == DType::F16 && !is_deviation {
            out.extend(self.bytes.as_chunks().0.iter().map(|&value| f16::from_le_bytes(value)));
            return Ok(());
        }
        self.wide.clear();
        match declared.dtype {
            DType::F16 => {
                self.wide.extend(self.bytes.as_chunks().0.iter().map(|&value| f16::from_le_bytes(value).to_f32()));
            }
            DType::F32 => self.wide.extend(self.bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value))),
        }
        if is_deviation {
            for value in &mut self.wide {
                *value = (2.0 * value.ln()).clamp(LOGVAR_RANGE[0], LOGVAR_RANGE[1]);
            }
        }
        out.resize(values, f16::ZERO);
        out.convert_from_f32_slice(&self.wide);
        match out.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => Err(LoadError::NotFinite {
                shard: place.shard,
                block: place.block,
                file: reader.path().to_owned(),
                column: declared.name.clone(),
                value: self.wide[at],
            }),
        }
    }
}

impl Stage for Inflate {
    type In = BlockTicket;
    type Out = MomentsBlock;

    fn process(&mut self, ticket: BlockTicket) -> Result<MomentsBlock, BoxError> {
        let BlockTicket { window, slot, mut buffer } = ticket;
        let place = self.table.places[window.blocks[slot as usize].block as usize];
        let BlockBuffer { mean, logvar, labels, first_position } = &mut *buffer;
        self.read(place, self.columns.mean, mean)?;
        match self.columns.spread {
            Some(spread) => self.read(place, spread, logvar)?,
            None => logvar.clear(),
        }
        let rows = place.row..place.row + place.samples as usize;
        labels.clear();
        labels.reserve_exact(rows.len());
        labels.extend(self.dataset.shards[place.shard].labels()[rows].iter().map(|&label| i64::from(label)));
        *first_position = place.position;
        Ok(MomentsBlock { window, slot, buffer })
    }
}
