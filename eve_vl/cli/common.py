"""What the verbs share: parsing with the nearest known flag, how sources are named, output."""

import dataclasses
import json
import os
import re
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console
from tyro.conf import Positional

from eve_vl.config import DataConfig
from eve_vl.errors import UserError, nearest
from eve_vl.files import write_file
from eve_vl.talk import say as say

Args = TypeVar("Args")
HELP = ("-h", "--help", "help")


@dataclass(frozen=True, kw_only=True)
class RunArgs:
    """What verbs that use a run take."""

    run: Positional[Path]
    """Run folder, or one of its checkpoints."""


@dataclass(frozen=True, kw_only=True)
class SourceArgs:
    """How to read sources that are named on the command line."""

    format: str = "auto"
    """On-disk form; auto looks at the path."""
    image_root: Path | None = None
    """Folder that picture paths are relative to and must stay inside."""
    image_column: str | None = None
    """Column of the picture; for statements of both pictures, or LEFT,RIGHT."""
    text_column: str | None = None
    """Column of the caption or captions, question, statement or text."""
    label_column: str | None = None
    """Column of the answer or answers to a question, of whether a statement is true, or of the class or classes."""

    def open(self, specs: Sequence[str], image_size: int, kind: Any = "captions") -> list[Any]:
        """Open sources of rows of a kind. Raises UserError."""
        from eve_vl.data.loader import open_sources

        return open_sources(specs, self.data_config(), image_size, kind)

    def data_config(self) -> DataConfig:
        """Return these options as a data section."""
        return DataConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(SourceArgs)})


def parse(cls: type[Args], argv: Sequence[str], prog: str, description: str | None, default: Args | None = None) -> Args:
    """Parse flags into a dataclass. Raises UserError for an unknown flag, with the nearest known one."""
    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    if issubclass(cls, SourceArgs):  # the same flags as in `eve pretrain`, with or without their section
        argv = [re.sub(r"^--data\.(?=format|image|text|label)", "--", word) for word in argv]
    args, unknown = tyro.cli(cls, args=list(argv), prog=prog, description=description, return_unknown_args=True, **kwargs)
    if unknown:
        flag = next((word for word in unknown if word.startswith("-")), None)
        if flag is None:
            raise UserError(f"unexpected argument {unknown[0]!r}")
        name = re.sub(r"=.*", "", flag).replace("_", "-")
        raise UserError(f"no flag {nearest(name, flag_names(cls, default=default))}")
    return args


def flag_names(cls: type, prefix: str = "", default: Any = None) -> list[str]:
    """Return every flag that a dataclass of arguments accepts, as typed; `default` says which section a union stands for."""
    names, hints = [], typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, value = hints[field.name], getattr(default, field.name, None)
        section = type(value) if dataclasses.is_dataclass(value) else hint
        if dataclasses.is_dataclass(section):
            names += flag_names(section, "" if field.name == "config" else f"{prefix}{field.name}.", value)
        elif typing.get_origin(hint) is not typing.Annotated:  # marked ones are positional or fixed
            names.append(f"--{prefix}{field.name}".replace("_", "-"))
            if hint is bool:
                names.append(f"--{prefix}no-{field.name}".replace("_", "-"))
    return names


def check_writable(*paths: Path | None) -> None:
    """Raise UserError if a file that a flag named cannot be written: before long work, not after it."""
    for path in filter(None, paths):
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file to write")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"{path}: cannot be written (no permission in {path.parent})")


def write_json(path: Path | None, values: dict[str, Any]) -> None:
    """Write numbers to a file that a flag named, if one did, and that `check_writable` has passed."""
    if path is not None:
        write_file(path, json.dumps(values, indent=1) + "\n")


def fail(message: str, code: int) -> None:
    """Print one line on stderr and exit."""
    Console(stderr=True, highlight=False, soft_wrap=True, emoji=False).print(f"eve: {message}", markup=False)
    sys.exit(code)
