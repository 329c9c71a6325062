"""Columns of two images or two texts, and of truth values."""

from collections.abc import Sequence

from eve_vl.data.field_values import Fields, field
from eve_vl.data.table import Table
from eve_vl.utils.errors import UserError

SIDES = (
    "image_left/image_right",
    "left_image/right_image",
    "left/right",
    "image_0/image_1",
    "image0/image1",
)
SIDES_OF = ("left_{0}/right_{0}", "{0}_left/{0}_right")
TEXT_SIDES = tuple(
    sides.format(name) for name in ("caption", "text", "title") for sides in SIDES_OF
)
TWO_COLUMNS = {"image": ("images", *SIDES), "text": ("captions", *TEXT_SIDES)}
"""Usual columns of two images or of two texts: a list of both, or one for each."""
TRUTH = {"true": True, "false": False, "1": True, "0": False}


def usual_pair(option: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the usual column of two images or texts, or one for each, if any."""
    usual = [tuple(columns.split("/")) for columns in TWO_COLUMNS[option]]
    return next((columns for columns in usual if {*columns} <= {*names}), ())


def pick_two_columns(table: Table, option: str, given: str | None) -> tuple[str, ...]:
    """Return the column of two images or texts, or one for each. Raises UserError."""
    if given is not None:
        columns = given.split(",")
        if len(columns) > 2:
            raise UserError(
                f"{table.path}: '{given}' names {len(columns)} columns, expected LIST or LEFT,RIGHT"
            )
        return tuple(table.column(name, (), option, option) for name in columns)
    if columns := usual_pair(option, table.names):
        return columns
    listed, *sides = TWO_COLUMNS[option]
    problem = (
        f"none of its columns is a usual column of two {option}s ({listed}; {', '.join(sides)})"
    )
    raise table.lacks(problem, f"Name them with --data.{option}-column: LIST or LEFT,RIGHT")


def two_values(fields: Fields, columns: tuple[str, ...], what: str) -> list[object]:
    """Return the two images or texts of a row. Raises ValueError."""
    values = [field(fields, name) for name in columns]
    if len(values) == 2:
        return values
    (both,) = values
    if not isinstance(both, list) or len(both) != 2:
        problem = f"lists {len(both)}" if isinstance(both, list) else f"is {type(both).__name__}"
        raise ValueError(f"{columns[0]} {problem}, expected a list of two {what}")
    return both


def truth_value(value: object) -> bool | None:
    """Return a truth value, None if it is missing. Raises ValueError."""
    label = None if value is None else TRUTH.get(str(value).strip().lower())
    if value is not None and (label is None or not isinstance(value, int | str)):
        shown = f"'{value[:80]}'" if isinstance(value, str) else f"{value}"
        raise ValueError(f"label is {shown}, expected True or False")
    return label
