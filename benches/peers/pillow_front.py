"""The front end of the Python world: decode with Pillow, centre crop as ADM does.

    python pillow_front.py IMAGES --size 256 --processes 2 [--repeat 3] [--decoder pillow|simplejpeg]

Takes every image below the folder IMAGES, `repeat` times over, shared out to worker processes. Prints one JSON object:

    images, processes, size, decoder
    seconds        wall clock from the start of the work in the first process to its end in the last; files are read from
                   memory before, and the start of Python is not counted
    images_per_s   images * repeat / seconds
    decode_ms, crop_ms   mean per image of time inside one process; from bytes to RGB, and from RGB to an array [S, S, 3]

`simplejpeg` decodes JPEG files by libjpeg-turbo without Pillow (the copy of its array into a Pillow image counts in
`seconds` alone); other files stay with Pillow. Needs Pillow 12 and numpy, and simplejpeg if asked for.
"""

import argparse
import io
import json
import multiprocessing
import pathlib
import time

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

SUFFIXES = {".jpg", ".jpeg", ".png"}


def decode_by_pillow(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def decode_by_simplejpeg(data):
    return simplejpeg.decode_jpeg(data, colorspace="RGB") if simplejpeg.is_jpeg(data) else decode_by_pillow(data)


DECODERS = {"pillow": decode_by_pillow, "simplejpeg": decode_by_simplejpeg}


def centre_crop(image, size):
    """Box halvings while the shorter side is at least 2 * size, bicubic to size, the centre square."""
    width, height = image.size
    while min(width, height) >= 2 * size:
        width, height = width // 2, height // 2
        image = image.resize((width, height), Image.Resampling.BOX)
    scale = size / min(width, height)
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    pixels = np.array(image)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def work(files, size, decoder, repeat, ready, answers):
    """One process: its share of the images, and where the time went."""
    try:
        data = [path.read_bytes() for path in files]
        decode = DECODERS[decoder]
        image_of(decode(data[0]))  # imports and first-time tables
        ready.wait()
        start, decoding, cropping = time.monotonic(), 0.0, 0.0
        for content in data * repeat:
            before = time.perf_counter()
            decoded = decode(content)
            decoding += time.perf_counter() - before
            image = image_of(decoded)
            before = time.perf_counter()
            centre_crop(image, size)
            cropping += time.perf_counter() - before
        answers.put((start, time.monotonic(), decoding, cropping))
    except BaseException:
        ready.abort()  # the others would wait for ever
        raise


def image_of(decoded):
    return decoded if isinstance(decoded, Image.Image) else Image.fromarray(decoded)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=pathlib.Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--decoder", choices=DECODERS, default="pillow")
    options = parser.parse_args()
    if options.decoder == "simplejpeg" and simplejpeg is None:
        parser.error("simplejpeg is not installed: pip install simplejpeg")
    if min(options.size, options.processes, options.repeat) < 1:
        parser.error("--size, --processes and --repeat are at least 1")

    files = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        parser.error(f"{options.images}: no JPEG or PNG files below this folder")
    processes = min(options.processes, len(files))

    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(processes), context.SimpleQueue()
    common = (options.size, options.decoder, options.repeat, ready, answers)
    workers = [context.Process(target=work, args=(files[i::processes], *common)) for i in range(processes)]
    for worker in workers:
        worker.start()
    # A queue would wait for ever for a process that failed.
    for worker in workers:
        worker.join()
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed:
        raise SystemExit(f"{len(failed)} of {processes} processes failed; their errors are above")
    starts, ends, decoding, cropping = zip(*(answers.get() for _ in workers))

    count = len(files) * options.repeat
    seconds = max(ends) - min(starts)
    print(
        json.dumps(
            {
                "images": len(files),
                "processes": processes,
                "size": options.size,
                "decoder": options.decoder,
                "seconds": round(seconds, 4),
                "images_per_s": round(count / seconds, 2),
                "decode_ms": round(sum(decoding) / count * 1e3, 4),
                "crop_ms": round(sum(cropping) / count * 1e3, 4),
            }
        )
    )


if __name__ == "__main__":
    main()
