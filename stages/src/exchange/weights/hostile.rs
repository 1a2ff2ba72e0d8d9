//! Files that are damaged, or made to do harm: each ends with its error, without a panic and without memory for lengths
//! that are only stated.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use xxhash_rust::xxh3::xxh3_64;

use super::archive::{END, ENTRY, LOCAL};
use super::*;
use crate::method::config::Backbone;
use crate::method::layout::layout;

/// A zip archive, with 64-bit fields everywhere if `wide`.
fn archive(members: &[(&str, &[u8])], wide: bool) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in members {
        let header = out.len();
        let lengths = [(bytes.len() as u32).to_le_bytes(); 2].concat();
        let crc32 = crc32fast::hash(bytes).to_le_bytes();
        let name_len = (name.len() as u16).to_le_bytes();
        out.extend([LOCAL.to_le_bytes().as_slice(), &[0; 10], &crc32, &lengths, &name_len, &[0; 2]].concat());
        out.extend(name.as_bytes());
        out.extend(*bytes);
        let (lengths, place, extra) = if wide {
            let fields = [bytes.len(), bytes.len(), header].map(|value| (value as u64).to_le_bytes()).concat();
            // A field of another kind comes first.
            let extra = [&[7, 0, 1, 0, 9, 1, 0, 24, 0][..], &fields].concat();
            (vec![0xff; 8], [0xff; 4], extra)
        } else {
            (lengths, (header as u32).to_le_bytes(), Vec::new())
        };
        let extra_len = (extra.len() as u16).to_le_bytes();
        directory.extend([ENTRY.to_le_bytes().as_slice(), &[0; 12], &crc32, &lengths, &name_len, &extra_len].concat());
        directory.extend([&[0; 10], place.as_slice(), name.as_bytes(), &extra].concat());
    }
    let (start, len, count) = (out.len() as u64, directory.len() as u64, members.len() as u64);
    out.extend(directory);
    if wide {
        let end64 = out.len() as u64;
        out.extend([0x0606_4b50_u32.to_le_bytes().as_slice(), &44_u64.to_le_bytes(), &[0; 12]].concat());
        out.extend([count, count, len, start].map(u64::to_le_bytes).concat());
        out.extend([0x0706_4b50_u32.to_le_bytes().as_slice(), &[0; 4], &end64.to_le_bytes(), &[1, 0, 0, 0]].concat());
        out.extend([END.to_le_bytes().as_slice(), &[0; 4], &[0xff; 12], &[0; 2]].concat());
    } else {
        let counts = [(count as u16).to_le_bytes(); 2].concat();
        out.extend([END.to_le_bytes().as_slice(), &[0; 4], &counts].concat());
        out.extend([(len as u32).to_le_bytes(), (start as u32).to_le_bytes()].concat());
        out.extend([0; 2]);
    }
    out
}

/// A pickled state dict of one f32 tensor `a` over storage 0: its length, and offset, shape and strides as opcodes.
fn pickled(len: u8, view: &[u8]) -> Vec<u8> {
    let storage =
        [&b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK"[..], &[len], b"tQ"].concat();
    [b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(", storage.as_slice(), view, b"\x89}tRs."].concat()
}

/// Offset 0, shape [2, 2], strides [2, 1].
const SQUARE: &[u8] = b"K\0K\x02K\x02\x86K\x02K\x01\x86";

fn read(bytes: &[u8]) -> Result<Imported, WeightsFileError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.pt");
    fs::write(&path, bytes).unwrap();
    let hints = Hints { heads: Some(3), ..Hints::default() };
    import(&path, &ImportOptions { hints, ..ImportOptions::default() })
}

#[track_caller]
fn refused(bytes: &[u8], part: &str) {
    let message = read(bytes).unwrap_err().to_string();
    assert!(message.contains(part) && message.contains("w.pt: "), "expected {part:?} in {message:?}");
}

fn golden() -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/weights_repa.pt")).unwrap()
}

/// The files of `torch.save` that are read without error, and what is missing then is a network.
#[test]
fn plain_and_zip64_archives_are_read() {
    let values = [0; 16];
    let members: [(&str, &[u8]); 3] =
        [("x/data.pkl", &pickled(4, SQUARE)), ("x/byteorder", b"little"), ("x/data/0", &values)];
    for wide in [false, true] {
        refused(&archive(&members, wide), "it has no tensor x_embedder.proj.weight, so it holds no SiT");
    }
    // A comment may look like an end.
    let mut bytes = archive(&members, false);
    let comment = [END.to_le_bytes().as_slice(), &[1; 30]].concat();
    let len = bytes.len();
    bytes[len - 2] = comment.len() as u8;
    bytes.extend(comment);
    refused(&bytes, "x_embedder.proj.weight");
}

#[test]
fn what_is_no_file_of_weights_says_what_it_is() {
    let values = [0; 16];
    refused(b"", "neither a file of torch.save nor safetensors");
    refused(b"GIF89a with something behind", "neither a file of torch.save nor safetensors");
    refused(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "PyTorch before 1.6");
    refused(&archive(&[("x/data", &values)], false), "holds 0 files named data.pkl");
    refused(&archive(&[("x/data.pkl", b""), ("y/data.pkl", b"")], false), "holds 2 files named data.pkl");
    refused(&archive(&[("x/data.pkl", b"\x80\x02N.")], false), "no state dict");
    refused(&archive(&[("x/data.pkl", b"\x80\x02}.")], false), "holds no averaged (--ema) weights");
    refused(&archive(&[("x/data.pkl", b"\x80\x02}."), ("x/byteorder", b"big")], false), "big-endian");
    refused(&archive(&[("x/data.pkl", &vec![b'N'; (16 << 20) + 1])], false), "more than the 16 MiB");
    refused(&archive(&[("x/data.pkl", b"\x80\x02}I1\n")], false), "byte 3 of its pickle: opcode 0x49");
}

#[test]
fn tensors_that_cannot_be_are_named() {
    let with = |pickle: &[u8], values: &[u8]| archive(&[("x/data.pkl", pickle), ("x/data/0", values)], false);
    refused(
        &archive(&[("x/data.pkl", &pickled(4, SQUARE))], false),
        "tensor a: the archive has no member \"x/data/0\"",
    );
    refused(&with(&pickled(4, SQUARE), &[0; 12]), "tensor a: its member has 12 bytes where 16 are stated");
    refused(&with(&pickled(3, SQUARE), &[0; 12]), "tensor a: it reaches over the end");
    refused(&with(&pickled(4, b"K\x01K\x02K\x02\x86K\x02K\x01\x86"), &[0; 16]), "tensor a: it reaches over the end");
    let huge = b"K\0\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fK\x09\x86K\0K\0\x86";
    refused(&with(&pickled(4, huge), &[0; 16]), "tensor a: its shape has more values");
    let expanded = b"K\0\x8a\x05\0\0\0\0\x01K\x01\x86K\0K\x01\x86";
    refused(&with(&pickled(4, expanded), &[0; 16]), "tensor a: it shows values of its memory several times");
}

#[test]
fn an_archive_that_lies_is_refused() {
    let members: [(&str, &[u8]); 2] = [("x/data.pkl", b"\x80\x02}."), ("x/data/0", b"0123")];
    let bytes = archive(&members, false);
    let entry = bytes.windows(4).position(|w| w == ENTRY.to_le_bytes()).unwrap();
    let end = bytes.len() - 22;
    let changed = |at: usize, new: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    refused(&changed(entry + 10, &[8]), "member \"x/data.pkl\" of the zip archive is compressed");
    refused(&changed(entry + 8, &[1]), "member \"x/data.pkl\" of the zip archive is encrypted");
    refused(&changed(entry + 46, b"\xff"), "member 0 of the zip archive is not UTF-8");
    refused(&changed(entry, b"?"), "directory is not where");
    // Lengths that differ, one beyond the file, and a header beyond it.
    refused(&changed(entry + 20, &[9]), "member \"x/data.pkl\" of the zip archive is not where");
    refused(&changed(entry + 20, &[0, 0, 0, 0x7f, 0, 0, 0, 0x7f]), "is not where the archive says");
    refused(&changed(entry + 42, &[0, 0, 0, 0x7f]), "is not where the archive says");
    refused(&changed(entry + 42, &[1]), "is not where the archive says");
    refused(&changed(end + 16, &[0xff, 0xff, 0xff, 0x7f]), "directory is not where");
    refused(&changed(end + 12, &[0xff, 0xff, 0xff, 0x7f]), "more than the 64 MiB");
    refused(&changed(end + 8, &[9, 0, 9, 0]), "directory is not where");
    refused(&changed(end + 4, &[1]), "several parts");
    refused(&changed(end + 16, &[0xff; 4]), "zip64 locator is not where");
    refused(&archive(&[("x/data.pkl", b""), ("x/data.pkl", b"")], false), "two members named \"x/data.pkl\"");

    let wide = archive(&members, true);
    let locator = wide.len() - 22 - 20;
    let changed = |at: usize, new: &[u8]| {
        let mut bytes = wide.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    refused(&changed(locator, b"?"), "zip64 locator is not where");
    refused(&changed(locator + 8, &[0xff; 8]), "zip64 end record is not where");
    refused(&changed(locator + 8, &[1]), "zip64 end record is not where");
    refused(&changed(locator - 56 + 24, &[1]), "several parts");
    refused(&changed(locator - 56 + 48, &[0xff; 8]), "directory is not where");
}

#[test]
fn a_file_that_was_cut_short_is_refused_wherever() {
    let whole = golden();
    assert!(read(&whole).is_ok());
    for len in (0..whole.len()).step_by(353).chain(whole.len() - 64..whole.len()) {
        let error = read(&whole[..len]).unwrap_err();
        assert!(!error.to_string().is_empty(), "{len}");
    }
}

/// Bytes of the directory and of the pickle, changed one at a time: an error, or no more weights than before.
#[test]
fn no_changed_byte_makes_it_panic() {
    let whole = golden();
    let of = |what: &[u8]| whole.windows(what.len()).position(|window| window == what).unwrap();
    let pickle = of(b"\x80\x02ccollections");
    let pickle_end = of(b"byteorder");
    let directory = of(&ENTRY.to_le_bytes());
    let sizes = read(&whole).unwrap().weights.flat.len();
    let mut refusals = 0;
    for at in (pickle..pickle_end).step_by(7).chain((directory..whole.len()).step_by(11)) {
        let mut changed = whole.clone();
        changed[at] ^= 1 << (at % 8);
        match read(&changed) {
            Ok(imported) => assert!(imported.weights.flat.len() <= sizes, "byte {at}"),
            Err(error) => refusals += usize::from(!error.to_string().is_empty()),
        }
    }
    assert!(refusals > 150, "{refusals}");
}

#[test]
fn a_changed_value_is_noticed_by_its_checksum() {
    let mut bytes = golden();
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    let largest = super::archive::members(&file).unwrap().into_values().max_by_key(|member| member.len).unwrap();
    bytes[(largest.start + largest.len / 2) as usize] ^= 1;
    let notes = read(&bytes).unwrap().notes;
    assert!(notes.iter().any(|note| note.starts_with("WARNING: 1 tensors have not the checksum")), "{notes:?}");
}

#[test]
fn safetensors_are_checked_as_strictly() {
    let file = |header: &str, data: &[u8]| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    let tensor = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    refused(&file(tensor, &[0; 8]), "it has no tensor x_embedder.proj.weight");
    refused(&file(tensor, &[0; 4]), "4 bytes of tensors where 8 are stated");
    refused(&file(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, &[0; 8]), "not a readable safetensors");
    refused(&file(r#"{"a":"#, &[]), "not a readable safetensors file");
    let mut long = file(tensor, &[0; 8]);
    long[3] = 1;
    refused(&long, "a header of 16777");
    refused(
        &file(r#"{"x_embedder.proj.weight":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8]),
        "holds no SiT",
    );

    let model = ModelConfig { depth: 1 << 62, ..ModelConfig::demo() };
    let model = &serde_json::to_string(&model).unwrap().replace('"', "\\\"");
    let latent = r#"{\"channels\":4,\"height\":8,\"width\":8,\"classes\":5}"#;
    let ours = |format: &str, model: &str| {
        let metadata = format!(r#"{{"__metadata__":{{"format":"{format}","model":"{model}","latent":"{latent}"}}}}"#);
        file(&metadata, &[])
    };
    refused(&ours("dualpath-weights-1", model), "model.depth = 4611686018427387904 must lie in 1..=4096");
    refused(&ours("dualpath-weights-1", "{}"), "model in its metadata is no description of this program");
    refused(&ours("dualpath-weights-2", model), "use a newer program");
}

#[test]
fn tensors_of_another_network_are_all_named() {
    let original = read(&golden()).unwrap().weights;
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("w.safetensors");
    write(&original, Form::Safetensors, "a test", &path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let renamed = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut bytes = bytes.clone();
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(&path, bytes).unwrap();
        import(&path, &ImportOptions::default()).unwrap_err().to_string()
    };
    let message = renamed("blocks.1.mlp.fc2.bias", "blocks.1.mlp.fc3.bias");
    assert!(message.contains("1 missing: blocks.1.mlp.fc2.bias; 1 unexpected: blocks.1.mlp.fc3.bias"), "{message}");
    let message = renamed(r#"\"mlp_ratio\":4"#, r#"\"mlp_ratio\":3"#);
    assert!(message.contains("blocks.0.mlp.fc1.bias: expected [36], got [48]"), "{message}");

    let mut moved = bytes.clone();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // pos_embed is the first tensor.
    moved[header + 2..header + 4].copy_from_slice(&[0, 0x40]);
    fs::write(&path, moved).unwrap();
    let message = import(&path, &ImportOptions::default()).unwrap_err().to_string();
    assert!(message.contains("pos_embed is not SiT's fixed one"), "{message}");
}

/// A checkpoint of ours is held to its version and its checksums, of the weights that are taken.
#[test]
fn a_checkpoint_of_a_newer_program_or_with_changed_values_is_refused() {
    let original = read(&golden()).unwrap().weights;
    let bytes: Vec<u8> = original.flat.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut at = 0;
    let mut views = Vec::new();
    for spec in layout(&original.model, &original.latent) {
        let values = &bytes[at..at + 4 * spec.len() as usize];
        at += values.len();
        let shape: Vec<usize> = spec.shape.iter().map(|&side| side as usize).collect();
        for group in ["model", "ema"] {
            let view = TensorView::new(Dtype::F32, shape.clone(), values).unwrap();
            views.push((format!("{group}.{}", spec.name), view));
        }
    }
    let file = |format: &str| {
        let hash = format!("{:016x}", xxh3_64(&bytes));
        let metadata = [("format", format), ("xxh3.model", &hash), ("xxh3.ema", &hash)];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
        safetensors::serialize(views.iter().map(|(name, view)| (name, view)), Some(HashMap::from(metadata))).unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.pt");
    let import = |bytes: &[u8], which: Which, backbone: Option<Backbone>| {
        fs::write(&path, bytes).unwrap();
        let hints = Hints { backbone, heads: Some(3), encoder_depth: Some(1), latent: Some(original.latent.height) };
        import(&path, &ImportOptions { which, hints, ..ImportOptions::default() })
    };

    let whole = file("dualpath-checkpoint-1");
    assert_eq!(import(&whole, Which::Ema, None).unwrap().weights.flat, original.flat);
    // An embedding that serves twice is no damage.
    assert!(import(&whole, Which::Ema, Some(Backbone::Ddt)).is_ok());
    for format in ["dualpath-checkpoint-2", "dualpath-checkpoint-7"] {
        let error = import(&file(format), Which::Ema, None).unwrap_err();
        assert!(matches!(error, WeightsFileError::Checkpoint(CheckpointError::Newer { .. })), "{error}");
        assert!(error.to_string().contains(format) && error.to_string().contains("w.pt"), "{error}");
    }
    let error = import(&file("dualpath-checkpoint-x"), Which::Ema, None).unwrap_err().to_string();
    assert!(error.contains("its format is \"dualpath-checkpoint-x\""), "{error}");

    // `model.` comes behind `ema.` in the file.
    let mut changed = whole;
    *changed.last_mut().unwrap() ^= 1;
    assert_eq!(import(&changed, Which::Ema, None).unwrap().weights.flat, original.flat);
    let error = import(&changed, Which::Raw, None).unwrap_err();
    assert!(matches!(error, WeightsFileError::Checkpoint(CheckpointError::Unreadable { .. })), "{error}");
    assert!(error.to_string().contains("the values of model are not those that were written"), "{error}");
}
