"""What the verbs share: parsing with the nearest known flag, how sources are named, output."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import shlex
import sys
import time
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
from tyro.conf import Positional

from eve_vl import builtin
from eve_vl.utils.atomic_io import reporting_write_errors, write_file
from eve_vl.utils.console import print_line, warn
from eve_vl.utils.errors import UserError, did_you_mean
from eve_vl.utils.safe_io import expand_user

Args = TypeVar("Args")
HELP = ("-h", "--help", "help")
SECONDS_OF_GRACE = 5.0


@dataclass(frozen=True, kw_only=True)
class RunArgs:
    """What verbs that use a run take."""

    run: Positional[Path]
    """Run folder, or one of its checkpoints."""


@dataclass(frozen=True, kw_only=True)
class DeviceArgs(RunArgs):
    """What verbs that compute with a run take."""

    device: str = "auto"
    """Where to compute, as torch spells it: cpu, cuda, cuda:1, mps; auto: cuda where there is one."""


@dataclass(frozen=True, kw_only=True)
class SourceArgs:
    """How to read sources that are named on the command line."""

    format: str = "auto"
    """On-disk form; auto looks at the path."""
    image_root: Path | None = None
    """Folder that image paths are relative to and must stay inside."""
    image_column: str | None = None
    """Column of the image; for statements of both images, or LEFT,RIGHT."""
    text_column: str | None = None
    """Column of the caption or captions, question, statement or text."""
    label_column: str | None = None
    """Column of the answer or answers to a question, of whether a statement is true, or of the class or classes."""

    def reading(self) -> dict[str, Any]:
        """Return these options by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(SourceArgs)}


def with_own(cls: type[Args], own: type) -> type[Args]:
    """Return the flags of a verb with those that a task has of its own."""
    return dataclasses.make_dataclass(cls.__name__, [], bases=(own, cls), frozen=True, kw_only=True)  # pyright: ignore


def parse(cls: type[Args], argv: Sequence[str], prog: str, description: str | None, default: Args | None = None) -> Args:
    """Parse flags into a dataclass. Raises UserError that names what was given and what was expected, of an unknown flag the
    nearest known one."""
    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    box, flags = io.StringIO(), flags_of(cls, default)
    if issubclass(cls, SourceArgs):  # the same flags as in `eve pretrain`, with or without their section
        argv = [re.sub(r"^--data\.(?=format|image|text|label)", "--", word) for word in argv]
    if default is None:  # of a recipe's flags the last one counts, by which scripts change their own
        _refuse_lost(flags, argv)
        cls = _with_metavars(cls)
    try:
        with contextlib.redirect_stderr(box):
            args, unknown = tyro.cli(cls, args=[*argv], prog=prog, description=description, return_unknown_args=True, **kwargs)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise UserError(_complaint(box.getvalue(), cls, flags, argv, prog)) from None
    if unknown:
        flag = next((word for word in unknown if word.startswith("-")), None)
        if flag is None:
            raise UserError(f"unexpected argument {unknown[0]!r}")
        name = re.sub(r"=.*", "", flag).replace("_", "-")
        raise UserError(f"no flag {name!r}; {did_you_mean(name, [*flags, '--code'], 0.5) or f'{prog} --help lists them'}")
    return args


def _with_metavars(cls: type[Args]) -> type[Args]:
    """Return the flags of a verb, of which help calls positional ones by their names, RUN LEFT RIGHT, not by their types."""
    fields, hints = [], typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        hint, word = hints[field.name], field.name.upper()
        if typing.get_origin(hint) is typing.Annotated and (kind := typing.get_origin(typing.get_args(hint)[0])) is not Literal:
            shown = f"[{word.removesuffix('S')} …]" if kind is tuple else word
            shown = f"[{word}]" if kind is not tuple and field.default is not dataclasses.MISSING else shown
            named = typing.Annotated[hint, tyro.conf.arg(metavar=shown)]
            fields.append((field.name, named, dataclasses.field(default=field.default)))
    return dataclasses.make_dataclass(cls.__name__, fields, bases=(cls,), frozen=True, kw_only=True)  # pyright: ignore


def _refuse_lost(flags: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Raise UserError if a flag that takes several values is given twice: the values of the first would be lost."""
    given = Counter(word.partition("=")[0].replace("_", "-") for word in argv)
    for flag, hint in flags.items():
        if given[flag] > 1 and ... in typing.get_args(hint):
            raise UserError(f"{flag}: is given {given[flag]} times; give it once, with all values after it: {flag} ONE OTHER")


def _complaint(box: str, cls: type, flags: Mapping[str, Any], argv: Sequence[str], prog: str) -> str:
    """Return what tyro says in a box as one line: which flag it is about, what was given and what was expected."""
    flag = next((word for word in re.findall(r"--[\w-]+(?:\.[\w-]+)*", box) if word in flags), None)
    if flag is None:
        hints = typing.get_type_hints(cls, include_extras=True)
        marked = {name: typing.get_args(hint)[0] for name, hint in hints.items() if typing.get_origin(hint) is typing.Annotated}
        usage = f"usage: {prog} {' '.join(marked).upper()} [flags]; given: {shlex.join(argv) or 'nothing'}"
        chosen = (f"; {name.upper()}: {_expected(hint)}" for name, hint in marked.items() if typing.get_origin(hint) is Literal)
        return usage + "".join(chosen)
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    after = words[[word.replace("_", "-") for word in words].index(flag) + 1 :]
    given = list(itertools.takewhile(lambda word: not word.startswith("--"), after))
    said = repr(" ".join(given)) if given else "nothing"
    return f"{flag}: {said} was given, expected {_expected(flags[flag])}; {prog} --help tells more"


def _expected(hint: Any) -> str:
    """Return in words what a flag of a type takes."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Literal:
        return f"one of {', '.join(parts)}"
    if kind is tuple:
        words = [_expected(part) for part in parts if part is not ...]
        return ", ".join(words) + ", any number of times" * (... in parts)
    return _expected(parts[0]) if parts else {float: "a number", int: "a whole number", Path: "a path"}.get(hint, "a text")


def flags_of(cls: type, default: Any = None, prefix: str = "") -> dict[str, Any]:
    """Return every flag that a dataclass of arguments accepts, as typed, with its type; `default` says which section a union
    stands for."""
    flags, hints = {}, typing.get_type_hints(cls, include_extras=True)
    for field in (each for each in dataclasses.fields(cls) if each.init):
        hint, value = hints[field.name], getattr(default, field.name, None)
        section = type(value) if dataclasses.is_dataclass(value) else hint
        if dataclasses.is_dataclass(section):
            flags |= flags_of(section, value, "" if field.name == "config" else f"{prefix}{field.name}.")
        elif typing.get_origin(hint) is not typing.Annotated:  # marked ones are positional or fixed
            flags[f"--{prefix}{field.name}".replace("_", "-")] = hint
            if hint is bool:
                flags[f"--{prefix}no-{field.name}".replace("_", "-")] = hint
    return flags


def check_writable(*paths: Path | None) -> None:
    """Raise UserError if a file that a flag named cannot be written: before long work, not after it."""
    for path in filter(None, paths):
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file to write")
        with reporting_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"{path}: cannot be written (no permission in {path.parent})")


def write_json(path: Path | None, values: Any) -> None:
    """Write numbers or texts to a file that a flag named, if one did, and that `check_writable` has passed."""
    if path is not None:
        write_file(path, json.dumps(values, indent=1) + "\n")


def say_list(usage: str, texts: Mapping[str, str], note: str) -> None:
    """Print what there is to choose from, each with its text."""
    width = max(map(len, texts))
    print_line("\n".join([usage, "", *(f"  {name:{width}} {text}" for name, text in texts.items()), "", note]))


def fail(message: str, code: int) -> None:
    """Print one line on stderr and exit.

    Other processes of torchrun than the first wait before they say what is wrong: if it fails as well, torchrun ends them
    before they say the same. What torchrun then prints of its own, about 30 lines, cannot be turned off from here.
    """
    if code == 2 and os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(SECONDS_OF_GRACE)
    warn(message)
    sys.exit(code)


def load_encoder(folder: Path, run: Path | None, device: str, *, fix: str = "name it with --run") -> Any:
    """Return an `Eve` of a run, by default of the run that made an index. fix: how to name it. Raises UserError."""
    from eve_vl.eve import Eve
    from eve_vl.search.database import Database

    if run is None:
        folder = expand_user(folder)
        run = Path(Database.open(folder).facts["run"])
        if not builtin.located(run).exists():
            raise UserError(f"{run}: no such run, which made {folder}; {fix}")
    return Eve.load(run, device)
