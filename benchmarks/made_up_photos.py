"""Photos made up for benchmarks."""

import io

import numpy as np
from PIL import Image, ImageFilter


def made_up_photo(seed: int, width: int = 640, height: int = 480) -> bytes:
    """Return a JPEG with a photo's spectrum.

    It has soft shapes at several scales and sensor noise.
    """
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for cells in (4, 16, 64):
        coarse = rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        pixels += np.asarray(layer.filter(ImageFilter.GaussianBlur(1)), dtype=float) / 3
    pixels += rng.normal(0, 9, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()
