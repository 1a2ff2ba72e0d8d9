"""The records of the load bench in the format of every Python peer, from the shards of this program.

    python load_formats.py DIR

DIR/shards-zstd is the dataset that `cargo bench --bench load` writes; it is read with the twenty lines of Python that the
format's documentation gives, so every format holds the same bytes. Formats that are there already are kept. Beside it:

    npy            REPA's layout: 00000/img-mean-logvar-00000000.npy, f16 [8, 32, 32], 1,000 a folder, and dataset.json
    tar            16 tars of 00000000.npy, the same array, and 00000000.cls
    litdata        chunks of 64 MB, as its documentation advises
    mds            mosaicml-streaming's shards of 64 MB
    memmap         moments.f16, one array [N, 8192], and labels.npy

Needs numpy, zstandard, webdataset, litdata and mosaicml-streaming.
"""

import argparse
import json
import pathlib
import shutil
import sys

import litdata
import numpy as np
import streaming
import webdataset

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "shards" / "golden"))
from read_shard import read_shard

TARS = 16


def records(shard):
    """Yields (moments f16 [8, 32, 32], label) of one shard."""
    _, labels, latents = read_shard(shard)
    moments = np.concatenate([latents["mean"], latents["logvar"]], axis=1)
    yield from zip(moments, labels.tolist())


def every(shards):
    """Yields (id, moments, label) of all shards; the id is the position in the dataset."""
    yield from ((at, *record) for at, record in enumerate(record for shard in shards for record in records(shard)))


def npy(out, shards, _):
    labels = []
    for at, moments, label in every(shards):
        name = f"{at // 1000:05d}/img-mean-logvar-{at:08d}.npy"
        if at % 1000 == 0:
            (out / name).parent.mkdir(parents=True)
        np.save(out / name, moments)
        labels.append([name, label])
    (out / "dataset.json").write_text(json.dumps({"labels": labels}))


def tar(out, shards, count):
    out.mkdir()
    writer = webdataset.ShardWriter(str(out / "%05d.tar"), maxcount=count // TARS, maxsize=1 << 40, verbose=0)
    with writer:
        for at, moments, label in every(shards):
            writer.write({"__key__": f"{at:08d}", "npy": moments, "cls": label})


class ForLitdata:
    """Yields the samples of one shard: litdata's `optimize` calls it with (first id, path)."""

    def __call__(self, shard):
        first, path = shard
        for at, (moments, label) in enumerate(records(path), first):
            yield {"id": at, "mean": moments[:4].copy(), "logvar": moments[4:].copy(), "label": label}


def litdata_chunks(out, shards, count):
    inputs = [(at * (count // len(shards)), str(path)) for at, path in enumerate(shards)]
    litdata.optimize(
        fn=ForLitdata(),
        inputs=inputs,
        output_dir=str(out),
        chunk_bytes="64MB",
        num_workers=1,
        keep_data_ordered=True,
        verbose=False,
    )


def mds(out, shards, _):
    latent = "ndarray:float16:4,32,32"
    columns = {"id": "int", "mean": latent, "logvar": latent, "label": "int"}
    with streaming.MDSWriter(out=str(out), columns=columns) as writer:
        for at, moments, label in every(shards):
            writer.write({"id": at, "mean": moments[:4], "logvar": moments[4:], "label": label})


def memmap(out, shards, count):
    out.mkdir()
    labels = np.empty(count, np.int64)
    with open(out / "moments.f16", "wb") as file:
        for at, moments, label in every(shards):
            file.write(moments.tobytes())
            labels[at] = label
    np.save(out / "labels.npy", labels)


FORMATS = {
    "npy": npy,
    "tar": tar,
    "litdata": litdata_chunks,
    "mds": mds,
    "memmap": memmap,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=pathlib.Path)
    data = parser.parse_args().data.resolve()
    manifest = json.loads((data / "shards-zstd" / "dataset.json").read_text())
    shards = [data / "shards-zstd" / shard["file"] for shard in manifest["shards"]]
    for name, write in FORMATS.items():
        if not (data / name).exists():
            part = data / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            write(part, shards, manifest["samples"])
            part.rename(data / name)


if __name__ == "__main__":
    main()
