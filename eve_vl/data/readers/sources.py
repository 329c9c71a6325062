"""Names of sources: the files that they mean, the folder of images, and the on-disk form."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eve_vl.data import fields as cells
from eve_vl.utils.errors import UserError, did_you_mean
from eve_vl.utils.safe_io import expand_user, open_ordinary, parse_json

FORMATS = ("folder", "jsonl", "json", "csv", "tsv", "parquet", "webdataset", "text")
SHARDED = {"webdataset": ".tar", "parquet": ".parquet"}  # may be a folder or a brace pattern of files
OWN_SUFFIX = ("jsonl", "csv", "tsv", "parquet")
SUFFIXES = {f".{form}": form for form in OWN_SUFFIX} | {".ndjson": "jsonl", ".tar": "webdataset", ".txt": "text"}
MAX_SHARDS = 1_000_000

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """The parts of a source's name: `PATH`, `QUESTIONS.json+ANNOTATIONS.json`, `KARPATHY.json#SPLIT` or `FOLDER#SPLIT`."""

    path: Path
    second: Path | None = None
    split: str | None = None


def parse_spec(spec: AnyPath) -> Spec:
    """Return the parts of a source's name, paths made absolute. An existing path is never split."""
    text = os.fspath(spec)
    path = absolute(Path(text))
    parts = re.fullmatch(r"(.+?\.json)(?:\+(.+)|#([^#/]*))", text)
    folder, _, split = text.rpartition("#")
    if parts is None and folder and split and not os.path.exists(path) and os.path.isdir(absolute(Path(folder))):  # noqa: PTH110, PTH112
        return Spec(path=absolute(Path(folder)), split=split)
    if parts is None or os.path.exists(path):  # noqa: PTH110 (opening reports names too long and folders without access)
        return Spec(path=path)
    return Spec(path=absolute(Path(parts[1])), second=absolute(Path(parts[2])) if parts[2] else None, split=parts[3])


def absolute_spec(spec: str) -> str:
    """Return a source's name with its paths made absolute; `#split`, `+SECOND` and brace patterns stay."""
    parts = parse_spec(spec)
    second = "" if parts.second is None else f"+{parts.second}"
    split = "" if parts.split is None else f"#{parts.split}"
    return f"{parts.path}{second}{split}"


def absolute(path: Path) -> Path:
    """Return a path in a form that is comparable with others; links are only followed to remove `..`.

    Raises UserError if it is no path.
    """
    try:
        if b"\0" in os.fsencode(path):
            raise ValueError("NUL character")
        whole = expand_user(path).absolute()
        if ".." not in whole.parts:
            return whole
        return whole.resolve() if whole.name == ".." else whole.parent.resolve() / whole.name
    except (OSError, RuntimeError, ValueError) as error:  # no such user, links in a circle, half of a surrogate pair
        raise UserError(f"{path}: is not the name of a file or folder ({getattr(error, 'strerror', None) or error})") from None


def image_root(folder: AnyPath) -> Path:
    """Return the absolute path of a folder. Raises UserError if it does not exist."""
    path = absolute(Path(folder))
    if not path.is_dir():
        raise UserError(explain_missing(path) if not path.exists() else f"{path}: is a file, expected a folder")
    return path


def expand(path: Path) -> list[Path]:
    """Return the existing paths that `path`, perhaps a pattern such as `name-{0000..0099}.tar`, means."""
    if path.exists():
        return [path]
    if "{" not in str(path):
        raise UserError(explain_missing(path))
    paths = [Path(name) for name in _expand_braces(str(path))]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise UserError(f"{path}: {len(missing)} of its {len(paths)} files are missing; {explain_missing(missing[0])}")
    return paths


def _expand_braces(pattern: str) -> Iterator[str]:
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if braces is None:
        if "{" in pattern:
            raise UserError(f"{pattern}: expected a range such as {{0000..0099}} in the braces")
        yield pattern
        return
    first, last = int(braces[1]), int(braces[2])
    if not first <= last < first + MAX_SHARDS:
        raise UserError(f"{pattern}: the range {braces[0]} is empty or has over {MAX_SHARDS} members")
    for number in range(first, last + 1):
        yield from _expand_braces(pattern[: braces.start()] + f"{number:0{len(braces[1])}}" + pattern[braces.end() :])


def explain_missing(path: Path) -> str:
    """Return a message that `path` does not exist, with its existing part and the nearest name."""
    folder = next(parent for parent in path.parents if parent.exists())
    child = folder / path.relative_to(folder).parts[0]
    stop = "" if child == path else f" ({folder} exists, {child.name} in it does not)"
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() and os.access(folder, os.R_OK) else []
    hint = did_you_mean(child.name, names)
    return f"no such file or folder: {path}{stop}{f' ({hint})' if hint else ''}"


def sniff(path: Path) -> str:
    """Return the on-disk form of `path`, from its name and, for JSON, its first line. Raises UserError."""
    suffix = path.suffix.lower()
    if path.is_dir():
        suffixes = {entry.suffix.lower() for entry in path.iterdir()}
        form = next((form for form, own in SHARDED.items() if own in suffixes), "folder")  # img2dataset writes both
        if form in SHARDED and suffixes & cells.IMAGE_SUFFIXES:
            raise UserError(f"{path}: holds both images and {SHARDED[form]} files; choose with --data.format")
        return form
    if suffix == ".json":
        return _sniff_json(path)
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if suffix in cells.IMAGE_SUFFIXES:
        raise UserError(f"{path}: is a single image; give the folder or the table that lists it")
    if path.name.lower().endswith(".txt.gz"):
        return "text"
    if suffix in (".gz", ".tgz", ".zip", ".zst", ".bz2", ".xz"):
        raise UserError(f"{path}: is compressed; unpack it first")
    raise UserError(f"{path}: cannot tell its format by its name; choose with --data.format: {', '.join(FORMATS)}")


def _sniff_json(path: Path) -> str:
    """Distinguish a JSON document from JSON lines with this suffix, whose first line is a whole object."""
    with open_ordinary(path) as file:
        start = file.read(2**20).lstrip(b"\xef\xbb\xbf \t\r\n")
    first_line, _, rest = start.partition(b"\n")
    if not start.startswith(b"{") or not rest.strip():
        return "json"
    try:
        parse_json(first_line)
    except ValueError:
        return "json"
    return "jsonl"


def shards(paths: list[Path], form: str) -> list[Path]:
    """Return the files of a sharded format: the given ones, or all in a given folder, by name. Raises UserError."""
    files = []
    for path in paths:
        inside = sorted(entry for entry in path.iterdir() if entry.suffix.lower() == SHARDED[form]) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: no {SHARDED[form]} files in this folder")
        files += inside
    return files
