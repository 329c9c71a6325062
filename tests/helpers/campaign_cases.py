"""One input of the fault campaign: how it is laid out, read and judged."""

import io
import os
import re
import shutil
import sys
import time
import traceback
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

import eve_vl
from eve_vl.utils.errors import UserError
from helpers.campaign_reader import Action, Files, Reader
from helpers.odd_files import make_special, odd_name
from helpers.process_limits import memory

PACKAGE = str(Path(eve_vl.__file__).parent)
BIDI = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class Case(NamedTuple):
    """The name of a reader, and the number of one of its inputs."""

    reader: str
    number: int

    def __str__(self) -> str:
        return f"{self.reader}:{self.number}"


@dataclass(kw_only=True)
class Outcome:
    """What became of one input."""

    case: Case
    escapes: dict[str, str] = field(default_factory=dict)
    """Details by group: what happened, and where in the package."""
    succeeded: int = 0
    refused: int = 0
    seconds: float = 0.0
    peak: int = 0
    """Bytes, beyond those that the process had."""


# Laying out


def is_sound(reader: Reader, case: Case) -> bool:
    """Return whether an input is undamaged, as the first is: it proves that files can be read."""
    return case.number == 0 and reader.has_sound


def lay_out(
    reader: Reader,
    case: Case,
    seed: int,
    folder: Path,
) -> None:
    """Write one input, damaged unless it is the first."""
    rng = Random(f"{seed}/{case.reader}/{case.number}")
    files = dict(reader.files)
    if reader.choose is not None:
        files = reader.choose(rng, files)
    target = choose_target(rng, reader, files)
    is_special = rng.random() < 0.03
    if is_sound(reader, case):
        write_files(folder, files)
        return
    if reader.damage is not None and not is_special:
        files[target] = reader.damage(rng, target, files[target])
    write_files(folder, files)
    path = folder / target
    if is_special:
        make_special(rng, path)
    elif reader.may_rename and rng.random() < 0.2:
        path.rename(path.with_name(os.fsdecode(odd_name(rng, path.name))))
    if reader.afterwards is not None:
        reader.afterwards(rng, folder)


def choose_target(rng: Random, reader: Reader, files: Files) -> str:
    """Return the file to damage."""
    if files.keys() != reader.files.keys():
        return next(iter(files))
    targets = [name for name in reader.targets if name in files]
    return rng.choice(targets or list(files))


def write_files(folder: Path, files: Files) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


# Reading


def run_case(
    reader: Reader,
    case: Case,
    seed: int,
    work: Path,
    limit: int,
) -> Outcome:
    """Make an input, give it to the reader's entry points, and note what came of it.

    limit: bytes of memory that one action may need.
    """
    shutil.rmtree(work, ignore_errors=True)
    folder = work / "case"
    folder.mkdir(parents=True)
    lay_out(reader, case, seed, folder)
    outcome = Outcome(case=case)
    paths = paths_in(folder)
    if case.reader == "names":  # the damage is the name that was asked for
        paths |= {"/", "is not the name of a file"}
    names = list(reader.actions)
    if not is_sound(reader, case):
        names = Random(case.number).sample(names, min(reader.num_actions, len(names)))
    start = time.perf_counter()
    for name in names:
        shutil.rmtree(work / "new", ignore_errors=True)
        files_before = set(folder.rglob("*"))
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
        memory_before = memory("VmRSS")
        run_action(reader, name, folder, paths, outcome)
        peak = memory("VmHWM") - memory_before
        outcome.peak = max(outcome.peak, peak)
        if peak > limit:
            detail = f"{name}: {peak / 2**20:.0f} MiB"
            outcome.escapes[f"memory @ {case.reader}, {name}"] = detail
        new_files = set(folder.rglob("*")) - files_before
        note_files_left_behind(new_files, name, outcome)
    outcome.seconds = time.perf_counter() - start
    return outcome


def paths_in(folder: Path) -> set[str]:
    """Return the names that a message about the input may hold: one of them must be in it."""
    names = {str(folder), "rows.jsonl", "data.image_root"}  # the last two of a run's training data
    for path in folder.rglob("*"):
        names.add(os.fsdecode(path.name))
        if path.name == "config.json" and path.is_file():  # a damaged one may ask for other files
            for text in re.findall(r'"([^"\n]*/[^"\n]*)"', path.read_text(errors="replace")):
                names.add(os.path.normpath(text))
    return names


def run_action(
    reader: Reader,
    name: str,
    folder: Path,
    paths: set[str],
    outcome: Outcome,
) -> None:
    """Run one action, and add to the outcome what it must not raise or print."""
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    sys.stdout = sys.stderr = printed
    try:
        act(reader.actions[name], folder)
        outcome.succeeded += 1
    except UserError as error:
        outcome.refused += 1
        if is_sound(reader, outcome.case):
            outcome.escapes[f"sound input refused by {name}"] = str(error)
        for problem in problems_of(str(error), paths):
            outcome.escapes[f"message {problem} @ {innermost(error)}"] = f"{name}: {error!r}"
    except SystemExit as error:
        outcome.succeeded += 1
        if error.code not in (0, 1):
            outcome.escapes[f"exit status {error.code}"] = name
    except BaseException as error:
        trace = "".join(traceback.format_exception(error))
        outcome.escapes[f"{type(error).__name__} @ {innermost(error)}"] = f"{name}: {trace}"
    finally:
        sys.stdout = sys.__stdout__
        sys.stderr = sys.__stderr__

    printed.flush()
    text = printed.buffer.getvalue().decode()  # pyright: ignore[reportAttributeAccessIssue]
    letter = unprintable(text.replace("\n", ""))
    if letter:
        outcome.escapes[f"prints {letter} @ {name}"] = text[:2000]


def act(action: Action, folder: Path) -> None:
    """Run an action; an error of the system about a named file is one line, as on a terminal."""
    try:
        action(folder)
    except OSError as error:
        name = error.filename2 or error.filename
        if not isinstance(name, str):
            raise
        raise UserError(f"{name}: {error.strerror}") from error


# Judging


def note_files_left_behind(new_files: set[Path], name: str, outcome: Outcome) -> None:
    """Note new files that should not be there: in runs temporary ones, next to data all but the
    indexes of tars."""
    left_behind = []
    for path in sorted(new_files):
        if outcome.case.reader.startswith("run "):
            is_allowed = path.suffix not in (".tmp", ".old") and path.name != ".lock"
        else:
            is_allowed = path.name.endswith(".tar.index")
        if not is_allowed:
            left_behind.append(str(path))
    if left_behind:
        kind = re.sub(r"[0-9]+", "N", Path(left_behind[0]).name)
        outcome.escapes[f"left behind {kind} @ {name}"] = f"{name}: {left_behind}"


def problems_of(message: str, names: set[str]) -> Iterator[str]:
    """Yield what a message for people lacks."""
    letter = unprintable(message)
    if letter:
        yield f"holds {letter}"
    if not any(name in message or repr(name)[1:-1] in message for name in names):
        yield "names no file"
    if len(message) > 20_000:
        yield "is very long"


def unprintable(text: str) -> str:
    """Name the first letter that a terminal or a log cannot take; empty if there is none."""
    for letter in text:
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in BIDI:
            return f"U+{ord(letter):04X}"
    return ""


def innermost(error: BaseException) -> str:
    """Return file, line and function of the last frame in the package."""
    place = "outside the package"
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith(PACKAGE):
            file = Path(frame.filename).relative_to(PACKAGE)
            place = f"{file}:{frame.lineno} {frame.name}"
    return place
