"""Fast decoding of plain JPEG (simplejpeg) and plain PNG (torchvision)."""

import contextlib
import functools
import importlib
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from eve_vl.data.crops import Crop
from eve_vl.data.pillow_decoding import raw_mode

RGB_MODE = 3  # torchvision.io.ImageReadMode.RGB
APPLY_EXIF = False


def decode_plain(
    data: bytes, image: Image.Image, crop: Crop | None, longest: int | None
) -> Tensor | None:
    """Return the pixels, or a crop, of a plain JPEG or PNG; None for anything else.

    image: its header. Pillow gets what these decoders refuse; it has the better messages and now
    and then succeeds.
    """
    if image.mode not in ("RGB", "L", "P"):
        return None
    with contextlib.suppress(ValueError, RuntimeError):
        if image.format in ("JPEG", "MPO"):
            return _decode_jpeg(data, *image.size, crop, longest)
        if image.format == "PNG" and _is_plain_png(image):
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            pixels = _png_decoder()(encoded, RGB_MODE, APPLY_EXIF)
            return crop(pixels) if crop else pixels
    return None


@functools.cache
def _png_decoder() -> Callable[[Tensor, int, bool], Tensor]:
    """Return torchvision's PNG decoder, if possible without importing torchvision.

    Its import takes as long as that of torch, because its models import torch's compiler.
    """
    spec = find_spec("torchvision")
    assert spec is not None
    assert spec.submodule_search_locations
    library = Path(spec.submodule_search_locations[0]) / "image.so"
    if library.is_file():
        torch.ops.load_library(library)
    else:
        importlib.import_module("torchvision.io")
    return torch.ops.image.decode_png


def _is_plain_png(image: Image.Image) -> bool:
    # libpng prints warnings about colour profiles
    if "transparency" in image.info or "icc_profile" in image.info:
        return False
    if getattr(image, "is_animated", False):
        return False
    return image.mode == "P" or raw_mode(image) == image.mode


def _decode_jpeg(
    data: bytes, width: int, height: int, crop: Crop | None, longest: int | None
) -> Tensor:
    """Decode a JPEG at the smallest of its sizes that suffices."""
    if crop is None:
        share = 1 if longest is None else min(1, longest / max(width, height))
        array = simplejpeg.decode_jpeg(
            data, min_height=math.ceil(height * share), min_width=math.ceil(width * share)
        )
        return torch.from_numpy(array).permute(2, 0, 1)

    box = crop.choose(height, width)
    divisor = crop.divisor(box)
    is_shrunk = min(box[2:]) >= crop.size  # hides the coarser colour of fastupsample
    array = simplejpeg.decode_jpeg(
        data,
        min_height=-(-height // divisor),
        min_width=-(-width // divisor),
        fastupsample=is_shrunk,
    )
    return crop.cut(torch.from_numpy(array).permute(2, 0, 1), box, divisor)
