"""Sizes of a model, read from the names and shapes of its tensors.

Letters: D width, C channels, P patch size.
"""

import re
from collections.abc import Iterable

from torch import Tensor

from eve_vl.utils.errors import UserError

HEAD_WIDTH = 64  # of an attention head in all published sizes


def count_numbered(pattern: str, names: Iterable[str]) -> int:
    """Return how many blocks or experts there are.

    They are the different numbers at the last `*` of the names that begin with a pattern.
    """
    beginning = re.compile(re.escape(pattern).replace(r"\*", r"(-?\d+)"))
    matches = [beginning.match(name) for name in names]
    return len({match.groups()[-1] for match in matches if match})


def width_and_patch_size(conv_DCPP: Tensor, where: str) -> tuple[int, int]:
    """Return the width and the patch size of a convolution that projects patches.

    Raises UserError for any other layout of its axes.
    """
    shape = tuple(conv_DCPP.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise UserError(
            f"{where}: the projection of patches has shape {shape}, expected (width, 3, patch "
            "size, patch size)"
        )
    return shape[0], shape[3]


def patches_per_side(num_positions: int, where: str) -> int:
    """Return the patches per side from the number of positions with [CLS].

    Raises UserError if they are no square.
    """
    side = round(max(num_positions - 1, 0) ** 0.5)
    if side < 2 or side**2 + 1 != num_positions:
        raise UserError(
            f"{where}: {num_positions} image positions are no [CLS] and a square of patches"
        )
    return side


def patches_per_side_of_table(num_rows: int, num_special_rows: int, where: str) -> int:
    """Return the patches per side from the rows of a table of relative positions.

    num_special_rows: rows that are not between patches. Raises UserError if the others are no
    square.
    """
    side = round((max(num_rows - num_special_rows, 0) ** 0.5 + 1) / 2)
    if side < 2 or (2 * side - 1) ** 2 + num_special_rows != num_rows:
        expected = f"(2g - 1)² + {num_special_rows} for g × g patches"
        raise UserError(
            f"{where}: relative_position_bias_table has {num_rows} rows, expected {expected}"
        )
    return side
