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
from eve_vl.utils.errors import SharedError

PACKAGE = Path(eve_vl.__file__).parent
FIELDS_OF_A_MACHINE = {
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
"""Fields that may differ. Data may lie elsewhere on another machine; its content is compared."""
FIX = "start all processes with the same command, code and data"


def require_equal_flags(config: Config) -> None:
    """Raise SharedError if processes have different flags, code or versions of torch."""
    if processes.world_size() == 1:
        return
    values = {"torch": torch.__version__, "the code": _hash_of_code()}
    for name, value in flat(to_dict(config)).items():
        if name not in FIELDS_OF_A_MACHINE:
            values[f"--{name}".replace("_", "-")] = value
    values_of_all = processes.gather_objects(values)
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


def _hash_of_code() -> str:
    """Return a hash of all Python files of the package."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
