"""torch's DataLoader over REPA's layout: one .npy file a sample, labels in one dataset.json.

    python load_torch.py --data DIR --workers W ..      (see load_measure.py)

Shuffle: `shuffle=True`, a permutation of the whole dataset, from a generator with a seed: what a user does who wants to
fast-forward to where a run was. Persistent workers, no pinned memory (there is no GPU to copy to), the default collate.
Needs torch 2.11.0.
"""

import json

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from load_measure import run


class Latents(Dataset):
    def __init__(self, folder):
        self.folder = str(folder)
        self.labels = json.loads((folder / "dataset.json").read_text())["labels"]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, at):
        name, label = self.labels[at]
        moments = torch.from_numpy(np.load(f"{self.folder}/{name}"))
        return moments[:4], moments[4:], label, at


def loader(options):
    return DataLoader(
        Latents(options.data / "npy"),
        batch_size=options.batch,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
        num_workers=options.workers,
        persistent_workers=True,
        prefetch_factor=options.prefetch_factor,
    )


if __name__ == "__main__":
    run(loader)
