"""Plain language: words to avoid in names, docstrings, comments, messages, README and docs."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.source_trees import PACKAGE, ROOT, parsed, place, refuse

CODE = sorted(PACKAGE.rglob("*.py"))
TEMPLATES = sorted([*PACKAGE.rglob("*.html"), *PACKAGE.rglob("*.js")])
DOCS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("benchmarks/*.md"),
    *ROOT.glob("examples/*/*.md"),
]
MAX_COLUMNS = 100  # of a line of README and docs, without the targets of links

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
    r"(?<!nearest )(?<!nearest-)(?<!visible )neighbours?": "related system; adjacent",
    r"anew|begins? again": "again, restart",
    r"(?:go|goes|going|went|gone) on": "resume, continue",
    r"house(?! with a heart)": "project, package",
    r"what (?:is|was|are) (?:broken|wrong|there|damaged|new)": "a noun: broken files",
    r"who looks": "readers",
    r"for to": "because",
    r"so many": "N, the same number",
    r"beside": "next to, compared with",
    r"told|said": "reported, logged, printed",
    r"held out": "held-out split, validation split",
    r"almost the same": "near-duplicate",
    r"rebuil(?:d|ds|t|ding)": "reconstruct",
    r"(?<!double-)blind(?:ly|s)?": "image-ablated, without the image",
    r"of no use": "has no effect",
    r"among which": "of which",
    r"taken apart|made whole": "parsed; atomic",
    r"what (?:it|they|a number|this) (?:is|are) worth": "significance",
    r"comes? to": "is, reaches",
    r"whatever": "any, all",
    r"by themselves|by itself": "separately",
}
AVOIDED = re.compile(rf"\b(?:{'|'.join(PROSE)})\b", re.IGNORECASE)


def avoided_words(text: str) -> Iterator[str]:
    """Yield each avoided word of a text with what to write instead."""
    for match in AVOIDED.finditer(text):
        for pattern, instead in PROSE.items():
            if re.fullmatch(pattern, match[0], re.IGNORECASE):
                yield f"{match[0]!r}; write {instead}"


def defined_names(node: ast.AST) -> str:
    """Return the name that a node gives to a function, class, argument, variable or attribute."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return node.name
        case ast.arg():
            return node.arg
        case ast.Name(ctx=ast.Store()):
            return node.id
        case ast.Attribute(ctx=ast.Store()):
            return node.attr
    return ""


def test_names_use_the_terms_of_the_field():
    instead_of = {word: instead for words, instead in NAMES.items() for word in words.split()}
    offenders = []
    for path in CODE:
        names = {path.stem: 1}
        for node in ast.walk(parsed(path)):
            names[defined_names(node)] = getattr(node, "lineno", 1)
        for name, line in names.items():
            for part in re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_"):
                if part in instead_of:
                    offenders.append(f"{place(path, line)}: {name}; write {instead_of[part]}")
    refuse(offenders)


def texts_for_people(node: ast.AST) -> list[ast.AST]:
    """Return the docstring that a node is, or the texts that it raises, prints or warns with."""
    match node:
        case ast.Expr(value=ast.Constant() as text):
            return [text]
        case (
            ast.Raise() | ast.Call(func=ast.Name(id="print_line" | "print_once" | "warn" | "fail"))
        ):
            return [*ast.walk(node)]
    return []


def texts_of_code(path: Path) -> Iterator[tuple[int, str]]:
    """Yield docstrings (help texts among them), messages and comments with their lines."""
    for node in ast.walk(parsed(path)):
        for text in texts_for_people(node):
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield text.lineno, text.value
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_docstrings_messages_and_comments_use_plain_words():
    offenders = []
    for path in CODE:
        for start, text in texts_of_code(path):
            for line, words in enumerate(text.splitlines(), start):
                for problem in avoided_words(words):
                    offenders.append(f"{place(path, line)}: {problem}")
    for path in TEMPLATES:
        for line, words in enumerate(path.read_text().splitlines(), start=1):
            for problem in avoided_words(words):
                offenders.append(f"{place(path, line)}: {problem}")
    refuse(offenders)


def prose_of(page: Path) -> list[str]:
    """Return the lines of a page without code, tables, images and the targets of links."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = re.sub(r"\]\([^)]*\)", "]", text).splitlines()
    return [line for line in lines if not line.startswith(("|", "    ", "![", "--8<--"))]


def test_docs_use_plain_words_in_short_lines():
    offenders = []
    for page in DOCS:
        for line in prose_of(page):
            if len(line) > MAX_COLUMNS:
                offenders.append(f"{page.name}: over {MAX_COLUMNS} columns: {line}")
            for problem in avoided_words(re.sub(r"`[^`]*`|\"[^\"]*\"", "", line)):
                offenders.append(f"{page.name}: {line}: {problem}")
    refuse(offenders)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the nearest neighbours of a query", None),
        ("besides, a double-blind study", None),
        ("beside the image", "beside"),
        ("It Goes on", "Goes on"),
    ],
)
def test_the_patterns_find_what_they_should(text, words):
    match = AVOIDED.search(text)
    assert (match and match[0]) == words
