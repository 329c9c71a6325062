"""Syntax trees of the project's files, parsed once for all tests that read the code."""

import ast
import gc
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "eve_vl"


@cache
def parsed(path: Path) -> ast.Module:
    gc.disable()  # collections would visit all nodes again and again, twice the time
    tree = ast.parse(path.read_text())
    gc.enable()
    return tree


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def refuse(offenders: list[str]) -> None:
    """Fail with a list of all offenders."""
    offenders = sorted(set(offenders))
    assert not offenders, f"{len(offenders)} offenders:\n" + "\n".join(offenders)
