"""Images of every form and mode, for the fault campaigns."""

import contextlib
import io
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from helpers.campaign_reader import Files, lines

NUM_ROWS = 6


def encode(form: str, mode: str = "RGB", size: tuple[int, int] = (20, 24), **options: Any) -> bytes:
    """Return a file of noise."""
    width, height = size
    rng = np.random.default_rng(len(form) + len(mode))
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if mode == "I;16":
        gray = np.asarray(Image.fromarray(noise).convert("L"))
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(noise).convert(mode)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


GOOD = encode("PNG")
IMAGES = {f"{number}.png": encode("PNG", size=(20, 20 + number)) for number in range(NUM_ROWS)}


def source_images() -> Files:
    """Return an image of every form and mode."""
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("P", (20, 24), color) for color in (1, 2)]
    frames_rgb = [frame.convert("RGB") for frame in frames]
    files = {}
    for mode in ("RGB", "RGBA", "P", "L", "LA", "1", "I;16"):
        files[f"{mode.lower()}.png"] = encode("PNG", mode)
    for mode in ("RGB", "CMYK", "I;16", "RGBA", "LAB", "F", "I"):
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
    """Return images of about as many pixels as are accepted, in modes that need the most memory."""
    modes_by_form = {
        "PNG": ("RGBA", "L", "I;16", "P", "LA"),
        "GIF": ("P",),
        "JPEG": ("RGB", "CMYK"),
        "TIFF": ("RGBA", "CMYK", "1"),
    }
    files = {}
    for form, modes in modes_by_form.items():
        for mode in modes:
            options = {}
            if form == "TIFF":
                options["compression"] = "group4" if mode == "1" else "tiff_lzw"
            file = io.BytesIO()
            Image.new(mode, (9400, 9400)).save(file, form, **options)
            short_mode = mode[:4].replace(";", "")
            files[f"big_{short_mode}.{form}".lower()] = file.getvalue()
    return files


def one_image(rng: Random, files: Files) -> Files:
    """Lay out one of the images, a sound one, and the table that lists both."""
    name = rng.choice(list(files))
    rows = [{"image": image, "caption": f"cat {image}"} for image in (name, "sound.png")]
    return {name: files[name], "sound.png": GOOD, "rows.jsonl": lines(rows)}
