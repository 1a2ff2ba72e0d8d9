"""crop.safetensors: the ADM centre crop by Pillow."""

import hashlib

import numpy as np
import xxhash
from PIL import Image

from golden_file import write


def picture(w, h):
    """u8 [h, w, 3]: noise, two-way ramps and hard stripes in a patchwork; integers only (README)."""
    y, x, c = np.meshgrid(np.arange(h), np.arange(w), np.arange(3), indexing="ij", sparse=True)
    texture = ((x * 37 + y * 91 + c * 53) ^ ((x * y) >> 3)) & 255
    ramp = (x * 255 // w + y * 255 // h + c * 40) >> 1
    stripes = ((x + 2 * y + 5 * c) % 13 < 6) * 255
    return np.choose((x // 23 + y // 17 + c) % 3, [texture, ramp & 255, stripes]).astype(np.uint8)


def adm_centre_crop(pixels, size):
    """guided-diffusion's centre crop, by Pillow."""
    image = Image.fromarray(pixels)
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), resample=Image.Resampling.BICUBIC)
    array = np.array(image)
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


def resample(pixels, out, support, kernel):
    """Pillow's algorithm along axis 1: f64 weights to 22-bit integers, i64 sums, rounded and clipped to u8."""
    size = pixels.shape[1]
    if size == out:
        return pixels
    scale = size / out
    stretch = max(scale, 1.0)
    result = np.empty((pixels.shape[0], out, 3), np.uint8)
    for i in range(out):
        centre = (i + 0.5) * scale
        first = max(int(centre - support * stretch + 0.5), 0)
        last = min(int(centre + support * stretch + 0.5), size)
        k = [kernel((j - centre + 0.5) / stretch) for j in range(first, last)]
        k = [int(v / sum(k) * (1 << 22) + (0.5 if v >= 0 else -0.5)) for v in k]
        total = np.tensordot(pixels[:, first:last].astype(np.int64), np.array(k), axes=([1], [0])) + (1 << 21)
        result[:, i] = np.clip(total >> 22, 0, 255)
    return result


def cubic(x, a=-0.5):
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def adm_centre_crop_again(pixels, size):
    """The same from the algorithm, without Pillow: columns first, u8 between the passes."""

    def resize(w, h, support, kernel):
        narrow = resample(pixels, w, support, kernel)
        return resample(narrow.transpose(1, 0, 2), h, support, kernel).transpose(1, 0, 2)

    while min(pixels.shape[:2]) >= 2 * size:
        pixels = resize(pixels.shape[1] // 2, pixels.shape[0] // 2, 0.5, lambda x: float(-0.5 < x <= 0.5))
    scale = size / min(pixels.shape[:2])
    pixels = resize(round(pixels.shape[1] * scale), round(pixels.shape[0] * scale), 2.0, cubic)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


SIZES = """32x32 33x33 64x64 65x63 31x47 500x33 33x500 200x150 127x255 128x128 100x1 257x64 1x1 1x100 16x16 31x31 32x64
63x63 64x65 63x200 96x131 129x130 150x200 255x255 256x256 333x77 77x333 500x375
2x3 5x7 3x2 40x100 33x70 70x33 47x31 90x400""".split()
# To 256. Pillow 13 gives other crops of 600x1300 and 300x4000, and above of 33x500, 40x100, 63x200, 77x333 and 90x400.
LARGE = """500x375 640x1100 300x200
1x1 5x7 256x256 257x256 511x513 512x512 500x33 33x500 200x700 600x1300 4000x300 300x4000 4000x3000""".split()


def crop():
    tensors, inputs, hashes = {}, {}, {}
    for name in SIZES:
        w, h = map(int, name.split("x"))
        pixels = picture(w, h)
        tensors[f"crop_{name}"] = adm_centre_crop(pixels, 32)
        inputs[name] = xxhash.xxh3_64_hexdigest(pixels.tobytes())
        assert np.array_equal(tensors[f"crop_{name}"], adm_centre_crop_again(pixels, 32)), f"crop of {name}"
    for name in LARGE:
        w, h = map(int, name.split("x"))
        pixels = picture(w, h)
        cropped = adm_centre_crop(pixels, 256)
        assert np.array_equal(cropped, adm_centre_crop_again(pixels, 256)), f"crop of {name} to 256"
        data = np.ascontiguousarray(cropped).tobytes()
        hashes[name] = {"xxh3_64": xxhash.xxh3_64_hexdigest(data), "sha256": hashlib.sha256(data).hexdigest()}
        inputs[name] = xxhash.xxh3_64_hexdigest(pixels.tobytes())
    write("crop.safetensors", {"size": 32, "input_xxh3_64": inputs, "crop_256": hashes}, tensors)
