"""Flags, code and data that all processes of a training must have in common.

Processes with different ones would train weights that differ from process to process, without a
word: each applies its own learning rate, and sends its own gradients.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch

import eve_vl
from eve_vl.config import Config, flat, to_dict
from eve_vl.data import fingerprint
from eve_vl.train import processes
from eve_vl.utils import file_io
from eve_vl.utils.errors import SharedError

PACKAGE = Path(eve_vl.__file__).parent
FIELDS_OF_A_MACHINE = {
    "recipe",
    "out",
    "init",
    "tokenizer.path",
    "train.device",
    "train.threads",
    "data.train",
    "data.val",
    "data.test",
    "data.image_root",
    "data.split_file",
    "data.num_workers",
}
"""Fields that may differ: a machine may have its data and files in other folders.

The content of the data is compared (`require_equal_data`), and all settings of a recipe.
"""
FIX = "start all processes with the same command, code and data"


def require_equal_flags(config: Config) -> None:
    """Raise SharedError if processes have different flags, code or versions of torch."""
    if processes.world_size() == 1:
        return
    values_of_all = processes.from_each(lambda: _values(config))
    for rank, values_of_one in enumerate(values_of_all):
        for name, expected in values_of_all[0].items():
            value = values_of_one.get(name)
            if value != expected:
                raise SharedError(
                    f"process {rank} has {name} {value}, process 0 has {expected}; {FIX}"
                )


def require_equal_data(fingerprints: list[dict[str, Any]]) -> None:
    """Raise SharedError if processes read different rows. fingerprints: one for each process."""
    expected = fingerprints[0]
    for rank, prints in enumerate(fingerprints):
        if fingerprint.short(prints) != fingerprint.short(expected):
            change = fingerprint.difference(expected, prints)
            raise SharedError(f"process {rank} has other data than process 0: {change}; {FIX}")


def _values(config: Config) -> dict[str, Any]:
    """Return what processes must have in common, by name. Raises UserError."""
    values = {"torch": torch.__version__, "the code": _hash_of_code()}
    for name, value in flat(to_dict(config)).items():
        if name not in FIELDS_OF_A_MACHINE:
            values[f"--{name}".replace("_", "-")] = value
    # an own task: its package or file, which may lie elsewhere
    values["--code"] = sorted(version for _, version in config.code)
    for name, path in vars(config.task).items():
        if isinstance(path, Path):
            flag = f"--task.{name}".replace("_", "-")
            values[flag] = f"a file with the hash {_hash_of_file(path)}"
    return values


def _hash_of_file(path: Path) -> str:
    """Return a hash of a file's content. Raises UserError."""
    with file_io.reading(path):
        return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def _hash_of_code() -> str:
    """Return a hash of all Python files of the package."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
