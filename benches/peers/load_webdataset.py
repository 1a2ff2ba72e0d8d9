"""webdataset over tars of .npy and .cls.

    python load_webdataset.py --data DIR --workers W ..      (see load_measure.py)

Shuffle: the order of the tars, and a buffer of 1,000 samples, as its documentation has it; with seeds, which makes a
fast-forward come out where a run was. Batches are made in the workers
and stay numpy arrays, as they are by default; torch tensors, which go through shared memory, took more processor time.
Needs webdataset 1.0.2 and torch.
"""

import webdataset

from load_measure import run


def fields(sample):
    key, moments, label = sample
    return moments[:4], moments[4:], label, int(key)


def loader(options):
    tars = sorted(str(path) for path in (options.data / "tar").glob("*.tar"))
    dataset = (
        webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0)
        .shuffle(1000, seed=0)
        .decode()
        .to_tuple("__key__", "npy", "cls")
        .map(fields)
        .batched(options.batch)
    )
    return webdataset.WebLoader(
        dataset, batch_size=None, num_workers=options.workers, prefetch_factor=options.prefetch_factor
    )


if __name__ == "__main__":
    run(loader)
