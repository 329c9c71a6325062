"""Plain language in the package: words to avoid in names, docstrings, comments and messages.

Each test lists all offenders with file and line. tests/test_docs.py does the same for README and
docs.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "eve_vl"
CODE = sorted(PACKAGE.rglob("*.py"))
PAGES = sorted([*PACKAGE.rglob("*.html"), *PACKAGE.rglob("*.js")])

# Parts of identifiers → what to write instead.
NAMES = {
    "picture pictures": "image",
    "rival rivals": "baseline",
    "neighbour neighbours": "related, adjacent",
    "anew": "again",
    "told tell said": "reported, logged, message",
    "withhold withheld": "skip",
    "glimpse": "samples",
    "blind blinds": "ablations, without the image",
    "house": "package",
    "rebuild rebuilt rebuilding": "reconstruct",
    "verdict verdicts": "significance, comparison, label",
    "ahead": "prefetch",
    "beside": "next to",
    "unasked": "pending",
}
# Regular expressions of prose → what to write instead.
PROSE = {
    r"pictures?": "image",
    r"rivals?": "baseline",
    r"(?<!nearest )(?<!nearest-)neighbours?": "related system; adjacent",
    r"anew": "again",
    r"(?:go|goes|going|went|gone) on": "resume, continue",
    r"house": "project, package",
    r"what (?:is|was|are) (?:broken|wrong|there|damaged|new)": "a noun: broken files",
    r"who looks": "readers",
    r"for to": "because",
    r"so many": "N, the same number",
    r"beside": "next to, compared with",
    r"told|said": "reported, logged, printed",
    r"held out": "held-out split",
    r"almost the same": "near-duplicate",
    r"rebuil(?:d|ds|t|ding)": "reconstruct",
    r"blind(?:ly|s)?": "without the image",
    r"of no use": "has no effect",
    r"among which": "of which",
    r"taken apart|made whole": "parsed; atomic",
    r"what (?:it|they|a number|this) (?:is|are) worth": "significance",
    r"comes? to": "is, reaches",
    r"whatever": "any, all",
    r"by themselves|by itself": "separately",
}
ALLOWED = (  # words that stay although a rule names them
    r"_blind|vqa_acc_blind",  # a metric's name
    r"double-blind",
)
PRINTS = ("print_line", "print_once", "warn", "fail")


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def check(rule: str, offenders: list[str]) -> None:
    """Fail with a list of all offenders."""
    offenders = sorted(set(offenders))
    assert not offenders, f"{len(offenders)} offenders ({rule}):\n" + "\n".join(offenders)


def identifiers(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names that a file defines: functions, classes, arguments, variables, fields, attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node.lineno
            case ast.arg():
                yield node.arg, node.lineno
            case ast.Name(ctx=ast.Store()):
                yield node.id, node.lineno
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr, node.lineno


def docstrings(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Docstrings of a file, its classes, functions and attributes, with the line at which each
    starts."""
    for node in ast.walk(tree):
        for child in (
            getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []
        ):
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                yield child.value.value, child.lineno


def messages(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Literal parts of the texts that a file raises, prints or warns with."""
    for node in ast.walk(tree):
        is_call = (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in PRINTS
        )
        if is_call or isinstance(node, ast.Raise):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value, part.lineno


def comments(path: Path) -> Iterator[tuple[str, int]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.string, token.start[0]


def prose() -> Iterator[tuple[Path, str, int]]:
    """All texts for people: docstrings (help texts among them), comments, messages, pages."""
    for path in CODE:
        tree = parsed(path)
        for texts in (docstrings(tree), messages(tree), comments(path)):
            for text, start in texts:
                for offset, line in enumerate(text.splitlines()):
                    yield path, line, start + offset
    for path in PAGES:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            yield path, line, number


def test_names_use_the_terms_of_the_field():
    avoided = {word: instead for words, instead in NAMES.items() for word in words.split()}
    offenders = []
    for path in CODE:
        for name, line in [(path.stem, 1), *identifiers(parsed(path))]:
            parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")
            offenders += [
                f"{place(path, line)}: {name}; write {avoided[part]}"
                for part in parts
                if part in avoided
            ]
    check("names", offenders)


def test_prose_uses_plain_words():
    patterns = {
        re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE): instead
        for pattern, instead in PROSE.items()
    }
    offenders = []
    for path, text, line in prose():
        checked = re.sub("|".join(ALLOWED), " ", text)
        for pattern, instead in patterns.items():
            for words in pattern.findall(checked):
                offenders.append(f"{place(path, line)}: {words!r}; write {instead}")
    check("prose", offenders)


@pytest.mark.parametrize(
    ("text", "is_plain"),
    [
        ("the nearest neighbours of a query", True),
        ("beside the image", False),
        ("besides", True),
        ("it goes on", False),
    ],
)
def test_the_patterns_find_what_they_should(text: str, is_plain: bool):
    assert any(re.search(rf"\b(?:{pattern})\b", text) for pattern in PROSE) != is_plain
