"""Parse the words of the command line into a dataclass of flags, and name their errors."""

import contextlib
import dataclasses
import io
import math
import re
import typing
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import tyro

from eve_vl.builtin.names import existing_folder, is_hub_name
from eve_vl.cli.flags import SourceArgs
from eve_vl.cli.output_files import check_writable
from eve_vl.utils.errors import UserError, did_you_mean
from eve_vl.utils.file_io import expand_user

Args = TypeVar("Args")
PLAIN_WORDS = {
    r"^(--\S+): .*invalid literal for int\(\) with base 10: ('.*')$": (
        r"\1 \2: must be a whole number"
    ),
    r"^(--\S+): .*could not convert string to float: ('.*')$": r"\1 \2: must be a number",
    r"^(--\S+): Could not parse arguments \[(.*)\] into .*$": (
        r"\1 \2: must be values of the types that the help shows"
    ),
    r"^(Missing value for argument .*)\. Expected 1 values$": r"\1",
}
"""tyro's messages with Python's words, and the same in plain English."""


def parse(
    cls: type[Args],
    argv: Sequence[str],
    prog: str,
    description: str | None,
    default: Args | None = None,
) -> Args:
    """Parse flags into a dataclass. Raises UserError in tyro's words, on one line."""
    words = list(argv)
    if issubclass(cls, SourceArgs):  # also accept these flags as `eve pretrain` spells them
        words = [re.sub(r"^--data\.(?=format|image|text|label)", "--", word) for word in words]

    options: dict[str, Any] = {"prog": prog, "description": description}
    if default is None:
        _refuse_repeated_lists(cls, words)
        cls = _with_metavars(cls)
    else:  # a recipe's flag may come twice: scripts override their own flags
        options["default"] = default

    output = io.StringIO()
    try:
        with _captured(output):  # neither colours nor Unicode
            args = tyro.cli(cls, args=words, **options)
    except SystemExit as stop:
        if not stop.code:  # --help
            tyro.cli(cls, args=words, **options)
        problem = _first_problem(output.getvalue())
        hint = _hint(problem, cls, options)
        raise UserError(f"{problem}{hint}; {prog} --help shows the usage") from None

    _refuse_empty_lists(args, prog)
    _refuse_nan_and_infinity(args)
    check_writable(getattr(args, "json", None))
    refuse_missing_paths(args)
    return args


@contextlib.contextmanager
def _captured(output: io.StringIO) -> typing.Iterator[None]:
    """Collect what is printed in the block."""
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        yield


def _refuse_repeated_lists(cls: type[Any], words: Sequence[str]) -> None:
    """Raise UserError for a flag of several values that comes twice: tyro drops the first ones."""
    hints = typing.get_type_hints(cls)
    flags = Counter(word.partition("=")[0] for word in words if word.startswith("--"))
    for flag, number in flags.items():
        hint = hints.get(flag[2:].replace("-", "_"))
        if number > 1 and typing.get_origin(hint) is tuple:
            raise UserError(f"{flag}: given {number} times; give it once, with all its values")


def _first_problem(text: str) -> str:
    """Return the first problem that tyro printed, in one line.

    Unrecognized options come before missing ones, which often follow from them.
    """
    body = "\n".join(text.splitlines()[2:])  # after a title and a rule
    parts = re.split("-{9,}", body)
    first = parts[0]
    for part in parts:
        if part.strip().startswith("Unrecognized"):
            first = part
            break
    if first.strip().startswith("Missing from"):
        return _missing_flags(first)
    problem = " ".join(first.split()).rstrip(".")
    problem = re.sub(r"^Error parsing (\w+: )?", "", problem)
    for pattern, plain in PLAIN_WORDS.items():
        problem = re.sub(pattern, plain, problem)
    return problem


def _missing_flags(text: str) -> str:
    """Return the flags that tyro lists as missing, each in a line above its indented help."""
    lines = [line for line in text.splitlines()[1:] if line.strip()]
    indents = [len(line) - len(line.lstrip()) for line in lines]
    flags = [
        line.strip() for line, indent in zip(lines, indents, strict=True) if indent == indents[0]
    ]
    return f"missing: {', '.join(flags)}"


def _hint(problem: str, cls: type[Any], options: dict[str, Any]) -> str:
    """Return what helps with unrecognized options, or nothing."""
    flag = re.match(r"Unrecognized options: (--[\w.-]+)", problem)
    if flag is not None:
        usage = io.StringIO()
        with contextlib.redirect_stdout(usage), contextlib.suppress(SystemExit):
            tyro.cli(cls, args=["--help"], **options)
        nearest_flag = did_you_mean(flag[1], re.findall(r"--[\w.-]+", usage.getvalue()))
        return f"; {nearest_flag}" if nearest_flag else ""
    if problem.startswith("Unrecognized options: -"):
        return "; a text that begins with - needs a space before it"
    if problem.startswith("Unrecognized options: "):
        return "; a text of several words needs quotes"
    return ""


def _refuse_empty_lists(args: Any, prog: str) -> None:
    for field in dataclasses.fields(args):
        if field.default is dataclasses.MISSING and getattr(args, field.name) == ():
            raise UserError(f"{prog} needs at least one path; {prog} --help shows the usage")


def _refuse_nan_and_infinity(args: Any) -> None:
    """Raise UserError for a number without a finite value; fields of a config check their range."""
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            flag = field.name.replace("_", "-")
            raise UserError(f"--{flag} {value}: must be a finite number")


def refuse_missing_paths(args: object) -> None:
    """Raise UserError for a missing run or source, before slow imports."""
    for run in (getattr(args, "run", None), *getattr(args, "runs", ())):
        if run and not is_hub_name(run):
            existing_folder(expand_user(run))

    specs: list[str] = []
    for name in ("sources", "data", "val", "test"):
        value = getattr(args, name, ())
        if isinstance(value, tuple):  # a user's own field may be anything
            specs += value
    if specs:
        from eve_vl.data.source_names import refuse_missing  # imports fsspec

        refuse_missing(specs)


def _with_metavars(cls: type[Args]) -> type[Args]:
    """Return flags whose help names positional ones (RUN LEFT RIGHT), not their types."""
    annotations = {}
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        hint = hints[field.name]
        if typing.get_origin(hint) is not typing.Annotated:
            continue
        kind = typing.get_origin(typing.get_args(hint)[0])
        if kind is Literal:
            continue
        metavar = field.name.upper()
        if kind is tuple:
            metavar = f"[{metavar.removesuffix('S')} …]"
        elif field.default is not dataclasses.MISSING:
            metavar = f"[{metavar}]"
        annotations[field.name] = typing.Annotated[hint, tyro.conf.arg(metavar=metavar)]
    return type(cls.__name__, (cls,), {"__annotations__": annotations})  # pyright: ignore[reportReturnType]
