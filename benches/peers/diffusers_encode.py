"""Encoding with diffusers' AutoencoderKL: images in, posteriors on the disk.

    python diffusers_encode.py IMAGES VAE --mode one|batched [--batch 8] [--size 256] [--limit N]
                               [--dtype f32|bf16] [--channels-last] [--threads T]

`one` is how REPA's preprocessing goes: an image at a time, decoded, cropped and encoded in turn, each to a .npy file of its
own with mean and standard deviation. `batched` decodes and crops a batch, encodes it at once, and writes it as one file.
VAE is a diffusers directory. Prints one JSON object:

    images, mode, batch, dtype, channels_last, threads
    seconds        wall clock from the first image read to the last file written; loading of the model and one batch to warm
                   up are not counted
    images_per_s   images / seconds
    vae_ms         mean per image of time inside the autoencoder

Needs Pillow 12, numpy, torch 2.11.0 and diffusers.
"""

import argparse
import json
import pathlib
import tempfile
import time

import numpy as np
import torch
from diffusers import AutoencoderKL

from pillow_front import SUFFIXES, centre_crop, decode_by_pillow


def pixels(path, size):
    image = centre_crop(decode_by_pillow(path.read_bytes()), size)
    return torch.from_numpy(image).permute(2, 0, 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=pathlib.Path)
    parser.add_argument("vae", type=pathlib.Path)
    parser.add_argument("--mode", choices=["one", "batched"], default="batched")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    vae = AutoencoderKL.from_pretrained(options.vae, torch_dtype=dtype, low_cpu_mem_usage=False).eval()
    vae = vae.to(memory_format=layout)
    files = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in SUFFIXES)[: options.limit]
    batch = 1 if options.mode == "one" else options.batch
    inside = 0.0

    def encode(paths):
        nonlocal inside
        x = torch.stack([pixels(path, options.size) for path in paths]).to(torch.float32) / 127.5 - 1.0
        x = x.to(dtype=dtype, memory_format=layout)
        begun = time.perf_counter()
        posterior = vae.encode(x).latent_dist
        moments = torch.cat([posterior.mean, posterior.std], dim=1).float().numpy()
        inside += time.perf_counter() - begun
        return moments

    with torch.no_grad(), tempfile.TemporaryDirectory() as out:
        encode(files[:batch])
        inside = 0.0
        begun = time.perf_counter()
        for first in range(0, len(files), batch):
            moments = encode(files[first : first + batch])
            np.save(f"{out}/{first:08d}.npy", moments[0] if options.mode == "one" else moments)
        seconds = time.perf_counter() - begun

    answer = {key: value for key, value in vars(options).items() if key not in ("images", "vae", "limit", "size")}
    answer |= {"images": len(files), "seconds": seconds, "images_per_s": len(files) / seconds}
    answer |= {"vae_ms": inside * 1e3 / len(files)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
