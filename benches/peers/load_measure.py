"""What every load peer does alike: arguments, the measured loop, the check, one JSON object.

A peer is a file `load_X.py` that calls `run(loader)`. `loader(options)` makes the library's own loader: an object whose
iterator gives batches `(mean, logvar, label, id)`: f16 [B, 4, 32, 32] twice, i64 [B] twice, torch tensors (numpy arrays
where the peer has no torch), for one epoch. Where the object has `state_dict` and `load_state_dict`, resuming uses them.

    python load_X.py --data DIR --workers W --batch 256 --consumer-ms MS --batches K [--check] [--resume-at B]
                     [--prefetch-factor 2]

DIR is what `load_formats.py` made. Workers are processes, and each loads `--prefetch-factor` batches ahead, as torch's
DataLoader has it. Prints one JSON object:

    samples        in the batches after the first
    first_batch_ms from the construction of the loader to its first batch; imports are over by then
    wall_s         from the first batch to the last
    samples_per_s  samples / wall_s
    wait_ms        p50, p99, p999, max, total, share (of wall_s): time inside `next()`, the first batch not counted
    cpu_s, cpu_s_per_million    user and system time of this process and all below it, between first batch and last
    peak_rss_bytes the largest resident sets of this process and of all below it, summed: pages that they share count
                   each time
    check          with --check, over one whole epoch instead of K batches: ids (samples seen), distinct (different ids),
                   sum (mod 2^64, over samples: xxh3_64 of id u64, mean, logvar, label i64, little-endian; 16 hexadecimal
                   digits)
    resume         with --resume-at: kind ("state" or "fast-forward": B batches are loaded and thrown away), fresh_ms and
                   resumed_ms to the first batch, in one process after B batches of a first loader; with --check also
                   ids and distinct of the first loader's B batches and the rest after the resume together

The consumer sleeps MS milliseconds after each batch, as a step on a GPU would take; 0 does not sleep. Needs numpy and
xxhash.
"""

import argparse
import json
import os
import pathlib
import time

import numpy as np
import xxhash

LATENT = (4, 32, 32)


def run(loader):
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--consumer-ms", type=float, default=0)
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--resume-at", type=int, default=0)
    parser.add_argument("--prefetch-factor", type=int, default=2)
    options = parser.parse_args()
    if options.resume_at:
        answer = resumed(loader, options)
    elif options.check:
        answer = {"check": checked(batch for batch in loader(options))}
    else:
        answer = timed(loader, options)
    print(json.dumps(answer), flush=True)


def timed(loader, options):
    begun = time.perf_counter()
    source = loader(options)
    batches = iter(source)
    first = next(batches)
    first_batch_ms = (time.perf_counter() - begun) * 1e3
    inspect(first, options.batch)
    del first

    waits, samples, pause = [], 0, options.consumer_ms / 1e3
    cpu, start = cpu_seconds(), time.perf_counter()
    for _ in range(options.batches - 1):
        before = time.perf_counter_ns()
        batch = next(batches, None)
        if batch is None:  # the next epoch
            batches = iter(source)
            batch = next(batches)
        waits.append(time.perf_counter_ns() - before)
        samples += len(batch[2])
        if pause:
            time.sleep(pause)
    wall = time.perf_counter() - start
    cpu = cpu_seconds() - cpu

    waits = np.array(waits) / 1e6
    p50, p99, p999 = np.percentile(waits, [50, 99, 99.9], method="inverted_cdf")
    wait = {"p50": p50, "p99": p99, "p999": p999, "max": waits.max(), "total": waits.sum()}
    return {
        "samples": samples,
        "first_batch_ms": first_batch_ms,
        "wall_s": wall,
        "samples_per_s": samples / wall,
        "wait_ms": wait | {"share": waits.sum() / 1e3 / wall},
        "cpu_s": cpu,
        "cpu_s_per_million": cpu / samples * 1e6,
        "peak_rss_bytes": sum(peak_rss(process) for process in tree()),
    }


def inspect(batch, size):
    """Refuses a batch that is not what all peers have to give."""
    mean, logvar, label, number = batch
    for latents in (mean, logvar):
        assert tuple(latents.shape) == (size, *LATENT), f"latents of {tuple(latents.shape)}"
        assert str(latents.dtype).endswith("float16"), f"latents in {latents.dtype}"
    for numbers in (label, number):
        assert tuple(numbers.shape) == (size,) and str(numbers.dtype).endswith("int64"), f"{numbers.dtype} labels or ids"


def checked(batches, seen=()):
    ids, total = list(seen), 0
    for mean, logvar, label, number in batches:
        mean, logvar, label, number = (np.asarray(field) for field in (mean, logvar, label, number))
        ids.extend(number.tolist())
        for at in range(len(label)):
            digest = xxhash.xxh3_64(number[at].astype("<u8").tobytes())
            digest.update(mean[at].tobytes())
            digest.update(logvar[at].tobytes())
            digest.update(label[at].astype("<i8").tobytes())
            total += digest.intdigest()
    return {"ids": len(ids), "distinct": len(set(ids)), "sum": f"{total % 2**64:016x}"}


def resumed(loader, options):
    source = loader(options)
    batches = iter(source)
    head = [number for _ in range(options.resume_at) for number in next(batches)[3].tolist()]
    has_state = hasattr(source, "load_state_dict")
    state = source.state_dict() if has_state else None
    del batches, source

    begun = time.perf_counter()
    source = loader(options)
    batches = iter(source)
    next(batches)
    fresh_ms = (time.perf_counter() - begun) * 1e3
    del batches, source

    begun = time.perf_counter()
    source = loader(options)
    if has_state:
        source.load_state_dict(state)
    batches = iter(source)
    if not has_state:
        for _ in range(options.resume_at):
            next(batches)
    first = next(batches)
    resumed_ms = (time.perf_counter() - begun) * 1e3
    answer = {"kind": "state" if has_state else "fast-forward", "fresh_ms": fresh_ms, "resumed_ms": resumed_ms}
    if options.check:

        def rest():
            yield first
            yield from batches

        whole = checked(rest(), head)
        answer |= {"ids": whole["ids"], "distinct": whole["distinct"]}
    return {"resume": answer}


def tree():
    """This process and all below it."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(stat(entry)[1])
            except (FileNotFoundError, ProcessLookupError):
                pass  # it has ended
    found = [os.getpid()]
    for process in found:
        found.extend(child for child, parent in parents.items() if parent == process)
    return found


def stat(process):
    """Fields of /proc/PID/stat from the third on; the second is a name that may hold spaces."""
    return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds():
    """User and system time of the tree, with that of children which have ended."""
    ticks = sum(int(field) for process in tree() for field in stat(process)[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_rss(process):
    for line in pathlib.Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
