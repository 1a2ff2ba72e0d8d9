//! What the ranks of a run tell each other while they train, besides the gradients.

use std::cell::RefCell;
use std::time::Duration;

use tch::{Device, Kind, Tensor, no_grad};

use super::WorldError;
use super::board::{Board, Seen, Wanted, bounded, names};
use super::launch::Launch;
use crate::device::nccl_library;
use crate::method::layout::ParameterSpec;
use crate::method::parameters::{in_order, views};
use crate::native::NativeError;
use crate::native::c10d::{Group, Place, Store, Work};

/// All ranks are about to join.
const JOINED: &str = "joined";

/// What one rank needs to find the others; sent to the thread that trains.
#[derive(Debug, Clone)]
pub struct Joining {
    pub(super) launch: Launch,
    pub(super) board: Board,
    /// This rank, from 0.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
    /// How many a process has.
    pub(super) devices: usize,
    /// Gradients are exchanged in buckets of so many values, at least.
    pub bucket: i64,
    pub(super) timeout: Duration,
}

/// The other ranks, as one rank sees them. Owned by the thread of its rank.
#[derive(Debug)]
pub struct Peers {
    joining: Joining,
    /// Gloo, whatever the gradients go through: what goes through it is on the CPU and small.
    /// None once something was lost.
    control: RefCell<Option<Group>>,
}

impl Joining {
    /// Waits for all ranks. The second result is a group of their own for gradients on `device`.
    ///
    /// # Errors
    /// [`WorldError::Late`], [`WorldError::Failed`] or [`WorldError::Lost`] where not all come.
    pub fn join(&self, device: Device) -> Result<(Peers, Group), WorldError> {
        let Self { rank, timeout, board, .. } = self;
        board.set(&format!("joined/{rank}"), b"")?;
        // Connecting would neither hear that a rank has failed nor say which of them does not come. One alone looks at all of them:
        // the store of a thousand ranks would be asked a million times.
        let who = format!("rank {rank}");
        if *rank == 0 {
            let all = board.hear(&who, &self.of_ranks("joined"), *timeout, None).and_then(|_| board.set(JOINED, b""));
            all.inspect_err(|error| board.tell_failure(&format!("{who} ended: {error}"), None))?;
        } else {
            let all = Wanted { key: JOINED.to_owned(), process: 0, whom: "rank 0".to_owned() };
            // Rank 0 says first who does not come.
            board.hear(&who, &[all], *timeout + board.silence(), None)?;
        }
        let connect = |work: fn(&Self, Device) -> Result<Group, NativeError>| {
            let this = self.clone();
            bounded(*timeout, move || work(&this, device)).map_err(|error| self.lost(&error))
        };
        let control = connect(|this, _| this.gloo("/control"))?;
        let gradients = match device {
            Device::Cuda(_) => connect(Self::nccl)?,
            _ => connect(|this, _| this.gloo("/gradients"))?,
        };
        Ok((Peers { joining: self.clone(), control: RefCell::new(Some(control)) }, gradients))
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

    fn nccl(&self, device: Device) -> Result<Group, NativeError> {
        let library = nccl_library().map_err(|error| NativeError(error.to_string()))?;
        let Device::Cuda(gpu) = device else { return Err(NativeError(format!("{device:?} is no GPU"))) };
        let group = Group::nccl(&library, &self.store("/gradients")?, [self.rank, self.world], gpu, self.timeout)?;
        // The ranks meet here, and not in the middle of the first backward pass.
        let mut here = Tensor::ones([1], (Kind::Float, device));
        group.all_reduce(&mut here)?.wait()?;
        Ok(group)
    }

    /// A key of each rank.
    fn of_ranks(&self, key: &str) -> Vec<Wanted> {
        let of =
            |rank| Wanted { key: format!("{key}/{rank}"), process: rank / self.devices, whom: format!("rank {rank}") };
        (0..self.world).map(of).collect()
    }

    /// See [`Peers::blame`].
    fn lost(&self, error: &NativeError) -> WorldError {
        let heard = error.to_string();
        let whom = self.board.set(&format!("here/{}", self.rank), b"").and_then(|()| {
            let ranks = self.of_ranks("here");
            let all_known = |seen: &Seen| seen.failed.is_some() || seen.silent.len() == seen.missing.len();
            let seen = self.board.watch(&ranks, self.timeout, all_known)?;
            if seen.failed.is_some() || !seen.missing.is_empty() {
                return Ok((seen.failed, names(&ranks, &seen.missing)));
            }
            // All have been here, and some may have ended since: this rank may have stood still meanwhile.
            let stay = self.of_ranks("stays");
            let any_gone = |seen: &Seen| seen.failed.is_some() || !seen.silent.is_empty();
            let seen = self.board.watch(&stay, 2 * self.board.silence(), any_gone)?;
            Ok((seen.failed, names(&stay, &seen.silent)))
        });
        match whom {
            Ok((Some(why), _)) => WorldError::Failed(why),
            Ok((None, whom)) if whom.is_empty() => WorldError::Torn(heard),
            Ok((None, whom)) => WorldError::Lost { whom, heard },
            // The store is gone or stands still, and with it the process that holds it.
            Err(_) => WorldError::Lost { whom: "rank 0".to_owned(), heard },
        }
    }
}

impl Peers {
    /// This rank.
    pub fn rank(&self) -> usize {
        self.joining.rank
    }

    /// How many ranks there are.
    pub fn world(&self) -> usize {
        self.joining.world
    }

    /// Copies tensors of rank 0 to all others, in place, whatever device they are on.
    ///
    /// # Errors
    /// [`WorldError::Collective`].
    pub fn share(&self, tensors: &mut [&mut Tensor]) -> Result<(), WorldError> {
        no_grad(|| {
            for tensor in tensors {
                let mut copy = tensor.to_device(Device::Cpu).contiguous();
                self.done(|group| group.broadcast(&mut copy, 0))?;
                if self.rank() != 0 {
                    tensor.copy_(&copy);
                }
            }
            Ok(())
        })
    }

    /// The sum over all ranks of `values`, which are as many on each.
    ///
    /// # Errors
    /// [`WorldError::Collective`].
    pub fn sum(&self, values: &[f64]) -> Result<Vec<f64>, WorldError> {
        let mut sums = Tensor::from_slice(values);
        self.done(|group| group.all_reduce(&mut sums))?;
        Ok(Vec::try_from(sums).expect("f64, of one dimension"))
    }

    /// Whether `stop` holds on one rank at least: the same answer on all.
    ///
    /// # Errors
    /// [`WorldError::Collective`].
    pub fn any(&self, stop: bool) -> Result<bool, WorldError> {
        Ok(self.sum(&[f64::from(u8::from(stop))])?[0] > 0.0)
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// [`WorldError::Collective`].
    pub fn wait_for_all(&self) -> Result<(), WorldError> {
        self.sum(&[1.0]).map(|_| ())
    }

    /// Compares flat f32 buffers of all ranks with those of rank 0, parameter by parameter, by a sum of the bits of each value times an
    /// odd number of its place, modulo 2^64: one value that differs always shows, and so do two that are exchanged. A pass over the
    /// buffers, and 8 bytes a parameter of each between ranks. `buffers`: each with a word that stands before the parameter's name.
    ///
    /// # Errors
    /// [`WorldError::Diverged`], the same on all ranks, and [`WorldError::Collective`].
    pub fn check_equal(
        &self,
        specs: &[ParameterSpec],
        buffers: &[(&str, &Tensor)],
        step: u64,
    ) -> Result<(), WorldError> {
        let sums = no_grad(|| {
            let of_buffer = |(_, flat): &(&str, &Tensor)| {
                let bits = flat.view_dtype(Kind::Int);
                let named = views(specs, &bits);
                in_order(specs, &named).map(place_weighted_sum).collect::<Vec<_>>()
            };
            let sums: Vec<Tensor> = buffers.iter().flat_map(of_buffer).collect();
            Tensor::stack(&sums, 0).to_device(Device::Cpu)
        });
        let mut of_first = sums.copy();
        self.done(|group| group.broadcast(&mut of_first, 0))?;
        let same = Vec::<bool>::try_from(sums.eq_tensor(&of_first)).expect("one dimension");
        // Which parameter differs first, counted from 1, in the place of this rank.
        let mut differs = vec![0.0; self.world()];
        differs[self.rank()] = same.iter().position(|same| !same).map_or(0.0, |first| (first + 1) as f64);
        let differs = self.sum(&differs)?;
        match differs.iter().position(|parameter| *parameter > 0.0) {
            None => Ok(()),
            Some(rank) => {
                let first = differs[rank] as usize - 1;
                let parameter = format!("{}{}", buffers[first / specs.len()].0, specs[first % specs.len()].name);
                Err(WorldError::Diverged { step, rank, parameter })
            }
        }
    }

    /// What became of the others where a collective failed; any other error is as it is. Leaves the group, says that this rank is there,
    /// and waits until each other says so too or its process gives no sign of life; those are lost. A rank that still computes is
    /// waited for, no longer than the timeout.
    pub fn blame(&self, error: WorldError) -> WorldError {
        let WorldError::Collective(error) = error else { return error };
        // Who waits for this rank notices by it, and says that it is there.
        drop(self.control.take());
        self.joining.lost(&error)
    }

    /// Tells the others why this rank ends, unless one has ended before; they would else find out by their timeout.
    pub fn tell_failure(&self, why: &str) {
        self.joining.board.tell_failure(&format!("rank {} ended: {why}", self.rank()), None);
    }

    fn done(&self, begin: impl FnOnce(&Group) -> Result<Work, NativeError>) -> Result<(), WorldError> {
        match &*self.control.borrow() {
            Some(group) => begin(group).and_then(Work::wait).map_err(WorldError::Collective),
            None => Err(WorldError::Torn("the group was left".to_owned())),
        }
    }
}

/// The sum of integers, each times 2 i + 1 where i is its place, modulo 2^64.
fn place_weighted_sum(bits: &Tensor) -> Tensor {
    let odd = Tensor::arange_start_step(1, 2 * bits.numel() as i64, 2, (Kind::Int64, bits.device()));
    (bits.flatten(0, -1).to_kind(Kind::Int64) * odd).sum(Kind::Int64)
}
