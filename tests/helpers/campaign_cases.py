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

import eve_vl
from eve_vl.utils.errors import UserError
from helpers.campaign_reader import Action, Reader
from helpers.odd_files import make_special, odd_name
from helpers.process_limits import memory

PACKAGE = str(Path(eve_vl.__file__).parent)
BIDI = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
Case = tuple[str, int]
"""Name of a reader, and number of an input."""


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
    """Whether an input is not damaged: the first one proves that the others could be read at
    all."""
    return case[1] == 0 and reader.has_sound


def lay_out(reader: Reader, case: Case, seed: int, folder: Path) -> str:
    """Write one input, damaged unless it is the first; return what was done."""
    name, number = case
    rng = Random(f"{seed}/{name}/{number}")
    files = reader.choose(rng, reader.files)
    target = choose_target(rng, reader, files)
    kind = "special" if rng.random() < 0.03 else "damaged"
    if is_sound(reader, case):
        kind = "sound"
        target = ""
    for file, data in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        is_damaged = file == target and kind == "damaged"
        path.write_bytes(reader.damage(rng, file, data) if is_damaged else data)

    path = folder / target
    if kind == "special":
        kind = make_special(rng, path)
    elif reader.may_rename and target and rng.random() < 0.2:
        path.rename(path.with_name(os.fsdecode(odd_name(rng, path.name))))
        kind += ", renamed"
    if target:
        reader.afterwards(rng, folder)
    return f"{target}: {kind}"


def choose_target(rng: Random, reader: Reader, files: dict[str, bytes]) -> str:
    """Return the file to damage."""
    if files.keys() != reader.files.keys():
        return next(iter(files))
    targets = [name for name in reader.targets if name in files]
    return rng.choice(targets or list(files))


# Reading


def run_case(reader: Reader, case: Case, seed: int, work: Path, limit: int) -> Outcome:
    """Make an input, give it to the reader's entry points, and note what came of it.

    limit: bytes of memory that one action may need.
    """
    shutil.rmtree(work, ignore_errors=True)
    folder = work / "case"
    folder.mkdir(parents=True)
    lay_out(reader, case, seed, folder)
    outcome = Outcome(case=case)
    paths = paths_in(folder)
    if case[0] == "names":  # the damage is the name that was asked for
        paths |= {"/", "is not the name of a file"}
    names = list(reader.actions)
    if not is_sound(reader, case):
        names = Random(case[1]).sample(names, min(reader.num_actions, len(names)))
    start = time.perf_counter()
    for name in names:
        shutil.rmtree(work / "new", ignore_errors=True)
        run_action(reader, name, folder, paths, outcome, limit)
    outcome.seconds = time.perf_counter() - start
    return outcome


def paths_in(folder: Path) -> set[str]:
    """Return the names that a message about the input may hold: one of them must be in it."""
    names = {str(folder), "rows.jsonl"}  # the training data of runs
    for path in folder.rglob("*"):
        names.add(os.fsdecode(path.name))
        if path.name == "config.json" and path.is_file():  # a damaged one may ask for other files
            for text in re.findall(r'"([^"\n]*/[^"\n]*)"', path.read_text(errors="replace")):
                names.add(os.path.normpath(text))
    return names


def run_action(
    reader: Reader, name: str, folder: Path, paths: set[str], outcome: Outcome, limit: int
) -> None:
    """Run one action, and add to the outcome what should not be."""
    files_before = set(folder.rglob("*"))
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    memory_before = memory("VmRSS")
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
    peak = memory("VmHWM") - memory_before
    outcome.peak = max(outcome.peak, peak)
    if peak > limit:
        detail = f"{name}: {peak / 2**20:.0f} MiB"
        outcome.escapes[f"memory @ {outcome.case[0]}, {name}"] = detail
    new_files = set(folder.rglob("*")) - files_before
    left_behind = sorted(str(path) for path in new_files if is_left_behind(path, outcome.case[0]))
    if left_behind:
        kind = re.sub(r"[0-9]+", "N", Path(left_behind[0]).name)
        outcome.escapes[f"left behind {kind} @ {name}"] = f"{name}: {left_behind}"


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


def is_left_behind(path: Path, reader: str) -> bool:
    """Whether a new file should not be there: in runs temporary files, next to data all but
    indexes."""
    if reader.startswith("run "):
        return path.suffix in (".tmp", ".old") or path.name == ".lock"
    return not path.name.endswith(".tar.index")


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
