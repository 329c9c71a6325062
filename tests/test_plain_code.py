"""Plain code: packed assignments, products that choose a text or a list, names that say nothing.

Each test lists all offenders with file and line.
"""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(
    path for folder in ("eve_vl", "tests", "examples") for path in (ROOT / folder).rglob("*.py")
)
VAGUE_NAMES = {
    *("found", "each", "given", "made", "kept", "own", "one", "more", "others"),
    *("what", "this", "that", "over", "like"),
}


def packed_assignments(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield assignments of several values at once, except swaps."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
            continue
        for target in node.targets:
            if isinstance(target, ast.Tuple) and not _is_swap(target, node.value):
                yield node.lineno, "assigns several values at once; write a line for each"


def _is_swap(target: ast.Tuple, value: ast.Tuple) -> bool:
    """Return whether the same names stand on both sides."""
    return {ast.unparse(name) for name in target.elts} == {ast.unparse(name) for name in value.elts}


def chosen_by_product(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield texts and lists times a condition."""
    conditions = (ast.Compare, ast.BoolOp)
    for node in ast.walk(tree):
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult):
            continue
        for sequence, factor in ((node.left, node.right), (node.right, node.left)):
            is_text = isinstance(sequence, ast.JoinedStr) or (
                isinstance(sequence, ast.Constant) and isinstance(sequence.value, str)
            )
            is_condition = isinstance(factor, conditions) or (
                isinstance(factor, ast.Call) and ast.unparse(factor.func) == "bool"
            )
            if is_condition and (is_text or isinstance(sequence, ast.List)):
                yield node.lineno, "multiplies by a condition; write an if"


def vague_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield names of variables and arguments that say nothing about the thing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        else:
            continue
        if name in VAGUE_NAMES:
            yield node.lineno, f"{name} says nothing; write what it is"


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@pytest.mark.parametrize("rule", [packed_assignments, chosen_by_product, vague_names])
def test_code_is_plain(rule: Callable[[ast.Module], Iterator[tuple[int, str]]]):
    offenders = [
        f"{path.relative_to(ROOT)}:{line}: {problem}"
        for path in CODE
        for line, problem in rule(parsed(path))
    ]
    assert not offenders, f"{len(offenders)} offenders:\n" + "\n".join(offenders)


@pytest.mark.parametrize(
    ("rule", "code", "is_plain"),
    [
        (packed_assignments, "a, b = f(), g()", False),
        (packed_assignments, "a, b = pair", True),
        (packed_assignments, "a, b = b, a", True),
        (chosen_by_product, "text = 's' * (n > 1)", False),
        (chosen_by_product, "xs = [x] * bool(x)", False),
        (chosen_by_product, "line = '-' * width", True),
        (vague_names, "for each in rows: pass", False),
        (vague_names, "for row in rows: pass", True),
    ],
)
def test_the_rules_see_what_they_should(rule, code: str, is_plain: bool):
    assert (not list(rule(ast.parse(code)))) == is_plain
