//! What an autoencoder keeps of real images: the bound on what samples can look like.

use std::ops::ControlFlow;

use image::RgbImage;
use pipeline::{BoxError, End, Sink, Stage, Worker};
use tch::{Device, Kind, Tensor, no_grad};

use super::decode::{Rounding, to_levels};
use crate::data::{Decoded, Pixels};
use crate::nets::autoencoder::{AutoencoderKl, VaeChoice};

/// An image and what comes back of it.
#[derive(Debug, Clone)]
pub struct Reconstruction {
    /// Class index, from 0.
    pub label: i32,
    /// As the autoencoder was given it.
    pub original: RgbImage,
    /// Decoded from the posterior's mean, of the same size.
    pub decoded: RgbImage,
    /// Peak signal-to-noise ratio between the two, in decibels.
    pub psnr: f64,
}

/// Stage: a cropped image to its [`Reconstruction`]. A skipped image is an error.
#[derive(Debug)]
pub struct Reconstruct {
    vae: AutoencoderKl,
}

impl Reconstruct {
    /// A factory that loads the autoencoder on the CPU.
    pub fn with(choice: VaeChoice) -> impl Fn(Worker) -> Result<Self, BoxError> + Send + Sync + 'static {
        move |_worker| Ok(Self { vae: choice.open(Device::Cpu, Kind::Float)? })
    }
}

impl Stage for Reconstruct {
    type In = Decoded;
    type Out = Reconstruction;

    fn process(&mut self, item: Decoded) -> Result<Reconstruction, BoxError> {
        let Pixels { image, height, width, rgb, .. } = match item {
            Decoded::Pixels(pixels) => pixels,
            Decoded::Skipped { image, reason } => return Err(format!("{}: {reason}", image.place).into()),
        };
        let decoded = no_grad(|| -> Result<Tensor, BoxError> {
            let bytes = Tensor::f_from_slice(&rgb)?.view([1, height as i64, width as i64, 3]);
            let x = bytes.permute([0, 3, 1, 2]).contiguous().to_kind(Kind::Float) / 127.5 - 1.0;
            let (mean, _) = self.vae.encode_moments(&x)?;
            Ok(to_levels(&self.vae.decode(&mean)?, Rounding::Repa).permute([0, 2, 3, 1]).contiguous())
        })?;
        let mut levels = vec![0u8; rgb.len()];
        decoded.copy_data(&mut levels, rgb.len());
        let error: f64 = rgb.iter().zip(&levels).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
        let psnr = 10.0 * (255.0 * 255.0 * rgb.len() as f64 / error).log10();
        let picture = |rgb| RgbImage::from_raw(width as u32, height as u32, rgb).ok_or("a picture lacks pixels");
        Ok(Reconstruction { label: image.label, original: picture(rgb)?, decoded: picture(levels)?, psnr })
    }
}

/// Sink: keeps them all.
#[derive(Debug, Default)]
pub struct Reconstructions(Vec<Reconstruction>);

impl Sink for Reconstructions {
    type In = Reconstruction;
    type Output = Vec<Reconstruction>;

    fn consume(&mut self, item: Reconstruction) -> Result<ControlFlow<()>, BoxError> {
        self.0.push(item);
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, _: End) -> Result<Vec<Reconstruction>, BoxError> {
        Ok(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ImageRef, Place};
    use crate::procedural;

    #[test]
    fn a_procedural_image_comes_back_and_its_ratio_is_that_of_the_two_pictures() {
        let mut stage = Reconstruct::with(VaeChoice::parse("tiny").unwrap())(Worker { index: 0, workers: 1 }).unwrap();
        let image =
            ImageRef { position: 0, source_index: 0, key: String::new(), label: 3, place: Place::File("drawn".into()) };
        let rgb = procedural::image(3, 17, 128, 128);
        let pixels = Pixels { image: image.clone(), height: 128, width: 128, rgb: rgb.clone(), flags: 0 };
        let back = stage.process(Decoded::Pixels(pixels)).unwrap();
        assert_eq!((back.label, back.original.as_raw()), (3, &rgb));
        assert!((20.0..60.0).contains(&back.psnr), "{}", back.psnr);
        let squares = rgb.iter().zip(back.decoded.as_raw()).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
        let rms = (squares.sum::<f64>() / rgb.len() as f64).sqrt();
        assert!((back.psnr - 20.0 * (255.0 / rms).log10()).abs() < 1e-9);

        let skipped = stage.process(Decoded::Skipped { image, reason: "truncated".to_owned() }).unwrap_err();
        assert_eq!(skipped.to_string(), "drawn: truncated");
    }
}
