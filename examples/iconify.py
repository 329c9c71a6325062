"""Shared functions of the examples that use Iconify's drawings.

npm fetches the drawings, and resvg renders them.
"""

import argparse
import hashlib
import importlib
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from PIL import Image

from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import atomic_file

Render = Callable[[str, int], Image.Image]  # SVG, longer side in pixels → image
Row = dict[str, Any]
Built = TypeVar("Built")
ROWS: Final = 2000  # rows per row group
COMPONENT: Final = 2  # emojibase's group of skin tones and hair
FLAGS: Final = 9  # emojibase's group of flags
KEYCAP: Final = "20E3"
SPLITS: Final = ("train", "val", "test_concepts")  # of emoji
VAL_SHARE: Final = 0.04  # of the concepts
TEST_SHARE: Final = 0.11
VIEW: Final = {"left": 0, "top": 0, "width": 16, "height": 16}  # Iconify's default view


def arguments(about: str | None, name: str, size: int) -> argparse.ArgumentParser:
    """Return the command line parser of an example."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to build the set in")
    parser.add_argument(
        "--packages",
        type=Path,
        help="node_modules folder with the packages; otherwise npm fetches them",
    )
    cache = Path.home() / ".cache" / "eve-vl" / name
    parser.add_argument(
        "--cache", type=Path, default=cache, help="folder of npm's packages (default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=positive,
        default=size,
        help="side of the images in pixels (default: %(default)s)",
    )
    return parser


def in_processes(
    args: argparse.Namespace,
    names: Sequence[str],
    build: Callable[[Path, Render, Callable[..., Any]], Built],
) -> Built:
    """Fetch the packages and return the result of `build`; exit after an error.

    names: packages with versions. build: gets the packages' folder, the renderer, and `map` over
    args.processes.
    """
    workers = ProcessPoolExecutor(
        args.processes, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )
    try:
        render = resvg()
        return build(
            args.packages or fetch(args.cache, names), render, partial(workers.map, chunksize=32)
        )
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; files that are there are whole")
    finally:
        workers.shutdown(cancel_futures=True)


def positive(text: str) -> int:
    """Parse a whole number of at least 1. Raises an argparse error."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def fetch(folder: Path, names: Sequence[str]) -> Path:
    """Return the packages' folder below `folder`; install missing ones with npm.

    names: packages with versions.
    """
    packages = folder / "node_modules"
    if installed_packages(packages, names).issuperset(names):
        return packages
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            "npm is not installed: install Node.js, or pass a node_modules folder as --packages"
        )
    folder.mkdir(parents=True, exist_ok=True)
    print_line(f"npm fetches {', '.join(names)} to {folder}")
    done = subprocess.run(
        [npm, "install", "--prefix", folder, *names], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        reason = " ".join(lines[0].split())
        command = f"npm install {' '.join(names)}"
        raise UserError(f"npm install failed: {reason} (full output: {command})")
    return packages


def installed_packages(packages: Path, names: Sequence[str]) -> set[str]:
    """Return the packages that npm installed completely, each with its version.

    names: packages that an error message names.
    """
    record = packages / ".package-lock.json"  # npm writes it last, so listed packages are complete
    if not record.is_file():
        return set()
    installed = set()
    for path, entry in read_json(record, names)["packages"].items():
        name = path.removeprefix("node_modules/")
        installed.add(f"{name}@{entry.get('version')}")
    return installed


def read_json(path: Path, names: Sequence[str]) -> Any:
    """Return the content of a JSON file of the packages. Raises UserError."""
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; "
            f"--packages must be a node_modules folder with {', '.join(names)}"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def checksum(text: str) -> str:
    """Return the hash that decides order and choice; other drawings do not affect it."""
    return hashlib.sha1(text.encode()).hexdigest()


def concept_of(hexcode: str) -> str:
    """Return an emoji's code points joined by `-`.

    The variation selector for colour is left out.
    """
    return hexcode.upper().replace("-FE0F", "")


def emoji_names(packages: Path, names: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """Return label and tags of each emoji concept in Unicode order.

    Flags, skin tones and keycaps are left out.
    """
    entries = read_json(packages / "emojibase-data" / "en" / "data.json", names)
    names_by_concept = {}
    for entry in entries:
        concept = concept_of(entry["hexcode"])
        group = entry.get("group")  # letters that compose flags have none
        if group not in (None, COMPONENT, FLAGS) and KEYCAP not in concept:
            names_by_concept[concept] = entry["label"], entry.get("tags", [])
    return names_by_concept


def split_of(concept: str) -> str:
    """Return the split of an emoji concept.

    It depends only on a hash of the concept's name: new emoji never move it.
    """
    share = int(hashlib.sha256(concept.encode()).hexdigest()[:8], 16) / 2**32
    if share < TEST_SHARE:
        return "test_concepts"
    if share < TEST_SHARE + VAL_SHARE:
        return "val"
    return "train"


def svg_of(icons: Mapping[str, Any], name: str, *, is_square: bool) -> str:
    """Return an icon of a set as SVG, in its own or a square view.

    icons: content of icons.json.
    """
    icon = {**icons, **icons["icons"][name]}  # defaults of the whole set
    left, top, width, height = (icon.get(key, default) for key, default in VIEW.items())
    if is_square:
        side = max(width, height)
        left -= (side - width) / 2
        top -= (side - height) / 2
        width = side
        height = side
    view = f"{left:g} {top:g} {width:g} {height:g}"
    links = ' xmlns:xlink="http://www.w3.org/1999/xlink"' if "xlink:" in icon["body"] else ""
    return f'<svg xmlns="http://www.w3.org/2000/svg"{links} viewBox="{view}">{icon["body"]}</svg>'


def square(svg: str, render: Render, size: int) -> Image.Image | None:
    """Return a drawing as square image, None if it is empty.

    An animation may start empty.
    """
    image = render(svg, size).resize((size, size))
    return None if image.getcolors(1) else image


def to_png(image: Image.Image, colors: int) -> bytes:
    """Return an image as PNG with a palette (small files)."""
    png = io.BytesIO()
    image.quantize(colors).save(png, "PNG", optimize=True)
    return png.getvalue()


def pyarrow_parquet() -> Any:
    """Return the module pyarrow.parquet. Raises UserError."""
    try:
        importlib.import_module("pyarrow")
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(
            "pyarrow, for Parquet files, is not installed: pip install -e '.[parquet]'"
        ) from None


def write_parquet(rows: Iterable[Row], path: Path) -> None:
    """Write rows as one Parquet file. Raises UserError."""
    parquet = pyarrow_parquet()
    table = importlib.import_module("pyarrow").Table.from_pylist(list(rows))
    with atomic_file(path) as temporary:
        parquet.write_table(table, temporary, row_group_size=ROWS, compression="zstd")


def resvg() -> Render:
    """Return the renderer: resvg on white."""
    try:
        importlib.import_module("resvg_py")
    except ImportError:
        raise UserError(
            "resvg-py, which renders the drawings, is not installed: pip install resvg-py"
        ) from None
    return _render


def _render(svg: str, size: int) -> Image.Image:
    svg_to_bytes = importlib.import_module("resvg_py").svg_to_bytes
    png = svg_to_bytes(
        svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")
