"""Random values, the check by a second computation, and the writer of golden files."""

import json
import math
import pathlib
import struct

import numpy as np
import safetensors.torch
import torch


FOLDER = pathlib.Path(__file__).resolve().parent
LIMIT = 200_000  # bytes a committed file may have
ERRORS = {}  # what was compared -> largest difference from the second computation
VERSIONS = dict(line.split("==") for line in (FOLDER / "requirements.txt").read_text().split("\n") if "==" in line)


def normal(rng, *shape, std=1.0):
    """N(0, std^2), f32-representable."""
    return torch.from_numpy((std * rng.standard_normal(shape)).astype(np.float32))


def uniform(rng, low, high, *shape):
    """U(low, high), f32-representable."""
    return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))


def randomise(module, rng):
    """Give every parameter a random value: a zero or a one would hide whatever it multiplies."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("bias"):
                p.copy_(normal(rng, *p.shape, std=0.2))
            elif "norm" in name:
                p.copy_(1 + normal(rng, *p.shape, std=0.2))
            elif "embedding_table" in name:
                p.copy_(normal(rng, *p.shape, std=0.7))
            else:
                p.copy_(normal(rng, *p.shape, std=1 / math.sqrt(p[0].numel())))
    return module


def close(what, a, b, limit):
    """Assert |a - b| <= limit * max(1, |b|) everywhere, and note the largest left side."""
    a, b = a.detach().double(), b.detach().double()
    assert a.shape == b.shape, f"{what}: {tuple(a.shape)} against {tuple(b.shape)}"
    error = ((a - b).abs() / b.abs().clamp_min(1)).max().item()
    ERRORS[what] = max(error, ERRORS.get(what, 0.0))
    assert error <= limit, f"{what}: second computation differs by {error:.3g} > {limit:g}"


def write(file, config, tensors):
    """Write `file`. The safetensors library orders metadata by a random hash; this sorts, so bytes repeat."""
    as_array = {k: (v.detach().numpy() if isinstance(v, torch.Tensor) else v) for k, v in tensors.items()}
    code = {"float32": "F32", "float64": "F64", "int64": "I64", "uint8": "U8"}
    header, data, metadata = {}, b"", {"config": config, "versions": VERSIONS}
    header["__metadata__"] = {k: json.dumps(v, sort_keys=True) for k, v in metadata.items()}
    for key in sorted(as_array, key=lambda k: (-as_array[k].itemsize, k)):
        array = np.ascontiguousarray(as_array[key]).reshape(as_array[key].shape)
        assert array.dtype.kind != "f" or np.isfinite(array).all(), f"{file}: {key} is not finite"
        begin, data = len(data), data + array.tobytes()
        header[key] = {"dtype": code[array.dtype.name], "shape": array.shape, "data_offsets": [begin, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = FOLDER / file
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    size = path.stat().st_size
    assert size <= LIMIT, f"{file}: {size} bytes"
    for key, tensor in safetensors.torch.load_file(path).items():
        assert np.array_equal(tensor.numpy(), as_array[key]), f"{file}: {key} does not read back"
    print(f"{file:24} {size:7} bytes  {len(tensors):3} tensors")


def weights(module, prefix="weights."):
    return {prefix + name: p.detach().float() for name, p in module.named_parameters()}


def rounded(**outputs):
    """f64 results to the f32 that is stored."""
    return {key: value.detach().float() for key, value in outputs.items()}
