"""Plain code: packed assignments, products that choose a text or a list, names that say nothing."""

import ast
from collections.abc import Iterator

import pytest

from helpers.source_trees import ROOT, parsed, place, refuse

VAGUE_NAMES = {
    *("found", "each", "given", "made", "kept", "own", "one", "more", "others"),
    *("what", "this", "that", "over", "like"),
}


def problems(node: ast.AST) -> Iterator[str]:
    """Yield what is not plain about a node."""
    match node:
        case ast.Assign(targets=targets, value=ast.Tuple() as value):
            if any(isinstance(target, ast.Tuple) for target in targets) and not _is_swap(node):
                yield f"assigns {ast.unparse(value)} at once; write a line for each"
        case ast.BinOp(op=ast.Mult(), left=left, right=right):
            is_choice = _is_sequence(left) and _is_condition(right)
            if is_choice or (_is_sequence(right) and _is_condition(left)):
                yield "multiplies by a condition; write an if"
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
            if name in VAGUE_NAMES:
                yield f"{name} says nothing; write what it is"


def _is_swap(node: ast.Assign) -> bool:
    """Return whether the same names stand on both sides."""
    sides = [ast.unparse(side).strip("()").split(", ") for side in (*node.targets, node.value)]
    return all(sorted(side) == sorted(sides[0]) for side in sides)


def _is_sequence(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.JoinedStr | ast.List)


def _is_condition(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) == "bool"
    return isinstance(node, ast.Compare | ast.BoolOp)


def test_code_is_plain():
    offenders = []
    for folder in ("eve_vl", "tests", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(parsed(path)):
                for problem in problems(node):
                    offenders.append(f"{place(path, getattr(node, 'lineno', 0))}: {problem}")
    refuse(offenders)


@pytest.mark.parametrize(
    ("code", "is_plain"),
    [
        ("a, b = f(), g()", False),
        ("a, b = pair", True),
        ("a, b = b, a", True),
        ("a[0], a[1] = a[1], a[0]", True),
        ("text = 's' * (n > 1)", False),
        ("xs = [x] * bool(x)", False),
        ("line = '-' * width", True),
        ("for each in rows: pass", False),
        ("def f(given): pass", False),
        ("for row in rows: pass", True),
    ],
)
def test_the_rules_see_what_they_should(code, is_plain):
    num_problems = sum(len([*problems(node)]) for node in ast.walk(ast.parse(code)))
    assert (num_problems == 0) == is_plain
