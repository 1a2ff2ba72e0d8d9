//! How often the host asks for a value of a tensor: a training step never does, or a GPU would stand still meanwhile.

use std::cell::Cell;

use super::{NativeError, checked, dualpath_start_counting_reads, dualpath_stop_counting_reads};

/// Counting stops, on the thread where it began, even if what is counted panics.
struct Counting<'a> {
    handle: u64,
    count: &'a Cell<u64>,
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        // SAFETY: counting began on this thread, and a handle is given back once.
        self.count.set(unsafe { dualpath_stop_counting_reads(self.handle) }.cast_unsigned());
    }
}

/// What `body` returns, and the number of operations in it that brought a value of a tensor to the host (`item`, `nonzero`,
/// `equal` ..), also where the CPU is the device. Copies of whole tensors are not counted, nor what other threads do, but
/// for autograd's. One count at a time: another waits.
///
/// # Errors
/// libtorch's, before `body` runs.
pub fn reads_during<T>(body: impl FnOnce() -> T) -> Result<(T, u64), NativeError> {
    let mut handle = 0;
    // SAFETY: `handle` is written before the call returns without a message.
    checked(unsafe { dualpath_start_counting_reads(&raw mut handle) })?;
    let count = Cell::new(0);
    let result = {
        let _counting = Counting { handle, count: &count };
        body()
    };
    Ok((result, count.get()))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn what_reads_a_value_is_counted_and_arithmetic_is_not() {
        let leaf = Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let arithmetic = || (&leaf * 2.0).sum(Kind::Float).backward();
        assert_eq!(reads_during(arithmetic).unwrap().1, 0);
        assert_eq!(reads_during(|| leaf.sum(Kind::Float).double_value(&[])).unwrap(), (3.0, 1));
        assert_eq!(reads_during(|| leaf.nonzero().size()).unwrap(), (vec![3, 1], 1));
    }
}
