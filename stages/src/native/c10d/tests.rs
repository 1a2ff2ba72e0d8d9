use std::sync::Barrier;
use std::thread;

use super::*;
use crate::method::random;
use crate::native::take_gradient;
use tch::Device;

const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs the ranks of a world of `world` as threads and returns what they return, in their order.
fn ranks<T: Send>(world: usize, run: impl Fn(usize, Group) -> T + Sync) -> Vec<T> {
    let place = |port| Place { host: "127.0.0.1".into(), port, prefix: "test".into() };
    let served = Store::open(&place(0), true, TIMEOUT).unwrap();
    let port = served.port();
    thread::scope(|scope| {
        let join = |rank| {
            let run = &run;
            scope.spawn(move || {
                let store = Store::open(&place(port), false, TIMEOUT).unwrap();
                run(rank, Group::gloo(&store, [rank, world], "", "127.0.0.1", TIMEOUT).unwrap())
            })
        };
        let threads: Vec<_> = (0..world).map(join).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// libtorch notes collectives in a map of all groups of a process, which it does not lock; c10d.cpp keeps it from that.
#[test]
fn groups_of_several_threads_begin_at_once() {
    let place = Place { host: "127.0.0.1".into(), port: 0, prefix: "alone".into() };
    let store = Store::open(&place, true, TIMEOUT).unwrap();
    let all_there = Barrier::new(8);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let group = Group::gloo(&store, [0, 1], "", "127.0.0.1", TIMEOUT).unwrap();
                    let mut one = Tensor::ones([1], (Kind::Float, Device::Cpu));
                    all_there.wait();
                    group.all_reduce(&mut one).unwrap().wait().unwrap();
                    assert_eq!(one.double_value(&[0]), 1.0);
                }
            });
        }
    });
}

#[test]
fn a_store_keeps_what_it_is_told_and_waits_no_longer_than_asked() {
    let place = |port| Place { host: "127.0.0.1".into(), port, prefix: "a".into() };
    let served = Store::open(&place(0), true, TIMEOUT).unwrap();
    let other = Store::open(&place(served.port()), false, TIMEOUT).unwrap();
    assert!(!other.has("key").unwrap());
    served.set("key", b"a \0 value").unwrap();
    // `get` waits for it: nobody acknowledges what is set, and each has a connection of its own.
    assert_eq!(other.get("key", TIMEOUT).unwrap(), b"a \0 value");
    assert!(other.has("key").unwrap());
    let began = std::time::Instant::now();
    assert!(other.get("never", Duration::from_millis(50)).is_err());
    assert!(began.elapsed() < TIMEOUT);
}

/// `make test-nccl`.
#[test]
#[ignore = "needs a full torch and the shared object of `make nccl`"]
fn nccl_sums_on_a_gpu_or_says_that_there_is_none() {
    use crate::device::{nccl_library, parse_devices};
    let library = nccl_library().unwrap();
    // Loads the CUDA side of libtorch, whether or not there is a device.
    let devices = parse_devices("auto").unwrap();
    let place = Place { host: "127.0.0.1".into(), port: 0, prefix: "test".into() };
    let store = Store::open(&place, true, TIMEOUT).unwrap();
    let group = Group::nccl(&library, &store, [0, 1], 0, TIMEOUT);
    match devices[0] {
        Device::Cuda(_) => {
            let mut values = Tensor::from_slice(&[1.0f32, 2.0]).to_device(devices[0]);
            group.unwrap().all_reduce(&mut values).unwrap().wait().unwrap();
            assert_eq!(Vec::<f32>::try_from(values.to_device(Device::Cpu)).unwrap(), [1.0, 2.0]);
        }
        _ => {
            let error = group.unwrap_err().to_string();
            assert!(error.contains("no GPUs found"), "{error}");
        }
    }
}

#[test]
fn sums_and_copies_reach_every_rank() {
    let found = ranks(3, |rank, group| {
        let mut values = Tensor::from_slice(&[1.0f32, rank as f32]);
        group.all_reduce(&mut values).unwrap().wait().unwrap();
        let mut copied = Tensor::from_slice(&[rank as i64, 7]);
        group.broadcast(&mut copied, 2).unwrap().wait().unwrap();
        (Vec::<f32>::try_from(values).unwrap(), Vec::<i64>::try_from(copied).unwrap())
    });
    assert_eq!(found, vec![(vec![3.0, 3.0], vec![2, 7]); 3]);
}

#[test]
fn a_rank_that_never_comes_is_an_error_within_the_timeout() {
    let place = Place { host: "127.0.0.1".into(), port: 0, prefix: "alone".into() };
    let store = Store::open(&place, true, TIMEOUT).unwrap();
    assert!(Group::gloo(&store, [0, 2], "", "127.0.0.1", Duration::from_millis(200)).is_err());
}

/// Four parameters, of which one gets no gradient; two backward passes, of which the second is exchanged. What arrives
/// is the sum over ranks of what each would have alone, whatever the size of the buckets and the dtype.
#[test]
fn gradients_of_all_passes_are_summed_once() {
    let lens = [5i64, 3, 4, 6];
    for (kind, bucket, early) in
        [(Kind::Float, 1, 2), (Kind::Float, 7, 1), (Kind::Float, 100, 0), (Kind::BFloat16, 4, 2)]
    {
        let found = ranks(2, |rank, group| {
            let mut gradients = Tensor::zeros([18], (Kind::Float, Device::Cpu));
            let leaves = lens.map(|len| Tensor::ones([len], (kind, Device::Cpu)).set_requires_grad(true));
            let leaves: Vec<&Tensor> = leaves.iter().collect();
            let mut exchange = Exchange::new(group, &leaves, &mut gradients, bucket).unwrap();
            let mut early = 0;
            for pass in 0..2u64 {
                let factors = random::normal(&[18], Device::Cpu, rank as u64 * 2 + pass).unwrap();
                if pass == 1 {
                    exchange.arm(true).unwrap();
                }
                // The second parameter takes no part.
                let parts = [(0, 0), (2, 8), (3, 12)].map(|(leaf, start): (usize, i64)| {
                    (leaves[leaf] * factors.narrow(0, start, lens[leaf])).sum(Kind::Float)
                });
                (&parts[0] + &parts[1] + &parts[2]).backward();
                if pass == 1 {
                    early = exchange.finish().unwrap().early;
                } else {
                    let views = gradients.split_with_sizes(lens, 0);
                    leaves.iter().zip(views).for_each(|(leaf, mut view)| take_gradient(leaf, &mut view, true).unwrap());
                }
            }
            (gradients, early)
        });
        let all: Tensor = (0..4).map(|seed| random::normal(&[18], Device::Cpu, seed).unwrap()).sum();
        let _ = all.narrow(0, 5, 3).zero_();
        for (gradients, sent) in found {
            assert_eq!(sent, early, "{kind:?} {bucket}");
            let tolerance = if kind == Kind::Float { 1e-6 } else { 0.05 };
            assert!((gradients - &all).abs().max().double_value(&[]) < tolerance, "{kind:?} {bucket}");
        }
    }
}
