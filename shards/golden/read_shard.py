import json, struct
import numpy as np, zstandard

def read_shard(path):
    raw = open(path, "rb").read()
    assert raw[:8] == raw[-8:] == b"LATSHRD\x01", "not a shard of version 1"
    header = json.loads(raw[32 : 32 + int.from_bytes(raw[8:12], "little")])
    at, _, _, _, samples = struct.unpack_from("<5Q", raw, len(raw) - 64)
    blocks, columns, _, _ = struct.unpack_from("<4I", raw, at)
    frames = blocks * columns
    off = np.frombuffer(raw, "<u8", frames, at + 16).reshape(blocks, columns).tolist()
    size = np.frombuffer(raw, "<u4", frames, at + 16 + 16 * frames).reshape(blocks, columns).tolist()
    labels = np.frombuffer(raw, "<i4", samples, at + 16 + 20 * frames + 4 * blocks)
    latents = {}
    for c, column in enumerate(header["schema"]["columns"]):
        dtype = np.dtype({"f16": "<f2", "f32": "<f4"}[column["dtype"]])
        parts = []
        for b in range(blocks):
            data = raw[off[b][c] : off[b][c] + size[b][c]]
            if column["codec"] != "none":
                data = zstandard.ZstdDecompressor().decompress(data)
            if column["codec"].startswith("shuffle"):  # byte planes
                data = np.frombuffer(data, "u1").reshape(dtype.itemsize, -1).T.tobytes()
            parts.append(data)
        latents[column["name"]] = np.frombuffer(b"".join(parts), dtype).reshape(-1, *column["shape"])
    return header, labels, latents
