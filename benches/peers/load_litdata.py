"""litdata over its own chunks in a local folder.

    python load_litdata.py --data DIR --workers W ..      (see load_measure.py)

Shuffle: `shuffle=True`, the order of the chunks and the order in each. The chunks are not compressed: with zstd it took a
fifth to a third more processor time. Needs litdata 0.2.76 and torch.
"""

import litdata

from load_measure import run


class Fields:
    """The loader, its batches as tuples."""

    def __init__(self, options):
        dataset = litdata.StreamingDataset(str(options.data / "litdata"), shuffle=True)
        self.loader = litdata.StreamingDataLoader(
            dataset,
            batch_size=options.batch,
            num_workers=options.workers,
            prefetch_factor=options.prefetch_factor,
        )
        self.state_dict, self.load_state_dict = self.loader.state_dict, self.loader.load_state_dict

    def __iter__(self):
        for batch in self.loader:
            yield batch["mean"], batch["logvar"], batch["label"], batch["id"]


if __name__ == "__main__":
    run(Fields)
