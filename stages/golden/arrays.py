"""arrays.npz, arrays_deflated.npz: arrays as numpy writes them, for the reader of such files."""

import zipfile

import numpy as np

from golden_file import FOLDER


def arrays():
    pixels = np.arange(3 * 2 * 4 * 3, dtype=np.uint8).reshape(3, 2, 4, 3)
    floats = np.arange(6, dtype=np.float32).reshape(2, 3) / 4 - 0.5
    values = {
        "arr_0": pixels,
        "mu": floats,
        "sigma": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "labels": np.array([3, -1, 2**40]),
        "objects": np.array([{"a": 1}], dtype=object),
        "half": np.zeros(2, np.float16),
    }
    for name, save in (("arrays.npz", np.savez), ("arrays_deflated.npz", np.savez_compressed)):
        save(FOLDER / name, **values)
        again = np.load(FOLDER / name)
        assert all(np.array_equal(again[key], values[key]) for key in values if key != "objects")
        # The time of writing is in the archive: a fixed one makes the same bytes each time.
        with zipfile.ZipFile(FOLDER / name) as archive:
            members = [(info.filename, info.compress_type, archive.read(info)) for info in archive.infolist()]
        with zipfile.ZipFile(FOLDER / name, "w") as archive:
            for filename, method, data in members:
                archive.writestr(zipfile.ZipInfo(filename), data, compress_type=method)
        print(f"{name:24} {(FOLDER / name).stat().st_size:6} bytes")
