"""From encoded images to uint8 tensors (3, height, width), RGB.

simplejpeg decodes plain JPEG and torchvision plain PNG, because they are faster; Pillow decodes and converts everything
else. The crop is known before decoding, so that a far too large JPEG is decoded at half its size or less. Pixels stay
uint8 up to the batch: resizing uint8 is vectorised, and a quarter of the memory travels between processes.
"""

import io
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_png
from torchvision.transforms.v2.functional import rgb_to_grayscale

from eve_vl.data.records import ImageFile, ImageRef, Unencoded
from eve_vl.utils.errors import BadSampleError

MAX_PIXELS: Final = 178_956_970 // 2  # where Pillow starts to warn of a decompression bomb: 256 MB of RGB
# Pillow knows more formats; EPS, e.g., runs an interpreter on the file.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
STRIP_PIXELS: Final = 2**20  # converted at a time
# Peak memory of decoding, rotation included; other formats need 8: 4 in Pillow, 3 as RGB, and strips.
BYTES_PER_PIXEL: Final = {"JPEG": 6, "MPO": 6, "WEBP": 18, "AVIF": 18}
MAX_BYTES: Final = 600 * 2**20  # keeps a process with its libraries below 1 GB
MAX_SCANNED: Final = 2**31  # pixels of a JPEG over all scans: seconds; usual are up to ten scans, but 73 bytes can hold one
JPEG_MARKER: Final = re.compile(rb"\xff+[^\x00\x01\xd0-\xd7\xff]")
MAX_ASPECT: Final = 4 / 3
ORIENTATION_TAG: Final = 0x0112
NAMES: Final = {"1": "grayscale", "L": "grayscale", "P": "palette"}  # of modes, in messages
PNG_EXIF_KEYS: Final = frozenset({"exif", "Raw profile type exif", "XML:com.adobe.xmp"})

Box = tuple[int, int, int, int]  # top, left, height, width in pixels

_PILLOW_MODULES: Final = re.compile(r"PIL\.")


def whole_box(height: int, width: int) -> Box:
    """Return the box of a whole image; EVE tests on images squeezed to a square."""
    return 0, 0, height, width


def random_box(height: int, width: int, *, rng: np.random.Generator, scale: tuple[float, float]) -> Box:
    """Sample a box that covers `scale` of the image, with an aspect ratio from 3/4 to 4/3.

    Like torchvision's RandomResizedCrop, it falls back to the centre after ten failed attempts.
    """
    for area, aspect, y, x in rng.random((10, 4)).tolist():
        area = height * width * (scale[0] + area * (scale[1] - scale[0]))
        aspect = MAX_ASPECT ** (2 * aspect - 1)
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            return int(y * (height - box_height + 1)), int(x * (width - box_width + 1)), box_height, box_width
    box_height, box_width = min(height, round(width * MAX_ASPECT)), min(width, round(height * MAX_ASPECT))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """The box that `choose` returns for (height, width), resized (bicubic) to a square of `size` pixels.

    The box is chosen before EXIF rotates the image. A JPEG is decoded at a smaller size if the box keeps `sharpness`
    pixels per pixel of the square.
    """

    size: int
    choose: Callable[[int, int], Box] = whole_box
    sharpness: float = 1.0

    def divisor(self, box: Box) -> int:
        """Return the largest divisor for the sides of the image, among those that libjpeg-turbo has fast code for."""
        return next((divisor for divisor in (8, 4, 2) if min(box[2:]) >= divisor * self.sharpness * self.size), 1)

    def cut(self, pixels: Tensor, box: Box, divisor: int = 1) -> Tensor:
        """Return uint8 (3, size, size) from an image whose sides were divided; a box of the right size stays."""
        top, left, height, width = box
        rows = slice(top // divisor, -(-(top + height) // divisor))
        columns = slice(left // divisor, -(-(left + width) // divisor))
        part = pixels[:, rows, columns]
        if part.shape[1:] == (self.size, self.size):
            return part
        return F.interpolate(part[None], (self.size, self.size), mode="bicubic", antialias=True)[0]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Choose a box of a whole image and cut it out."""
        return self.cut(pixels, self.choose(*pixels.shape[1:]))


def train_crop(size: int, *, rng: np.random.Generator, scale: tuple[float, float]) -> Crop:
    """Return a crop that samples a new box for every image.

    An eighth less sharpness is less than the aspect ratio changes either side. With it, 73 % instead of 24 % of the
    224-pixel crops of 640×480 are decoded at half size (benchmarks/loader.py).
    """
    return Crop(size=size, choose=partial(random_box, rng=rng, scale=scale), sharpness=7 / 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedImage:
    """A decoded image: uint8 pixels (3, height, width), its file format, and the conversions made."""

    pixels: Tensor
    format: str
    conversions: tuple[str, ...]


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


def decode(image: ImageRef, where: str, *, crop: Crop | None = None, longest: int | None = None) -> Tensor:
    """Return the image, or a crop of it, as uint8 RGB: upright, transparency on white, first frame.

    Shape (3, height, width), or (3, crop.size, crop.size). longest: pixels that suffice for the longer side of a whole
    image; a JPEG is then decoded at a multiple of an eighth of its size.

    Raises BadSampleError (naming `where`) if it cannot be read or decoded, or has more than MAX_PIXELS pixels, which is
    checked before decoding.
    """
    if isinstance(image, Unencoded):
        array = image.pixels
        height, width, _ = array.shape
        _check_size(width, height, where)
        assert (array.dtype, *array.shape[2:]) == (np.uint8, 3)
        pixels = torch.from_numpy(array.copy()).permute(2, 0, 1)  # in memory the channels stay last
        return crop(pixels) if crop else pixels
    return decode_bytes(read_image(image, where), where, crop=crop, longest=longest).pixels


def decode_bytes(data: bytes, where: str, *, crop: Crop | None = None, longest: int | None = None) -> DecodedImage:
    """Decode encoded bytes as `decode` does; also return format and conversions."""
    try:
        image = _open(data)
        _check_size(*image.size, where)
        _check_cost(data, image, where)
        form, pixels = str(image.format), _decode_fast(data, image, crop, longest)
        conversions = [f"{NAMES[image.mode]} to RGB"] if image.mode in NAMES else []
        if pixels is None:
            pixels, conversions = _decode_special(image, where)
            pixels = crop(pixels) if crop else pixels
        orientation = _orientation(image, data)  # after loading, which rotates a TIFF by itself
        del image  # rotation needs the memory
    except BadSampleError:
        raise
    except Image.DecompressionBombError:
        reason = f"image has more than {2 * MAX_PIXELS} pixels, at most {MAX_PIXELS} are accepted"
        raise BadSampleError(where, reason) from None
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise BadSampleError(where, _explain(data, error)) from None
    if orientation != 1:
        pixels = _turn_upright(pixels, orientation)
        conversions.append("turned as its EXIF says")
    return DecodedImage(pixels=pixels, format=form, conversions=tuple(conversions))


def size_of(data: bytes, where: str) -> tuple[int, int]:
    """Return width and height of an encoded image without decoding it. Raises BadSampleError."""
    try:
        return _open(data).size
    except Image.DecompressionBombError:
        raise BadSampleError(where, f"image has more than {2 * MAX_PIXELS} pixels") from None
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise BadSampleError(where, _explain(data, error)) from None


def _open(data: bytes) -> Image.Image:
    """Open an image with Pillow, whose warnings (large images, odd metadata) this process ignores from then on.

    A process-wide filter, because `warnings.catch_warnings` is not thread-safe, and a lock would serialise decoding.
    """
    if not (warnings.filters and warnings.filters[0][3] == _PILLOW_MODULES):  # else another filter may come first
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES.pattern)
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _check_size(width: int, height: int, where: str) -> None:
    if width * height > MAX_PIXELS:
        raise BadSampleError(where, f"image is {width}x{height} pixels, at most {MAX_PIXELS} in all are accepted")


def _check_cost(data: bytes, image: Image.Image, where: str) -> None:
    """Raise BadSampleError if decoding would exceed MAX_BYTES or MAX_SCANNED. Tests measure these assumptions."""
    width, height = image.size
    per_pixel = BYTES_PER_PIXEL.get(str(image.format), 8) if image.mode != "CMYK" else 8
    most = data.count(b"\xff\xda") if data.startswith(b"\xff\xd8") else 0
    if most > 1:  # the decoder keeps coefficients of a JPEG in several scans
        per_pixel += 2 * len(image.getbands())
    if width * height * most > MAX_SCANNED and width * height * (scans := _num_scans(data)) > MAX_SCANNED:
        accepted = f"at most {MAX_SCANNED // (width * height)} of so large an image are accepted"
        raise BadSampleError(where, f"{width}x{height} JPEG has {scans} scans, {accepted}")
    needed = width * height * per_pixel + len(data)
    if needed > MAX_BYTES:
        what = f"{width}x{height} {image.mode} image ({image.format})"
        raise BadSampleError(where, f"{what} needs {needed >> 20} MB to decode, at most {MAX_BYTES >> 20} are accepted")


def _num_scans(data: bytes) -> int:
    """Return in how many scans the image of a JPEG is. What lies before it or behind its end, such as the film of a phone's
    photo, may look like any number of them."""
    num, place = 0, 2
    while (found := JPEG_MARKER.search(data, place)) and found[0][-1] != 0xD9:
        num += found[0][-1] == 0xDA
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return num


def _raw_mode(image: Image.Image) -> str:
    """Return how Pillow found the pixels stored, such as "RGB;16B"; it says "RGB" for 16 bits a channel too."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return image.mode
    args = tiles[0][3]
    return str(args[0] if isinstance(args, tuple) and args else args)


def _decode_fast(data: bytes, image: Image.Image, crop: Crop | None, longest: int | None) -> Tensor | None:
    """Return the pixels, or a crop, of a plain JPEG or PNG whose header is `image`, None for anything else.

    What the decoders refuse is left to Pillow, which has the better messages and now and then succeeds.
    """
    if image.mode not in ("RGB", "L", "P"):
        return None
    try:
        if image.format in ("JPEG", "MPO"):
            return _decode_jpeg(data, *image.size, crop, longest)
        if image.format == "PNG" and _is_plain_png(image):
            pixels = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
            return crop(pixels) if crop else pixels
    except (ValueError, RuntimeError):
        pass
    return None


def _decode_jpeg(data: bytes, width: int, height: int, crop: Crop | None, longest: int | None) -> Tensor:
    if crop is None:
        share = 1 if longest is None else min(1, longest / max(width, height))
        least_height, least_width = math.ceil(height * share), math.ceil(width * share)
        array = simplejpeg.decode_jpeg(data, min_height=least_height, min_width=least_width)
        return torch.from_numpy(array).permute(2, 0, 1)
    box = crop.choose(height, width)
    divisor = crop.divisor(box)
    array = simplejpeg.decode_jpeg(
        data,
        min_height=-(-height // divisor),
        min_width=-(-width // divisor),
        fastupsample=min(box[2:]) >= crop.size,  # coarser colour, which shrinking hides
    )
    return crop.cut(torch.from_numpy(array).permute(2, 0, 1), box, divisor)


def _is_plain_png(image: Image.Image) -> bool:
    """Return whether torchvision decodes a PNG as wanted; libpng prints warnings about colour profiles."""
    is_animated = getattr(image, "is_animated", False)
    return (
        (_raw_mode(image) == image.mode or image.mode == "P")
        and not is_animated
        and not image.info.keys() & {"transparency", "icc_profile"}
    )


def _decode_special(image: Image.Image, where: str) -> tuple[Tensor, list[str]]:
    """Return the first frame, uint8 (3, height, width), and the conversions made."""
    conversions = ["first frame of several"] if getattr(image, "is_animated", False) else []
    is_16_bit = "16" in _raw_mode(image)
    image.load()
    is_16_bit_gray = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not is_16_bit_gray:
        raise BadSampleError(where, "pixels are 32-bit numbers of unknown range; save it with 8 or 16 bits")
    if is_16_bit or is_16_bit_gray:
        conversions.append("16-bit to 8-bit")
    has_alpha = {"A", "a"}.intersection(image.getbands()) or "transparency" in image.info
    if has_alpha and not is_16_bit_gray:
        conversions.append("transparency on white")
    elif image.mode != "RGB" and not is_16_bit_gray:
        conversions.append(f"{NAMES.get(image.mode, image.mode)} to RGB")
    width, height = image.size
    array, rows = np.empty((height, width, 3), np.uint8), max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):  # the whole image would take five times its memory
        strip = image.crop((0, top, width, min(top + rows, height)))
        if is_16_bit_gray:  # Pillow's own conversion clips at 255
            array[top : top + rows] = (np.asarray(strip).astype(np.int64).clip(0, 65535) >> 8)[:, :, None]
        else:
            if has_alpha:
                layer = strip.convert("RGBA")
                strip = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            array[top : top + rows] = np.asarray(strip.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1), conversions


def _orientation(image: Image.Image, data: bytes) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if it is absent or unreadable."""
    if image.format == "PNG" and b"eXIf" not in data and not image.info.keys() & PNG_EXIF_KEYS:
        return 1  # Pillow would decode the whole PNG to read what follows its pixels
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF is common, and the image is still good
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn_upright(pixels: Tensor, orientation: int) -> Tensor:
    """Undo an EXIF orientation (EXIF 2.3, tag 0x0112): first mirror rows or columns, then swap them."""
    flipped = {2: [2], 3: [1, 2], 4: [1], 5: [], 6: [1], 7: [1, 2], 8: [2]}[orientation]
    pixels = pixels.flip(flipped) if flipped else pixels
    return pixels.transpose(1, 2) if orientation >= 5 else pixels


def _explain(data: bytes, error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        if data[:512].lstrip().startswith(b"<"):
            return "a web page or other markup, not an image"
        return f"not an image in a known format ({', '.join(FORMATS)})"
    return f"cannot decode image: {str(error).rstrip('.') or type(error).__name__}"


def random_ink(pixels: Tensor) -> Tensor:
    """Recolour half of the images, a quarter in grey and a quarter in shades of one dark random colour; uint8 (3, H, W).

    Drawings are then recognised by their lines. Random numbers come from torch's generator, as in torchvision.
    """
    draw_grey, draw_ink, *ink = torch.rand(5).tolist()
    if draw_grey < 0.5:
        return pixels
    grey = rgb_to_grayscale(pixels).float()
    darkest = torch.tensor(ink)[:, None, None] * (0.7 * 255 * (draw_ink < 0.5))
    return (grey + (1 - grey / 255) * darkest).round().byte()
