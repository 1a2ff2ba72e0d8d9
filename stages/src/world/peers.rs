//! What the ranks of a run tell each other while they train, besides the gradients.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipeline::within;
use tch::{Device, Kind, Tensor, no_grad};

use super::WorldError;
use super::launch::Launch;
use super::meeting::FAILED;
use crate::device::nccl_library;
use crate::method::layout::ParameterSpec;
use crate::method::parameters::{in_order, views};
use crate::native::NativeError;
use crate::native::c10d::{Group, Place, Store, Work};

/// Where something is lost, ranks have so long to say that they are not: all notice it at the end of the same collective, but for
/// the one that is a step behind.
const GRACE: Duration = Duration::from_secs(20);

/// And the store so long to answer.
const STORE: Duration = Duration::from_secs(3);

/// What one rank needs to find the others; sent to the thread that trains.
#[derive(Debug, Clone)]
pub struct Joining {
    pub(super) launch: Launch,
    /// This rank, from 0.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
    pub(super) timeout: Duration,
}

/// The other ranks, as one rank sees them. Owned by the thread of its rank.
#[derive(Debug)]
pub struct Peers {
    rank: usize,
    world: usize,
    store: Arc<Store>,
    /// Gloo, whatever the gradients go through: what goes through it is on the CPU and small.
    /// None once something was lost.
    control: RefCell<Option<Group>>,
    timeout: Duration,
}

impl Joining {
    /// Waits for all ranks. The second result is a group of their own for gradients on `device`.
    ///
    /// # Errors
    /// [`WorldError::Late`], [`WorldError::Failed`] or [`WorldError::Lost`] where not all come.
    pub fn join(&self, device: Device) -> Result<(Peers, Group), WorldError> {
        let store = Arc::new(self.store("")?);
        if store.has(FAILED)? {
            let why = store.get(FAILED, self.timeout)?;
            return Err(WorldError::Failed(String::from_utf8_lossy(&why).into_owned()));
        }
        let lost = |error| lost(&store, [self.rank, self.world], self.timeout, &error);
        let control = self.gloo("/control").map_err(lost)?;
        let gradients = match device {
            Device::Cuda(gpu) => {
                let library = nccl_library().map_err(|error| WorldError::Failed(error.to_string()))?;
                self.nccl(&library, "/gradients", gpu).map_err(lost)?
            }
            _ => self.gloo("/gradients").map_err(lost)?,
        };
        let Self { rank, world, timeout, .. } = *self;
        Ok((Peers { rank, world, store, control: RefCell::new(Some(control)), timeout }, gradients))
    }

    fn store(&self, part: &str) -> Result<Store, NativeError> {
        let place = &self.launch.place;
        let place = Place { prefix: format!("{}{part}", place.prefix), ..place.clone() };
        Store::open(&place, false, self.timeout)
    }

    fn gloo(&self, part: &str) -> Result<Group, NativeError> {
        let ranks = [self.rank, self.world];
        Group::gloo(&self.store(part)?, ranks, &self.launch.interface, self.launch.bind(), self.timeout)
    }

    fn nccl(&self, library: &Path, part: &str, gpu: usize) -> Result<Group, NativeError> {
        let group = Group::nccl(library, &self.store(part)?, [self.rank, self.world], gpu, self.timeout)?;
        // The ranks meet here, and not in the middle of the first backward pass.
        let mut here = Tensor::ones([1], (Kind::Float, Device::Cuda(gpu)));
        group.all_reduce(&mut here)?.wait()?;
        Ok(group)
    }
}

impl Peers {
    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn world(&self) -> usize {
        self.world
    }

    /// Copies tensors of rank 0 to all others, in place, whatever device they are on.
    ///
    /// # Errors
    /// Those of [`Self::blame`].
    pub fn share(&self, tensors: &mut [&mut Tensor]) -> Result<(), WorldError> {
        no_grad(|| {
            for tensor in tensors {
                let mut copy = tensor.to_device(Device::Cpu).contiguous();
                self.done(|group| group.broadcast(&mut copy, 0))?;
                if self.rank != 0 {
                    tensor.copy_(&copy);
                }
            }
            Ok(())
        })
    }

    /// The sum over all ranks of `values`, which are as many on each.
    ///
    /// # Errors
    /// Those of [`Self::blame`].
    pub fn sum(&self, values: &[f64]) -> Result<Vec<f64>, WorldError> {
        let mut sums = Tensor::from_slice(values);
        self.done(|group| group.all_reduce(&mut sums))?;
        Ok(Vec::try_from(sums).expect("f64, of one dimension"))
    }

    /// Whether `stop` holds on one rank at least: the same answer on all.
    ///
    /// # Errors
    /// Those of [`Self::blame`].
    pub fn any(&self, stop: bool) -> Result<bool, WorldError> {
        Ok(self.sum(&[f64::from(u8::from(stop))])?[0] > 0.0)
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// Those of [`Self::blame`].
    pub fn wait_for_all(&self) -> Result<(), WorldError> {
        self.sum(&[1.0]).map(|_| ())
    }

    /// Compares flat f32 weights of all ranks with those of rank 0 by a sum of their bits for each parameter: a pass over the
    /// buffer, and 8 bytes a parameter between ranks.
    ///
    /// # Errors
    /// [`WorldError::Diverged`], the same on all ranks, and those of [`Self::blame`].
    pub fn check_equal(&self, specs: &[ParameterSpec], flat: &Tensor, step: u64) -> Result<(), WorldError> {
        let sums = no_grad(|| {
            let bits = flat.view_dtype(Kind::Int);
            let named = views(specs, &bits);
            let sums: Vec<Tensor> = in_order(specs, &named).map(|view| view.sum(Kind::Int64)).collect();
            Tensor::stack(&sums, 0).to_device(Device::Cpu)
        });
        let mut of_first = sums.copy();
        self.done(|group| group.broadcast(&mut of_first, 0))?;
        let same = Vec::<bool>::try_from(sums.eq_tensor(&of_first)).expect("one dimension");
        // Which parameter differs first, counted from 1, in the place of this rank.
        let mut differs = vec![0.0; self.world];
        differs[self.rank] = same.iter().position(|same| !same).map_or(0.0, |first| (first + 1) as f64);
        let differs = self.sum(&differs)?;
        match differs.iter().position(|parameter| *parameter > 0.0) {
            None => Ok(()),
            Some(rank) => {
                let parameter = specs[differs[rank] as usize - 1].name.clone();
                Err(WorldError::Diverged { step, rank, parameter })
            }
        }
    }

    /// What became of the others where a collective failed: leaves the group, waits a while for those that still answer, and names the rest.
    pub fn blame(&self, error: &NativeError) -> WorldError {
        // Who waits for this rank notices by it, and says that it is there.
        drop(self.control.take());
        lost(&self.store, [self.rank, self.world], self.timeout, error)
    }

    /// Tells the others why this rank ends, unless one has ended before; they would else find out by their timeout.
    pub fn tell_failure(&self, why: &str) {
        tell(&self.store, format!("rank {} ended: {why}", self.rank));
    }

    fn done(&self, begin: impl FnOnce(&Group) -> Result<Work, NativeError>) -> Result<(), WorldError> {
        let done = match &*self.control.borrow() {
            Some(group) => begin(group).and_then(Work::wait),
            None => return Err(WorldError::Torn("the group was left".to_owned())),
        };
        done.map_err(|error| self.blame(&error))
    }
}

/// Writes why this rank or process ends, unless one has ended before; whoever cannot be told finds out by the timeout.
pub(super) fn tell(store: &Arc<Store>, text: String) {
    let store = Arc::clone(store);
    let _ = within(STORE, "tell", move || {
        if let Ok(false) = store.has(FAILED) {
            let _ = store.set(FAILED, text.as_bytes());
        }
    });
}

/// See [`Peers::blame`].
fn lost(store: &Arc<Store>, [rank, world]: [usize; 2], timeout: Duration, error: &NativeError) -> WorldError {
    let heard = error.to_string();
    let grace = GRACE.min(timeout);
    let asked = Arc::clone(store);
    // Longer than those that it waits for: that the store itself does not answer must be told apart.
    let found = within(grace + STORE, "blame", move || missing(&asked, [rank, world], grace));
    match found {
        Ok(Some(Ok((_, Some(why))))) => WorldError::Failed(why),
        Ok(Some(Ok((missing, None)))) if missing.is_empty() => WorldError::Torn(heard),
        Ok(Some(Ok((missing, None)))) => {
            let names: Vec<String> = missing.iter().map(|rank| format!("rank {rank}")).collect();
            WorldError::Lost { whom: names.join(", "), heard }
        }
        // The store is gone or stands still, and with it the process that holds it.
        _ => WorldError::Lost { whom: "rank 0".to_owned(), heard },
    }
}

/// The ranks that do not say within `grace` that they are here, and why one ended, if it said so.
fn missing(
    store: &Store,
    [rank, world]: [usize; 2],
    grace: Duration,
) -> Result<(Vec<usize>, Option<String>), NativeError> {
    let key = |rank: usize| format!("here/{rank}");
    store.set(&key(rank), b"")?;
    let began = Instant::now();
    loop {
        let mut missing = Vec::new();
        for other in 0..world {
            if !store.has(&key(other))? {
                missing.push(other);
            }
        }
        if store.has(FAILED)? {
            let why = store.get(FAILED, grace)?;
            return Ok((missing, Some(String::from_utf8_lossy(&why).into_owned())));
        }
        if missing.is_empty() || began.elapsed() >= grace {
            return Ok((missing, None));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
