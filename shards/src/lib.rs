//! The latent-shard format, version 1: specification, writer, and validating reader.
//!
//! A *dataset* is a folder of *shards* and a manifest, `dataset.json`. A shard is one file with a few thousand samples:
//! latents of an autoencoder as declared columns, and for every sample a label, its number in the source, flags, and a
//! key. This page is the specification; the code follows it. Bytes only: there are no tensors, no threads and no order
//! of samples here.
//!
//! # Limits
//!
//! | what | limit |
//! |---|---|
//! | samples in a shard | 1,048,576 (2^20); `encode` writes 8,192 |
//! | samples in a block | 65,536; `encode` writes 64 |
//! | columns | 1 to 64, names of 1 to 64 bytes of `a-z`, `0-9`, `_` |
//! | frames (blocks times columns) in a shard | 1,048,576 (2^20); `encode` writes 128 for each column |
//! | shape of a sample | up to 8 dimensions, each 1 or more |
//! | one column of one block, uncompressed | 256 MiB |
//! | JSON header with its padding | 1 MiB less 32 bytes |
//! | one key / the key table, uncompressed | 4,096 bytes / 64 MiB |
//! | `dataset.json` | 256 MiB |
//!
//! A reader allocates at most what these limits and the length of the file allow, whatever the file says.
//!
//! # A shard, byte by byte
//!
//! Everything is little-endian. `B` is the number of blocks, `C` of columns, `N` of samples. `xxh3` is XXH3-64 with
//! seed 0.
//!
//! ```text
//! 0              8  magic        "LATSHRD" and the version, 01
//! 8              4  header_len   u32, of the JSON with its padding; 32 + header_len is a multiple of 4096
//! 12             4  reserved     0
//! 16             8  footer_off   u64, 0 until the shard is finished
//! 24             8  header_xxh3  u64, of the header_len bytes that follow
//! 32    header_len  header       JSON, then spaces
//! ----------------  payload      for every block: the frame of column 0, of column 1, ..; no gaps
//! footer_off     4  blocks       u32 = B = ceil(N / block_samples)
//!                4  columns      u32 = C
//!                4  keys_stored  u32, bytes of the stored key table
//!                4  keys_len     u32, bytes of the key table
//!           8 B C  off          u64 [B][C], where a frame begins in the file
//!           8 B C  xxh3         u64 [B][C], of the stored bytes of a frame
//!           4 B C  len          u32 [B][C], stored bytes of a frame
//!           4 B    samples      u32 [B], block_samples for every block but the last
//!           4 N    label        i32 [N]
//!           4 N    source_index u32 [N]
//!             N    flags        u8 [N]
//!   keys_stored    keys         one zstd frame: u32 end[N], then the UTF-8 keys one after the other, without separators
//! end - 64      8  footer_off   u64, as in the prefix
//!               8  footer_len   u64
//!               8  footer_xxh3  u64, of the footer: footer_off to end - 64
//!               8  body_xxh3    u64, of header, payload and footer: 32 to end - 64
//!               8  samples      u64 = N
//!               8  reserved     0
//!               8  tail_xxh3    u64, of the 48 bytes before it
//!               8  magic        as at the beginning
//! ```
//!
//! **Frames.** A frame is one column of one block. With codec `none` it is the raw values, sample after sample. With `zstd` it is
//! one standard zstd frame of them. With `shuffle2+zstd` (2-byte values) and `shuffle4+zstd` (4-byte values) it is one
//! standard zstd frame of the block's byte planes: all first bytes of the values, then all second bytes, and so on. A
//! zstd frame declares its content size and has no checksum and no dictionary. One of `r` raw bytes has at most `r + r
//! / 256 + 64` bytes.
//!
//! **Header.** `format` "latent-shard", `version` 1, `shard` and `shards` (number and count), `schema` ([`Schema`]) and `provenance`, a free
//! object. It holds no clock, host, process or device count, so the same input gives the same bytes (with one version
//! of zstd).
//!
//! ```json
//! {"format": "latent-shard", "version": 1, "shard": 0, "shards": 157,
//!  "schema": {"columns": [{"name": "mean", "dtype": "f16", "shape": [4, 32, 32], "codec": "shuffle2+zstd", "level": 1,
//!                          "semantics": "posterior_mean"}],
//!             "block_samples": 64, "scaling_factor": 0.18215, "shift_factor": 0.0, "scaling_applied": false,
//!             "pixel_range": [-1.0, 1.0]},
//!  "provenance": {"vae": {"id": "stabilityai/sd-vae-ft-ema"}}}
//! ```
//!
//! `dtype` is `f16` or `f32`; `semantics` is `posterior_mean`, `posterior_logvar`, `posterior_std` or `sample`; `level`
//! is there where the codec is not `none`. A column whose name ends in `_flip` holds the latents of the mirrored image.
//! Bits of `flags`: 1 PNG, 2 CMYK or YCCK, 4 one channel, 8 alpha, dropped without compositing; a reader ignores the
//! others.
//!
//! **Checksums.** `header_xxh3`, `footer_xxh3` and `tail_xxh3` are checked when a shard is opened, the one of a frame whenever it is read and
//! before it is inflated, `body_xxh3` by [`ShardReader::verify`]. Only what is taken from [`ShardReader::in_place`] is not
//! checked until [`ShardReader::verify_block`] is called. Together they cover every byte but the prefix, whose
//! fields are each compared with the rest. `body_xxh3` stands for the shard's contents in the manifest; with Python it
//! is `xxhash.xxh3_64_intdigest(raw[32:-64])`. They find accidents, not forgeries: xxh3 is not cryptographic.
//!
//! **A reader must refuse**, before it reads a frame: a wrong magic or version; a reserved field that is not 0; `footer_off` 0; a
//! header length over the limit or unaligned; any of the three checksums; JSON that does not parse, or with an unknown
//! field outside of `provenance`, or a value out of its limits; a footer that does not end at the tail, or begins
//! inside the header; counts that disagree with each other, the schema or the footer's length, or are over a limit;
//! frames that leave a gap, overlap, have an impossible length, or do not end at the footer; keys that are not UTF-8,
//! out of order, or do not fill the table. And when it reads a frame: a wrong checksum, anything but exactly one zstd
//! frame, a content size that is not declared or not the one that the schema gives. Sizes to allocate come from the
//! schema, never from a frame. Each refusal is a variant of [`ShardError`].
//!
//! **Version.** There is one number. It changes whenever a reader of the old version could not read the new file, or would read it
//! wrongly. There are no optional extensions: what is not described here is refused.
//!
//! **Writing.** A shard is written to `name.tmp` with `footer_off` 0, made durable, and renamed: under its own name it is whole. It
//! is never changed after that. `dataset.json` ([`Manifest`]) is written last and the same way; a folder without it is
//! unfinished.
//!
//! **Reading while files change.** A file that is cut short after it was opened gives [`ShardError::Shrank`] or a wrong checksum,
//! never a crash, with every [`Io`]: a mapping is guarded by a SIGBUS handler, installed when the first shard is mapped.
//! Bytes that are copied out of the mapping itself ([`ShardReader::in_place`]) need a look at [`ShardReader::intact`]
//! afterwards.
//!
//! # Reading a shard in Python
//!
//! With `pip install numpy zstandard`, and no package of ours (`golden/read_shard.py`):
//!
//! ```python
//! import json, struct
//! import numpy as np, zstandard
//!
//! def read_shard(path):
//!     raw = open(path, "rb").read()
//!     assert raw[:8] == raw[-8:] == b"LATSHRD\x01", "not a shard of version 1"
//!     header = json.loads(raw[32 : 32 + int.from_bytes(raw[8:12], "little")])
//!     at, _, _, _, samples = struct.unpack_from("<5Q", raw, len(raw) - 64)
//!     blocks, columns, _, _ = struct.unpack_from("<4I", raw, at)
//!     frames = blocks * columns
//!     off = np.frombuffer(raw, "<u8", frames, at + 16).reshape(blocks, columns).tolist()
//!     size = np.frombuffer(raw, "<u4", frames, at + 16 + 16 * frames).reshape(blocks, columns).tolist()
//!     labels = np.frombuffer(raw, "<i4", samples, at + 16 + 20 * frames + 4 * blocks)
//!     latents = {}
//!     for c, column in enumerate(header["schema"]["columns"]):
//!         dtype = np.dtype({"f16": "<f2", "f32": "<f4"}[column["dtype"]])
//!         parts = []
//!         for b in range(blocks):
//!             data = raw[off[b][c] : off[b][c] + size[b][c]]
//!             if column["codec"] != "none":
//!                 data = zstandard.ZstdDecompressor().decompress(data)
//!             if column["codec"].startswith("shuffle"):  # byte planes
//!                 data = np.frombuffer(data, "u1").reshape(dtype.itemsize, -1).T.tobytes()
//!             parts.append(data)
//!         latents[column["name"]] = np.frombuffer(b"".join(parts), dtype).reshape(-1, *column["shape"])
//!     return header, labels, latents
//! ```
//!
//! # Example
//!
//! ```
//! use std::collections::BTreeMap;
//! use shards::{Codec, Column, DType, Header, Io, SampleMeta, Schema, Scratch, Semantics, ShardReader, ShardWriter};
//!
//! let mean = Column {
//!     name: "mean".into(),
//!     dtype: DType::F32,
//!     shape: vec![2],
//!     codec: Codec::ShuffleZstd { level: 1 },
//!     semantics: Semantics::PosteriorMean,
//! };
//! let schema = Schema {
//!     columns: vec![mean],
//!     block_samples: 64,
//!     scaling_factor: 0.18215,
//!     shift_factor: 0.0,
//!     scaling_applied: false,
//!     pixel_range: [-1.0, 1.0],
//! };
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("shard-00000.lat");
//! let values: Vec<u8> = [0.5_f32, -0.25].iter().flat_map(|value| value.to_le_bytes()).collect();
//!
//! let mut writer = ShardWriter::create(&path, Header::new(schema, 0, 1, BTreeMap::new()))?;
//! writer.write_block(&[&values], &[SampleMeta { label: 3, source_index: 0, flags: 0, key: "dog/1.png" }])?;
//! writer.finish()?;
//!
//! let reader = ShardReader::open(&path, Io::Auto)?;
//! let mut block = vec![0; reader.block_len(0) * reader.columns()[0].sample_bytes()];
//! reader.read_block(0, 0, &mut block, &mut Scratch::new())?;
//! assert_eq!((block, reader.labels(), reader.key(0)), (values, &[3][..], Some("dog/1.png")));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod atomic;
mod codec;
mod dataset;
mod error;
mod footer;
mod interleave;
mod layout;
mod manifest;
#[cfg(target_os = "linux")]
mod map;
mod quote;
mod read;
mod schema;
mod source;
mod statistics;
pub mod tar;
mod verify;
mod write;

pub use codec::Scratch;
pub use dataset::{BlockRef, Dataset, SampleRef};
pub use error::{Place, ShardError};
pub use interleave::{NoSuchValues, interleave};
pub use layout::{
    MAGIC, MAX_BLOCK_BYTES, MAX_BLOCK_SAMPLES, MAX_COLUMNS, MAX_FRAMES, MAX_HEADER_LEN, MAX_KEY_LEN, MAX_KEYS_LEN,
    MAX_NAME, MAX_RANK, MAX_SAMPLES, VERSION,
};
pub use manifest::{MANIFEST, MAX_MANIFEST_LEN, Manifest, Skipped};
pub use quote::excerpt;
pub use read::ShardReader;
pub use schema::{Codec, Column, DType, Header, Schema, Semantics};
pub use source::Io;
pub use statistics::{ChannelStats, Histogram, MAX_BINS};
pub use verify::{Depth, Verified, verify, verify_shard};
pub use write::{SampleMeta, ShardEntry, ShardWriter, flags};

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod python;
