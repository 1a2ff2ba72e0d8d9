//! Statistics that a reference file holds beside its pictures, or in place of them.
//!
//! The files of the ADM evaluator have `mu` and `sigma` (and `mu_s`, `sigma_s` for sFID) of the whole training set, and 10,000
//! pictures for precision and recall. Others have statistics alone, or pictures alone. Any other array is passed over.

use tch::Tensor;

use super::frechet::Gaussian;
use crate::exchange::npz::{Npz, NpzError};
use crate::nets::inception::{POOL, SPATIAL};

/// What a file holds of the two sets of features.
#[derive(Debug)]
pub struct Stored {
    /// `mu`, `sigma`: FID.
    pub pool: Option<Gaussian>,
    /// `mu_s`, `sigma_s`: sFID.
    pub spatial: Option<Gaussian>,
}

impl Stored {
    /// Reads what is there, f4 or f8.
    ///
    /// # Errors
    /// [`NpzError`]: one of a pair without the other, another width than the features have, a value that is not finite.
    pub fn read(npz: &Npz) -> Result<Self, NpzError> {
        Ok(Self { pool: pair(npz, "mu", "sigma", POOL)?, spatial: pair(npz, "mu_s", "sigma_s", SPATIAL)? })
    }
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
