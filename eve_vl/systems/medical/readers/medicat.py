"""MedICaT: JSON lines of figures with captions and references, split here by paper."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from eve_vl.data.field_values import Fields
from eve_vl.data.table import Row, Table
from eve_vl.systems.medical.readers.table_rows import (
    caption_table,
    collapsed,
    named_lines,
    require_fields,
)
from eve_vl.utils.console import print_once
from eve_vl.utils.file_io import parse_json, require_type

NUM_HELD_OUT = 1000
"""Figures in each of validation and test; at most a tenth."""


def medicat_table(path: Path, split: str = "") -> Table:
    """Return captions and references of the radiology figures of a split ("": all)."""
    is_released = path.parent.name == "release"
    root = path.parent.parent if is_released else path.parent
    return caption_table(path, _rows(path, split), "MedICaT", "figures", root)


def _rows(path: Path, split: str) -> Iterator[Row]:
    """Yield the figures of a split.

    Splits are by paper, because figures of one paper describe each other.
    """
    split_of = _splits_by_paper(Counter(_paper_of(line) for _, line in named_lines(path)))
    num_unmarked = 0
    for where, line in named_lines(path):
        if split and split_of[_paper_of(line)] != split:
            continue
        try:
            figure = _parse(line)
        except ValueError as error:
            yield where, str(error)
            continue
        if figure["radiology"] is True:
            yield where, _fields_of(figure)
        else:
            num_unmarked += 1
    if num_unmarked:
        of_split = f", {split}" if split else ""
        print_once(
            f"{path}{of_split}: {num_unmarked:,} figures are not marked as radiology and are left "
            "out"
        )


def _parse(line: bytes) -> dict[str, Any]:
    figure = require_type(parse_json(line), dict)
    require_fields(figure, "pdf_hash", "fig_uri", "s2_caption", "radiology")
    return figure


def _fields_of(figure: dict[str, Any]) -> Fields:
    caption = figure["s2_caption"]
    references = figure.get("s2orc_references")
    texts = []
    if isinstance(caption, str) and caption.strip():
        texts.append(caption)
        if isinstance(references, list):
            texts += references
    return {"image": f"{figure['pdf_hash']}_{figure['fig_uri']}", "caption": collapsed(texts)}


def _paper_of(line: bytes) -> str:
    """Return the paper of a figure, "" if it is unknown."""
    paper = None
    with suppress(ValueError):
        paper = require_type(parse_json(line), dict).get("pdf_hash")
    return paper if isinstance(paper, str) else ""


def _splits_by_paper(num_figures: Counter[str]) -> dict[str, str]:
    """Return the split of each paper.

    In the order of a hash of their names, papers fill test, then val, then train.
    """
    del num_figures[""]
    wanted = min(NUM_HELD_OUT, num_figures.total() // 10)
    split_of = {"": "train"}
    num_in_split: Counter[str] = Counter()
    for paper in sorted(num_figures, key=_hash_of_name):
        split = "train"
        if num_in_split["test"] < wanted:
            split = "test"
        elif num_in_split["val"] < wanted:
            split = "val"
        num_in_split[split] += num_figures[paper]
        split_of[paper] = split
    return split_of


def _hash_of_name(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogatepass")).digest()
