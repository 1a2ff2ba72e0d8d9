"""The image set of the encode benches: smooth pictures with edges and grain, as JPEG in class folders.

    python make_images.py OUT [--count 64] [--width 500] [--height 375] [--quality 75] [--subsampling 4:2:0]

The same arguments give the same files. A photograph of 500 x 375 has about 100 kB at quality 96; so have these, within a
third. Needs Pillow and numpy.
"""

import argparse
import pathlib

import numpy as np
from PIL import Image


def picture(number, width, height):
    random = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    image = np.zeros((height, width, 3))
    for _ in range(12):
        centre, radius = random.uniform(0, [width, height]), random.uniform(20, 160)
        inside = np.hypot(x - centre[0], y - centre[1]) < radius
        image[inside] = random.uniform(0, 255, 3)
    for frequency in (0.02, 0.05, 0.11, 0.3):
        phase, direction = random.uniform(0, 6.28, 3), random.uniform(0, 6.28)
        wave = np.cos(direction) * x + np.sin(direction) * y
        image += 18 * np.sin(frequency * wave[..., None] + phase)
    image += random.normal(0, 5, image.shape)
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--quality", type=int, default=75)
    parser.add_argument("--subsampling", default="4:2:0")
    options = parser.parse_args()
    for number in range(options.count):
        folder = options.out / f"class-{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        image = picture(number, options.width, options.height)
        image.save(folder / f"{number:05d}.jpg", quality=options.quality, subsampling=options.subsampling)


if __name__ == "__main__":
    main()
