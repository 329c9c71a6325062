"""Flags, work folders and printed tables of the fault campaigns."""

import argparse
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path


def campaign_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the flags that all campaigns have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder to work in; default: a new temporary one")
    return parser


def empty_folder(parser: argparse.ArgumentParser, out: Path | None) -> Path:
    """Return `out`, or a new temporary folder; a folder with files is an error."""
    folder = work_folder(out)
    if any(folder.iterdir()):
        parser.error(f"--out {folder}: is not empty")
    return folder


def work_folder(out: Path | None) -> Path:
    """Return `out`, or a new temporary folder."""
    if out is None:
        return Path(tempfile.mkdtemp(prefix="eve_faults_"))
    out.mkdir(parents=True, exist_ok=True)
    return out


def table_of(counts_by_row: Mapping[str, Counter[str]], columns: Sequence[str]) -> str:
    """Return a text with a line for each row and a column for each name."""
    width = max(map(len, counts_by_row), default=0)
    header = "".join(f"{column:>11}" for column in columns)
    lines = [" " * width + header]
    for row, counts in sorted(counts_by_row.items()):
        cells = "".join(f"{counts[column]:11}" for column in columns)
        lines.append(f"{row:{width}}{cells}")
    return "\n".join(lines)
