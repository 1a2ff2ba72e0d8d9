//! Sample grids on the way: what the averaged weights make of the same noise and the same classes, every so many steps.
//!
//! Made between two steps on the device that trains, in evaluation: no label is dropped, nothing of the training changes.
//! Image i starts from the noise that `pipeline sample` gives image i of the run's seed. A PNG that exists is whole.

use std::fmt;
use std::fs;
use std::io::{self, Cursor};
use std::path::{Path, PathBuf};

use image::{ImageFormat, RgbImage};
use pipeline::{BoxError, Stage};
use tch::{Kind, no_grad};

use super::step::Trainer;
use crate::load::feed::Scaling;
use crate::method::network::Network;
use crate::method::parameters::views;
use crate::method::sampler::{Diffusion, Guidance, Integrator};
use crate::nets::autoencoder::VaeChoice;
use crate::sample::decode::DecodeLatents;
use crate::sample::generate::{Generate, SampleSettings};
use crate::sample::request::{Labels, Requests, SampleRequest};
use crate::sample::write::{grid, pictures};

/// Images in a grid: evenly spread over the classes, in their order.
pub const IMAGES: u64 = 16;

/// Of them in a row.
const COLUMNS: usize = 8;

/// Makes the grids of one run.
pub struct Grids {
    vae: VaeChoice,
    scaling: Scaling,
    folder: PathBuf,
    /// Opened with the first grid.
    decode: Option<DecodeLatents>,
}

/// A grid that was made.
#[derive(Debug)]
pub struct Grid {
    /// Its file.
    pub path: PathBuf,
    /// What is in it.
    pub picture: RgbImage,
    /// The same as the file has it.
    pub png: Vec<u8>,
}

impl Grids {
    /// Into `folder`, which is made with the first grid. `vae` is the autoencoder that made the training data, `scaling`
    /// what makes latents of its values.
    pub fn new(vae: VaeChoice, scaling: Scaling, folder: PathBuf) -> Self {
        Self { vae, scaling, folder, decode: None }
    }

    /// Samples with the average of `trainer` and writes `<folder>/step-<step>.png`: ODE by Euler's method, steps and
    /// guidance as the run's configuration says.
    ///
    /// # Errors
    /// The autoencoder cannot be opened, or the file not be written.
    pub fn make(&mut self, trainer: &Trainer) -> Result<Grid, BoxError> {
        let device = trainer.device();
        let decode = match &mut self.decode {
            Some(decode) => decode,
            None => self.decode.insert(DecodeLatents::over(self.vae.open(device, Kind::Float)?, device, self.scaling)),
        };
        let (model, specs) = (&trainer.config.model, trainer.parameters.specs());
        let weights = no_grad(|| trainer.average.to_kind(trainer.parameters.kind()));
        let network = Network::new(model, &trainer.data, &views(specs, &weights));
        let latents = Generate::over(network, settings(trainer), device).process(request(trainer))?;
        let pictures: Vec<_> = pictures(&decode.process(latents)?).collect();
        let picture = grid(&pictures, COLUMNS);

        let mut png = Vec::new();
        picture.write_to(&mut Cursor::new(&mut png), ImageFormat::Png)?;

        fs::create_dir_all(&self.folder).map_err(|e| format!("{}: {e}", self.folder.display()))?;
        let path = self.folder.join(file_name(trainer.step));
        let temporary = path.with_extension("tmp");
        let written = fs::write(&temporary, &png).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Grid { path, picture, png })
    }
}

impl fmt::Debug for Grids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grids").field("folder", &self.folder).finish_non_exhaustive()
    }
}

fn settings(trainer: &Trainer) -> SampleSettings {
    let schedule = &trainer.config.train;
    SampleSettings {
        sampler: Integrator::Ode,
        diffusion: Diffusion::TwoSigma,
        steps: schedule.sample_steps as usize,
        guidance: Guidance { scale: schedule.sample_guidance, low: 0.0, high: 1.0 },
        share_encoder: 1,
        seed: schedule.seed,
    }
}

fn request(trainer: &Trainer) -> SampleRequest {
    let classes: Vec<_> = (0..trainer.data.classes).collect();
    let requests = Requests::new(&classes, Labels::Balanced, IMAGES, IMAGES, trainer.config.train.seed);
    SampleRequest { indices: (0..IMAGES).collect(), labels: requests.labels().to_vec() }
}

fn file_name(step: u64) -> String {
    format!("step-{step:08}.png")
}

/// The grids of a folder with their steps, oldest first; a folder that does not exist holds none.
///
/// # Errors
/// The folder cannot be listed.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>, io::Error> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let step = name.strip_prefix("step-").and_then(|rest| rest.strip_suffix(".png"));
        if let Some(step) = step.and_then(|digits| digits.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::equality;

    const SCALING: Scaling = Scaling { factor: 1.0, shift: 0.0 };

    #[test]
    fn a_grid_is_a_function_of_the_average_and_of_nothing_else_of_the_trainer() {
        let folder = tempfile::tempdir().unwrap();
        let mut grids = Grids::new(VaeChoice::Tiny, SCALING, folder.path().join("samples"));
        let mut trainer = equality::trainer(1, Kind::Float);
        trainer.step = 40;
        let first = grids.make(&trainer).unwrap();
        // Latents of 8 x 8 are pictures of 64; two white pixels lie around each.
        assert_eq!(first.picture.dimensions(), (8 * 64 + 9 * 2, 2 * 64 + 3 * 2));
        assert_eq!(image::open(&first.path).unwrap().into_rgb8(), first.picture);

        trainer.step = 41;
        let _ = trainer.parameters.master.g_mul_scalar_(0.5);
        trainer.parameters.refresh();
        assert_eq!(grids.make(&trainer).unwrap().picture, first.picture);
        let _ = trainer.average.g_mul_scalar_(0.5);
        trainer.step = 7;
        assert_ne!(grids.make(&trainer).unwrap().picture, first.picture);
        let listed: Vec<_> = list(&folder.path().join("samples")).unwrap().into_iter().map(|(step, _)| step).collect();
        assert_eq!(listed, [7, 40, 41]);
    }

    #[test]
    fn the_classes_of_a_grid_are_spread_evenly() {
        let trainer = equality::trainer(1, Kind::Float);
        assert_eq!(request(&trainer).labels, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn what_is_wrong_is_said_with_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let trainer = equality::trainer(1, Kind::Float);
        let blocked = folder.path().join("file");
        fs::write(&blocked, "").unwrap();
        let error = Grids::new(VaeChoice::Tiny, SCALING, blocked.clone()).make(&trainer).unwrap_err();
        assert!(error.to_string().starts_with(&blocked.display().to_string()), "{error}");
        let nowhere = VaeChoice::Directory(folder.path().join("no-such-vae"));
        let error = Grids::new(nowhere, SCALING, folder.path().join("samples")).make(&trainer).unwrap_err();
        assert!(error.to_string().contains("no-such-vae"), "{error}");
        assert!(list(&folder.path().join("samples")).unwrap().is_empty());
    }
}
