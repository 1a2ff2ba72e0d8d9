//! Runs the autoencoder's encoder on batches of pixels.
//!
//! What the bytes depend on, besides weights and pixels: how many images a convolution sees at once, how many threads
//! share it, the dtype it computes in, and the kind of the processor, since each of these moves results and so flips
//! roundings to f16. The first is fixed by [`Gather`](super::gather::Gather), the second here ([`INTRA_OP_THREADS`]),
//! the last is named by [`arithmetic`](crate::device::arithmetic), and all are recorded with the dataset. Throughput on
//! a CPU comes from more workers, which change nothing.

use half::f16;
use ndarray::Array4;
use pipeline::{BoxError, Stage, Worker};
use tch::{Device, Kind, TchError, Tensor};

use super::store::Store;
use crate::data::{ImageRef, MomentsBatch, PixelBatch};
use crate::nets::autoencoder::{AutoencoderError, AutoencoderKl, VaeChoice};

/// Threads that share one operation of one worker on the CPU.
pub const INTRA_OP_THREADS: i32 = 1;

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
        /// Name of the column.
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
    store: Store,
}

impl VaeEncode {
    /// Factory: worker i opens the autoencoder on `devices[i % devices.len()]` (not empty), to compute in `kind`, and
    /// makes the columns of `store`.
    ///
    /// On the CPU it sets libtorch's intra-op threads, for its own thread and for threads that first use libtorch later:
    /// hold a [`RestoreThreads`] around the run.
    pub fn on(
        choice: VaeChoice,
        devices: Vec<Device>,
        kind: Kind,
        store: Store,
    ) -> impl Fn(Worker) -> Result<Self, BoxError> + Send + Sync + 'static {
        move |worker| {
            let device = *devices.get(worker.index % devices.len().max(1)).ok_or("no device was given to encode on")?;
            if device == Device::Cpu {
                tch::set_num_threads(INTRA_OP_THREADS);
            }
            Ok(Self { vae: choice.open(device, kind)?, store })
        }
    }

    /// The columns of some images.
    fn encode(&self, pixels: &Array4<u8>, images: &[ImageRef]) -> Result<Vec<Vec<u8>>, VaeEncodeError> {
        let batch = images.len();
        let shape: Vec<i64> = pixels.shape().iter().map(|side| *side as i64).collect();
        let values = pixels.as_slice().expect("the array was made of a vector, in its order");
        let pixels = Tensor::f_from_slice(values)?.f_reshape(&shape)?.f_to_device(self.vae.device())?;
        let pixels = pixels.f_to_kind(Kind::Float)?.f_div_scalar(127.5)?.f_sub_scalar(1.0)?;

        let names: Vec<_> = self.store.columns().into_iter().map(|(name, _)| name).collect();
        let a_view = names.len() / if self.store.flip { 2 } else { 1 };
        let mut columns = Vec::with_capacity(names.len());
        for (view, names) in names.chunks(a_view).enumerate() {
            let (mean, logvar) = match view {
                0 => self.vae.encode_moments(&pixels)?,
                _ => self.vae.encode_moments(&pixels.f_flip([3])?)?,
            };
            for (tensor, column) in [mean, logvar].iter().zip(names) {
                let values = Vec::<f32>::try_from(tensor.f_to_device(Device::Cpu)?.f_contiguous()?.f_view(-1)?)?;
                // Both round to the nearest, ties to even.
                let stored: Vec<f16> = values.iter().map(|value| f16::from_f32(*value)).collect();
                if let Some(at) = stored.iter().position(|value| !value.is_finite()) {
                    let key = images[at * batch / values.len()].key.clone();
                    return Err(VaeEncodeError::NotFinite { key, column, value: values[at] });
                }
                columns.push(stored.into_iter().flat_map(f16::to_le_bytes).collect());
            }
        }
        Ok(columns)
    }
}

impl Stage for VaeEncode {
    type In = PixelBatch;
    type Out = MomentsBatch;

    fn process(&mut self, batch: PixelBatch) -> Result<MomentsBatch, BoxError> {
        let PixelBatch { images, flags, pixels, skipped } = batch;
        let columns = match images.is_empty() {
            true => Vec::new(),
            false => tch::no_grad(|| self.encode(&pixels, &images))?,
        };
        Ok(MomentsBatch { images, flags, columns, skipped })
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
