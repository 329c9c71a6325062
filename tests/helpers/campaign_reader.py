"""What a fault campaign damages, and what reads it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from helpers.mutations import mutate

Files = dict[str, bytes]
Action = Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Sound files, which of them are damaged and how, and what reads the folder that holds them."""

    files: Files
    actions: Mapping[str, Action]
    num_actions: int = 9
    """So many of them, sampled again, read each input."""
    targets: Sequence[str] = ()
    """Files that are damaged; empty: any."""
    damage: Callable[[Random, str, bytes], bytes] | None = mutate
    """Of the content of a file; None: it stays as it is."""
    choose: Callable[[Random, Files], Files] | None = None
    """The files of one input, the first of which is damaged; None: all."""
    afterwards: Callable[[Random, Path], None] | None = None
    """What is done to the folder after the damage."""
    weight: float = 1.0
    """Its share of the inputs, compared with the other readers."""
    has_sound: bool = True
    """Whether everything reads the files as they are."""
    may_rename: bool = False


def files_in(folder: Path) -> Files:
    """Return the files below a folder by their relative paths."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[str(path.relative_to(folder))] = path.read_bytes()
    return files


def lines(rows: Sequence[Any]) -> bytes:
    """Return JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
