"""Columns of rows with two images or two texts, and of truth values."""

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
TEXT_SIDES = (
    "left_caption/right_caption",
    "caption_left/caption_right",
    "left_text/right_text",
    "text_left/text_right",
    "left_title/right_title",
    "title_left/title_right",
)
TWO_COLUMNS = {"image": ("images", *SIDES), "text": ("captions", *TEXT_SIDES)}
"""Usual columns of two images or of two texts: a list of both, or one for each."""
TRUTH = {"true": True, "false": False, "1": True, "0": False}


def usual_pair(option: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the usual column of two images or texts, or one for each, if any."""
    for usual in TWO_COLUMNS[option]:
        columns = tuple(usual.split("/"))
        if set(columns) <= set(names):
            return columns
    return ()


def pick_two_columns(table: Table, option: str, named_columns: str | None) -> tuple[str, ...]:
    """Return the column of two images or texts, or one for each.

    named_columns: those that the user names. Raises UserError.
    """
    if named_columns is not None:
        columns = named_columns.split(",")
        if len(columns) > 2:
            raise UserError(
                f"{table.path}: '{named_columns}' names {len(columns)} columns, "
                "expected LIST or LEFT,RIGHT"
            )
        return tuple(table.column(name, (), option, option) for name in columns)

    usual_columns = usual_pair(option, table.names)
    if not usual_columns:
        list_column, *sides = TWO_COLUMNS[option]
        usual = f"{list_column}; {', '.join(sides)}"
        raise table.lacks(
            f"none of its columns is a usual column of two {option}s ({usual})",
            f"Name them with --data.{option}-column: LIST or LEFT,RIGHT",
        )
    return usual_columns


def two_values(fields: Fields, columns: tuple[str, ...], items: str) -> list[object]:
    """Return the two images or texts of a row. Raises ValueError.

    items: what messages call them.
    """
    if len(columns) == 2:
        return [field(fields, name) for name in columns]
    value = field(fields, columns[0])
    if not isinstance(value, list):
        raise ValueError(f"{columns[0]} is {type(value).__name__}, expected a list of two {items}")
    if len(value) != 2:
        raise ValueError(f"{columns[0]} lists {len(value)}, expected a list of two {items}")
    return value


def truth_value(value: object) -> bool | None:
    """Return a truth value, None if it is missing. Raises ValueError."""
    if value is None:
        return None
    text = str(value).strip().lower()
    if not isinstance(value, int | str) or text not in TRUTH:
        description = f"'{value[:80]}'" if isinstance(value, str) else f"{value}"
        raise ValueError(f"label is {description}, expected True or False")
    return TRUTH[text]
