"""Where the images of published files lie: next to the file, or next to its folder.

COCO's own tree has annotations/captions_val2017.json and val2017/; VQA's has Questions/,
Annotations/ and Images/mscoco/train2014/.
"""

from collections.abc import Iterable
from pathlib import Path


def folders_of_subset(subset: str) -> tuple[str, ...]:
    """Return where below an image root the images of a part such as val2014 may lie."""
    return (subset, f"images/{subset}", f"Images/mscoco/{subset}", "")


def image_root(path: Path, folders: Iterable[str]) -> Path:
    """Return the folder of a file, or the one above if only that has one of some folders."""
    folders = [folder for folder in folders if folder]
    for root in (path.parent, path.parent.parent):
        if any((root / folder).is_dir() for folder in folders):
            return root
    return path.parent
