"""Shared functions of the examples that fetch Iconify's icons with npm and render them with resvg."""

import argparse
import importlib
import io
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError

Render = Callable[[str, int], Image.Image]  # SVG, longer side in pixels → image
VIEW: Final = {"left": 0, "top": 0, "width": 16, "height": 16}  # Iconify's default view


def arguments(about: str | None, name: str, size: int) -> argparse.ArgumentParser:
    """Return the command line parser of an example."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to build the set in")
    parser.add_argument("--packages", type=Path, help="node_modules folder with the packages; otherwise npm fetches them")
    cache = Path.home() / ".cache" / "eve-vl" / name
    parser.add_argument("--cache", type=Path, default=cache, help="folder of npm's packages (default: %(default)s)")
    parser.add_argument("--size", type=positive, default=size, help="side of the images in pixels (default: %(default)s)")
    return parser


def positive(text: str) -> int:
    """Parse a whole number of at least 1. Raises an argparse error."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def fetch(folder: Path, names: Sequence[str]) -> Path:
    """Return the packages' folder below `folder`; install missing ones with npm. names: packages with versions."""
    packages = folder / "node_modules"
    record = packages / ".package-lock.json"  # npm writes it last, so listed packages are complete
    found = read_json(record, names)["packages"] if record.is_file() else {}
    if {f"{path.removeprefix('node_modules/')}@{entry.get('version')}" for path, entry in found.items()}.issuperset(names):
        return packages
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not installed: install Node.js, or pass a node_modules folder as --packages")
    folder.mkdir(parents=True, exist_ok=True)
    print_line(f"npm fetches {', '.join(names)} to {folder}")
    done = subprocess.run([npm, "install", "--prefix", folder, *names], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(f"npm install failed: {' '.join(lines[0].split())} (full output: npm install {' '.join(names)})")
    return packages


def read_json(path: Path, names: Sequence[str]) -> Any:
    """Return the content of a JSON file of the packages. Raises UserError."""
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; --packages must be a node_modules folder with {', '.join(names)}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def svg_of(icons: Mapping[str, Any], name: str, *, is_square: bool) -> str:
    """Return an icon of a set as SVG, in its own or a square view. icons: content of icons.json."""
    icon = {**icons, **icons["icons"][name]}  # defaults of the whole set
    left, top, width, height = (icon.get(key, default) for key, default in VIEW.items())
    if is_square:
        side = max(width, height)
        left, top, width, height = left - (side - width) / 2, top - (side - height) / 2, side, side
    view = f"{left:g} {top:g} {width:g} {height:g}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}">{icon["body"]}</svg>'


def resvg() -> Render:
    """Return the renderer: resvg on white."""
    try:
        importlib.import_module("resvg_py")
    except ImportError:
        raise UserError("resvg-py, which renders the drawings, is not installed: pip install resvg-py") from None
    return _render


def _render(svg: str, size: int) -> Image.Image:
    svg_to_bytes = importlib.import_module("resvg_py").svg_to_bytes
    png = svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")
