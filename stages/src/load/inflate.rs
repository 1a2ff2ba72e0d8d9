//! Reads, checks and inflates one block. Values stay as the codec has them as far as that is f16: see [`super::gather`].

use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use pipeline::{BoxError, Stage};
use shards::{Column, DType, Dataset, Schema, Scratch, Semantics, ShardReader};

use super::{LoadError, OnBadBlock, SlowReads};
use crate::data::{BlockBuffer, BlockPlace, BlockTicket, ColumnBuffer, ColumnForm};
use crate::splitmix::SplitMix64;

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
    /// Both of the mirrored images, where these are loaded too.
    pub mirrored: Option<(usize, Option<usize>)>,
}

impl LatentColumns {
    /// The first column of means (else of samples), and with means the first of log-variances (else of deviations).
    /// Columns of mirrored images (`.._flip`) are left alone: [`Self::and_mirrored`].
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
        Ok(Self { shape: [channels, height, width].map(|n| n as usize), mean, spread, mirrored: None })
    }

    /// These, and the column `NAME_flip` of each: what `encode --flip` writes.
    pub fn and_mirrored(self, schema: &Schema) -> Result<Self, LoadError> {
        let flipped = |column: usize| {
            let of = &schema.columns[column];
            let name = format!("{}_flip", of.name);
            let named = |column: &Column| column.name == name && column.semantics == of.semantics;
            let Some(found) = schema.columns.iter().position(named) else {
                return Err(LoadError::NotMirrored { column: name });
            };
            match &schema.columns[found].shape {
                shape if *shape == of.shape => Ok(found),
                shape => Err(LoadError::ColumnShape {
                    column: name,
                    expected: format!("that of {}, {:?}", of.name, of.shape),
                    got: shape.clone(),
                }),
            }
        };
        let mirrored = (flipped(self.mean)?, self.spread.map(flipped).transpose()?);
        Ok(Self { mirrored: Some(mirrored), ..self })
    }

    /// Numbers of all columns that are read.
    pub fn loaded(&self) -> impl Iterator<Item = usize> {
        let (mean, spread) = self.mirrored.unzip();
        [Some(self.mean), self.spread, mean, spread.flatten()].into_iter().flatten()
    }
}

/// Where the blocks of a dataset are: they are numbered over all shards.
#[derive(Debug)]
pub struct BlockTable {
    places: Vec<BlockPlace>,
}

impl BlockTable {
    /// The blocks of all shards in order.
    pub fn of(dataset: &Dataset) -> Self {
        let mut places = Vec::with_capacity(dataset.blocks());
        let mut position = 0;
        for (shard, reader) in dataset.shards.iter().enumerate() {
            let mut row = 0;
            for block in 0..reader.blocks() {
                let samples = reader.block_len(block);
                places.push(BlockPlace { shard, block, samples: samples as u32, position, row });
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

/// Reads blocks into buffers. Every value is f16 then: f32 columns are rounded to nearest
/// (relative error at most 2^-11), and deviations s become log-variances 2 ln s, kept within [-30, 20], at the cost
/// of a logarithm a value.
#[derive(Debug)]
pub struct Inflate {
    dataset: Arc<Dataset>,
    table: Arc<BlockTable>,
    columns: LatentColumns,
    on_bad_block: OnBadBlock,
    slow: Option<SlowReads>,
    scratch: Scratch,
    /// One column of one block as stored, where it is converted on the way.
    stored: Vec<u8>,
    /// The same as f32.
    wide: Vec<f32>,
}

impl Inflate {
    /// One worker's own.
    pub fn new(
        dataset: Arc<Dataset>,
        table: Arc<BlockTable>,
        columns: LatentColumns,
        on_bad_block: OnBadBlock,
        slow: Option<SlowReads>,
    ) -> Self {
        let (stored, wide) = (Vec::new(), Vec::new());
        Self { dataset, table, columns, on_bad_block, slow, scratch: Scratch::default(), stored, wide }
    }

    /// Reads `block` into `buffer`.
    pub(super) fn inflate(&mut self, block: u32, buffer: &mut BlockBuffer) -> Result<(), LoadError> {
        if let Some(SlowReads { one_in, delay }) = self.slow
            && SplitMix64::output(0, block.into()).is_multiple_of(one_in)
        {
            std::thread::sleep(delay);
        }
        buffer.place = self.table.places[block as usize];
        let LatentColumns { mean, spread, mirrored, .. } = self.columns;
        let sides = [(Some((mean, spread)), &mut buffer.latents), (mirrored, &mut buffer.mirrored)];
        for (columns, latents) in sides {
            let Some((mean, spread)) = columns else { continue };
            self.read(buffer.place, mean, &mut latents.mean)?;
            if let Some(spread) = spread {
                self.read(buffer.place, spread, &mut latents.logvar)?;
            }
        }
        Ok(())
    }

    /// Reads `column` of the block at `place` into `out`.
    fn read(&mut self, place: BlockPlace, column: usize, out: &mut ColumnBuffer) -> Result<(), LoadError> {
        let dataset = Arc::clone(&self.dataset);
        let reader: &ShardReader = &dataset.shards[place.shard];
        let declared = &dataset.manifest.schema.columns[column];
        let values = place.samples as usize * self.columns.shape.iter().product::<usize>();
        let bad = |cause| LoadError::block(place, cause);
        if declared.dtype != DType::F16 || declared.semantics == Semantics::PosteriorStd {
            out.form = ColumnForm::Converted;
            self.stored.resize(values * declared.dtype.width(), 0);
            reader.read_block(place.block, column, &mut self.stored, &mut self.scratch).map_err(bad)?;
            return self.convert(place, declared, resized(&mut out.bytes, values * size_of::<f16>()));
        }
        if reader.in_place(place.block, column).is_some() {
            out.form = ColumnForm::InPlace;
            return reader.verify_block(place.block, column, &mut self.scratch).map_err(bad);
        }
        out.form = ColumnForm::Stored;
        let bytes = resized(&mut out.bytes, values * size_of::<f16>());
        reader.read_planes(place.block, column, bytes, &mut self.scratch).map_err(bad)
    }

    /// The values of `declared` in `self.stored`, as f16 in `out`.
    fn convert(&mut self, place: BlockPlace, declared: &Column, out: &mut [u8]) -> Result<(), LoadError> {
        self.wide.clear();
        match declared.dtype {
            DType::F16 => {
                self.wide.extend(self.stored.as_chunks().0.iter().map(|&value| f16::from_le_bytes(value).to_f32()));
            }
            DType::F32 => self.wide.extend(self.stored.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value))),
        }
        if declared.semantics == Semantics::PosteriorStd {
            for value in &mut self.wide {
                *value = (2.0 * value.ln()).clamp(LOGVAR_RANGE[0], LOGVAR_RANGE[1]);
            }
        }
        // By way of a few values at a time: the bytes need not lie as f16 have to.
        let mut narrow = [f16::ZERO; 512];
        for (to, from) in out.as_chunks_mut::<2>().0.chunks_mut(512).zip(self.wide.chunks(512)) {
            let narrow = &mut narrow[..from.len()];
            narrow.convert_from_f32_slice(from);
            to.iter_mut().zip(narrow).for_each(|(to, value)| *to = value.to_le_bytes());
        }
        match self.wide.iter().position(|&value| !f16::from_f32(value).is_finite()) {
            None => Ok(()),
            Some(at) => Err(LoadError::NotFinite {
                shard: place.shard,
                block: place.block,
                file: self.dataset.shards[place.shard].path().to_owned(),
                column: declared.name.clone(),
                value: self.wide[at],
            }),
        }
    }
}

/// The first `len` bytes of `bytes`, which grows to exactly this where it has to: a vector that grows by doubling would
/// hold up to twice the stated memory.
fn resized(bytes: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if bytes.len() < len {
        // What it held need not be copied, and the system's pages are zeros already.
        *bytes = Vec::new();
        *bytes = vec![0; len];
    }
    &mut bytes[..len]
}

impl Stage for Inflate {
    type In = BlockTicket;
    type Out = BlockTicket;

    fn process(&mut self, mut ticket: BlockTicket) -> Result<BlockTicket, BoxError> {
        let Some(block) = ticket.block else { return Ok(ticket) };
        let mut buffer = BlockBuffer::default();
        let done = self.inflate(block, &mut buffer);
        buffer.is_bad = done.is_err();
        buffer.fault = match (done, self.on_bad_block) {
            (Ok(()), _) => None,
            (Err(fault), OnBadBlock::Skip) => Some(fault),
            (Err(fault), OnBadBlock::Fail) => return Err(fault.into()),
        };
        ticket.buffer = Some(buffer);
        Ok(ticket)
    }
}
