"""Images of every form and mode, for the fault campaigns."""

import contextlib
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from helpers import encoded_images
from helpers.campaign_reader import Files, lines

NUM_ROWS = 6
ORIENTATION = 6  # turned by a quarter
PNG_MODES = ("RGB", "RGBA", "P", "L", "LA", "1", "I;16")
TIFF_MODES = ("RGB", "CMYK", "I;16", "RGBA", "LAB", "F", "I")
BIG_MODES = {
    "PNG": ("RGBA", "L", "I;16", "P", "LA"),
    "GIF": ("P",),
    "JPEG": ("RGB", "CMYK"),
    "TIFF": ("RGBA", "CMYK", "1"),
}
"""Those that need the most memory, by form."""


def encode(form: str, mode: str = "RGB", size: tuple[int, int] = (20, 24), **options: Any) -> bytes:
    """Return a file of noise."""
    width, height = size
    rng = np.random.default_rng(len(form) + len(mode))
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    if mode == "I;16":
        gray = np.asarray(image.convert("L"))
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    return encoded_images.encode(image, form, **options)


GOOD = encode("PNG")
IMAGES = {f"{number}.png": encode("PNG", size=(20, 20 + number)) for number in range(NUM_ROWS)}


def source_images() -> Files:
    """Return an image of every form and mode."""
    exif = encoded_images.exif_of(ORIENTATION)
    frames = [Image.new("P", (20, 24), color) for color in (1, 2)]
    frames_rgb = [frame.convert("RGB") for frame in frames]
    files = {}
    for mode in PNG_MODES:
        files[f"{mode.lower()}.png"] = encode("PNG", mode)
    for mode in TIFF_MODES:
        files[f"{mode.lower()}.tif"] = encode("TIFF", mode)
    files["lzw.tif"] = encode("TIFF", compression="tiff_lzw")
    files["g4.tif"] = encode("TIFF", "1", compression="group4")
    files["a.jpg"] = encode("JPEG")
    files["l.jpg"] = encode("JPEG", "L")
    files["cmyk.jpg"] = encode("JPEG", "CMYK")
    files["turned.jpg"] = encode("JPEG", exif=exif)
    files["progressive.jpg"] = encode("JPEG", progressive=True)
    files["a.gif"] = encode("GIF", "P")
    files["frames.gif"] = encode("GIF", "P", save_all=True, append_images=frames)
    files["a.webp"] = encode("WEBP")
    files["alpha.webp"] = encode("WEBP", "RGBA", lossless=True)
    files["turned.webp"] = encode("WEBP", exif=exif)
    files["frames.png"] = encode("PNG", save_all=True, append_images=frames_rgb)
    files["a.bmp"] = encode("BMP")
    files["p.bmp"] = encode("BMP", "P")
    files["a.ppm"] = encode("PPM")
    files["l.pgm"] = encode("PPM", "L")
    with contextlib.suppress(OSError, KeyError):  # a Pillow without it
        files["a.avif"] = encode("AVIF")
    return files


def big_images() -> Files:
    """Return images of about as many pixels as are accepted."""
    files = {}
    for form, modes in BIG_MODES.items():
        for mode in modes:
            options = {}
            if form == "TIFF":
                options["compression"] = "group4" if mode == "1" else "tiff_lzw"
            image = Image.new(mode, (9400, 9400))
            name = f"big_{mode.replace(';', '')}.{form}".lower()
            files[name] = encoded_images.encode(image, form, **options)
    return files


def one_image(rng: Random, files: Files) -> Files:
    """Lay out one of the images, a sound one, and the table that lists both."""
    name = rng.choice(list(files))
    rows = [{"image": image, "caption": f"cat {image}"} for image in (name, "sound.png")]
    return {
        name: files[name],
        "sound.png": GOOD,
        "rows.jsonl": lines(rows),
    }
