"""Data of run.py and benchmarks/paper.

Scenes and phantoms are built in. The examples build emoji, icons and photos.
"""

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import atomic_file, write_file

UNSEEN_STYLE = "twemoji"
DEV_SETS = ("iconoir", "streamline-plump-color")
"""Training icons kept for tuning: black lines, and flat and coloured ones, like the test sets."""
SEEN, NOVEL = "_seen", "_novel"


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data paths of a task."""

    train: str
    val: str
    """Validation during training; not used for reported numbers."""
    read: Mapping[str, Mapping[str, str]]
    """Evaluation data: by split (`val`, `test`), then by the suffix of the metrics' names."""
    root: Path | None = None
    """Folder of the images, if it differs from the folder of the rows."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set with its fine-tuning jobs."""

    family: str
    """Key of an arm's stages."""
    data: Callable[[Path, Path], Data]
    """Function (folder of the built set, folder for derived files) → data paths."""
    jobs: tuple[str, ...] = ("retrieval",)
    """Fine-tuning jobs."""


def scenes(_folder: Path, _out: Path) -> Data:
    """Return the synthetic scenes.

    `…_novel` has combinations of shape and colour that training never shows.
    """
    read = {"val": {"": "scenes:val"}, "test": {"": "scenes:test", NOVEL: "scenes:test_novel"}}
    return Data(train="scenes:train", val="scenes:val", read=read)


def scenes_hard(_folder: Path, _out: Path) -> Data:
    """Return the harder synthetic scenes.

    They have more shapes, counting, relations and captions of two sentences.
    """
    read = {name: {"": f"scenes:hard_{name}"} for name in ("val", "test")}
    return Data(train="scenes:hard_train", val="scenes:hard_val", read=read)


def phantoms(_folder: Path, _out: Path) -> Data:
    """Return the synthetic radiographs."""
    return Data(
        train="phantoms:train",
        val="phantoms:val",
        read={name: {"": f"phantoms:{name}"} for name in ("val", "test")},
    )


def emoji(folder: Path, _out: Path) -> Data:
    """Return emoji; the test set has unseen concepts in the styles of training."""
    train, val, test = (str(folder / f"{name}.jsonl") for name in ("train", "val", "test_concepts"))
    return Data(train=train, val=val, read={"val": {"": val}, "test": {"": test}})


def emoji_style(folder: Path, out: Path) -> Data:
    """Return emoji with an unseen style.

    The test set has unseen concepts. `…_seen` has concepts that training shows in the other styles.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for split in ("train", "val", "test_concepts"):
        lines = (folder / f"{split}.jsonl").read_text("utf-8").splitlines(keepends=True)
        is_unseen = [json.loads(line)["vendor"] == UNSEEN_STYLE for line in lines]
        for name, kept in (("others", False), ("unseen", True)):
            chosen = [line for line, unseen in zip(lines, is_unseen, strict=True) if unseen is kept]
            if not chosen:
                raise UserError(
                    f"{folder}: {split}.jsonl has no row in the {name} style, vendor {UNSEEN_STYLE}"
                )
            found[split, name] = out / f"{split}_{name}.jsonl"
            write_file(found[split, name], "".join(chosen))
    read = {
        "val": {"": str(found["val", "unseen"])},
        "test": {"": str(found["test_concepts", "unseen"]), SEEN: str(found["train", "unseen"])},
    }
    return Data(
        train=str(found["train", "others"]), val=str(found["val", "others"]), read=read, root=folder
    )


def icons(folder: Path, _out: Path) -> Data:
    """Return icons; the test sets are unseen."""
    train, val, test = (str(folder / f"{name}.parquet") for name in ("train", "val", "test_sets"))
    return Data(train=train, val=val, read={"val": {"": val}, "test": {"": test}})


def icons_dev(folder: Path, out: Path) -> Data:
    """Return icons for tuning: two sets, kept from training, are `val` and `test`."""
    out.mkdir(parents=True, exist_ok=True)
    rows = hashlib.sha1((folder / "train.parquet").read_bytes()).hexdigest()[:8]
    paths = {True: out / f"dev_{rows}.parquet", False: out / f"train_{rows}.parquet"}
    if not all(path.is_file() for path in paths.values()):
        arrow, parquet = map(importlib.import_module, ("pyarrow.compute", "pyarrow.parquet"))
        table = parquet.read_table(folder / "train.parquet")
        is_dev = arrow.is_in(
            table["set"], value_set=importlib.import_module("pyarrow").array(DEV_SETS)
        )
        for kept, path in paths.items():
            with atomic_file(path) as temporary:
                parquet.write_table(
                    table.filter(is_dev if kept else arrow.invert(is_dev)),
                    temporary,
                    row_group_size=2000,
                )
    dev = str(paths[True])
    return Data(train=str(paths[False]), val=dev, read={"val": {"": dev}, "test": {"": dev}})


def flickr8k(folder: Path, _out: Path) -> Data:
    """Return photographs with five captions each: 5,500, 500 and 1,000 for testing."""
    train, val, test = (
        str(folder / "flickr8k" / f"{name}.parquet") for name in ("train", "val", "test")
    )
    return Data(train=train, val=val, read={"val": {"": val}, "test": {"": test}})


TASKS = {
    "scenes": Task(family="scenes", data=scenes, jobs=("vqa", "nlvr2", "retrieval")),
    "scenes_hard": Task(family="scenes", data=scenes_hard, jobs=("vqa", "nlvr2", "retrieval")),
    "phantoms": Task(family="phantoms", data=phantoms, jobs=("vqa", "retrieval")),
    "emoji": Task(family="emoji", data=emoji),
    "emoji_style": Task(family="emoji", data=emoji_style),
    "icons": Task(family="icons", data=icons),
    "icons_dev": Task(family="icons", data=icons_dev),
    "flickr8k": Task(family="photos", data=flickr8k),
}
FAMILIES = tuple(dict.fromkeys(task.family for task in TASKS.values()))
