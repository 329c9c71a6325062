"""Decoding: from encoded images to uint8 tensors (3, height, width), RGB.

simplejpeg decodes plain JPEG and torchvision plain PNG, because they are faster; Pillow decodes and
converts everything else. The crop is known before decoding, so that a far too large JPEG is decoded
at half its size or less. Pixels stay uint8 up to the batch: resizing uint8 is vectorised, and a
quarter of the memory travels between processes.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from PIL import Image
from torch import Tensor

from eve_vl.data.crops import Crop, to_tensor
from eve_vl.data.decoding_cost import check_cost, num_scans
from eve_vl.data.exif_orientation import orientation_of, turn_upright
from eve_vl.data.image_refs import ImageBytes, ImageFile, ImageRef, Unencoded
from eve_vl.data.pillow_decoding import MODE_NAMES, decode_with_pillow, open_image
from eve_vl.data.plain_jpeg_png import decode_plain
from eve_vl.utils.errors import BadSampleError

# Pillow starts to warn of a decompression bomb here: 256 MB of RGB.
MAX_PIXELS: Final = 178_956_970 // 2
# Pillow knows more formats; EPS, e.g., runs an interpreter on the file.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
# Pillow parses parts of the others in Python.
WEB_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")
USUAL_SCANS: Final = 10  # of a JPEG


class DecodedImage(NamedTuple):
    """A decoded image: uint8 pixels (3, height, width), format, conversions made."""

    pixels: Tensor
    format: str
    conversions: tuple[str, ...]


def decode(
    image: ImageRef, where: str, *, crop: Crop | None = None, longest: int | None = None
) -> Tensor:
    """Return an image, or a crop of it, as uint8 RGB, shape (3, height, width).

    longest: see `decode_bytes`. Raises BadSampleError (naming `where`) if it cannot be read or
    decoded.
    """
    if isinstance(image, Unencoded):
        return to_tensor(image, crop)
    data = read_image(image, where)
    is_upload = isinstance(image, ImageBytes) and image.is_upload
    return decode_bytes(data, where, crop=crop, longest=longest, is_upload=is_upload).pixels


def read_image(image: ImageRef, where: str) -> bytes:
    """Return the encoded bytes of an image. Raises BadSampleError if there are none."""
    assert not isinstance(image, Unencoded)
    try:
        data = image.read()
    except OSError as error:
        name = f" {image.path}" if isinstance(image, ImageFile) else ""
        raise BadSampleError(where, f"cannot read image{name}: {error.strerror or error}") from None
    if not data:
        raise BadSampleError(where, "image is empty (0 bytes)")
    return data


def decode_bytes(
    data: bytes,
    where: str,
    *,
    crop: Crop | None = None,
    longest: int | None = None,
    is_upload: bool = False,
) -> DecodedImage:
    """Return an encoded image, or a crop of it, as RGB.

    It is upright, on white where it is transparent, the first frame of several. longest: pixels
    that suffice for the longer side of a whole image; a JPEG is then decoded at a multiple of an
    eighth of its size. is_upload: see `ImageBytes`. Raises BadSampleError (naming `where`) if it
    cannot be decoded or has more than MAX_PIXELS pixels, which is checked before decoding.
    """
    with _explained(data, where, FORMATS):
        image = open_image(data, FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise BadSampleError(
                where, f"image is {width}x{height} pixels, at most {MAX_PIXELS} in all are accepted"
            )
        check_cost(data, image, where)

        image_format = str(image.format)
        conversions = []
        pixels = None
        # libpng inflates all of the data, Pillow as much as the image takes: 0.3 ms instead of 3 s
        # for 512 MB in 0.5 MB.
        if not (is_upload and image_format == "PNG"):
            pixels = decode_plain(data, image, crop, longest)
            if image.mode in MODE_NAMES:
                conversions = [f"{MODE_NAMES[image.mode]} to RGB"]
        if pixels is None:
            pixels, conversions = decode_with_pillow(image, where)
            if crop:
                pixels = crop(pixels)
        orientation = orientation_of(image, data)  # after loading: Pillow rotates a TIFF then
        del image  # rotation needs the memory

    if orientation != 1:
        pixels = turn_upright(pixels, orientation)
        conversions.append("turned as its EXIF says")
    return DecodedImage(pixels=pixels, format=image_format, conversions=tuple(conversions))


def size_of(data: bytes, where: str) -> tuple[int, int, int]:
    """Return width, height and cost of an uploaded image, without decoding it.

    The cost is in pixels of usual images. Raises BadSampleError.
    """
    with _explained(data, where, WEB_FORMATS):
        image = open_image(data, WEB_FORMATS)
        width, height = image.size
        scans = num_scans(data) if image.format in ("JPEG", "MPO") else 0
        cost = width * height * max(scans, USUAL_SCANS) // USUAL_SCANS
        return width, height, cost


@contextlib.contextmanager
def _explained(data: bytes, where: str, formats: Sequence[str]) -> Iterator[None]:
    """Turn errors of decoding into a BadSampleError.

    Pillow's plugins raise almost anything on broken files.
    """
    try:
        yield
    except BadSampleError:
        raise
    except Exception as error:
        reason = f"cannot decode image: {str(error).rstrip('.') or type(error).__name__}"
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"not an image in a known format ({', '.join(formats)})"
            if data[:512].lstrip().startswith(b"<"):
                reason = "a web page or other markup, not an image"
        raise BadSampleError(where, reason) from None
