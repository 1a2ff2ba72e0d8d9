//! Keeps sampled latents in memory, for what is measured on latents.

use std::ops::ControlFlow;

use pipeline::{BoxError, End, Sink};
use tch::Tensor;

use super::generate::SampleLatents;

/// All samples of a flow, in order.
#[derive(Debug, Default)]
pub struct CollectSamples {
    batches: Vec<Tensor>,
}

impl Sink for CollectSamples {
    type In = SampleLatents;
    /// f32 `[N, C, h, w]` on the host, scaled as the network predicts them; `None` if none came.
    type Output = Option<Tensor>;

    fn consume(&mut self, samples: SampleLatents) -> Result<ControlFlow<()>, BoxError> {
        let (b, c, h, w) = samples.latents.dim();
        let values = samples.latents.as_slice().ok_or("latents are not contiguous")?;
        self.batches.push(Tensor::from_slice(values).view([b as i64, c as i64, h as i64, w as i64]));
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, _: End) -> Result<Option<Tensor>, BoxError> {
        Ok((!self.batches.is_empty()).then(|| Tensor::cat(&self.batches, 0)))
    }
}
