"""A limit for Python, no library: random rows of one mapped array [N, 8192] of f16, gathered into a batch by numpy.

    python load_memmap.py --data DIR ..      (see load_measure.py; one process, --workers does not matter)

Shuffle: a permutation of the whole dataset. One gather makes the batch; mean and logvar are views of it, four batch buffers
take turns. Needs numpy.
"""

import numpy as np

from load_measure import LATENT, run

BUFFERS = 4


class Rows:
    def __init__(self, options):
        self.labels = np.load(options.data / "memmap" / "labels.npy")
        shape = (len(self.labels), 2 * np.prod(LATENT))
        self.moments = np.memmap(options.data / "memmap" / "moments.f16", np.float16, "r", shape=shape)
        self.batch = options.batch
        self.buffers = np.empty((BUFFERS, self.batch, shape[1]), np.float16)

    def __iter__(self):
        order = np.random.default_rng(0).permutation(len(self.labels))
        for number, first in enumerate(range(0, len(order), self.batch)):
            rows = order[first : first + self.batch]
            buffer = self.buffers[number % BUFFERS, : len(rows)]
            # `mode` because the default would gather into a buffer of its own first.
            np.take(self.moments, rows, axis=0, out=buffer, mode="clip")
            moments = buffer.reshape(len(rows), 2, *LATENT)
            yield moments[:, 0], moments[:, 1], self.labels[rows], rows


if __name__ == "__main__":
    run(Rows)
