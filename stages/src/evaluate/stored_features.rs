//! Features that were computed beforehand, in an `.npz` file: `pool_3` `[N, 2048]`, and if they are known `spatial` `[N, 2023]`
//! and `logits` `[N, 1008]` (what they are: [`InceptionFeatures`](crate::nets::inception::InceptionFeatures)); f4 or f8.
//! `sampling`, u1, is the record of how the pictures were sampled, JSON, where [`save`] was given one.

use std::path::Path;

use pipeline::{BoxError, Source, Stop};
use tch::{Kind, Tensor};

use super::features::{FeatureBatch, Statistics};
use super::reference::MADE_WITH;
use crate::exchange::npz::{Npz, NpzArray, NpzError, NpzFile};
use crate::nets::inception::{CLASSES, POOL, SPATIAL};

/// Name and width of the arrays.
const POOLED: (&str, i64) = ("pool_3", POOL);
const SAMPLING: &str = "sampling";
/// Longer records are refused: ours have a few kilobytes.
const MAX_SAMPLING: usize = 1 << 20;
const OTHERS: [(&str, i64); 2] = [("spatial", SPATIAL), ("logits", CLASSES)];
/// Rows that are read together.
const BATCH: u64 = 256;

/// Source: the features of a file, read as they are needed.
#[derive(Debug)]
pub struct StoredFeatures {
    pool: NpzArray,
    others: [Option<NpzArray>; 2],
    count: u64,
    next: u64,
}

impl StoredFeatures {
    /// Whether a file is one of features.
    pub fn are_in(npz: &Npz) -> bool {
        npz.has(POOLED.0) && !npz.has("arr_0")
    }

    /// Looks at the arrays, and reads none.
    ///
    /// # Errors
    /// [`NpzError`]; also for another width, dtype or number of rows.
    pub fn open(npz: &Npz) -> Result<Self, NpzError> {
        let open = |(name, width): (&str, i64), rows: Option<u64>| -> Result<NpzArray, NpzError> {
            let array = npz.array(name)?;
            let reason = match *array.shape() {
                _ if !["<f4", "<f8"].contains(&array.descr()) => {
                    format!("features are float32 or float64, and its dtype is {:?}", array.descr())
                }
                [_, _] if array.is_fortran() => "it is in Fortran order; save numpy.ascontiguousarray of it".to_owned(),
                [0, _] => "it has no rows".to_owned(),
                [n, _] if rows.is_some_and(|rows| rows != n as u64) => {
                    format!("it has {n} rows, and {} has {}", POOLED.0, rows.unwrap_or_default())
                }
                [_, found] if found as i64 == width => return Ok(array),
                _ => format!("its shape is {:?}, and Inception's features make it [N, {width}]", array.shape()),
            };
            Err(array.wrong(reason))
        };
        let pool = open(POOLED, None)?;
        let count = pool.shape()[0] as u64;
        let [spatial, logits] = OTHERS.map(|other| npz.has(other.0).then(|| open(other, Some(count))).transpose());
        Ok(Self { pool, others: [spatial?, logits?], count, next: 0 })
    }

    /// How the pictures were sampled, JSON, where the file says it.
    ///
    /// # Errors
    /// [`NpzError`]; also for an array that is no text.
    pub fn sampling(npz: &Npz) -> Result<Option<String>, NpzError> {
        if !npz.has(SAMPLING) {
            return Ok(None);
        }
        let mut array = npz.array(SAMPLING)?;
        let len = match *array.shape() {
            [len] if array.descr() == "|u1" && len <= MAX_SAMPLING => len,
            _ => return Err(array.wrong(format!("it is no text of u1, of {MAX_SAMPLING} bytes at most"))),
        };
        let mut text = vec![0; len];
        array.read(&mut text)?;
        String::from_utf8(text).map(Some).map_err(|_| array.wrong("it is no text".to_owned()))
    }

    /// Number of pictures that they are of.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// The next `rows` rows, f32.
fn rows(array: &mut NpzArray, rows: u64, first: u64) -> Result<Tensor, NpzError> {
    let width = array.shape()[1];
    let len = rows as usize * width;
    let values: Vec<f32> = match array.descr() {
        "<f4" => {
            let mut bytes = vec![0; 4 * len];
            array.read(&mut bytes)?;
            bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
        }
        _ => {
            let mut bytes = vec![0; 8 * len];
            array.read(&mut bytes)?;
            bytes.as_chunks().0.iter().map(|value| f64::from_le_bytes(*value) as f32).collect()
        }
    };
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(array.wrong(format!("row {} has a value that is not finite", first + (at / width) as u64))),
        None => Ok(Tensor::from_slice(&values).view([rows as i64, width as i64])),
    }
}

impl Source for StoredFeatures {
    type Item = FeatureBatch;

    fn next(&mut self, _: &Stop) -> Result<Option<FeatureBatch>, BoxError> {
        let (first, n) = (self.next, BATCH.min(self.count - self.next));
        if n == 0 {
            return Ok(None);
        }
        self.next += n;
        let pool = rows(&mut self.pool, n, first)?;
        let [spatial, logits] =
            self.others.each_mut().map(|array| array.as_mut().map(|array| rows(array, n, first)).transpose());
        Ok(Some(FeatureBatch { pool, spatial: spatial?, logits: logits? }))
    }
}

/// Writes the features of a set whose sink kept them ([`Keep::All`](super::features::Keep::All)), as f4, the xxh3 of the
/// `inception` weights that made them, and how the pictures were sampled, if that is known.
///
/// # Errors
/// [`NpzError::Write`].
pub fn save(path: &Path, statistics: &Statistics, inception: u64, sampling: Option<&str>) -> Result<(), NpzError> {
    let mut file = NpzFile::create(path)?;
    let made_with = format!("{inception:016x}");
    file.array(MADE_WITH, "|u1", &[made_with.len() as u64])?;
    file.append(made_with.as_bytes())?;
    if let Some(sampling) = sampling {
        file.array(SAMPLING, "|u1", &[sampling.len() as u64])?;
        file.append(sampling.as_bytes())?;
    }
    let [spatial, logits] = statistics.kept.each_ref().map(Option::as_ref);
    let arrays = [Some(&statistics.features), spatial, logits];
    for ((name, width), tensor) in [POOLED].into_iter().chain(OTHERS).zip(arrays) {
        let Some(tensor) = tensor else { continue };
        let count = tensor.size()[0];
        file.array(name, "<f4", &[count as u64, width as u64])?;
        for start in (0..count).step_by(BATCH as usize) {
            let part = tensor.narrow(0, start, (count - start).min(BATCH as i64)).to_kind(Kind::Float);
            let values = Vec::<f32>::try_from(part.contiguous().view(-1)).expect("the tensor is f32 and on the host");
            file.append(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())?;
        }
    }
    file.finish()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pipeline::{Flow, Runtime};
    use tch::Device;

    use super::*;
    use crate::evaluate::features::{CollectFeatures, Keep};
    use crate::evaluate::reference::Stored;
    use crate::method::random;

    fn collected(path: &Path) -> Result<Statistics, String> {
        let source = StoredFeatures::open(&Npz::open(path).map_err(|error| error.to_string())?);
        let source = source.map_err(|error| error.to_string())?;
        let sink = CollectFeatures::of(source.count(), Keep::All);
        let flow = Flow::from(source).into(sink);
        flow.run(&Runtime::default()).map(|finished| finished.output).map_err(|error| error.to_string())
    }

    fn drawn(n: i64) -> Statistics {
        let features = |width| random::normal(&[n, width], Device::Cpu, 5).unwrap();
        let kept = [SPATIAL, CLASSES].map(|width| Some(features(width)));
        Statistics { features: features(POOL), kept, ..CollectFeatures::nothing() }
    }

    #[test]
    fn what_is_saved_is_read_and_measured() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("features.npz");
        let saved = drawn(300);
        save(&path, &saved, 7, Some("{}")).unwrap();
        let npz = Npz::open(&path).unwrap();
        assert_eq!(Stored::read(&npz).unwrap().made_with.as_deref(), Some("0000000000000007"));
        assert_eq!(StoredFeatures::sampling(&npz).unwrap().as_deref(), Some("{}"));
        let found = collected(&path).unwrap();
        assert_eq!((found.count, found.features.equal(&saved.features)), (300, true));
        for (found, saved) in found.kept.iter().zip(&saved.kept) {
            assert!(found.as_ref().unwrap().equal(saved.as_ref().unwrap()));
        }
        // One without the other.
        let [_, logits] = saved.kept;
        save(&path, &Statistics { kept: [None, logits], ..saved }, 7, None).unwrap();
        assert_eq!(StoredFeatures::sampling(&Npz::open(&path).unwrap()).unwrap(), None);
        let alone = collected(&path).unwrap();
        assert!(alone.kept[0].is_none() && alone.kept[1].is_some() && alone.spatial.is_none());
        assert!(found.pool.is_some() && found.spatial.is_some() && found.score.is_some());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn features_that_do_not_fit_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("features.npz");
        let write = |arrays: &[(&str, &str, &[u64])], byte: u8| {
            let mut file = NpzFile::create(&path).unwrap();
            for (name, descr, shape) in arrays {
                file.array(name, descr, shape).unwrap();
                let width = u64::from(descr.as_bytes()[2] - b'0');
                file.append(&vec![byte; (shape.iter().product::<u64>() * width) as usize]).unwrap();
            }
            file.finish().unwrap();
            collected(&path).map(|found| found.count)
        };
        let pool: (&str, &str, &[u64]) = ("pool_3", "<f8", &[3, 2048]);
        assert_eq!(write(&[pool], 0), Ok(3));
        for (arrays, byte, part) in [
            (
                &[("pool_3", "<f4", &[3, 2047][..])][..],
                0,
                "its shape is [3, 2047], and Inception's features make it [N, 2048]",
            ),
            (&[("pool_3", "<i4", &[3, 2048])], 0, "features are float32 or float64, and its dtype is \"<i4\""),
            (&[("pool_3", "<f4", &[0, 2048])], 0, "it has no rows"),
            (&[pool, ("logits", "<f4", &[2, 1008])], 0, "array \"logits\": it has 2 rows, and pool_3 has 3"),
            (&[pool], 0xff, "row 0 has a value that is not finite"),
            (&[("other", "<f4", &[1])], 0, "has no array \"pool_3\""),
        ] {
            let error = write(arrays, byte).unwrap_err();
            assert!(error.contains(part), "{error} lacks {part}");
        }
        write(&[pool], 0).unwrap();
        let bytes = fs::read(&path).unwrap();
        let at = bytes.windows(5).position(|window| window == b"False").unwrap();
        fs::write(&path, [&bytes[..at], b"True ", &bytes[at + 5..]].concat()).unwrap();
        assert!(collected(&path).unwrap_err().contains("it is in Fortran order; save numpy.ascontiguousarray of it"));
    }
}
