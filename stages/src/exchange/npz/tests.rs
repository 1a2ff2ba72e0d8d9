//! Against files that NumPy made (`stages/golden/arrays.py`), whole and damaged.

use std::fs;

use super::*;
use crate::exchange::numpy::python;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

#[test]
fn arrays_of_numpy_are_read_stored_and_deflated() {
    for file in ["arrays.npz", "arrays_deflated.npz"] {
        let npz = Npz::open(&golden(file)).unwrap();
        assert_eq!(npz.names().collect::<Vec<_>>(), ["arr_0", "half", "labels", "mu", "objects", "sigma"]);
        let mut pixels = npz.array("arr_0").unwrap();
        assert_eq!((pixels.shape(), pixels.descr()), (&[3, 2, 4, 3][..], "|u1"));
        let mut seen = Vec::new();
        // A row of pictures at a time.
        for _ in 0..3 {
            let mut row = [0; 24];
            pixels.read(&mut row).unwrap();
            seen.extend(row);
        }
        assert_eq!(seen, (0..72).collect::<Vec<u8>>());
        let values = |name: &str| npz.array(name).unwrap().into_f64().unwrap();
        assert_eq!(values("mu"), [-0.5, -0.25, 0.0, 0.25, 0.5, 0.75]);
        assert_eq!(values("sigma"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(npz.array("sigma").unwrap().is_fortran());
        assert_eq!(values("labels"), [3.0, -1.0, 2f64.powi(40)]);
    }
}

#[test]
fn what_cannot_be_read_is_said_with_its_place() {
    let npz = Npz::open(&golden("arrays.npz")).unwrap();
    let refused = |name: &str| npz.array(name).unwrap_err().to_string();
    assert!(
        refused("objects")
            .ends_with("arrays.npz: array \"objects\": it holds pickled Python objects; save plain numbers")
    );
    assert!(refused("half").contains("its dtype \"<f2\" is not one that is read"));
    assert!(refused("sigma_s").contains("has no array \"sigma_s\", but \"arr_0\", \"half\""));
    assert!(Npz::open(&golden("nothing.npz")).unwrap_err().to_string().contains("nothing.npz: cannot be read"));
}

#[test]
fn damage_is_found_wherever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.npz");
    // All of it, as the readers of samples and of statistics would.
    let read_all = |bytes: &[u8]| -> Result<(), NpzError> {
        fs::write(&path, bytes).unwrap();
        let npz = Npz::open(&path)?;
        for name in ["arr_0", "mu", "sigma", "labels"] {
            npz.array(name)?.into_f64()?;
        }
        Ok(())
    };
    for file in ["arrays.npz", "arrays_deflated.npz"] {
        let whole = fs::read(golden(file)).unwrap();
        assert!(read_all(&whole).is_ok());
        for cut in (0..whole.len()).step_by(7) {
            assert!(read_all(&whole[..cut]).is_err(), "{file} cut at {cut}");
        }
        // Every byte of the values of the first array but the last, of which deflate may not use all bits.
        let npz = Npz::open(&golden(file)).unwrap();
        let Member { start, stored_len, .. } = npz.members["arr_0.npy"];
        for at in start..start + stored_len - 1 {
            let mut bytes = whole.clone();
            bytes[at as usize] ^= 0x10;
            assert!(read_all(&bytes).is_err(), "{file} changed at {at}");
        }
    }
}

#[test]
fn numpy_reads_the_arrays_that_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("written.npz");
    let mut file = NpzFile::create(&path).unwrap();
    file.array("mu", "<f8", &[3]).unwrap();
    file.append(&[1.5f64, -2.0, 0.25].map(f64::to_le_bytes).concat()).unwrap();
    file.array("arr_0", "|u1", &[2, 1, 2]).unwrap();
    file.append(&[1, 2]).unwrap();
    assert!(file.append(&[3, 4, 5]).unwrap_err().to_string().contains("3 bytes more, where 2 are left"));
    file.append(&[3, 4]).unwrap();
    file.finish().unwrap();
    let script = r#"
import zipfile
import numpy as np
assert zipfile.ZipFile(path).testzip() is None
loaded = np.load(path)
print(loaded["mu"].tolist(), loaded["arr_0"].tolist(), loaded["arr_0"].dtype)
"#;
    assert_eq!(python(script, &path).trim_end(), "[1.5, -2.0, 0.25] [[[1, 2]], [[3, 4]]] uint8");
    // One that is not finished leaves nothing.
    drop(NpzFile::create(&folder.path().join("other.npz")).unwrap());
    let mut short = NpzFile::create(&folder.path().join("short.npz")).unwrap();
    short.array("a", "|u1", &[2]).unwrap();
    assert!(short.finish().unwrap_err().to_string().contains("2 bytes of a.npy are missing"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
