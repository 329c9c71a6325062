"""MELINDA: panels of figures with captions, labelled with methods."""

from pathlib import Path

from eve_vl.data.field_values import Fields
from eve_vl.data.table import Table
from eve_vl.systems.medical.readers.table_rows import (
    csv_rows,
    fields_of,
    label_table,
    parsed_rows,
    require_filled,
)

COLUMNS = ("image", "caption", "label", "p_meth_label", "i_meth_label", "p_meth", "i_meth")


def melinda_table(path: Path) -> Table:
    """Return the panels; the default label is p_meth_label."""
    rows = parsed_rows(csv_rows(path, "figure_file", "caption", "p_meth_label"), _parse)
    return label_table(path, COLUMNS, rows, "MELINDA", ("melinda_images", ""), path.parent)


def _parse(_where: str, row: Fields | str) -> Fields:
    fields = fields_of(row)
    require_filled(fields, "caption", "p_meth_label")
    return {**fields, "image": fields["figure_file"], "label": fields["p_meth_label"]}
