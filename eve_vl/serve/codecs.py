"""Images out of base64 and into it, results as JSON. What is sent stays in memory, and no text of a client is ever a path."""

import base64
import binascii
import dataclasses
import io
import re
from typing import Any

import numpy as np
from PIL import Image

from eve_vl.data.records import ImageBytes, ImagePixels
from eve_vl.data.transforms import size_of
from eve_vl.predict.inputs import GivenImage
from eve_vl.search.query import shrunk
from eve_vl.serve.limits import Limits
from eve_vl.utils.errors import UserError

SHOWN_SIDE = 512  # pixels of images that are given back
PREFIX = re.compile(r"data:image/[\w.+-]{1,40};base64,")


def image(text: str, where: str, limits: Limits) -> tuple[GivenImage, int]:
    """Return an image, not yet decoded, and how many pixels it has. Raises UserError."""
    start = PREFIX.match(text)
    try:
        data = base64.b64decode(text[start.end() :] if start else text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{where}: is not base64; send the bytes of an image file as base64 text") from None
    width, height = size_of(data, where)
    if width * height > limits.pixels:
        raise UserError(f"{where}: has {width}×{height} pixels, at most {limits.pixels:,} are accepted; send it smaller")
    return GivenImage(ref=ImageBytes(data=data), where=where), width * height


def decoded(given: GivenImage, square: int | None) -> ImagePixels:
    """Return an image as the run's square, or else with at most SHOWN_SIDE pixels a side. Raises UserError."""
    if square is None:
        return ImagePixels(pixels=given.at_most(SHOWN_SIDE))
    ref = shrunk(given, square).ref
    assert isinstance(ref, ImagePixels)
    return ref


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    """Return the file of an image, uint8 (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def as_json(value: Any) -> Any:
    """Return a result as JSON values: images as base64 PNG, other arrays as lists, dataclasses as objects."""
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3:
        return base64.b64encode(encoded(value)).decode()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if dataclasses.is_dataclass(value):
        return {each.name: as_json(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    return value
