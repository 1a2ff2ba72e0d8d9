//! Statistics that a reference file holds beside its pictures, or in place of them.
//!
//! The files of the ADM evaluator have `mu` and `sigma` (and `mu_s`, `sigma_s` for sFID) of the whole training set, and 10,000
//! pictures for precision and recall. Others have statistics alone, or pictures alone. Any other array is passed over, but for
//! `made_with`, the xxh3 of the Inception weights in hexadecimal digits, which [`WriteReference`] adds.

use std::ops::ControlFlow;
use std::path::Path;

use pipeline::{BoxError, End, Sink};
use tch::Tensor;

use super::features::Statistics;
use super::frechet::Gaussian;
use super::pictures::PictureBatch;
use crate::exchange::npz::{Npz, NpzError, NpzFile};
use crate::nets::inception::{POOL, SPATIAL};

pub(super) const MADE_WITH: &str = "made_with";
/// Of a hash of 64 bits.
const DIGITS: usize = 16;

/// What a file holds of the two sets of features.
#[derive(Debug)]
pub struct Stored {
    /// `mu`, `sigma`: FID.
    pub pool: Option<Gaussian>,
    /// `mu_s`, `sigma_s`: sFID.
    pub spatial: Option<Gaussian>,
    /// xxh3 of the Inception weights, where the file says so.
    pub made_with: Option<String>,
}

impl Stored {
    /// Reads what is there, f4 or f8.
    ///
    /// # Errors
    /// [`NpzError`]: one of a pair without the other, another width than the features have, a value that is not finite.
    pub fn read(npz: &Npz) -> Result<Self, NpzError> {
        let [pool, spatial] = [pair(npz, "mu", "sigma", POOL)?, pair(npz, "mu_s", "sigma_s", SPATIAL)?];
        Ok(Self { pool, spatial, made_with: made_with(npz)? })
    }

    /// Whether there are any.
    pub fn has_statistics(&self) -> bool {
        self.pool.is_some() || self.spatial.is_some()
    }
}

fn made_with(npz: &Npz) -> Result<Option<String>, NpzError> {
    if !npz.has(MADE_WITH) {
        return Ok(None);
    }
    let mut array = npz.array(MADE_WITH)?;
    if array.descr() != "|u1" || array.shape() != [DIGITS] {
        return Err(array.wrong(format!("it is not {DIGITS} digits of u1")));
    }
    let mut digits = [0; DIGITS];
    array.read(&mut digits)?;
    Ok(Some(String::from_utf8_lossy(&digits).into_owned()))
}

fn pair(npz: &Npz, mean: &str, covariance: &str, width: i64) -> Result<Option<Gaussian>, NpzError> {
    if !npz.has(mean) && !npz.has(covariance) {
        return Ok(None);
    }
    let read = |name: &str, shape: &[i64]| -> Result<Tensor, NpzError> {
        let array = npz.array(name)?;
        let found: Vec<i64> = array.shape().iter().map(|&dim| dim as i64).collect();
        if found != shape {
            return Err(array.wrong(format!("its shape is {found:?}, and Inception's features make it {shape:?}")));
        }
        let broken = array.wrong("it has a value that is not finite".to_owned());
        let values = array.into_f64()?;
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(Tensor::from_slice(&values).view(shape)),
            false => Err(broken),
        }
    };
    Ok(Some(Gaussian::new(read(mean, &[width])?, read(covariance, &[width, width])?)))
}

/// Sink: a reference file of statistics that are known, and some of the pictures that they are of, evenly spread.
#[derive(Debug)]
pub struct WriteReference {
    file: NpzFile,
    kept: u64,
    count: u64,
    seen: u64,
}

impl WriteReference {
    /// Begins `path` with the statistics of all pictures, at least two, and the hash of the weights; `kept` of the pictures are
    /// to follow.
    ///
    /// # Errors
    /// [`NpzError::Write`].
    pub fn create(path: &Path, statistics: &Statistics, inception: u64, kept: u64) -> Result<Self, NpzError> {
        let mut file = NpzFile::create(path)?;
        let pairs = [("mu", "sigma", &statistics.pool), ("mu_s", "sigma_s", &statistics.spatial)];
        for (mean, covariance, gaussian) in pairs {
            let Some(gaussian) = gaussian else { continue };
            for (name, tensor) in [(mean, gaussian.mean()), (covariance, gaussian.covariance())] {
                let shape: Vec<u64> = tensor.size().iter().map(|&side| side as u64).collect();
                file.array(name, "<f8", &shape)?;
                let values =
                    Vec::<f64>::try_from(tensor.contiguous().view(-1)).expect("statistics are f64 on the host");
                file.append(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())?;
            }
        }
        file.array(MADE_WITH, "|u1", &[DIGITS as u64])?;
        file.append(format!("{inception:016x}").as_bytes())?;
        Ok(Self { file, kept: kept.min(statistics.count), count: statistics.count, seen: 0 })
    }
}

impl Sink for WriteReference {
    type In = PictureBatch;
    /// Pictures in the file.
    type Output = u64;

    fn consume(&mut self, batch: PictureBatch) -> Result<ControlFlow<()>, BoxError> {
        let PictureBatch { first, height, width, values, .. } = batch;
        if first == 0 && self.kept > 0 {
            self.file.array("arr_0", "|u1", &[self.kept, height as u64, width as u64, 3])?;
        }
        for picture in values.chunks(height * width * 3) {
            let before = |i: u64| i * self.kept / self.count;
            if before(self.seen + 1) > before(self.seen) {
                self.file.append(picture)?;
            }
            self.seen += 1;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, end: End) -> Result<u64, BoxError> {
        if let End::Complete = end {
            self.file.finish()?;
        }
        Ok(self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of arrays with all values alike: dtype, shape, and the bytes of a value.
    fn stored(arrays: &[(&str, &str, &[u64], &[u8])]) -> Result<Stored, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reference.npz");
        let mut file = NpzFile::create(&path).unwrap();
        for (name, descr, shape, value) in arrays {
            file.array(name, descr, shape).unwrap();
            file.append(&value.repeat(shape.iter().product::<u64>() as usize)).unwrap();
        }
        file.finish().unwrap();
        Stored::read(&Npz::open(&path).unwrap()).map_err(|error| error.to_string())
    }

    const MU: [u64; 1] = [POOL as u64];
    const SIGMA: [u64; 2] = [POOL as u64, POOL as u64];
    const MU_S: [u64; 1] = [SPATIAL as u64];
    const SIGMA_S: [u64; 2] = [SPATIAL as u64, SPATIAL as u64];

    #[test]
    fn statistics_of_either_width_are_read_and_other_arrays_passed_over() {
        let (half, half_wide) = (0.5f32.to_le_bytes(), 0.5f64.to_le_bytes());
        let narrow = stored(&[("mu", "<f4", &MU, &half), ("sigma", "<f4", &SIGMA, &half)]).unwrap();
        let wide = stored(&[
            ("mu", "<f8", &MU, &half_wide),
            ("sigma", "<f8", &SIGMA, &half_wide),
            ("mu_s", "<f4", &MU_S, &half),
            ("sigma_s", "<f8", &SIGMA_S, &half_wide),
            ("mu_clip", "<f4", &[512], &half),
        ])
        .unwrap();
        let [narrow_pool, wide_pool] = [&narrow, &wide].map(|stored| stored.pool.as_ref().unwrap());
        assert!(narrow_pool.mean().equal(wide_pool.mean()) && narrow_pool.covariance().equal(wide_pool.covariance()));
        assert_eq!((narrow_pool.mean().double_value(&[3]), narrow_pool.mean().kind()), (0.5, tch::Kind::Double));
        assert!(narrow.spatial.is_none() && wide.spatial.is_some() && wide.made_with.is_none());
        assert!(!stored(&[("arr_0", "|u1", &[2, 4, 4, 3], &[9])]).unwrap().has_statistics());
    }

    #[test]
    fn statistics_that_do_not_fit_are_refused_in_one_sentence() {
        let (half, nan) = (0.5f32.to_le_bytes(), f32::NAN.to_le_bytes());
        let sigma: (&str, &str, &[u64], &[u8]) = ("sigma", "<f4", &SIGMA, &half);
        for (arrays, part) in [
            (&[("mu", "<f4", &MU[..], &half[..])][..], "has no array \"sigma\", but \"mu\""),
            (&[sigma], "has no array \"mu\", but \"sigma\""),
            (&[("mu", "<f4", &MU, &nan), sigma], "array \"mu\": it has a value that is not finite"),
            (
                &[("mu", "<f4", &MU, &half), ("sigma", "<f4", &SIGMA, &nan)],
                "array \"sigma\": it has a value that is not finite",
            ),
            (
                &[("mu", "<f4", &[768], &half), sigma],
                "array \"mu\": its shape is [768], and Inception's features make it [2048]",
            ),
            (&[("mu", "<f4", &MU, &half), ("sigma", "<f4", &[2048], &half)], "array \"sigma\": its shape is [2048]"),
            (
                &[("mu_s", "<f4", &MU, &half), ("sigma_s", "<f4", &SIGMA_S, &half)],
                "array \"mu_s\": its shape is [2048]",
            ),
            (&[(MADE_WITH, "|u1", &[3], b"0")], "array \"made_with\": it is not 16 digits of u1"),
        ] {
            let error = stored(arrays).unwrap_err();
            assert!(error.contains("reference.npz: ") && error.contains(part), "{error} lacks {part}");
        }
    }
}
