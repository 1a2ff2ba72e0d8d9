//! Runs the autoencoder's encoder on blocks of pixels.
//!
//! What the bytes depend on, besides weights and pixels: how many images a convolution sees at once, how many threads
//! share it, and the kind of the processor, since each of these moves results by some 1e-6 and so flips roundings to
//! f16. The first two are fixed here ([`VaeEncode::on`], [`INTRA_OP_THREADS`]), the third is named by [`arithmetic`](crate::device::arithmetic),
//! and all are recorded with the dataset. Throughput on a CPU comes from more workers, which change nothing.

use half::f16;
use ndarray::{Array4, ArrayView4, Axis};
use pipeline::{BoxError, Stage, Worker};
use tch::{Device, Kind, TchError, Tensor};

use crate::data::{ImageRef, MomentsBatch, PixelBatch};
use crate::nets::autoencoder::{AutoencoderError, AutoencoderKl, VaeChoice};

/// Threads that share one operation of one worker on the CPU.
pub const INTRA_OP_THREADS: i32 = 1;

/// Range of the pixels that the autoencoder is given: `u8 / 127.5 - 1`.
pub const PIXEL_RANGE: [f64; 2] = [-1.0, 1.0];

/// Why a block could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum VaeEncodeError {
    /// The autoencoder could not be opened or refused its input.
    #[error(transparent)]
    Autoencoder(#[from] AutoencoderError),
    /// A value cannot be stored in f16.
    #[error(
        "{key}: the posterior's {column} holds {value}, which f16 (largest value 65504) cannot store; use another autoencoder or check its weights"
    )]
    NotFinite {
        /// The image.
        key: String,
        /// `mean` or `logvar`.
        column: &'static str,
        /// The value in f32.
        value: f32,
    },
    /// libtorch failed.
    #[error("autoencoder: {0}")]
    Torch(#[from] TchError),
}

/// Stage: u8 pixels to f16 posteriors, unscaled.
#[derive(Debug)]
pub struct VaeEncode {
    vae: AutoencoderKl,
    batch: usize,
}

impl VaeEncode {
    /// Factory: worker i opens the autoencoder on `devices[i % devices.len()]` (not empty), and encodes a block in parts of
    /// `batch` images (at least 1), which bounds the memory and is part of what the bytes depend on.
    ///
    /// On the CPU it sets libtorch's intra-op threads, for its own thread and for threads that first use libtorch later:
    /// hold a [`RestoreThreads`] around the run.
    pub fn on(
        choice: VaeChoice,
        devices: Vec<Device>,
        batch: usize,
    ) -> impl Fn(Worker) -> Result<Self, BoxError> + Send + Sync + 'static {
        move |worker| {
            let device = *devices.get(worker.index % devices.len().max(1)).ok_or("no device was given to encode on")?;
            if device == Device::Cpu {
                tch::set_num_threads(INTRA_OP_THREADS);
            }
            Ok(Self { vae: choice.open(device)?, batch: batch.max(1) })
        }
    }

    /// f16 mean and log-variance of some images of a block, appended.
    fn encode(
        &self,
        pixels: ArrayView4<'_, u8>,
        images: &[ImageRef],
        moments: &mut [Vec<f16>; 2],
    ) -> Result<(), VaeEncodeError> {
        let shape: Vec<i64> = pixels.shape().iter().map(|side| *side as i64).collect();
        let values = pixels.as_slice().expect("a range of the first axis of a contiguous array is contiguous");
        let pixels = Tensor::f_from_slice(values)?.f_reshape(&shape)?.f_to_device(self.vae.device())?;
        let pixels = pixels.f_to_kind(Kind::Float)?.f_div_scalar(127.5)?.f_sub_scalar(1.0)?;
        let (mean, logvar) = self.vae.encode_moments(&pixels)?;
        for ((tensor, column), out) in [(mean, "mean"), (logvar, "logvar")].into_iter().zip(moments) {
            let values = Vec::<f32>::try_from(tensor.f_to_device(Device::Cpu)?.f_contiguous()?.f_view(-1)?)?;
            let start = out.len();
            // Both round to the nearest, ties to even.
            out.extend(values.iter().map(|value| f16::from_f32(*value)));
            if let Some(at) = out[start..].iter().position(|value| !value.is_finite()) {
                let key = images[at * images.len() / values.len()].key.clone();
                return Err(VaeEncodeError::NotFinite { key, column, value: values[at] });
            }
        }
        Ok(())
    }
}

impl Stage for VaeEncode {
    type In = PixelBatch;
    type Out = MomentsBatch;

    fn process(&mut self, block: PixelBatch) -> Result<MomentsBatch, BoxError> {
        let PixelBatch { images, flags, pixels, skipped } = block;
        let mut moments = [Vec::new(), Vec::new()];
        tch::no_grad(|| {
            for (part, images) in pixels.axis_chunks_iter(Axis(0), self.batch).zip(images.chunks(self.batch)) {
                self.encode(part, images, &mut moments)?;
            }
            Ok::<(), VaeEncodeError>(())
        })?;
        let shape = latent_shape(&self.vae, pixels.shape()[2]);
        let shape = (images.len(), shape[0], shape[1], shape[2]);
        let [mean, logvar] = moments.map(|values| Array4::from_shape_vec(shape, values));
        Ok(MomentsBatch { images, flags, mean: mean?, logvar: logvar?, skipped })
    }
}

/// Gives libtorch back the number of intra-op threads that it had, when dropped: what runs after an encode in the same
/// process would else be left with [`INTRA_OP_THREADS`].
#[derive(Debug)]
pub struct RestoreThreads(i32);

impl RestoreThreads {
    /// Remembers the present number.
    pub fn on_drop() -> Self {
        Self(tch::get_num_threads())
    }
}

impl Drop for RestoreThreads {
    fn drop(&mut self) {
        tch::set_num_threads(self.0);
    }
}

/// `[channels, height, width]` of the posterior of images of `size` pixels a side.
pub fn latent_shape(vae: &AutoencoderKl, size: usize) -> [usize; 3] {
    let side = size / vae.downsample() as usize;
    [vae.latent_channels() as usize, side, side]
}
