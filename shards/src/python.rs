//! The documented Python reader, run: it has to read what this crate writes, bit for bit.
//!
//! `.cargo/setup-python.sh` fetches numpy and zstandard on the first run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{Codec, Column, DType, Header, Io, Schema, Scratch, Semantics, ShardReader, fixture};

/// Prints one line of JSON (header, labels, and name, dtype and shape of every array), then the bytes of the arrays.
const SCRIPT: &str = r#"
import json, sys
packages, golden, path = sys.argv[1:]
sys.path[:0] = [packages, golden]
from read_shard import read_shard

header, labels, latents = read_shard(path)
arrays = [[name, array.dtype.str, array.shape] for name, array in latents.items()]
line = json.dumps({"header": header, "labels": [labels.dtype.str, labels.tolist()], "arrays": arrays})
sys.stdout.buffer.write(line.encode() + b"\n" + b"".join(array.tobytes() for array in latents.values()))
"#;

/// Reads a shard with `golden/read_shard.py` and with [`ShardReader`], and compares all that the former returns.
fn compare(path: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let setup = Command::new(root.join(".cargo/setup-python.sh")).output().unwrap();
    assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
    let python = std::env::var_os("PYTHON").unwrap_or("python3".into());
    // Isolated from packages of the user, and without writing bytecode beside the script.
    let paths: [PathBuf; 3] = [root.join(".python/site"), root.join("shards/golden"), path.to_owned()];
    let output = Command::new(python).args(["-I", "-B", "-c", SCRIPT]).args(paths).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let end = output.stdout.iter().position(|&byte| byte == b'\n').unwrap();
    let (line, bytes) = (&output.stdout[..end], &output.stdout[end + 1..]);
    let line: Value = serde_json::from_slice(line).unwrap();

    let reader = ShardReader::open(path, Io::Pread).unwrap();
    assert_eq!(line["header"], serde_json::to_value(reader.header()).unwrap());
    assert_eq!(line["labels"], serde_json::json!(["<i4", reader.labels()]));
    let arrays = reader.columns().iter().map(|column| {
        let dtype = match column.dtype {
            DType::F16 => "<f2",
            DType::F32 => "<f4",
        };
        let shape: Vec<_> =
            std::iter::once(reader.len() as u64).chain(column.shape.iter().map(|&d| d.into())).collect();
        serde_json::json!([column.name, dtype, shape])
    });
    assert_eq!(line["arrays"], arrays.collect::<Value>());
    let mut scratch = Scratch::new();
    let mut expected = Vec::new();
    for (c, column) in reader.columns().iter().enumerate() {
        for block in 0..reader.blocks() {
            let start = expected.len();
            expected.resize(start + reader.block_len(block) * column.sample_bytes(), 0);
            reader.read_block(block, c, &mut expected[start..], &mut scratch).unwrap();
        }
    }
    assert!(bytes == expected, "{} and {} bytes differ", bytes.len(), expected.len());
}

/// Every codec with both dtypes, and shapes of none to three dimensions.
fn every_codec() -> Schema {
    let codecs = [Codec::None, Codec::Zstd { level: 3 }, Codec::ShuffleZstd { level: 1 }];
    let shapes: [&[u32]; 3] = [&[4, 3, 5], &[7], &[]];
    let columns = [DType::F16, DType::F32].into_iter().flat_map(|dtype| {
        codecs.iter().zip(shapes).map(move |(&codec, shape)| Column {
            name: format!("{}_{}", codec.name(dtype).replace('+', "_"), dtype.name()),
            dtype,
            shape: shape.to_vec(),
            codec,
            semantics: Semantics::Sample,
        })
    });
    Schema { columns: columns.collect(), scaling_factor: 0.1, ..fixture::schema(16) }
}

#[test]
fn python_reads_the_golden_shard_bit_for_bit() {
    compare(&Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/v1.lat"));
}

#[test]
fn python_reads_every_codec_and_dtype_and_a_shard_without_samples_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    for samples in [0, 1, 16, 41] {
        let path = dir.path().join(format!("{samples}.lat"));
        fixture::write(&path, Header::new(every_codec(), 2, 3, BTreeMap::new()), samples).unwrap();
        compare(&path);
    }
}
