"""Images written side by side to one image file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import atomic_file

if TYPE_CHECKING:
    import numpy as np

LEAST_SIDE = 224  # pixels; smaller images are enlarged by a whole number before they are written
GAP = 8


def write_image_row(path: Path, images: Sequence["np.ndarray"]) -> None:
    """Write uint8 images side by side, in the format of the file's ending."""
    import numpy as np
    from PIL import Image

    longest_side = max(max(image.shape[:2]) for image in images)
    factor = max(1, LEAST_SIDE // longest_side)
    enlarged = [image.repeat(factor, 0).repeat(factor, 1) for image in images]
    height = max(map(len, enlarged))
    framed = []
    for image in enlarged:
        margins = ((0, height - len(image)), (0, GAP), (0, 0))
        framed.append(np.pad(image, margins, constant_values=255))
    row = np.hstack(framed)[:, :-GAP]
    with atomic_file(path) as temporary:
        Image.fromarray(row).save(temporary, image_format(path))


def image_format(path: Path) -> str:
    """Return the format of an image file by its ending. Raises UserError."""
    from PIL import Image

    name = Image.registered_extensions().get(path.suffix.lower())
    if name not in Image.SAVE:
        raise UserError(
            f"{path}: cannot write images with the ending {path.suffix!r}; name it .png"
        )
    return name
