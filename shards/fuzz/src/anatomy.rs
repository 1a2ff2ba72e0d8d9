//! A shard taken apart and put together again with checksums that fit.
//!
//! Random changes of bytes end at the first checksum. These change one part, put the shard together around it, and so
//! reach the checks behind. Written from the specification in the documentation of `shards`, with no check of its own:
//! most of what comes out is wrong in one place, as it should be.

use xxhash_rust::xxh3::xxh3_64;

const PREFIX: usize = 32;
const TAIL: usize = 64;
const COUNTS: usize = 16;

/// The parts of a shard.
#[derive(Debug)]
struct Parts {
    /// Without its padding.
    json: Vec<u8>,
    /// Stored bytes of every frame, block after block.
    frames: Vec<Vec<u8>>,
    blocks: u32,
    columns: u32,
    /// Bits to flip in the four counts of the footer.
    flips: [u32; 4],
    /// Samples of every block, labels, source indices, flags.
    tables: Vec<u8>,
    /// The key table, inflated.
    keys: Vec<u8>,
    samples: u64,
}

/// What is changed after the parts are put together, under the checksums around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside {
    Nothing,
    /// The frames' offsets, checksums and lengths.
    Index,
    /// The compressed key table.
    StoredKeys,
    /// The tail's fields.
    Tail,
}

/// One change of the shard in `data[..size]`, in place; returns the new length, at most `max`. `mutate` changes bytes in
/// place likewise. `seed` picks what is changed. What cannot be taken apart is changed as plain bytes.
pub fn change(
    data: &mut [u8],
    size: usize,
    max: usize,
    seed: u32,
    mutate: fn(&mut [u8], usize, usize) -> usize,
) -> usize {
    let grown = |bytes: &mut Vec<u8>| {
        let (len, room) = (bytes.len(), bytes.len() + 256);
        bytes.resize(room, 0);
        let len = mutate(bytes, len, room);
        bytes.truncate(len);
    };
    let Some(mut parts) = data.get(..size).and_then(Parts::of) else { return mutate(data, size, max) };
    let pick = (seed >> 8) as usize;
    let mut inside = Inside::Nothing;
    match seed % 16 {
        0 => return mutate(data, size, max),
        1..=4 => grown(&mut parts.json),
        5..=6 => match pick.checked_rem(parts.frames.len()).and_then(|pick| parts.frames.get_mut(pick)) {
            Some(frame) => grown(frame),
            None => parts.frames.push(vec![0]),
        },
        7..=8 => grown(&mut parts.tables),
        9 => grown(&mut parts.keys),
        10 => inside = Inside::StoredKeys,
        11 => inside = Inside::Index,
        12 => inside = Inside::Tail,
        13 => {
            if let Some(flip) = parts.flips.get_mut(pick % 4) {
                *flip = 1 << (pick / 4 % 32);
            }
        }
        14 => parts.samples = parts.samples.wrapping_add(u64::from(seed >> 8) % 9).wrapping_sub(4),
        _ => {
            // One block fewer.
            parts.frames.truncate(parts.frames.len().saturating_sub(parts.columns as usize));
            parts.blocks = parts.blocks.saturating_sub(1);
        }
    }
    let bytes = parts.together(inside, grown);
    match data.get_mut(..bytes.len()) {
        Some(to) if bytes.len() <= max => {
            to.copy_from_slice(&bytes);
            bytes.len()
        }
        _ => mutate(data, size, max),
    }
}

/// The shard taken apart and put together without a change: the same bytes, if this crate's writer wrote them.
pub fn rebuilt(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(Parts::of(bytes)?.together(Inside::Nothing, |_| {}))
}

fn number(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(width)?)?;
    Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

impl Parts {
    /// `None` where the parts do not lie where the numbers say.
    fn of(bytes: &[u8]) -> Option<Self> {
        let header_len = number(bytes, 8, 4)? as usize;
        let json = bytes.get(PREFIX..PREFIX.checked_add(header_len)?)?.trim_ascii_end().to_vec();
        let tail_at = bytes.len().checked_sub(TAIL)?;
        let footer = bytes.get(usize::try_from(number(bytes, 16, 8)?).ok()?..tail_at)?;
        let mut counts = [0; 4];
        for (i, count) in counts.iter_mut().enumerate() {
            *count = number(footer, 4 * i, 4)? as u32;
        }
        let [blocks, columns, keys_stored, keys_len] = counts.map(|count| count as usize);
        let frames = blocks.checked_mul(columns).filter(|&frames| frames <= 1 << 12)?;
        let stored = (0..frames).map(|frame| {
            let off = usize::try_from(number(footer, COUNTS + 8 * frame, 8)?).ok()?;
            let len = number(footer, COUNTS + 16 * frames + 4 * frame, 4)? as usize;
            Some(bytes.get(off..off.checked_add(len)?)?.to_vec())
        });
        let keys_at = footer.len().checked_sub(keys_stored)?;
        let keys = zstd::bulk::decompress(footer.get(keys_at..)?, keys_len.min(1 << 20)).ok()?;
        Some(Self {
            json,
            frames: stored.collect::<Option<_>>()?,
            blocks: counts[0],
            columns: counts[1],
            flips: [0; 4],
            tables: footer.get(COUNTS + 20 * frames..keys_at)?.to_vec(),
            keys,
            samples: number(bytes, tail_at + 32, 8)?,
        })
    }

    /// The shard's bytes.
    fn together(&self, inside: Inside, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut json = self.json.clone();
        json.resize((PREFIX + json.len()).next_multiple_of(4096) - PREFIX, b' ');
        let mut at = (PREFIX + json.len()) as u64;
        let mut index = [Vec::new(), Vec::new(), Vec::new()];
        for frame in &self.frames {
            index[0].extend(at.to_le_bytes());
            index[1].extend(xxh3_64(frame).to_le_bytes());
            index[2].extend((frame.len() as u32).to_le_bytes());
            at += frame.len() as u64;
        }
        let mut index = index.concat();
        if inside == Inside::Index {
            change(&mut index);
        }
        let mut keys = zstd::bulk::compress(&self.keys, 3).unwrap_or_default();
        if inside == Inside::StoredKeys {
            change(&mut keys);
        }
        let counts = [self.blocks, self.columns, keys.len() as u32, self.keys.len() as u32];
        let counts = counts.iter().zip(self.flips).map(|(count, flip)| count ^ flip);
        let mut footer: Vec<u8> = counts.flat_map(u32::to_le_bytes).collect();
        footer.extend([index, self.tables.clone(), keys].concat());
        let body = [json.clone(), self.frames.concat(), footer.clone()].concat();
        let mut tail = Vec::new();
        for field in [at, footer.len() as u64, xxh3_64(&footer), xxh3_64(&body), self.samples, 0] {
            tail.extend(field.to_le_bytes());
        }
        if inside == Inside::Tail {
            change(&mut tail);
            tail.resize(48, 0);
        }
        tail.extend(xxh3_64(&tail).to_le_bytes());
        let mut bytes = b"LATSHRD\x01".to_vec();
        bytes.extend((json.len() as u32).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(at.to_le_bytes());
        bytes.extend(xxh3_64(&json).to_le_bytes());
        bytes.extend(body);
        bytes.extend(tail);
        bytes.extend(b"LATSHRD\x01");
        bytes
    }
}
