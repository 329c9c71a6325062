"""Rows to sort into classes: a picture, a text or both, with one label or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from eve_vl.data.readers import common
from eve_vl.data.readers.common import Fields
from eve_vl.data.readers.table import RowColumns, Table
from eve_vl.data.records import Labelled
from eve_vl.errors import BadSampleError, UserError


@dataclass(frozen=True, kw_only=True)
class LabelColumns(RowColumns):
    """A picture column, a text column or both, and a column of labels: a text, a whole number or a list of these."""

    DESCRIPTION: ClassVar[str] = "labelled pictures or texts"
    USUAL: ClassVar = {
        "image": common.IMAGE_COLUMNS,
        "text": (*common.TEXT_COLUMNS, "sentence"),
        "label": ("label", "labels", "class", "category"),
    }

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Tell whether these are columns of labels; with both a picture and a text they may as well be of captions."""
        return cls.has_usual("label", names) and cls.has_usual("image", names) != cls.has_usual("text", names)

    @classmethod
    def pick(cls, table: Table, given: Mapping[str, str | None]) -> Self:
        """Pick the columns of a table. Raises UserError, also if there is neither a picture nor a text."""
        columns = super().pick(table, given)
        if columns.required:
            return columns
        usual = ", ".join(cls.USUAL["image"] + cls.USUAL["text"])
        raise UserError(
            f"{table.path}: none of its columns is a usual one of pictures or texts ({usual}). Its columns: "
            f"{', '.join(table.names)}. Name one with --data.image-column or --data.text-column"
        )

    @classmethod
    def pick_some(cls, table: Table, option: str, given: str | None) -> tuple[str, ...]:
        """Return the column, of pictures and of texts perhaps none. Raises UserError."""
        usual = cls.USUAL[option]
        if option != "label" and given is None and not cls.has_usual(option, table.names):
            return ()
        return (common.pick_column(table.path, table.names, given, usual, option, option),)

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> Labelled:
        """Return what is labelled. Raises BadSampleError."""
        return Labelled(
            image=self.picture(fields, root, where) if self.images else None,
            text=self.text(fields, where) if self.texts else None,
            labels=_labels(fields.get(self.labels[0]), where),
            where=where,
        )


def _labels(value: object, where: str) -> tuple[str, ...]:
    """Return the labels, none if they are kept back; numbers become texts."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    for label in values:
        if not isinstance(label, int | str):
            raise BadSampleError(where, f"label is {type(label).__name__}, expected text or a whole number")
    return common.to_texts([str(label) for label in values], "label", where)
