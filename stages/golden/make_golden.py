"""Make the golden files of this folder with independent Python implementations.

    python make_golden.py             every file
    python make_golden.py vae crop    some of them

The README beside it says what each key holds. Random weights and inputs come from NumPy's PCG64 and are rounded to
f32; every output is then computed in f64 from those f32 values and rounded once, so that a golden is the exact
answer and neither the CPU kind nor the thread count of the machine that made it shows. Every case is checked by a
second computation before it is written.
"""

import importlib.metadata
import sys

import torch

import golden_file
from arrays import arrays
from autoencoder import vae
from crop import crop
from evaluation import inception, metrics
from objective import block, dupa
from optimiser import adamw
from probing import probing
from sampler import sampler
from samplers import samplers
from variants import variants
from weights import checkpoints

CASES = {f.__name__: f for f in (vae, block, dupa, variants, adamw, probing, sampler, samplers, crop, checkpoints, inception, metrics, arrays)}


def main(names):
    for package, version in golden_file.VERSIONS.items():
        found = importlib.metadata.version(package)
        assert found == version, f"{package} {found} is installed; requirements.txt pins {version}"
    unknown = [n for n in names if n not in CASES]
    assert not unknown, f"no such case: {unknown}; there are {list(CASES)}"
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    for name in names or CASES:
        CASES[name]()
    for what, error in golden_file.ERRORS.items():
        print(f"{error:9.1e}  {what}")


if __name__ == "__main__":
    main(sys.argv[1:])
