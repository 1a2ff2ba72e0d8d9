"""mosaicml-streaming over its own shards in a local folder.

    python load_mosaic.py --data DIR --workers W ..      (see load_measure.py)

Shuffle: `py1e`, its default algorithm, within blocks of at least 262,144 samples. The shards are not compressed: compressed
ones are inflated into files before they are read, and are the same from then on. Needs mosaicml-streaming 0.13.0 and torch.
"""

import streaming

from load_measure import run


class Fields:
    """The loader, its batches as tuples."""

    def __init__(self, options):
        # What a process before this one left behind would be taken for a dataset in use.
        streaming.base.util.clean_stale_shared_memory()
        dataset = streaming.StreamingDataset(
            local=str(options.data / "mds"),
            shuffle=True,
            batch_size=options.batch,
            num_canonical_nodes=1,
        )
        self.loader = streaming.StreamingDataLoader(
            dataset,
            batch_size=options.batch,
            num_workers=options.workers,
            persistent_workers=True,
            prefetch_factor=options.prefetch_factor,
        )
        self.state_dict, self.load_state_dict = self.loader.state_dict, self.loader.load_state_dict

    def __iter__(self):
        for batch in self.loader:
            yield batch["mean"], batch["logvar"], batch["label"], batch["id"]


if __name__ == "__main__":
    run(Fields)
