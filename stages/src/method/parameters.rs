//! The weights of a network in flat buffers.
//!
//! Master weights are one f32 buffer, gradients another; the tensors that the network computes with are views into
//! a third buffer of the compute dtype, which is cast from the master once a step (in f32 it *is* the master). So
//! clipping, AdamW, EMA, all-reduce and checkpoint are one pass over one buffer each, and there is one place where
//! precision changes.
//!
//! A backward pass leaves its gradients at the tensors that it computed with, in their dtype. From there they are moved
//! to the flat buffer: adding them to it in the first place would want zeros there, and a second buffer where the
//! dtypes differ.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor, no_grad};

use super::layout::ParameterSpec;
use crate::native::c10d::{Exchange, Group};
use crate::native::{NativeError, drop_gradient, take_gradient};

/// Values of a bucket of gradients that ranks exchange, at least: 25 MiB, DistributedDataParallel's. Smaller ones begin
/// earlier and cost more calls.
pub const BUCKET: i64 = 25 * 1024 * 1024 / 4;

/// Tensors by parameter name: views into one flat buffer.
pub type NamedTensors = BTreeMap<String, Tensor>;

/// Views of a flat buffer, one for each parameter, in the layout's shapes.
pub fn views(specs: &[ParameterSpec], flat: &Tensor) -> NamedTensors {
    let mut offset = 0;
    let mut views = NamedTensors::new();
    for spec in specs {
        views.insert(spec.name.clone(), flat.narrow(0, offset, spec.len()).view(spec.shape.as_slice()));
        offset += spec.len();
    }
    views
}

/// Length of the flat buffer.
pub fn flat_len(specs: &[ParameterSpec]) -> i64 {
    specs.iter().map(ParameterSpec::len).sum()
}

/// The trainable weights of one network on one device.
#[derive(Debug)]
pub struct Parameters {
    specs: Vec<ParameterSpec>,
    /// f32, flat: what the optimiser updates and a checkpoint stores.
    pub master: Tensor,
    /// f32, flat: gradients of the step, summed over its micro-batches.
    pub gradients: Tensor,
    compute: Tensor,
    leaves: NamedTensors,
    /// Views of `gradients`.
    gradient_views: NamedTensors,
}

impl Parameters {
    /// Draws the initial weights of `specs` from `seed`. `kind` is the dtype that the network computes in:
    /// `Kind::Float` or `Kind::BFloat16`.
    ///
    /// # Errors
    /// libtorch's; none are known.
    pub fn init(specs: Vec<ParameterSpec>, seed: u64, device: Device, kind: Kind) -> Result<Self, NativeError> {
        let master = Tensor::zeros([flat_len(&specs)], (Kind::Float, device));
        for (spec, view) in specs.iter().zip(in_order(&specs, &views(&specs, &master))) {
            // Drawn on the CPU, so that a run starts from the same weights on every device.
            view.shallow_clone().copy_(&spec.draw(seed, Device::Cpu)?);
        }
        Ok(Self::from_master(specs, master, kind))
    }

    /// Trains on from given f32 weights.
    pub fn from_master(specs: Vec<ParameterSpec>, master: Tensor, kind: Kind) -> Self {
        let gradients = master.zeros_like();
        let compute = if kind == Kind::Float { master.shallow_clone() } else { master.to_kind(kind) };
        // Detached, a view is a leaf of the graph that still shares the buffer's memory.
        let leaf = |(name, view): (String, Tensor)| (name, view.detach().set_requires_grad(true));
        let leaves = views(&specs, &compute).into_iter().map(leaf).collect();
        let gradient_views = views(&specs, &gradients);
        Self { specs, master, gradients, compute, leaves, gradient_views }
    }

    /// The tensors to compute with: leaves, whose gradients [`Self::collect_gradients`] takes.
    pub fn leaves(&self) -> &NamedTensors {
        &self.leaves
    }

    /// The dtype that the network computes in.
    pub fn kind(&self) -> Kind {
        self.compute.kind()
    }

    /// The layout.
    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// Forgets what a backward pass left at the leaves that nobody collected: one that failed, before a step that
    /// begins.
    ///
    /// # Errors
    /// libtorch's; none are known.
    pub fn drop_gradients(&mut self) -> Result<(), NativeError> {
        self.leaves.values().try_for_each(drop_gradient)
    }

    /// Moves what a backward pass left at the leaves to [`Self::gradients`], after every micro-batch: of the first of a
    /// step in place of what is there, of the others added to it.
    ///
    /// # Errors
    /// libtorch's; none are known.
    pub fn collect_gradients(&mut self, add: bool) -> Result<(), NativeError> {
        self.leaves
            .values()
            .zip(self.gradient_views.values_mut())
            .try_for_each(|(leaf, view)| take_gradient(leaf, view, add))
    }

    /// Sums [`Self::gradients`] over a group of ranks from now on, in buckets of at least `bucket` values.
    ///
    /// # Errors
    /// libtorch's; none are known.
    pub fn exchange_in(&mut self, group: Group, bucket: i64) -> Result<Exchange, NativeError> {
        let leaves: Vec<&Tensor> = in_order(&self.specs, &self.leaves).collect();
        Exchange::new(group, &leaves, &mut self.gradients, bucket)
    }

    /// Casts the master weights for the next forward pass: after every update.
    pub fn refresh(&mut self) {
        if self.kind() != Kind::Float {
            no_grad(|| self.compute.copy_(&self.master));
        }
    }
}

/// Views in the order of the layout.
pub fn in_order<'a>(specs: &'a [ParameterSpec], views: &'a NamedTensors) -> impl Iterator<Item = &'a Tensor> {
    specs.iter().map(|spec| &views[&spec.name])
}

#[cfg(test)]
mod tests {
    use super::super::layout::Init;
    use super::*;

    fn specs() -> Vec<ParameterSpec> {
        let spec = |name: &str, shape: &[i64]| ParameterSpec {
            name: name.into(),
            shape: shape.to_vec(),
            init: Init::Normal { std: 1.0 },
        };
        vec![spec("b", &[2, 3]), spec("a", &[4])]
    }

    #[test]
    fn gradients_of_every_leaf_land_in_the_flat_buffer() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let mut parameters = Parameters::init(specs(), 0, Device::Cpu, kind).unwrap();
            (parameters.leaves()["a"].sum(Kind::Float) * 5.0).backward();
            parameters.drop_gradients().unwrap();
            for add in [false, true] {
                let leaves = parameters.leaves();
                (leaves["a"].sum(Kind::Float) * 2.0 + leaves["b"].sum(Kind::Float)).backward();
                parameters.collect_gradients(add).unwrap();
            }
            let expected = [vec![2.0f32; 6], vec![4.0; 4]].concat();
            assert_eq!(Vec::<f32>::try_from(&parameters.gradients).unwrap(), expected, "{kind:?}");
        }
    }

    #[test]
    fn an_update_of_the_master_reaches_the_leaves() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let mut parameters = Parameters::init(specs(), 0, Device::Cpu, kind).unwrap();
            let _ = parameters.master.fill_(0.5);
            parameters.refresh();
            assert_eq!(parameters.leaves()["b"].to_kind(Kind::Float).sum(Kind::Float).double_value(&[]), 3.0);
        }
    }
}
