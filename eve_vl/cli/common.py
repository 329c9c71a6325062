"""Parts shared by the verbs: parsing, one-line errors, flags of sources, output."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import sys
import time
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
from tyro.conf import Positional

from eve_vl.builtin.names import existing_folder, is_hub_name
from eve_vl.utils.console import print_error, print_line
from eve_vl.utils.errors import UserError, did_you_mean
from eve_vl.utils.file_io import expand_user, reporting_write_errors, write_file
from eve_vl.utils.frozen import Frozen
from eve_vl.utils.launcher import process_place

Args = TypeVar("Args")
HELP = ("-h", "--help", "help")
SECONDS_OF_GRACE = 5.0
ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"


class RunArgs(Frozen):
    """Flags of verbs that use a run."""

    run: Positional[Path]
    """Run folder, or one of its checkpoints."""


class DeviceArgs(Frozen):
    """Flags of verbs that compute."""

    device: str = "auto"
    """Device in torch's notation: cpu, cuda, cuda:1, mps; auto: cuda if available."""


class JsonArgs(Frozen):
    """Flags of verbs whose result is numbers or text."""

    json: Path | None = None
    """Also write the result to this file."""


class SourceArgs(Frozen):
    """Flags on how to read sources."""

    format: str = "auto"
    """On-disk format; auto: detected from the path."""
    image_root: Path | None = None
    """Folder that image paths are relative to and must stay inside."""
    image_column: str | None = None
    """Column of the image; for statements about two images LEFT,RIGHT."""
    text_column: str | None = None
    """Column of the captions, question, statement or text."""
    label_column: str | None = None
    """Column of the answers, of the statement's truth value, or of the classes."""

    def reading(self) -> dict[str, Any]:
        """Return these options by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(SourceArgs)}


class CompletionArgs(Frozen):
    """Flags of `eve completion`."""

    shell: Positional[Literal["bash", "zsh"]]
    """Shell of the script."""


def run_completion(args: CompletionArgs) -> None:
    """Print a completion script for your shell to source: eve completion bash|zsh."""
    script = Path(__file__).with_name("completion.bash").read_text().rstrip()
    print_line(*(ZSH * (args.shell == "zsh") + script).split("\n"))


def parse(
    cls: type[Args],
    argv: Sequence[str],
    prog: str,
    description: str | None,
    default: Args | None = None,
) -> Args:
    """Parse flags into a dataclass. Raises UserError in tyro's words, on one line."""
    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    if issubclass(cls, SourceArgs):  # also accept these flags as `eve pretrain` spells them
        argv = [re.sub(r"^--data\.(?=format|image|text|label)", "--", word) for word in argv]
    if default is None:  # a recipe's flag may come twice: scripts override their own flags
        hints, given = (
            typing.get_type_hints(cls),
            Counter(re.sub("=.*", "", word) for word in argv if word.startswith("--")),
        )
        for flag, number in given.items():
            if (
                number > 1 and typing.get_origin(hints.get(flag[2:].replace("-", "_"))) is tuple
            ):  # tyro drops the first values
                raise UserError(f"{flag}: given {number} times; give it once, with all its values")
        cls = _with_metavars(cls)
    parse_flags = functools.partial(
        tyro.cli, cls, args=[*argv], prog=prog, description=description, **kwargs
    )
    box = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(box),
            contextlib.redirect_stderr(box),
        ):  # neither colours nor Unicode
            args = parse_flags()
    except SystemExit as stop:
        if not stop.code:  # --help
            parse_flags()
        lines = [
            line.strip() for line in box.getvalue().splitlines()[2:]
        ]  # after a title and a rule
        parts = [" ".join(part.split()) for part in re.split("-{9,}", "\n".join(lines))]
        problem = next(
            (part for part in parts if part.startswith("Unrecognized")), parts[0]
        ).rstrip(".")  # before missing ones
        problem, near = re.sub(r"^Error parsing (\w+: )?", "", problem), ""
        if word := re.match(r"Unrecognized options: (--[\w.-]+)", problem):
            with (
                contextlib.redirect_stdout(usage := io.StringIO()),
                contextlib.suppress(SystemExit),
            ):
                parse_flags(args=["--help"])
            near = "; ".join(
                ("", did_you_mean(word[1], re.findall(r"--[\w.-]+", usage.getvalue())))
            ).removesuffix("; ")
        elif problem.startswith("Unrecognized options: -"):
            near = "; a text that begins with - needs a space before it"
        elif problem.startswith("Unrecognized options: "):
            near = "; a text of several words needs quotes"
        raise UserError(f"{problem}{near}; {prog} --help shows the usage") from None
    if () in [
        getattr(args, field.name)
        for field in dataclasses.fields(args)
        if field.default is dataclasses.MISSING
    ]:  # pyright: ignore[reportArgumentType]
        raise UserError(f"{prog} needs at least one path; {prog} --help shows the usage")
    check_writable(getattr(args, "json", None))
    refuse_missing_paths(args)
    return args


def refuse_missing_paths(args: object) -> None:
    """Raise UserError for a missing run or source, before slow imports."""
    for run in filter(None, (getattr(args, "run", None), *getattr(args, "runs", ()))):
        if not is_hub_name(run):
            existing_folder(expand_user(run))
    values = [getattr(args, name, ()) for name in ("sources", "data", "val", "test")]
    if specs := [
        spec for value in values if isinstance(value, tuple) for spec in value
    ]:  # a user's own field may be anything
        from eve_vl.data.source_names import refuse_missing  # imports fsspec

        refuse_missing(specs)


def _with_metavars(cls: type[Args]) -> type[Args]:
    """Return flags whose help names positional ones (RUN LEFT RIGHT), not their types."""
    named, hints = {}, typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        hint, word = hints[field.name], field.name.upper()
        if (
            typing.get_origin(hint) is typing.Annotated
            and (kind := typing.get_origin(typing.get_args(hint)[0])) is not Literal
        ):
            shown = f"[{word.removesuffix('S')} …]" if kind is tuple else word
            shown = (
                f"[{word}]"
                if kind is not tuple and field.default is not dataclasses.MISSING
                else shown
            )
            named[field.name] = typing.Annotated[hint, tyro.conf.arg(metavar=shown)]
    return type(cls.__name__, (cls,), {"__annotations__": named})  # pyright: ignore[reportReturnType]


def check_writable(*paths: Path | None) -> None:
    """Raise UserError if an output file cannot be written; call it before long work."""
    for path in filter(None, paths):
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file to write")
        with reporting_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"{path}: cannot be written (no permission in {path.parent})")


def write_json(path: Path | None, values: Any) -> None:
    """Write values to a file that passed `check_writable`; nothing for None."""
    if path is not None:
        write_file(path, json.dumps(values, indent=1) + "\n")


def print_list(usage: str, texts: Mapping[str, str], note: str) -> None:
    """Print the usage, the possible choices with their texts, and a note."""
    width = max(map(len, texts))
    print_line(
        *usage.split("\n"),
        "",
        *(f"  {name:{width}} {text}" for name, text in texts.items()),
        "",
        *note.split("\n"),
    )


def fail(message: str, code: int) -> None:
    """Print one line on stderr and exit.

    Under torchrun, processes other than the first wait first: if the first fails too, torchrun ends them before they repeat
    its message. torchrun's own 30 lines cannot be turned off from here.
    """
    if code == 2 and process_place().local_rank != 0:
        time.sleep(SECONDS_OF_GRACE)
    print_error(message)
    sys.exit(code)
