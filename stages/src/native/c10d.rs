//! c10d, the engine below `torch.distributed`: a [`Store`] of keys that one rank holds and all read, [`Group`]s of
//! ranks that sum and copy tensors, and the [`Exchange`] of gradients during the backward pass.
//!
//! Everything here waits no longer than its timeout, as long as the process that holds the store answers: its clients
//! read from a socket without a deadline.

use std::ffi::{CString, c_char, c_void};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use tch::{Kind, Tensor};

use super::{NativeError, checked, tensor};

unsafe extern "C" {
    fn dualpath_store_open(
        host: *const c_char,
        port: u16,
        serve: bool,
        prefix: *const c_char,
        timeout_ms: i64,
        store: *mut *mut c_void,
        port_found: *mut u16,
    ) -> *mut c_char;
    fn dualpath_store_set(store: *mut c_void, key: *const c_char, bytes: *const u8, len: usize) -> *mut c_char;
    fn dualpath_store_get(
        store: *mut c_void,
        key: *const c_char,
        timeout_ms: i64,
        bytes: *mut *mut u8,
        len: *mut usize,
    ) -> *mut c_char;
    fn dualpath_store_check(store: *mut c_void, key: *const c_char, there: *mut bool) -> *mut c_char;
    fn dualpath_store_free(store: *mut c_void);
    fn dualpath_group_gloo(
        store: *mut c_void,
        rank: i32,
        world: i32,
        interface: *const c_char,
        host: *const c_char,
        timeout_ms: i64,
        group: *mut *mut c_void,
    ) -> *mut c_char;
    fn dualpath_group_nccl(
        library: *const c_char,
        store: *mut c_void,
        rank: i32,
        world: i32,
        device: i32,
        timeout_ms: i64,
        group: *mut *mut c_void,
    ) -> *mut c_char;
    fn dualpath_group_free(group: *mut c_void);
    fn dualpath_group_all_reduce(group: *mut c_void, tensor: tensor, work: *mut *mut c_void) -> *mut c_char;
    fn dualpath_group_broadcast(group: *mut c_void, tensor: tensor, root: i32, work: *mut *mut c_void) -> *mut c_char;
    fn dualpath_work_wait(work: *mut c_void) -> *mut c_char;
    fn dualpath_work_free(work: *mut c_void);
    fn dualpath_exchange_new(
        group: *mut c_void,
        leaves: *const tensor,
        count: usize,
        gradients: tensor,
        bucket: i64,
        exchange: *mut *mut c_void,
    ) -> *mut c_char;
    fn dualpath_exchange_arm(exchange: *mut c_void, add: bool) -> *mut c_char;
    fn dualpath_exchange_finish(exchange: *mut c_void, early: *mut i64, buckets: *mut i64) -> *mut c_char;
    fn dualpath_exchange_free(exchange: *mut c_void);
    fn dualpath_free_message(message: *mut c_char);
}

fn c_text(text: &str) -> Result<CString, NativeError> {
    CString::new(text).map_err(|_| NativeError(format!("{text:?} holds a zero byte")))
}

fn c_number(n: usize) -> Result<i32, NativeError> {
    i32::try_from(n).map_err(|_| NativeError(format!("{n} is too large a number")))
}

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Where a store is, and who holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name or address of the machine that holds it.
    pub host: String,
    /// Its TCP port; 0 lets the one who serves take a free one.
    pub port: u16,
    /// What all keys begin with, so that several can share a store.
    pub prefix: String,
}

/// Keys and values that all ranks share (c10d's `TCPStore`).
pub struct Store {
    raw: *mut c_void,
    port: u16,
}

// SAFETY: libtorch locks the store around every use, and the pointer is freed once, by Drop.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Connects to the store at `place`, or makes it if this process is to `serve` it, within `timeout`.
    ///
    /// # Errors
    /// Nobody answers, or the port is taken.
    pub fn open(place: &Place, serve: bool, timeout: Duration) -> Result<Self, NativeError> {
        let (host, prefix) = (c_text(&place.host)?, c_text(&place.prefix)?);
        let (mut raw, mut port) = (std::ptr::null_mut(), 0);
        // SAFETY: the texts end in a zero byte and are not kept; both results are written before it returns without a
        // message.
        checked(unsafe {
            dualpath_store_open(
                host.as_ptr(),
                place.port,
                serve,
                prefix.as_ptr(),
                ms(timeout),
                &raw mut raw,
                &raw mut port,
            )
        })?;
        Ok(Self { raw, port })
    }

    /// The port that it is at.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Gives a key a value.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), NativeError> {
        let key = c_text(key)?;
        // SAFETY: the store lives, and neither key nor value is kept.
        checked(unsafe { dualpath_store_set(self.raw, key.as_ptr(), value.as_ptr(), value.len()) })
    }

    /// The value of a key, once it has one.
    ///
    /// # Errors
    /// It has none within `timeout`, or the store does not answer.
    pub fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, NativeError> {
        let key = c_text(key)?;
        let (mut bytes, mut len) = (std::ptr::null_mut(), 0);
        // SAFETY: as above, and both results are written before it returns without a message.
        checked(unsafe { dualpath_store_get(self.raw, key.as_ptr(), ms(timeout), &raw mut bytes, &raw mut len) })?;
        // SAFETY: the callee allocated `len` bytes for us.
        let value = unsafe { std::slice::from_raw_parts(bytes, len) }.to_vec();
        // SAFETY: they came from malloc, as messages do, and are not used again.
        unsafe { dualpath_free_message(bytes.cast()) };
        Ok(value)
    }

    /// Whether a key has a value; does not wait for one.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn has(&self, key: &str) -> Result<bool, NativeError> {
        let key = c_text(key)?;
        let mut there = false;
        // SAFETY: as above.
        checked(unsafe { dualpath_store_check(self.raw, key.as_ptr(), &raw mut there) })?;
        Ok(there)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the pointer came from dualpath_store_open and is not used again.
        unsafe { dualpath_store_free(self.raw) };
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("port", &self.port).finish_non_exhaustive()
    }
}

/// Ranks that reduce and copy tensors together. All of them call the same in the same order.
pub struct Group(*mut c_void);

// SAFETY: a group may be used from any thread, and is used from one at a time; it is freed once, by Drop.
unsafe impl Send for Group {}

impl Group {
    /// A Gloo group, for tensors on the CPU; waits until all ranks are there. `interface` names the network interface;
    /// without one, `host` is the address that is bound to, and without either that which the machine's own name
    /// resolves to.
    ///
    /// # Errors
    /// Not all ranks come within `timeout`, which is also that of every collective.
    pub fn gloo(
        store: &Store,
        [rank, world]: [usize; 2],
        interface: &str,
        host: &str,
        timeout: Duration,
    ) -> Result<Self, NativeError> {
        let (interface, host) = (c_text(interface)?, c_text(host)?);
        let mut group = std::ptr::null_mut();
        // SAFETY: the store lives, the texts are not kept, and the group is written before it returns without a message.
        checked(unsafe {
            dualpath_group_gloo(
                store.raw,
                c_number(rank)?,
                c_number(world)?,
                interface.as_ptr(),
                host.as_ptr(),
                ms(timeout),
                &raw mut group,
            )
        })?;
        Ok(Self(group))
    }

    /// An NCCL group, for tensors on GPU number `device`, by the shared object at `library` (`make nccl`). The CUDA
    /// side of libtorch must be loaded. The ranks meet at the first collective, and whoever waits for one waits on the
    /// host, so that a rank that is lost is noticed.
    ///
    /// # Errors
    /// The library cannot be loaded, or there is no such GPU.
    pub fn nccl(
        library: &Path,
        store: &Store,
        [rank, world]: [usize; 2],
        device: usize,
        timeout: Duration,
    ) -> Result<Self, NativeError> {
        let library = c_text(&library.to_string_lossy())?;
        let mut group = std::ptr::null_mut();
        // SAFETY: the store lives, the path is not kept, and the group is written before it returns without a message.
        checked(unsafe {
            dualpath_group_nccl(
                library.as_ptr(),
                store.raw,
                c_number(rank)?,
                c_number(world)?,
                c_number(device)?,
                ms(timeout),
                &raw mut group,
            )
        })?;
        Ok(Self(group))
    }

    /// Begins to sum `tensor` over the ranks, in place.
    ///
    /// # Errors
    /// The tensor is none that the group takes: not contiguous, or on another device.
    pub fn all_reduce(&self, tensor: &mut Tensor) -> Result<Work, NativeError> {
        let mut work = std::ptr::null_mut();
        // SAFETY: group and tensor live; the work counts its own reference to the tensor.
        checked(unsafe { dualpath_group_all_reduce(self.0, tensor.as_mut_ptr(), &raw mut work) })?;
        Ok(Work(work))
    }

    /// Begins to copy the tensor of the rank `root` into that of all others.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    pub fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<Work, NativeError> {
        let root = i32::try_from(root).map_err(|_| NativeError(format!("there is no rank {root}")))?;
        let mut work = std::ptr::null_mut();
        // SAFETY: as above.
        checked(unsafe { dualpath_group_broadcast(self.0, tensor.as_mut_ptr(), root, &raw mut work) })?;
        Ok(Work(work))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: the pointer came from one of the functions above and is not used again.
        unsafe { dualpath_group_free(self.0) };
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").finish_non_exhaustive()
    }
}

/// A collective under way.
#[must_use = "the tensor is at rest only after it was waited for"]
pub struct Work(*mut c_void);

// SAFETY: as for Group.
unsafe impl Send for Work {}

impl Work {
    /// Waits for its end.
    ///
    /// # Errors
    /// Another rank is gone, or did not come within the timeout of the group. The group is of no use after it.
    pub fn wait(self) -> Result<(), NativeError> {
        let work = std::mem::ManuallyDrop::new(self);
        // SAFETY: the callee takes the pointer and frees it, and Drop does not run.
        checked(unsafe { dualpath_work_wait(work.0) })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: the pointer was not given away: only `wait` does, which skips this.
        unsafe { dualpath_work_free(self.0) };
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").finish_non_exhaustive()
    }
}

/// Sums gradients over the ranks of a group, a bucket as soon as the backward pass has filled it.
pub struct Exchange {
    raw: *mut c_void,
    /// What the callee calls collectives of.
    _group: Group,
}

// SAFETY: as for Group; hooks run inside backward passes that its owner begins and waits for.
unsafe impl Send for Exchange {}

impl Exchange {
    /// For the flat f32 `gradients` of `leaves`, which are in the order of the buffer and of any dtype. `bucket`:
    /// values of a bucket, at least.
    ///
    /// # Errors
    /// The leaves are not those of the buffer.
    pub fn new(group: Group, leaves: &[&Tensor], gradients: &mut Tensor, bucket: i64) -> Result<Self, NativeError> {
        if gradients.kind() != Kind::Float {
            return Err(NativeError(format!("gradients are exchanged in f32, not in {:?}", gradients.kind())));
        }
        let pointers: Vec<tensor> = leaves.iter().map(|leaf| leaf.as_ptr().cast_mut()).collect();
        let mut raw = std::ptr::null_mut();
        // SAFETY: all are live tensors to which the callee counts its own references, and `raw` is written before it
        // returns without a message.
        checked(unsafe {
            dualpath_exchange_new(
                group.0,
                pointers.as_ptr(),
                pointers.len(),
                gradients.as_mut_ptr(),
                bucket,
                &raw mut raw,
            )
        })?;
        Ok(Self { raw, _group: group })
    }

    /// The next backward pass is the last of the step. `add`: the buffer holds the gradients of passes before.
    ///
    /// # Errors
    /// None that are known.
    pub fn arm(&mut self, add: bool) -> Result<(), NativeError> {
        // SAFETY: the exchange lives.
        checked(unsafe { dualpath_exchange_arm(self.raw, add) })
    }

    /// Waits until all gradients are summed.
    ///
    /// # Errors
    /// Another rank is gone, or did not come within the timeout of the group.
    pub fn finish(&mut self) -> Result<Sent, NativeError> {
        let (mut early, mut buckets) = (0, 0);
        // SAFETY: the exchange lives, and both numbers are written before it returns without a message.
        checked(unsafe { dualpath_exchange_finish(self.raw, &raw mut early, &raw mut buckets) })?;
        let [early, buckets] = [early, buckets].map(|count| usize::try_from(count).unwrap_or(0));
        Ok(Sent { early, buckets })
    }
}

/// How gradients were exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Buckets that were sent during the backward pass.
    pub early: usize,
    /// Buckets in all.
    pub buckets: usize,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // SAFETY: the pointer came from dualpath_exchange_new and is not used again.
        unsafe { dualpath_exchange_free(self.raw) };
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
