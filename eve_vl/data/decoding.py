"""Decoding: from encoded images to uint8 tensors (3, height, width), RGB.

simplejpeg decodes plain JPEG and torchvision plain PNG, because they are faster; Pillow decodes and converts everything
else. The crop is known before decoding, so that a far too large JPEG is decoded at half its size or less. Pixels stay
uint8 up to the batch: resizing uint8 is vectorised, and a quarter of the memory travels between processes.
"""

import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_png

from eve_vl.data.crops import Crop, to_tensor
from eve_vl.data.image_refs import ImageBytes, ImageFile, ImageRef, Unencoded
from eve_vl.utils.errors import BadSampleError

MAX_PIXELS: Final = (
    178_956_970 // 2
)  # where Pillow starts to warn of a decompression bomb: 256 MB of RGB
# Pillow knows more formats; EPS, e.g., runs an interpreter on the file.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
WEB_FORMATS: Final = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "AVIF",
)  # Pillow parses parts of the others in Python
STRIP_PIXELS: Final = 2**20  # converted at a time
# Peak memory of decoding, rotation included; other formats need 8: 4 in Pillow, 3 as RGB, and strips.
BYTES_PER_PIXEL: Final = {"JPEG": 6, "MPO": 6, "WEBP": 18, "AVIF": 18}
MAX_BYTES: Final = 600 * 2**20  # keeps a process with its libraries below 1 GB
MAX_SCANNED: Final = (
    2**31
)  # pixels of a JPEG over all scans: seconds, because 73 bytes can hold a scan
USUAL_SCANS: Final = 10
JPEG_MARKER: Final = re.compile(rb"\xff+[^\x00\x01\xd0-\xd7\xff]")
NAMES: Final = {"1": "grayscale", "L": "grayscale", "P": "palette"}  # of modes, in messages
TOO_MANY_PARTS: Final = "it has too many small parts; save it again"
PNG_EXIF_KEYS: Final = frozenset({"exif", "Raw profile type exif", "XML:com.adobe.xmp"})


_PILLOW_MODULES: Final = re.compile(r"PIL\.")


class _ImageFile(io.BytesIO):
    """The bytes of an image, with a bound on reads.

    Pillow reads parts such as the comment of a PPM in Python, byte by byte; a GIF's blocks take two reads per 256 bytes.
    """

    def __init__(self, data: bytes):
        super().__init__(data)
        self.reads_left: float = _most_parts(data)

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes. Raises ValueError after too many reads."""
        self.reads_left -= 1
        if self.reads_left < 0:
            raise ValueError(TOO_MANY_PARTS)
        return super().read(size)


class DecodedImage(NamedTuple):
    """A decoded image: uint8 pixels (3, height, width), format, conversions made."""

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


def decode_bytes(
    data: bytes,
    where: str,
    *,
    crop: Crop | None = None,
    longest: int | None = None,
    is_upload: bool = False,
) -> DecodedImage:
    """Return an encoded image, or a crop of it, as RGB.

    It is upright, on white where it is transparent, the first frame of several. longest: pixels that suffice for the
    longer side of a whole image; a JPEG is then decoded at a multiple of an eighth of its size. is_upload: see
    `ImageBytes`. Raises BadSampleError (naming `where`) if it cannot be decoded or has more than MAX_PIXELS pixels, which
    is checked before decoding.
    """
    with _explained(data, where):
        image = _open(data)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise BadSampleError(
                where, f"image is {width}x{height} pixels, at most {MAX_PIXELS} in all are accepted"
            )
        _check_cost(data, image, where)
        # libpng inflates all of the data, Pillow as much as the image takes: 0.3 ms instead of 3 s for 512 MB in 0.5 MB
        is_bounded = is_upload and image.format == "PNG"
        form, pixels = (
            str(image.format),
            None if is_bounded else _decode_fast(data, image, crop, longest),
        )
        conversions = [f"{NAMES[image.mode]} to RGB"] if image.mode in NAMES else []
        if pixels is None:
            pixels, conversions = _decode_special(image, where)
            pixels = crop(pixels) if crop else pixels
        orientation = _orientation(image, data)  # after loading, because Pillow rotates a TIFF then
        del image  # rotation needs the memory
    if orientation != 1:
        pixels = _turn_upright(pixels, orientation)
        conversions.append("turned as its EXIF says")
    return DecodedImage(pixels=pixels, format=form, conversions=tuple(conversions))


def size_of(data: bytes, where: str) -> tuple[int, int, int]:
    """Return width, height and cost of an uploaded image, without decoding it.

    The cost is in pixels of usual images. Raises BadSampleError.
    """
    with _explained(data, where, WEB_FORMATS):
        image = _open(data, WEB_FORMATS)
        width, height = image.size
        scans = _num_scans(data) if image.format in ("JPEG", "MPO") else 0
        return width, height, width * height * max(scans, USUAL_SCANS) // USUAL_SCANS


def _most_parts(data: bytes) -> int:
    return 4096 + len(data) // 64  # usual parts have far more bytes


@contextlib.contextmanager
def _explained(data: bytes, where: str, formats: Sequence[str] = FORMATS) -> Iterator[None]:
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


def _open(data: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open an image with Pillow.

    This process ignores Pillow's warnings (large images, odd metadata) from then on. A process-wide filter, because
    `warnings.catch_warnings` is not thread-safe, and a lock would serialise decoding.
    """
    if not (
        warnings.filters and warnings.filters[0][3] == _PILLOW_MODULES
    ):  # else another filter may be first
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES.pattern)
    file = _ImageFile(data)
    image = Image.open(file, formats=formats)
    # pixels in very many strips (TIFF), or decoded in Python (runs of BMP, odd PPM)
    if image.format == "TIFF" or any(
        tile[0] in Image.DECODERS for tile in getattr(image, "tile", ())
    ):
        file.reads_left = math.inf
    return image


def _check_cost(data: bytes, image: Image.Image, where: str) -> None:
    """Raise BadSampleError if decoding would exceed MAX_BYTES or MAX_SCANNED.

    Tests measure these assumptions.
    """
    width, height = image.size
    per_pixel = BYTES_PER_PIXEL.get(str(image.format), 8) if image.mode != "CMYK" else 8
    most = data.count(b"\xff\xda") if data.startswith(b"\xff\xd8") else 0
    if most > 1:  # the decoder keeps coefficients of a JPEG in several scans
        per_pixel += 2 * len(image.getbands())
    if (
        width * height * most > MAX_SCANNED
        and width * height * (scans := _num_scans(data)) > MAX_SCANNED
    ):
        accepted = f"at most {MAX_SCANNED // (width * height)} of so large an image are accepted"
        raise BadSampleError(where, f"{width}x{height} JPEG has {scans} scans, {accepted}")
    needed = width * height * per_pixel + len(data)
    if needed > MAX_BYTES:
        what = f"{width}x{height} {image.mode} image ({image.format})"
        raise BadSampleError(
            where,
            f"{what} needs {needed >> 20} MB to decode, at most {MAX_BYTES >> 20} are accepted",
        )


def _num_scans(data: bytes) -> int:
    """Return the number of scans of a JPEG's image.

    Bytes before and after the image may look like any number of scans.
    """
    num, place = 0, 2
    for _ in range(_most_parts(data)):
        found = JPEG_MARKER.search(data, place)
        if not found or found[0][-1] == 0xD9:
            return num
        num += found[0][-1] == 0xDA
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    raise ValueError(TOO_MANY_PARTS)


def _raw_mode(image: Image.Image) -> str:
    """Return the mode of the stored pixels, such as "RGB;16B".

    Pillow's mode is "RGB" for 16 bits a channel too.
    """
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else image.mode
    return str(args[0] if isinstance(args, tuple) and args else args)


def _decode_fast(
    data: bytes, image: Image.Image, crop: Crop | None, longest: int | None
) -> Tensor | None:
    """Return the pixels, or a crop, of a plain JPEG or PNG; None for anything else.

    image: its header. Pillow gets what these decoders refuse; it has the better messages and now and then succeeds.
    """
    if image.mode not in ("RGB", "L", "P"):
        return None
    with contextlib.suppress(ValueError, RuntimeError):
        if image.format in ("JPEG", "MPO"):
            return _decode_jpeg(data, *image.size, crop, longest)
        is_plain = _raw_mode(image) == image.mode or image.mode == "P"
        is_animated = getattr(image, "is_animated", False)
        special = image.info.keys() & {
            "transparency",
            "icc_profile",
        }  # libpng prints warnings about colour profiles
        if image.format == "PNG" and is_plain and not is_animated and not special:
            pixels = decode_png(
                torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB
            )
            return crop(pixels) if crop else pixels
    return None


def _decode_jpeg(
    data: bytes, width: int, height: int, crop: Crop | None, longest: int | None
) -> Tensor:
    if crop is None:
        share = 1 if longest is None else min(1, longest / max(width, height))
        array = simplejpeg.decode_jpeg(
            data, min_height=math.ceil(height * share), min_width=math.ceil(width * share)
        )
        return torch.from_numpy(array).permute(2, 0, 1)
    box = crop.choose(height, width)
    divisor = crop.divisor(box)
    least_height, least_width = -(-height // divisor), -(-width // divisor)
    is_shrunk = min(box[2:]) >= crop.size  # hides the coarser colour of fastupsample
    array = simplejpeg.decode_jpeg(
        data, min_height=least_height, min_width=least_width, fastupsample=is_shrunk
    )
    return crop.cut(torch.from_numpy(array).permute(2, 0, 1), box, divisor)


def _decode_special(image: Image.Image, where: str) -> tuple[Tensor, list[str]]:
    """Return the first frame, uint8 (3, height, width), and the conversions made."""
    conversions = ["first frame of several"] if getattr(image, "is_animated", False) else []
    is_16_bit = "16" in _raw_mode(image)
    image.load()
    is_16_bit_gray = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    )
    if image.mode in ("I", "F") and not is_16_bit_gray:
        raise BadSampleError(
            where, "pixels are 32-bit numbers of unknown range; save it with 8 or 16 bits"
        )
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
            array[top : top + rows] = (np.asarray(strip).astype(np.int64).clip(0, 65535) >> 8)[
                :, :, None
            ]
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
    value = 1
    with contextlib.suppress(Exception):  # broken EXIF is common, and the image is still good
        value = image.getexif().get(ExifTags.Base.Orientation)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn_upright(pixels: Tensor, orientation: int) -> Tensor:
    """Undo an EXIF orientation (EXIF 2.3, tag 0x0112).

    First mirror rows or columns, then swap them.
    """
    flipped = {2: [2], 3: [1, 2], 4: [1], 5: [], 6: [1], 7: [1, 2], 8: [2]}[orientation]
    pixels = pixels.flip(flipped) if flipped else pixels
    return pixels.transpose(1, 2) if orientation >= 5 else pixels


def decode(
    image: ImageRef, where: str, *, crop: Crop | None = None, longest: int | None = None
) -> Tensor:
    """Return an image, or a crop of it, as uint8 RGB, shape (3, height, width).

    longest: see `decode_bytes`. Raises BadSampleError (naming `where`) if it cannot be read or decoded.
    """
    if isinstance(image, Unencoded):
        return to_tensor(image, crop)
    is_upload = isinstance(image, ImageBytes) and image.is_upload
    return decode_bytes(
        read_image(image, where), where, crop=crop, longest=longest, is_upload=is_upload
    ).pixels
