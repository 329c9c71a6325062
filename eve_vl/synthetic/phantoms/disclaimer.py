"""What pages must say of runs on phantoms, and the file by which phantoms that were written as other data are known."""

from collections.abc import Iterable

from eve_vl.config import HELD_OUT, generated
from eve_vl.data.readers.common import is_file
from eve_vl.data.readers.sources import parse_spec
from eve_vl.utils.errors import UserError

NO_MEDICINE = (
    "Phantoms are schematic drawings: what is learnt from them proves code and protocols, and says nothing about medicine."
)
MARKER = "PHANTOMS.txt"
_FOLDERS_BELOW = 3  # at most, from the marker's folder to a file that a source may name: train/radiology/captions.txt


def source_note(sources: Iterable[str]) -> str:
    """Return what a page must say of the data that it is about, by its names and the markers beside it; "" for most."""
    return NO_MEDICINE if any(map(_are_phantoms, sources)) else ""


def _are_phantoms(source: str) -> bool:
    if (named := generated(source)) is not None:
        return named[0] == "phantoms"
    if source == HELD_OUT:
        return False
    try:
        path = parse_spec(source).path
    except UserError:  # the page may be of a run from another machine
        return False
    return any(is_file(folder / MARKER) for folder in (path, *path.parents[:_FOLDERS_BELOW]))
